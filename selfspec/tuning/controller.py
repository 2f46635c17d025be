"""During generation: how well the exits draft here and now, and which exit and draft length that asks for.

Acceptance is estimated from rounds that are over, so nothing here looks at a token about to be drawn: in
greedy and coupled mode the text stays the same, in rejection mode its distribution does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from selfspec.tuning.round_costs import CostModel

MEMORY = 32.0
"""Draft tokens that an estimate is taken over (exponentially weighted)."""
UNSEEN_MEMORY = 128.0
"""The same for an exit that is only read now and then."""
DRIFT_WEIGHT = 2.0
"""Misses that speak for the profile being right."""
PRIOR_WEIGHT = 4.0
"""Draft tokens that the prior counts as, at any time: what an exit that was not looked at is believed by."""
HIGHEST = 0.99
WATCH_BUDGET = 0.01
"""Share of a round's time that reading other exits may take, on average."""
SWITCH_GAIN = 1.02
"""Another exit must be predicted to be this much faster."""
_DRIFTS = (0.1, 0.3, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0, 5.0)
"""Text this many times as hard as the profile's is what exits are kept in reserve for."""
_SPREAD = 4
"""Exits of all depths that are kept in reserve besides."""


@dataclass(frozen=True)
class Plan:
    """Of the next round."""

    exit_layer: int
    draft_length: int
    watched: int | None = None
    """Another exit to read on the tokens that this round verifies."""


@dataclass(frozen=True)
class RoundCosts:
    """Seconds of a round at one batch size and context."""

    seconds: Mapping[int, Sequence[float]]
    """Exit layer -> seconds by draft length, from 0."""
    head: float
    """Seconds of reading one exit."""

    @classmethod
    def of(
        cls, costs: CostModel, exits: Sequence[int], longest: int, rows: int, context: float, checked: bool
    ) -> RoundCosts:
        """Read off a fitted model."""
        lengths = torch.arange(longest + 1, dtype=torch.float64)
        at = torch.tensor(exits, dtype=torch.float64)[:, None]
        looks = (lengths > 0) & checked
        seconds = costs.round_seconds(at, lengths, rows=rows, context=context, checked=looks)
        table = dict(zip(exits, seconds.clamp(min=1e-9).tolist(), strict=True))
        # Without drafts the exit layer makes no difference but what the fit leaves over.
        plain = sum(row[0] for row in table.values()) / len(table)
        return cls({e: [plain, *row[1:]] for e, row in table.items()}, costs.step_seconds)


@dataclass
class Estimate:
    """Chance that a draft token of one exit stands: exponentially weighted counts."""

    prior: float
    hits: float = 0.0
    trials: float = 0.0

    def add(self, hits: float, trials: float) -> None:
        """`hits` of `trials` draft tokens stood; older ones count less for it."""
        self._keep(math.exp(-trials / MEMORY))
        self.hits += hits
        self.trials += trials

    def fade(self, trials: float) -> None:
        """`trials` tokens went by unseen: what was seen before them says less of the text here."""
        self._keep(math.exp(-trials / UNSEEN_MEMORY))

    def chance(self, drift: float) -> float:
        """What was seen, and the prior where that is little; `drift`: how much harder the text is."""
        expected = 1 - min((1 - self.prior) * drift, 1.0)
        return min((self.hits + PRIOR_WEIGHT * expected) / (self.trials + PRIOR_WEIGHT), HIGHEST)

    def _keep(self, share: float) -> None:
        self.hits *= share
        self.trials *= share


