"""During generation: how well the exits draft here and now, and which exit and draft length that asks for.

It begins with what replay found best for the workload and moves as far as the text at hand differs from that.
Acceptance is estimated from rounds that are over, so nothing here looks at a token about to be drawn: in
greedy and coupled mode the text stays the same, in rejection mode its distribution does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter

from selfspec.tuning.cost_table import CostTable, Option

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
"""Share of the rounds' time that reading other exits, or probing, may take."""
SWITCH_GAIN = 1.02
"""Another exit must be predicted to be this much faster."""
_DRIFTS = (0.1, 0.3, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0, 5.0)
"""Text this many times as hard as the profile's is what exits are kept in reserve for."""
_SPREAD = 4
"""Exits of all depths that are kept in reserve besides."""


@dataclass(frozen=True)
class Plan:
    """Of the next round."""

    option: Option
    watched: int | None = None
    """Another exit to read on the tokens that this round verifies."""


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
    """Chooses an option before every round.

    A text that is harder for one exit is harder for all: misses of the exits that are looked at, over the
    misses expected of them, say how far the prior of the others is off.
    """

    costs: CostTable
    prior: Mapping[int, float]
    option: Option
    """What the profile found best; then the one chosen last."""
    may_watch: bool = True
    """Whether other exits may be read. Not in rejection mode, where choosing a token also notes what it was
    drawn from; there a draft of one token probes now and then."""
    _estimates: dict[int, Estimate] = field(default_factory=dict)
    _gains: dict[int, list[tuple[Option, float]]] = field(default_factory=dict)
    """Exit layer -> its options with what they gain over independent chances."""
    _reserve: list[int] = field(default_factory=list)
    _misses: float = 0.0
    _expected: float = 0.0
    _saved: float = 0.0
    """Seconds of the budget that are left."""
    _read_seconds: float = 0.0
    _turn: int = 0
    _longest: int = 0

    def __post_init__(self) -> None:
        self._estimates = {e: Estimate(self.prior[e]) for e in self.costs.options}
        self._gains = {
            e: [(option, self._gain(option)) for option in options]
            for e, options in self.costs.options.items()
        }
        self._longest = max(option.draft_length for own in self.costs.options.values() for option in own)
        self._read_seconds = self.costs.read_seconds
        known = sorted(self._estimates)
        best = {self._fastest(known, drift)[1].exit_layer for drift in _DRIFTS}
        spread = {known[round(i * (len(known) - 1) / (_SPREAD - 1))] for i in range(_SPREAD)}
        self._reserve = sorted(best | spread | {self.option.exit_layer})
        if self.option not in self.costs.options[self.option.exit_layer]:  # outside the limits of this call
            self.option = self.costs.options[self.option.exit_layer][0]
            self._choose()

    def plan(self) -> Plan:
        """The next round."""
        if not self.may_watch:
            return Plan(self._probe())
        return Plan(self.option, self._next_watched())

    def tell_round(self, option: Option, accepted: float, rejected: float, seconds: float) -> None:
        """A round ran by `option`: draft tokens that stood and that were replaced, over all rows."""
        self._saved = min(self._saved + WATCH_BUDGET * seconds, 2 * self._read_seconds)
        if accepted + rejected:
            misses = min(rejected * self._misses_told(option), accepted + rejected)
            self._count(option.exit_layer, accepted + rejected - misses, accepted + rejected)
        self._choose()

    def tell_watched(self, exit_layer: int, hits: int, trials: int, seconds: float) -> None:
        """`exit_layer` was read on `trials` verified tokens, agreed on `hits`, and took `seconds`."""
        self._saved -= seconds
        self._read_seconds += (seconds - self._read_seconds) / 2
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
        """The fastest option by the present estimates; the exit changes for a clear gain only."""
        drift = self.drift
        speed, option = self._fastest(self._reserve, drift)
        if option.exit_layer != self.option.exit_layer:
            stay_speed, stay = self._fastest([self.option.exit_layer], drift)
            if speed < SWITCH_GAIN * stay_speed:
                option = stay
        self.option = option

    def _fastest(self, exits: Sequence[int], drift: float) -> tuple[float, Option]:
        return max((way for e in exits for way in self._speeds(e, drift)), key=itemgetter(0))

    def _speeds(self, exit_layer: int, drift: float) -> list[tuple[float, Option]]:
        """Tokens per second of every option of an exit."""
        sums = accepted_tokens(self._estimates[exit_layer].chance(drift), self._longest)
        found = []
        for option, gain in self._gains[exit_layer]:
            tokens = min(1 + sums[option.draft_length] * gain, option.draft_length + 1)
            # Where a stop rule ends drafts, a round is as long as what stands of it.
            seconds = option.least_seconds + option.seconds_per_token * tokens
            found.append((tokens / seconds, option))
        return found

    def _gain(self, option: Option) -> float:
        """Accepted tokens as replayed over those of independent chances: text comes in hard and easy runs."""
        expected = accepted_tokens(self.prior[option.exit_layer], option.draft_length)[-1]
        return (option.tokens - 1) / expected if expected else 1.0

    def _misses_told(self, option: Option) -> float:
        """Misses along the text for one rejection: drafts try more tokens where the text is easy."""
        trials = option.tokens - 1 + option.rejected
        if not option.rejected or not trials:
            return 1.0
        return (1 - self.prior[option.exit_layer]) * trials / option.rejected

    def _next_watched(self) -> int | None:
        """Which exit to read now: in turns, within the budget; while resting also the one that drafted."""
        if self._saved < self._read_seconds:
            return None
        resting = not self.option.draft_length
        others = [e for e in self._reserve if e != self.option.exit_layer or resting]
        if not others:
            return None
        self._turn += 1
        return others[self._turn % len(others)]

    def _probe(self) -> Option:
        """The option; while it rests, now and then a draft of one token, within the budget."""
        options = self.costs.options[self.option.exit_layer]
        if self.option.draft_length or len(options) < 2:
            return self.option
        self._read_seconds = options[1].seconds - options[0].seconds
        if self._saved < self._read_seconds:
            return self.option
        self._saved -= self._read_seconds
        return options[1]


def accepted_tokens(chance: float, longest: int) -> list[float]:
    """Draft tokens that stand of 0, 1, … drafts, where each stands with the same chance [longest + 1]."""
    sums, power = [0.0], 1.0
    for _ in range(longest):
        power *= chance
        sums.append(sums[-1] + power)
    return sums
