"""Before a model is wrapped: does LayeredDecoder really reproduce it?"""

from typing import Any

import torch
from torch import Tensor

from layer_skip.decoder import LayeredDecoder
from layer_skip.families import UnsupportedModelError

_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest difference of logits, relative to the largest logit: rounding is far below, a lost part above."""
_LENGTHS = (9, 6)


@torch.no_grad()
def check_decoder(model: Any, decoder: LayeredDecoder) -> float:
    """Compare full-depth logits of the decoder and the model on two rows, one of them padded, with a cache.

    Returns:
        The largest difference, relative to the largest logit.

    Raises:
        UnsupportedModelError: they differ by more than rounding.
    """
    if decoder.n_layers < 2:
        raise UnsupportedModelError(f"{type(model).__name__} has one layer: there is none to exit from early")
    was_training = model.training
    model.eval()
    try:
        error = _compare(model, decoder)
    except (RuntimeError, TypeError, IndexError, AttributeError) as failure:
        raise UnsupportedModelError(
            f"{type(model).__name__} could not be run layer by layer as family "
            f"{decoder.family.model_type!r}: {failure}"
        ) from failure
    finally:
        model.train(was_training)
    tolerance = _TOLERANCE.get(decoder.dtype, 1e-1)
    if not error <= tolerance:
        raise UnsupportedModelError(
            f"run layer by layer, {type(model).__name__} gives other logits than its own forward "
            f"(relative difference {error:.2g}, allowed {tolerance:g}): its layers differ from family "
            f"{decoder.family.model_type!r}, or its weights hold NaN"
        )
    return error


def _compare(model: Any, decoder: LayeredDecoder) -> float:
    width = max(_LENGTHS)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, decoder.vocab_size, (2, width), generator=generator).to(decoder.device)
    mask = torch.tensor([[0] * (width - n) + [1] * n for n in _LENGTHS], device=decoder.device)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    expected = model(input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=False).logits
    worst = 0.0
    for row, length in enumerate(_LENGTHS):
        actual = _in_two_passes(decoder, tokens[row, width - length :])
        reference = expected[row, width - length :].float()
        difference = (actual.float() - reference).abs().max() / reference.abs().max().clamp(min=1e-6)
        worst = max(worst, float(difference)) if not difference.isnan() else float("nan")
    return worst


def _in_two_passes(decoder: LayeredDecoder, tokens: Tensor) -> Tensor:
    """Full-depth logits [n, V] of a row's tokens [n], the second half over a cache of the first."""
    cache = _GrowingCache(decoder.n_layers)
    half = len(tokens) // 2
    logits = []
    for first, last in ((0, half), (half, len(tokens))):
        positions = torch.arange(first, last, device=tokens.device)[None]
        span = decoder.span(positions, last, first)
        hidden = decoder.embed(tokens[None, first:last], span)
        hidden = decoder.run(hidden, 0, decoder.n_layers // 2, span, cache)
        hidden = decoder.run(hidden, decoder.n_layers // 2, decoder.n_layers, span, cache)
        logits.append(decoder.logits(hidden)[0])
    return torch.cat(logits)


class _GrowingCache:
    """The simplest cache: keys and values appended."""

    def __init__(self, n_layers: int) -> None:
        self._layers: list[tuple[Tensor, Tensor] | None] = [None] * n_layers

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: object) -> tuple[Tensor, Tensor]:
        stored = self._layers[layer_idx]
        if stored is not None:
            key, value = torch.cat([stored[0], key], dim=2), torch.cat([stored[1], value], dim=2)
        self._layers[layer_idx] = (key, value)
        return key, value
