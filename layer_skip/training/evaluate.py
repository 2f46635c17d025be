"""How good every exit is on held-out text, and how often it agrees with the last layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from layer_skip.training.forward import TrainingForward

TEMPERATURE = 0.8


@dataclass(frozen=True)
class ExitScore:
    """One exit on held-out text, teacher-forced, averaged over tokens.

    `exit_layer`: E, layers run; `loss`: cross-entropy in nats per token; `agreement`: share of positions
    where its first choice is the last layer's; `overlap`: 1 - total variation distance to the last layer's
    distribution at temperature 0.8, the most that any acceptance rule can accept.
    """

    exit_layer: int
    loss: float
    agreement: float
    overlap: float


@torch.no_grad()
def score_exits(
    model: Any, stream: Tensor, sequence_length: int, rows: int, dtype: torch.dtype
) -> list[ExitScore]:
    """Score every exit of `model` on `rows` windows spread evenly over the token stream [n].

    The first 32 tokens of a window are context only: drafts never start from nothing.
    """
    layers = model.config.num_hidden_layers
    forward = TrainingForward(model, dtype)
    context = min(32, sequence_length // 2)
    rows = max(1, min(rows, (stream.numel() - 1) // sequence_length))
    starts = torch.linspace(0, stream.numel() - sequence_length - 1, rows).long()
    totals = torch.zeros(layers, 3, dtype=torch.float64)
    count = 0
    for group in starts.split(8):
        windows = stream[group[:, None] + torch.arange(sequence_length + 1)]
        hiddens = forward.hiddens(windows[:, :-1], range(layers))
        labels = windows[:, 1 + context :].flatten()
        kept = [h.view(len(group), sequence_length, -1)[:, context:].flatten(0, 1) for h in hiddens]
        totals += _sums(kept, forward.head(), labels)
        count += labels.numel()
    return [ExitScore(place + 1, *(totals[place] / count).tolist()) for place in range(layers)]


def _sums(hiddens: list[Tensor], head: Tensor, labels: Tensor) -> Tensor:
    """Loss, agreement and overlap of every exit, summed over tokens: [L, 3]."""
    last = (hiddens[-1] @ head.t()).float()
    choice, sharp = last.argmax(-1), torch.softmax(last / TEMPERATURE, -1)
    sums = torch.zeros(len(hiddens), 3, dtype=torch.float64)
    for place, hidden in enumerate(hiddens):
        logits = (hidden @ head.t()).float()
        sums[place, 0] = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        sums[place, 1] = (logits.argmax(-1) == choice).sum()
        overlap = torch.minimum(torch.softmax(logits / TEMPERATURE, -1), sharp).sum(-1)
        sums[place, 2] = overlap.clamp(max=1.0).sum()
    return sums
