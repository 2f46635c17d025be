"""What is known of a wrapped model: costs of its passes, and how often each way of drafting was right."""

import math
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property

from selfspec.drafting.lookup import MatchRates
from selfspec.drafting.margins import MarginRates
from selfspec.pacing import Rate
from selfspec.round import Arm
from selfspec.shapes import ShapePlan
from selfspec.tuning.costs import PassCosts
from selfspec.tuning.reading import SAMPLES, Agreement

LONGEST_CHOSEN = 10
"""Longest draft whose length is chosen before it begins."""
_FORGETTING = 0.99
"""Weight of what was seen, per round: about the last hundred rounds count."""
_PRIOR_WEIGHT = 4.0
_PRIOR_AGREEMENT = 0.3
"""Agreement of an early layer before anything is known of the model."""
_ROUNDING = {4: 0.9, 8: 0.96}
"""Agreement of the whole model in few bits with itself, before it was tried."""
_ENOUGH = 2 * SAMPLES
_HIGHEST = 0.98


@dataclass
class Tally:
    """Draft tokens that the target accepted, and those that it looked at; old ones fade."""

    accepted: float = 0.0
    tested: float = 0.0

    def note(self, accepted: int, tested: int) -> None:
        self.accepted = self.accepted * _FORGETTING + accepted
        self.tested = self.tested * _FORGETTING + tested


