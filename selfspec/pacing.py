"""How many tokens to draft in the next round.

A pacer decides from rounds that are over, never from the tokens about to be drawn, so it cannot bias the
text in any acceptance mode.
"""

import math
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

MEASURING_SHARE = 0.03
"""Most of a call's plain time that finding out what pays may cost."""
_REMEMBERED = 16
"""Rounds that a rate is taken over."""


class Pacer(Protocol):
    """Chooses K round by round."""

    def draft_length(self, remaining: int) -> int:
        """K of the next round, when at most `remaining` tokens may still be generated."""

    def observe(self, length: int, tokens: float, seconds: float) -> None:
        """A round with K = `length` committed `tokens` tokens per row in `seconds`.

        NaN seconds: it did something besides, so that its time says nothing.
        """


@dataclass
class FixedLength:
    """The same K in every round."""

    length: int

    def draft_length(self, remaining: int) -> int:
        return min(self.length, remaining - 1)

    def observe(self, length: int, tokens: float, seconds: float) -> None:
        pass


@dataclass
class TrialBudget:
    """What drafts of which it is not known that they pay may lose, in plain rounds.

    A purse: a round stakes what it loses if nothing of it stands, and what drafts earn can be staked again.
    So a call is never behind plain decoding by more than a share of its length, however wrong drafts are.
    """

    share: float = MEASURING_SHARE
    """Of the call's plain rounds."""
    foreseen: int = 48
    """Tokens ahead that are counted on: a text may end long before its limit."""
    tokens: float = 0.0
    """Generated so far, per row."""
    lost: float = 0.0
    """By drafts so far; negative once they have earned."""

    def left(self, remaining: int) -> float:
        """Plain rounds that may be staked, when at most `remaining` tokens may still be generated."""
        return self.share * (self.tokens + min(remaining, self.foreseen)) - self.lost

    def longest(self, stakes: Mapping[int, float], remaining: int) -> int:
        """The longest draft that may be tried, 0 for none.

        Half of what is left at most, as long as the shortest draft stakes less: several tries tell more.

        Args:
            stakes: draft length -> plain rounds that are lost if nothing of it stands.
        """
        left = self.left(remaining)
        shortest = min(stakes, default=0)
        possible = [length for length, stake in stakes.items() if stake <= left / 2]
        return max(possible, default=shortest if stakes and stakes[shortest] <= left else 0)


@dataclass
class PayCheck:
    """Whether drafting pays: drafts as long as it does, rests while it does not, and a probe now and then.

    Compares tokens per second of the last rounds with drafts and without. A few plain rounds at the start
    give the baseline; they generate tokens like any other, so the comparison costs next to nothing.
    """

    warmup: int = 3
    """Plain rounds at the start, as long as the plain speed is not known."""
    delay: int = 0
    """Rounds with drafts before those: the first round after a prefill is slower than others."""
    trial: int = 8
    """Rounds with drafts before the first verdict."""
    retrial: int = 4
    """Rounds with drafts before a verdict after a rest."""
    margin: float = 0.97
    """Drafting goes on while it reaches this share of the plain speed: timings are noisy."""
    rest: int = 24
    """Plain rounds before drafting is tried again, doubled after every failure until drafts have paid."""
    plain: "Rate" = field(default_factory=lambda: Rate())
    """The plain speed; calls of one model may share it, so that only the first one warms up."""
    budget: TrialBudget = field(default_factory=TrialBudget)
    """For a strategy that knows what its drafts cost: how far it may go in a trial."""
    found: TrialBudget = field(default_factory=TrialBudget)
    """The same of drafts that were looked up, which keep what they earn."""
    _drafting: "Rate" = field(default_factory=lambda: Rate())
    _resting: int = 0
    _rested: int = 0
    """Rounds of this rest that are over."""
    _next_rest: int = 0
    """Rounds of the next one."""
    _asked: bool = False
    """Whether this rest is to end as soon as it may."""
    _wakes: int = 0
    """Rests that ended so since drafts have paid."""

    def __post_init__(self) -> None:
        self._next_rest = self.rest

    def allows(self) -> bool:
        """Whether to draft in the next round."""
        warming = self.plain.rounds < self.warmup and self._drafting.rounds >= self.delay
        return not self._resting and not warming

    def observe(self, drafted: bool, tokens: float, seconds: float) -> None:
        """A round with or without drafts committed `tokens` tokens per row in `seconds`."""
        for budget in (self.budget, self.found):
            budget.tokens += tokens
        resting = self._resting > 0
        if resting:
            self._rest_on()
        if math.isnan(seconds):
            return
        rate = self._drafting if drafted else self.plain
        rate.add(tokens, seconds)
        if resting or self._drafting.rounds < self.trial:
            return
        if not self._pays():
            self._resting, self._rested, self._asked = self._next_rest, 0, False
            self._next_rest *= 2
            self.trial = self.retrial
            self._drafting = Rate()
        elif self._drafting.rounds >= _REMEMBERED:  # not by accident
            self._next_rest, self._wakes = self.rest, 0

    def wake(self) -> None:
        """There is reason to believe that the text has become easier: end the rest.

        The clock may know better, so every time that this did not help the next rest lasts longer before it.
        """
        self._asked = self._resting > 0

    def _rest_on(self) -> None:
        self._resting -= 1
        self._rested += 1
        if self._asked and self._rested > self._wakes * self.rest:
            self._resting, self._asked = 0, False
            self._wakes += 1

    def _pays(self) -> bool:
        return self._drafting.tokens_per_second >= self.margin * self.plain.tokens_per_second


@dataclass
class Rate:
    """Tokens per second and row of the last rounds; a median, so that one slow round does not decide."""

    rounds: int = 0
    _tokens: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    _seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))

    def add(self, tokens: float, seconds: float) -> None:
        self.rounds += 1
        self._tokens.append(tokens)
        self._seconds.append(seconds)

    @property
    def tokens_per_second(self) -> float:
        return statistics.fmean(self._tokens) / statistics.median(self._seconds) if self._seconds else 0.0
