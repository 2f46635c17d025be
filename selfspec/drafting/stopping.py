"""When a row stops drafting: a rule on the draft's own confidence, the same in the engine and in replay."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StopRule:
    """Stop drafting after the token at draft position j if its worth is below `thresholds[j]`.

    The token itself is still verified, and the rule never sees the target's choice, so the text is the same
    in greedy and coupled mode and unbiased in rejection mode.

    Fixed before the call, unlike a `MarginStop`, which learns as it goes and so cannot be replayed.

    Worth is the token's own confidence or, with `chances`, the chance that the whole chain up to it stands:
    the running product of calibrated confidences. Calibration is a table, not a formula: a lookup and a
    product of float32 numbers round the same way on every path, and replay must decide as the engine does.
    """

    thresholds: tuple[float, ...]
    """By draft position; the last one holds for all positions after it."""
    chances: tuple[tuple[float, ...], ...] = ()
    """Chance that a token stands given those before it, [positions][bins of confidence]; empty: worth is the
    confidence of the token alone."""

    def __post_init__(self) -> None:
        if not self.thresholds or not all(0 <= threshold <= 1 for threshold in self.thresholds):
            raise ValueError(f"thresholds={self.thresholds!r}: allowed is one or more numbers from 0 to 1")
        if len({len(row) for row in self.chances}) > 1 or () in self.chances:
            raise ValueError("chances: every draft position needs the same number of bins, at least one")
        if not all(0 <= chance <= 1 for row in self.chances for chance in row):
            raise ValueError("chances: allowed are numbers from 0 to 1")

    @classmethod
    def below(cls, confidence: float) -> "StopRule | None":
        """Stop after a token of less confidence; 0 is never, which is None."""
        return cls((confidence,)) if confidence else None

    def worth(self, before: Tensor | None, confidence: Tensor, step: int) -> Tensor:
        """Worth [...] of the token at draft position `step`, from that of the one before it (None at 0)."""
        if not self.chances:
            return confidence
        row = torch.tensor(self.chances[min(step, len(self.chances) - 1)], device=confidence.device)
        chance = row[(confidence * len(row)).long().clamp(max=len(row) - 1)]
        return chance if before is None else before * chance

    def stops(self, worth: Tensor, step: int) -> Tensor:
        """Whether a row drafts nothing after a token of this worth [...] at draft position `step`."""
        return worth < self.thresholds[min(step, len(self.thresholds) - 1)]