@dataclass
class Knowledge:
    """Shared by the calls of one wrapped model.

    Args:
        n_layers: L.
        time_exact: times the model's own passes, called when their costs are first asked for.
        time_low_bit: the same for the view's passes, None where there is no view.
        bits: of the view.
    """

    n_layers: int
    time_exact: Callable[[], PassCosts]
    time_low_bit: Callable[[], PassCosts] | None
    bits: int
    agreement: dict[int, float] = field(default_factory=dict)
    """Exit layer -> agreements counted along prompts."""
    samples: int = 0
    tallies: dict[tuple[Arm, bool], Tally] = field(default_factory=dict)
    """By arm, for greedy and for sampled calls."""
    matches: dict[bool, MatchRates] = field(default_factory=lambda: {False: MatchRates(), True: MatchRates()})
    margins: dict[tuple[Arm, bool], MarginRates] = field(default_factory=dict)
    """What an arm's margins are worth, for greedy and for sampled calls."""
    plain: dict[int, Rate] = field(default_factory=dict)
    """Speed without drafting by batch size: measured once, so that later calls need not."""
    _rounds: dict[tuple[Arm | None, int, int, ShapePlan], float] = field(default_factory=dict)
    """Seconds of the rounds that were asked for: every call asks for all of them."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @cached_property
    def exact(self) -> PassCosts:
        """Costs of the model's own passes."""
        return self.time_exact()

    @cached_property
    def low_bit(self) -> PassCosts | None:
        """Costs of the view's passes, None where there is no view."""
        return None if self.time_low_bit is None else self.time_low_bit()

    def time(self) -> None:
        """Time what was not timed yet."""
        _ = self.exact, self.low_bit

    @property
    def wants_reading(self) -> bool:
        """Whether the exits should be read along another prompt."""
        return self.samples < _ENOUGH

    def read(self, agreement: Agreement) -> None:
        """Take up what the exits said along a prompt."""
        self.samples += agreement.samples
        for exit_layer, count in agreement.counts.items():
            self.agreement[exit_layer] = self.agreement.get(exit_layer, 0) + count

    def margin_rates(self, arm: Arm, sampled: bool) -> MarginRates:
        with self._lock:  # another call may add its arms meanwhile
            if (arm, sampled) not in self.margins:
                known = [rates for (_, kind), rates in self.margins.items() if kind == sampled]
                # What margins are worth differs little between exits: begin with those that were used most.
                most = max(known, key=lambda rates: sum(rates.tested), default=MarginRates())
                self.margins[arm, sampled] = MarginRates(list(most.accepted), list(most.tested))
            return self.margins[arm, sampled]

    def plain_rate(self, rows: int) -> Rate:
        """The speed without drafting of so many rows together."""
        return self.plain.setdefault(rows, Rate())

    def tally(self, arm: Arm, sampled: bool) -> Tally:
        return self.tallies.setdefault((arm, sampled), Tally())

    def chances(self, arms: Iterable[Arm], sampled: bool) -> dict[Arm, float]:
        """Chance of acceptance of each arm: what prompts and rounding promise, and what drafting has shown.

        Generated text is easier or harder than a prompt: an arm that was not tried is taken to miss more
        or less by the same factor as those that were.
        """
        arms = list(arms)
        misses = {arm: 1 - self._expected(arm) for arm in arms}
        tried = {arm: self.tally(arm, sampled) for arm in arms}
        weight = max(16.0, float(self.samples))
        found = sum(t.tested - t.accepted for t in tried.values())
        expected = sum(misses[arm] * t.tested for arm, t in tried.items())
        usual = max(misses.values(), default=0.0)
        easier = (found + weight * usual) / (expected + weight * usual) if usual else 1.0
        chances = {}
        for arm, t in tried.items():
            prior = 1 - misses[arm] * easier
            chances[arm] = min(max((prior * 16 + t.accepted) / (16 + t.tested), 0.0), _HIGHEST)
        return chances

    def least_chance(self, arm: Arm, sampled: bool) -> float:
        """What an arm's chance is at least, by what was seen of it alone and with three standard errors.

        Agresti and Coull (1998): two hits and two misses are added, so that nothing seen is 0. What exits
        said along prompts is seen, too; what rounding promises is not.
        """
        tally = self.tally(arm, sampled)
        read = min(self.samples, SAMPLES) if not arm.low_bit else 0
        hits = tally.accepted + (read * self.agreement.get(arm.exit_layer, 0) / self.samples if read else 0.0)
        seen = tally.tested + read + 4
        share = (hits + 2) / seen
        return max(0.0, share - 3 * math.sqrt(share * (1 - share) / seen))

    def round_seconds(self, arm: Arm | None, length: int, rows: int, shapes: ShapePlan) -> float:
        """Seconds of a round with `length` drafts by `arm`; None: they cost nothing, or there are none."""
        at = arm, length, rows, shapes
        if at not in self._rounds:
            self._rounds[at] = self._round_seconds(*at)
        return self._rounds[at]

    def _round_seconds(self, arm: Arm | None, length: int, rows: int, shapes: ShapePlan) -> float:
        tokens = rows * shapes.width(rows, length + 1)
        if arm is None or not length:
            return self.exact.seconds(self.n_layers, tokens)
        if arm.low_bit and self.low_bit is not None:
            step = self.low_bit.seconds(arm.exit_layer, rows)
            return length * step + self.exact.seconds(self.n_layers, tokens)
        own = rows * shapes.width(rows, 1)
        drafting = length * self.exact.seconds(arm.exit_layer, own)
        last = self.exact.seconds(arm.exit_layer, own, heads=0)
        return drafting + last + self.exact.seconds(self.n_layers - arm.exit_layer, tokens)

    def step_seconds(self, arm: Arm, tokens: int) -> float:
        """Seconds of a draft step over `tokens` tokens, all rows together."""
        costs = self.low_bit if arm.low_bit and self.low_bit is not None else self.exact
        return costs.seconds(arm.exit_layer, tokens)

    def next_token_seconds(self, arm: Arm, rows: int) -> float:
        """Seconds that one more draft token costs: its draft step, and a wider verification."""
        first = 0 if arm.low_bit else arm.exit_layer
        narrow, wide = (self.exact.seconds(self.n_layers - first, rows * m) for m in (4, 12))
        return self.step_seconds(arm, rows) + max(wide - narrow, 0.0) / 8

    def _expected(self, arm: Arm) -> float:
        counted = self.agreement.get(arm.exit_layer, 0) + _PRIOR_WEIGHT * _PRIOR_AGREEMENT
        exact = counted / (self.samples + _PRIOR_WEIGHT) if arm.exit_layer < self.n_layers else 1.0
        return exact * (_ROUNDING[self.bits] if arm.low_bit else 1.0)


def expected_tokens(chance: float, length: int) -> float:
    """Tokens committed by a round of `length` drafts (Leviathan et al. 2022, equation 1)."""
    return sum(chance**i for i in range(length + 1))