@dataclass
class Controller:
    """Chooses exit layer and draft length before every round.

    A text that is harder for one exit is harder for all: misses of the exits that are looked at, over the
    misses expected of them, say how far the prior of the others is off.
    """

    costs: RoundCosts
    prior: Mapping[int, float]
    longest: int
    exit_layer: int
    may_watch: bool = True
    """Whether other exits may be read (not in rejection mode, where draws would be used up)."""
    _estimates: dict[int, Estimate] = field(default_factory=dict)
    _reserve: list[int] = field(default_factory=list)
    _misses: float = 0.0
    _expected: float = 0.0
    _since_watched: int = 0
    _turn: int = 0
    _draft_length: int = 0

    def __post_init__(self) -> None:
        self._estimates = {e: Estimate(chance) for e, chance in self.prior.items() if e in self.costs.seconds}
        best = {self._best(drift)[1] for drift in _DRIFTS}
        known = sorted(self._estimates)
        spread = {known[round(i * (len(known) - 1) / (_SPREAD - 1))] for i in range(_SPREAD)}
        self._reserve = sorted(best | spread | {self.exit_layer})
        self._choose()

    def plan(self) -> Plan:
        """The next round."""
        return Plan(self.exit_layer, self._draft_length, self._next_watched())

    def tell_drafted(self, length: int, accepted: float) -> None:
        """A round drafted `length` tokens per row, of which `accepted` stood (a mean over rows)."""
        if length:
            failed = accepted < length if accepted == int(accepted) else expected_failures(accepted, length)
            self._count(self.exit_layer, accepted, accepted + failed)
        self._choose()

    def tell_watched(self, exit_layer: int, hits: int, trials: int) -> None:
        """`exit_layer` was read on `trials` verified tokens and agreed on `hits`."""
        self._count(exit_layer, hits, trials)

    @property
    def drift(self) -> float:
        """Misses over those that the profile expected; above 1 for harder text."""
        return (self._misses + DRIFT_WEIGHT) / (self._expected + DRIFT_WEIGHT)

    def chance(self, exit_layer: int) -> float:
        """Estimated chance that a draft token of this exit stands."""
        return self._estimates[exit_layer].chance(self.drift)

    def _count(self, exit_layer: int, hits: float, trials: float) -> None:
        estimate = self._estimates[exit_layer]
        estimate.add(hits, trials)
        kept = math.exp(-trials / MEMORY)
        self._misses = self._misses * kept + trials - hits
        self._expected = self._expected * kept + trials * (1 - estimate.prior)
        for other, unseen in self._estimates.items():
            if other != exit_layer:
                unseen.fade(trials)

    def _choose(self) -> None:
        """The fastest exit and length by the present estimates; the exit changes for a clear gain only."""
        speed, exit_layer, length = self._fastest(self._reserve)
        if exit_layer != self.exit_layer:
            stay, _, stay_length = self._fastest([self.exit_layer])
            if speed < SWITCH_GAIN * stay:
                exit_layer, length = self.exit_layer, stay_length
        self.exit_layer, self._draft_length = exit_layer, length

    def _fastest(self, exits: Sequence[int]) -> tuple[float, int, int]:
        drift = self.drift
        return max(self._speed(e, self._estimates[e].chance(drift)) for e in exits)

    def _best(self, drift: float) -> tuple[float, int, int]:
        return max(self._speed(e, estimate.chance(drift)) for e, estimate in self._estimates.items())

    def _speed(self, exit_layer: int, chance: float) -> tuple[float, int, int]:
        """(tokens per second, exit layer, draft length) of the best length at an exit."""
        seconds = self.costs.seconds[exit_layer]
        best, best_length = 1 / seconds[0], 0
        tokens, power = 1.0, 1.0
        for length in range(1, self.longest + 1):
            power *= chance
            tokens += power
            if tokens / seconds[length] > best:
                best, best_length = tokens / seconds[length], length
        return best, exit_layer, best_length

    def _next_watched(self) -> int | None:
        """Which exit to read now: in turns, within the budget; while resting also the one that drafted."""
        seconds = self.costs.seconds[self.exit_layer][self._draft_length]
        self._since_watched += 1
        if not self.may_watch or self._since_watched * WATCH_BUDGET * seconds < self.costs.head:
            return None
        others = [e for e in self._reserve if e != self.exit_layer or not self._draft_length]
        if not others:
            return None
        self._since_watched = 0
        self._turn += 1
        return others[self._turn % len(others)]


def expected_failures(accepted: float, length: int) -> float:
    """Share of rows with a rejected token when rows of a batch accept `accepted` of `length` on average.

    From the chance c with c (1 - c^K) / (1 - c) = accepted, by bisection: 1 - c^K.
    """
    low, high = 0.0, 1.0
    for _ in range(20):
        c = (low + high) / 2
        mean = sum(c**i for i in range(1, length + 1))
        low, high = (c, high) if mean < accepted else (low, c)
    return 1 - low**length
