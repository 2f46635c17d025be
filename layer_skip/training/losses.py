"""The early-exit loss, with its gradient computed beside it.

Stacked logits of all exits would be the memory peak (tokens x vocabulary x exits), and on a CPU the passes
over them would cost more than the matrix products. So tokens are taken in chunks, exit by exit, and the
gradient with respect to a chunk's logits, p - target, is turned into gradients of hidden state and head at
once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_TOKENS = 1024


def _exit_chunk(
    hidden: Tensor, head: Tensor, labels: Tensor, teacher: Tensor | None, distill: float
) -> tuple[Tensor, Tensor, Tensor]:
    """One exit on one chunk: (summed cross-entropy, probabilities [n, V], d loss / d logits [n, V]).

    The target distribution is (1 - distill) * one-hot(labels) + distill * teacher; for any target the
    gradient with respect to the logits is p - target.
    """
    probabilities = torch.softmax(hidden @ head.t(), dim=-1)
    chosen = probabilities.gather(1, labels[:, None])
    loss = -chosen.float().clamp_min(1e-12).log().sum()
    if teacher is None or distill == 0.0:
        gradient, label_share = probabilities.clone(), 1.0
    else:
        gradient, label_share = probabilities - distill * teacher, 1.0 - distill
    gradient.scatter_add_(1, labels[:, None], torch.full_like(chosen, -label_share))
    return loss, probabilities, gradient


class _ExitLoss(torch.autograd.Function):
    """forward(head, labels, weights, distill, *hiddens) -> (weighted loss, cross-entropy of each exit)."""

    @staticmethod
    def forward(
        ctx: Any, head: Tensor, labels: Tensor, weights: list[float], distill: float, *hiddens: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`head` [V, D], `labels` [n], `hiddens` each [n, D], shallow to deep; the last is the teacher."""
        tokens = labels.shape[0]
        head_gradient = torch.zeros(head.shape, dtype=torch.float32)
        gradients = [torch.empty_like(hidden) for hidden in hiddens]
        losses = torch.zeros(len(hiddens))
        for start in range(0, tokens, CHUNK_TOKENS):
            chunk = slice(start, start + CHUNK_TOKENS)
            teacher: Tensor | None = None
            for place in reversed(range(len(hiddens))):
                hidden = hiddens[place][chunk]
                loss, probabilities, gradient = _exit_chunk(hidden, head, labels[chunk], teacher, distill)
                if place == len(hiddens) - 1:
                    teacher = probabilities
                losses[place] += loss
                scale = weights[place] / tokens
                gradients[place][chunk] = (gradient @ head).mul_(scale)
                head_gradient.add_(gradient.t() @ hidden, alpha=scale)
        ctx.save_for_backward(head_gradient.to(head.dtype), *gradients)
        losses /= tokens
        return (losses * torch.tensor(weights)).sum(), losses

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> Any:
        """Scale the gradients that the forward pass stored."""
        head_gradient, *gradients = ctx.saved_tensors
        scale = outputs[0].to(head_gradient.dtype)
        return head_gradient * scale, None, None, None, *[gradient * scale for gradient in gradients]


def early_exit_loss(
    hiddens: list[Tensor], head: Tensor, labels: Tensor, weights: list[float], distill: float = 0.0
) -> tuple[Tensor, Tensor]:
    """J = sum_l w(l) * CE(head(norm(h_l)), y) (Elhoushi et al. 2024, eq. 4), mean over tokens.

    `hiddens`: normalised hidden states [n, D] of the active exits, shallow to deep, the last layer's at the
    end; `head` [V, D]; `labels` [n]; `weights` one per exit. `distill` moves the exits' target from the
    labels towards the last layer's distribution, which is not trained by it. Returns the loss to call
    backward on and the plain cross-entropy of each exit [exits], in nats. (With `distill` on, the first
    number is still the weighted cross-entropy; its gradient is that of the mixed objective.)
    """
    loss, each = _ExitLoss.apply(head, labels, weights, distill, *hiddens)
    return loss, each.detach()
