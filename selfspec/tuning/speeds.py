"""What rounds of every kind are predicted to give in a call: timed passes, and how slow rounds turn out."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from selfspec.round import Arm
from selfspec.shapes import ShapePlan
from selfspec.tuning.knowledge import Knowledge, expected_tokens


class Best(NamedTuple):
    """The draft length at which an arm promises most."""

    speed: float
    """Over plain rounds."""
    length: int


@dataclass
class RoundSpeeds:
    """Seconds of rounds, and tokens per second and row; an arm of None drafts for nothing, or not at all.

    Args:
        knowledge: of the model, with the costs of its passes.
        lengths: K to choose from.
        shapes: what passes are padded to.
    """

    knowledge: Knowledge
    lengths: Sequence[int]
    shapes: ShapePlan
    _slowness: dict[Arm | None, float] = field(default_factory=dict)
    """How many times what its passes cost a round of each arm takes."""

    def seconds(self, arm: Arm | None, length: int, rows: int) -> float:
        """Of a round with `length` drafts, by its passes alone."""
        return self.knowledge.round_seconds(arm, length, rows, self.shapes)

    def lasting(self, arm: Arm | None, length: int, rows: int) -> float:
        """Seconds that such a round really takes, by those that were seen in this call."""
        # What was not tried in this call is as much slower than its passes alone as what was.
        usual = min(self._slowness.values(), default=1.0)
        return self.seconds(arm, length, rows) * self._slowness.get(arm, usual)

    def best(self, arm: Arm, rows: int, chance: float) -> Best:
        """Where an arm's tokens per second are most, if a draft token stands with this chance; K > 0."""
        rates = {k: expected_tokens(chance, k) / self.lasting(arm, k, rows) for k in self.lengths if k}
        length = max(rates, key=lambda k: rates[k])
        return Best(rates[length] * self.lasting(None, 0, rows), length)

    def plain_rounds(self, arm: Arm, length: int, rows: int) -> float:
        """Plain rounds that take as long as one with `length` drafts."""
        return self.lasting(arm, length, rows) / self.lasting(None, 0, rows)

    def plain_rounds_of_found(self, length: int, rows: int) -> float:
        """Plain rounds that take as long as one that verifies `length` looked-up tokens, by passes alone."""
        return self.seconds(None, length, rows) / self.seconds(None, 0, rows)

    @property
    def knows_plain(self) -> bool:
        """Whether plain rounds were seen in this call."""
        return None in self._slowness

    def note(self, arm: Arm | None, length: int, rows: int, seconds: float) -> None:
        """A round took so long."""
        ratio = seconds / self.seconds(arm, length, rows)
        before = self._slowness.get(arm, ratio)
        # One round may be slow by accident, so a single one moves the estimate little.
        self._slowness[arm] = 0.8 * before + 0.2 * min(ratio, 2 * before)
