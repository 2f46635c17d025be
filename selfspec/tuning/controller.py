"""During generation: how well each arm drafts here and now, and which arm and draft length that asks for.

It begins with what replay found best for the workload and moves as far as the text at hand differs from that.
Acceptance is estimated from rounds that are over, so nothing here looks at a token about to be drawn: in
greedy and coupled mode the text stays the same, in rejection mode its distribution does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter

from selfspec.round import Arm
from selfspec.tuning.cost_table import CostTable, Option
from selfspec.tuning.estimates import Estimates, accepted_tokens

WATCH_BUDGET = 0.01
"""Share of the rounds' time that looking at other arms may take; what is looked at on credit is paid back."""
UNEXPECTED = 0.4
"""While drafting rests, an arm that is believed to be right less often than this, and at a look is right more
often, is a sign that the text has become easier."""
LOOKS_ON_CREDIT = 8
"""Looks that are taken before their time is saved, at most, as long as each of them finds such a sign."""
SWITCH_GAIN = 1.02
"""Another arm must be predicted to be this much faster."""
_DRIFTS = (0.1, 0.3, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0, 5.0)
"""Text this many times as hard as the profile's is what arms are kept in reserve for."""
_SPREAD = 4
"""Arms of all depths that are kept in reserve besides."""


@dataclass(frozen=True)
class Plan:
    """Of the next round."""

    option: Option
    length: int
    """Draft tokens: the option's, or none where the caller is silenced."""
    watched: Arm | None = None
    """Another arm, an early exit, to read on the tokens that this round verifies."""
    probing: bool = False
    """Whether its draft is a look: its speed says nothing of what drafting gives."""


