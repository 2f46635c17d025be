"""How many tokens to draft in the next round.

A pacer decides from rounds that are over, never from the tokens about to be drawn, so it cannot bias the
text in any acceptance mode.
"""


from dataclasses import dataclass, field
from typing import Protocol


class Pacer(Protocol):
    """Chooses K round by round."""

    def draft_length(self, remaining: int) -> int:
        """K of the next round, when at most `remaining` tokens may still be generated."""

    def observe(self, length: int, tokens: int, seconds: float) -> None:
        """A round with K = `length` committed `tokens` tokens over all rows in `seconds`."""


@dataclass
class FixedLength:
    """The same K in every round."""

    length: int

    def draft_length(self, remaining: int) -> int:
        return min(self.length, remaining - 1)

    def observe(self, length: int, tokens: int, seconds: float) -> None:
        pass


@dataclass
class PayCheck:
    """K as long as drafting pays, 0 while it does not, and a probe now and then.

    Compares tokens per second of the last rounds with K and without. A few plain rounds at the start give
    the baseline; they generate tokens like any other, so the comparison costs next to nothing.
    """

    length: int
    warmup: int = 2
    """Plain rounds at the start of a call."""
    trial: int = 6
    """Rounds with K before a verdict."""
    margin: float = 0.97
    """Drafting goes on while it reaches this share of the plain speed: timings are noisy."""
    rest: int = 48
    """Plain rounds before drafting is tried again, doubled after every failure."""
    _plain: "Rate" = field(default_factory=lambda: Rate())
    _drafting: "Rate" = field(default_factory=lambda: Rate())
    _resting: int = 0

    def draft_length(self, remaining: int) -> int:
        if self._resting or self._plain.rounds < self.warmup:
            return 0
        return min(self.length, remaining - 1)

    def observe(self, length: int, tokens: int, seconds: float) -> None:
        rate = self._drafting if length else self._plain
        rate.add(tokens, seconds)
        if self._resting:
            self._resting -= 1
        elif self._drafting.rounds >= self.trial:
            if self._drafting.tokens_per_second < self.margin * self._plain.tokens_per_second:
                self._resting = self.rest
                self.rest *= 2
                self._drafting = Rate()


@dataclass
class Rate:
    """Tokens per second over the last rounds, exponentially weighted; robust to a single slow round."""

    rounds: int = 0
    tokens: float = 0.0
    seconds: float = 0.0
    decay: float = 0.9

    def add(self, tokens: int, seconds: float) -> None:
        self.rounds += 1
        self.tokens = self.decay * self.tokens + tokens
        self.seconds = self.decay * self.seconds + seconds

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


