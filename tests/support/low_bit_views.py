"""What the tests of low-bit views look at."""

from __future__ import annotations

import pytest
import torch
from tiny_models import random_prompts
from torch import Tensor

from layer_skip.decoder import LayeredDecoder
from layer_skip.int8_product import int8_is_fastest
from layer_skip.packed_linear import PackedLinear
from selfspec.cache import KVCache

ON_AVX2 = pytest.mark.skipif(
    not int8_is_fastest(), reason="inputs are rounded on CPUs with AVX2 and no AVX512 alone"
)
TOKENS = random_prompts(13)["input_ids"]


@torch.no_grad()
def logits_of(decoder: LayeredDecoder, n_layers: int, tokens: Tensor = TOKENS) -> Tensor:
    """Logits [T, V] of the exit after `n_layers` layers."""
    span = decoder.span(torch.arange(tokens.shape[1])[None], tokens.shape[1], 0)
    window = KVCache(1, n_layers, tokens.shape[1]).window(span)
    hidden = decoder.run(decoder.embed(tokens, span), 0, n_layers, span, window)
    return decoder.logits(hidden)[0]


def packed_in(decoder: LayeredDecoder) -> list[PackedLinear]:
    return [
        m for part in (*decoder.layers, decoder.head) for m in part.modules() if isinstance(m, PackedLinear)
    ]
