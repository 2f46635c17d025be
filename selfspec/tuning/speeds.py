"""What rounds of every kind are predicted to give in a call: timed passes, and how slow rounds turn out."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from selfspec.round import Arm
from selfspec.shapes import ShapePlan
from selfspec.tuning.knowledge import Knowledge, expected_tokens


@dataclass
class RoundSpeeds:
    """Seconds of rounds, and tokens per second and row; an arm of None stands for plain or looked-up rounds.

    Args:
        knowledge: of the model, with the costs of its passes.
        lengths: K to choose from.
    """

    knowledge: Knowledge
    lengths: Sequence[int]
    shapes: ShapePlan
    _slowness: dict[Arm | None, float] = field(default_factory=dict)
    """How many times what its passes cost a round of each arm takes."""
    _seconds: dict[tuple[Arm | None, int, int], float] = field(default_factory=dict)

    def seconds(self, arm: Arm | None, length: int, rows: int) -> float:
        """Of a round with `length` drafts, by its passes, which cost the same all through a call."""
        at = arm, length, rows
        if at not in self._seconds:
            self._seconds[at] = self.knowledge.round_seconds(*at, self.shapes)
        return self._seconds[at]

    def rate(self, arm: Arm | None, length: int, rows: int, chance: float) -> float:
        """Tokens per second if a draft token stands with this chance."""
        # What was not tried in this call is as much slower than its passes alone as what was.
        usual = min(self._slowness.values(), default=1.0)
        seconds = self.seconds(arm, length, rows) * self._slowness.get(arm, usual)
        return expected_tokens(chance, length) / seconds

    def best(self, arm: Arm, rows: int, chance: float) -> tuple[float, int]:
        """An arm's speed over plain rounds at the draft length where it is largest, and that length."""
        rates = {k: self.rate(arm, k, rows, chance) for k in self.lengths if k}
        best = max(rates, key=lambda k: rates[k])
        return rates[best] / self.rate(None, 0, rows, 0.0), best

    def plain_rounds(self, arm: Arm, length: int, rows: int) -> float:
        """Plain rounds that take as long as one with `length` drafts."""
        return self.rate(None, 0, rows, 0.0) / self.rate(arm, length, rows, 0.0)

    def plain_rounds_of_found(self, length: int, rows: int) -> float:
        """Plain rounds that take as long as one that verifies `length` looked-up tokens."""
        return self.seconds(None, length, rows) / self.seconds(None, 0, rows)

    def note(self, arm: Arm | None, length: int, rows: int, seconds: float) -> None:
        """A round took so long."""
        ratio = seconds / self.seconds(arm, length, rows)
        before = self._slowness.get(arm, ratio)
        # One round may be slow by accident, so a single one moves the estimate little.
        self._slowness[arm] = 0.8 * before + 0.2 * min(ratio, 2 * before)
