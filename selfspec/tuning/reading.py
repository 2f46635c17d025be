"""Reading the exits along the prompt: the prefill runs every layer anyway, only heads are added."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from layer_skip.decoder import LayeredDecoder

SAMPLES = 64
"""Positions at which the exits are read, at most."""
_FEWEST_SAMPLES = 8


@dataclass(frozen=True)
class Agreement:
    """How often exits chose the full model's token."""

    counts: dict[int, int]
    """Exit layer -> agreements."""
    samples: int


@dataclass
class Reading:
    """Keeps the hidden states behind each layer at the last positions of the prefill.

    `watch` is handed to `LayeredDecoder.run`. A prefill comes in chunks, of which the last may be short.
    """

    samples: int
    _hidden: dict[int, Tensor] = field(default_factory=dict)

    def watch(self, layers: int, hidden: Tensor) -> None:
        """Hidden states [B, m, D] after so many layers."""
        before = self._hidden.get(layers, hidden[:1, :0])
        # A copy, where a slice would keep the states of the whole chunk alive.
        self._hidden[layers] = torch.cat([before, hidden[:1, -self.samples :]], dim=1)[:, -self.samples :]

    @torch.inference_mode()
    def agreement(self, decoder: LayeredDecoder) -> Agreement | None:
        """Read the head behind every layer that was watched; None where there was no prefill."""
        if not self._hidden:
            return None
        chosen = {e: decoder.logits(hidden).argmax(dim=-1) for e, hidden in self._hidden.items()}
        full = chosen.pop(max(chosen))
        self._hidden = {}
        return Agreement({e: int((tokens == full).sum()) for e, tokens in chosen.items()}, full.numel())


def affordable_samples(seconds: float, head_seconds_per_token: float, n_layers: int) -> int:
    """Positions to read so that all heads take at most `seconds`; 0 where too few are affordable."""
    samples = int(seconds / (n_layers * head_seconds_per_token)) if head_seconds_per_token else SAMPLES
    return min(samples, SAMPLES) if samples >= _FEWEST_SAMPLES else 0
