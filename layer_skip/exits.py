"""Exits: what the model would say if it stopped after each layer."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from layer_skip.decoder import LayeredDecoder
from layer_skip.norms import norm_of
from layer_skip.products import is_plain_matrix
from selfspec_kernels.exit_head_reference import Head


class NoCache:
    """Stands in for a cache where a whole text is run at once: keys and values are used as they come."""

    def update(self, key: Tensor, value: Tensor, *_: object) -> tuple[Tensor, Tensor]:
        return key, value

    def get_seq_length(self, *_: object) -> int:
        return 0


def fused_head(decoder: LayeredDecoder) -> Head | None:
    """Final norm and LM head as `exit_head` takes them; None where they are more than that, or packed."""
    head: Any = getattr(decoder.head, "matrix", decoder.head)
    around = decoder.plain_head
    norm = norm_of(decoder.norm)
    if around is None or norm is None or not is_plain_matrix(head):
        return None
    multiplier, softcap = around
    return Head(
        head.weight.detach(),
        bias=None if head.bias is None else head.bias.detach(),
        norm=norm,
        multiplier=multiplier,
        softcap=softcap,
    )


@dataclass(frozen=True)
class ExitChoices:
    """The token that every exit would choose at every position of a text."""

    tokens: Tensor
    """[L, m] int64; the last row is the full model."""
    confidence: Tensor
    """[L, m] float32: the exit's own probability of that token."""

    @property
    def agreement(self) -> list[float]:
        """Share of positions where each exit chooses what the full model chooses, [L]; the last is 1."""
        return (self.tokens == self.tokens[-1]).float().mean(dim=1).tolist()


@torch.inference_mode()
def exit_choices(decoder: LayeredDecoder, tokens: Tensor, last: int | None = None) -> ExitChoices:
    """Run a text once and read the head at every exit.

    Args:
        tokens: [T] int64.
        last: read the heads at the last `last` positions only (default: all).
    """
    positions = torch.arange(len(tokens), device=tokens.device)[None]
    span = decoder.span(positions, len(tokens), 0)
    hidden = decoder.embed(tokens[None], span)
    first = 0 if last is None else max(0, len(tokens) - last)
    chosen, confidences = [], []
    for layer in range(decoder.n_layers):
        hidden = decoder.run(hidden, layer, layer + 1, span, NoCache())
        probabilities = decoder.logits(hidden[:, first:])[0].float().softmax(dim=-1)
        confidence, token = probabilities.max(dim=-1)
        chosen.append(token)
        confidences.append(confidence)
    return ExitChoices(torch.stack(chosen), torch.stack(confidences))