@dataclass
class Controller:
    """Chooses an option before every round.

    Now and then it looks at another arm. An early exit can be read on the layers that a round runs anyway. A
    view cannot: while drafting rests, a draft of one token probes it.
    """

    costs: CostTable
    prior: Mapping[Arm, float]
    option: Option
    """What the profile found best; then the one chosen last."""
    may_watch: bool = True
    """Whether other exits may be read. Not in rejection mode, where choosing a token also notes what it was
    drawn from; there a draft of one token probes now and then."""
    _estimates: Estimates = field(init=False)
    _gains: dict[Arm, list[tuple[Option, float]]] = field(default_factory=dict)
    """The options of every arm with what they gain over independent chances."""
    _reserve: list[Arm] = field(default_factory=list)
    _saved: float = 0.0
    """Seconds of the budget that are left; below 0 what was looked at on credit."""
    _stirring: bool = False
    """Whether the last look was a sign of easier text: see `UNEXPECTED`."""
    _silenced: bool = False
    _read_seconds: float = 0.0
    _turn: int = 0
    _longest: int = 0

    def __post_init__(self) -> None:
        self._estimates = Estimates.of({arm: self.prior[arm] for arm in self.costs.options})
        self._gains = {
            arm: [(option, self._gain(option)) for option in options]
            for arm, options in self.costs.options.items()
        }
        self._longest = max(option.draft_length for own in self.costs.options.values() for option in own)
        self._read_seconds = self.costs.read_seconds
        known = sorted(self.costs.options)
        best = {self._fastest(known, drift)[1].arm for drift in _DRIFTS}
        spread = {known[round(i * (len(known) - 1) / (_SPREAD - 1))] for i in range(_SPREAD)}
        own = self.costs.options.get(self.option.arm, ())
        self._reserve = sorted(best | spread | ({self.option.arm} if own else set()))
        if self.option not in own:  # outside the limits of this call, or by a view that is not there
            self.option = (own or self.costs.options[known[0]])[0]
            self._choose()

    def plan(self, silenced: bool = False) -> Plan:
        """The next round: now and then with a look at another arm, in turns and within the budget.

        Args:
            silenced: whether nothing is to be drafted, but to look.
        """
        self._silenced = silenced
        usual = Plan(self.option, 0 if silenced else self.option.draft_length)
        probed = self._probed
        # Looks that may be owed before this one.
        credit = LOOKS_ON_CREDIT - 1 if self._stirring and self._resting else -1
        if self._saved < -credit * self._look_seconds:
            return usual
        readable = [
            arm for arm in self._reserve if not arm.low_bit and (arm != self.option.arm or self._resting)
        ]
        others = [*(readable if self.may_watch else ()), *probed]
        if not others:
            return usual
        self._turn += 1
        arm = others[self._turn % len(others)]
        if arm in probed:
            self._saved -= self._probe_seconds(arm)
            shortest = self.costs.options[arm][1]
            return Plan(shortest, shortest.draft_length, probing=True)
        return replace(usual, option=self._chain(), watched=arm)

    def tell_round(self, option: Option, accepted: float, rejected: float, seconds: float) -> bool:
        """A round ran by `option`: draft tokens that stood and that were replaced, over all rows.

        Returns whether that is a sign of easier text, as only a look can be.
        """
        most = 2 * max(self._read_seconds, self._look_seconds)
        self._saved = min(self._saved + WATCH_BUDGET * seconds, most)
        sign = False
        if accepted + rejected:
            misses = min(rejected * self._misses_told(option), accepted + rejected)
            sign = self._count(option.arm, accepted + rejected - misses, accepted + rejected)
        self._choose()
        return sign

    def tell_watched(self, arm: Arm, hits: int, trials: int, seconds: float) -> bool:
        """`arm` was read on `trials` verified tokens, agreed on `hits`, and took `seconds`.

        Returns whether that is a sign of easier text.
        """
        self._saved -= seconds
        self._read_seconds += (seconds - self._read_seconds) / 2
        return self._count(arm, hits, trials)

    @property
    def drift(self) -> float:
        """How much harder the text is than the profile's."""
        return self._estimates.drift

    def chance(self, arm: Arm) -> float:
        """Estimated chance that a draft token of this arm stands."""
        return self._estimates.chance(arm)

    def _count(self, arm: Arm, hits: float, trials: float) -> bool:
        unexpected = hits > UNEXPECTED * trials and self.chance(arm) < UNEXPECTED
        self._stirring = unexpected and self._resting
        if self._stirring:  # what was seen so far may be of another text
            self._estimates.halve()
        self._estimates.add(arm, hits, trials)
        return self._stirring

    def _choose(self) -> None:
        """The fastest option by the present estimates; the arm changes for a clear gain only."""
        drift = self.drift
        speed, option = self._fastest(self._reserve, drift)
        if option.arm != self.option.arm:
            stay_speed, stay = self._fastest([self.option.arm], drift)
            if speed < SWITCH_GAIN * stay_speed:
                option = stay
        self.option = option

    def _fastest(self, arms: Sequence[Arm], drift: float) -> tuple[float, Option]:
        return max((way for arm in arms for way in self._speeds(arm, drift)), key=itemgetter(0))

    def _speeds(self, arm: Arm, drift: float) -> list[tuple[float, Option]]:
        """Tokens per second of every option of an arm."""
        sums = accepted_tokens(self._estimates.chance(arm, drift), self._longest)
        found = []
        for option, gain in self._gains[arm]:
            tokens = min(1 + sums[option.draft_length] * gain, option.draft_length + 1)
            # Where a stop rule ends drafts, a round is as long as what stands of it.
            seconds = option.least_seconds + option.seconds_per_token * tokens
            found.append((tokens / seconds, option))
        return found

    def _gain(self, option: Option) -> float:
        """Accepted tokens as replayed over those of independent chances: text comes in hard and easy runs."""
        expected = accepted_tokens(self.prior[option.arm], option.draft_length)[-1]
        return (option.tokens - 1) / expected if expected else 1.0

    def _misses_told(self, option: Option) -> float:
        """Misses along the text for one rejection: drafts try more tokens where the text is easy."""
        trials = option.tokens - 1 + option.rejected
        if not option.rejected or not trials:
            return 1.0
        return (1 - self.prior[option.arm]) * trials / option.rejected

    @property
    def _resting(self) -> bool:
        """Whether rounds draft nothing, but for looks."""
        return self._silenced or not self.option.draft_length

    @property
    def _probed(self) -> list[Arm]:
        """While nothing is drafted, the arms that only a draft tells of: those of a view, and without
        reading the one that has drafted."""
        if not self._resting:
            return []
        arms = [arm for arm in self._reserve if arm.low_bit] if self.may_watch else [self.option.arm]
        return [arm for arm in arms if len(self.costs.options[arm]) > 1]

    @property
    def _look_seconds(self) -> float:
        """What has to be saved before another look, the dearest of those that may come now."""
        reading = self._read_seconds if self.may_watch else 0.0
        return max(reading, *map(self._probe_seconds, self._probed), 0.0)

    def _probe_seconds(self, arm: Arm) -> float:
        """What a draft of one token adds to a round."""
        plain, shortest = self.costs.options[arm][:2]
        return shortest.seconds - plain.seconds

    def _chain(self) -> Option:
        """The option, or in place of siblings a chain of the same length: beside that exits are read."""
        if self.option.siblings == 1:
            return self.option
        chains = [o for o in self.costs.options[self.option.arm] if o.siblings == 1 and not o.ruled]
        return next((o for o in chains if o.draft_length == self.option.draft_length), chains[0])
