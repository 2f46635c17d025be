"""How far to draft: as long as the draft is sure of itself, by margins calibrated on what the target said.

The target chooses another token than the draft when the difference of their scores outweighs the draft's
margin, the gap between its best candidate and the next. In coupled mode both scores hold the same noise, so a
margin tells more than the token's probability: an unlikely token that the noise put far ahead is safe.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from selfspec.rows import Rows

_EDGES = (0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Margins [logits] from which on a draft counts as surer."""
_PRIOR = (0.45, 0.5, 0.55, 0.6, 0.65, 0.72, 0.8, 0.88, 0.94, 0.97, 0.99)
_PRIOR_WEIGHT = 3.0
_FORGETTING = 0.995
_UNSURE = 0.9
"""A token with a lower chance gets a sibling, where the settings ask for siblings."""


@dataclass
class MarginRates:
    """How often draft tokens stood, by their margin; shared by the calls of a model."""

    accepted: list[float] = field(default_factory=lambda: [p * _PRIOR_WEIGHT for p in _PRIOR])
    tested: list[float] = field(default_factory=lambda: [_PRIOR_WEIGHT] * len(_PRIOR))

    def chance(self, margin: float) -> float:
        """Chance that a token with this margin stands, given that those before it do."""
        bucket = bisect_right(_EDGES, margin)
        return self.accepted[bucket] / self.tested[bucket]

    def note(self, margin: float, stood: bool) -> None:
        """The target looked at a token with this margin."""
        bucket = bisect_right(_EDGES, margin)
        self.accepted[bucket] = self.accepted[bucket] * _FORGETTING + stood
        self.tested[bucket] = self.tested[bucket] * _FORGETTING + 1

    @property
    def usual(self) -> float:
        """Chance of a token of which nothing is known yet."""
        return sum(self.accepted) / sum(self.tested)


@dataclass
class MarginStop:
    """Decides token by token whether to draft another; lives as long as a call.

    Args:
        rates: calibration, learned further from every round.
        least: drafting goes on while the chance that all tokens so far stand is at least this. Where another
            token takes d seconds and rounds yield r tokens a second, it pays above r d / (its own chance).
    """

    rates: MarginRates
    least: float = 0.5
    _drafted: dict[int, tuple[int, list[int], list[float]]] = field(default_factory=dict)
    _chances: list[float] = field(default_factory=list)
    unsure: list[int] = field(default_factory=list)
    """Depths of this round at which some row was not sure."""

    def open(self, rows: Rows) -> None:
        """A round begins: learn from the one before, by the text that came."""
        for row, (start, tokens, margins) in self._drafted.items():
            came = rows.committed(row, start)
            for token, margin, actual in zip(tokens, margins, came):  # noqa: B905
                self.rates.note(margin, token == actual)
                if token != actual:
                    break
        active = zip(rows.active, rows.cached, strict=True)
        self._drafted = {row: (cached + 1, [], []) for row, cached in active}
        self._chances = [1.0] * len(rows.active)
        self.unsure = []

    def going(self, tokens: Tensor, values: Tensor) -> Sequence[bool]:
        """Which rows draft on, after tokens [B] whose two best scores are values [B, 2]."""
        margins = (values[:, 0] - values[:, 1]).tolist()
        drafted = list(self._drafted.values())
        depth, unsure = len(drafted[0][1]), False
        for i, (token, margin) in enumerate(zip(tokens.tolist(), margins, strict=True)):
            if self._chances[i] >= self.least or depth == 0:
                drafted[i][1].append(token)
                drafted[i][2].append(margin)
                chance = self.rates.chance(margin)
                unsure |= chance < _UNSURE
                self._chances[i] *= chance
        if unsure:
            self.unsure.append(depth)
        return [chance >= self.least for chance in self._chances]
