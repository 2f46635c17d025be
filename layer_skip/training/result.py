"""What a finished training run hands back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from layer_skip.training.evaluate import ExitScore


@dataclass(frozen=True)
class TrainingResult:
    """What a finished run made: where, how much it trained, and how good every exit is on held-out text.

    `scores` cover all held-out files, `stdlib_scores` those of the standard library alone.
    """

    folder: Path
    parameters: int
    steps: int
    tokens: int
    seconds: float
    scores: tuple[ExitScore, ...]
    stdlib_scores: tuple[ExitScore, ...]
