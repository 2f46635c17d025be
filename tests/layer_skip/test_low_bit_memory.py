"""What a low-bit view takes: bytes reported, held, and known before anything is packed."""

from __future__ import annotations

import pytest
import torch
from checks import NewTensors
from low_bit_views import ON_AVX2, logits_of, packed_in
from tiny_models import LAYERS, tiny_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from layer_skip import low_bit
from layer_skip.decoder import LayeredDecoder
from layer_skip.low_bit import LowBitView, layers_that_fit, view_bytes


@pytest.mark.parametrize(("family", "bits"), [("llama", 4), ("gpt2", 8), ("opt", 4)])
def test_bytes_reported_are_bytes_held_and_known_beforehand(family: str, bits: int) -> None:
    decoder = LayeredDecoder(tiny_model(family))
    new = NewTensors()
    view = LowBitView(decoder, 3, bits)
    assert view.bytes == view_bytes(decoder, 3, bits) == new.bytes
    matrices = [
        m.weight for layer in decoder.layers[:3] for m in layer.modules() if type(m) in (nn.Linear, Conv1D)
    ]
    assert view.viewed_bytes == sum(4 * w.numel() for w in [*matrices, decoder.head.weight])


def test_at_most_30_percent_of_the_weights_viewed_in_bf16() -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 512, "vocab": 320}
    model = tiny_model("llama", **sizes).bfloat16()
    view = LowBitView(LayeredDecoder(model), LAYERS)
    assert 0.28 * view.viewed_bytes < view.bytes <= 0.3 * view.viewed_bytes
    assert view.padded == 0


def test_sizes_that_are_no_whole_groups_are_padded_and_counted() -> None:
    decoder = LayeredDecoder(tiny_model("llama"))  # 97 tokens, and 48 inputs of the last matrix of a layer
    view = LowBitView(decoder, 2)
    assert view.padded > 0
    assert all(p.spare_outputs == -p.outputs % 16 for p in packed_in(view.of(decoder)))


def test_the_most_layers_that_fit() -> None:
    decoder = LayeredDecoder(tiny_model("llama"))
    sizes = [view_bytes(decoder, n) for n in range(1, LAYERS + 1)]
    assert sizes == sorted(sizes)
    for n, size in enumerate(sizes, 1):
        assert layers_that_fit(decoder, size) == n
        assert layers_that_fit(decoder, size - 1) == n - 1
    assert layers_that_fit(decoder, 0) == 0
    assert layers_that_fit(decoder, 10 * sizes[-1]) == LAYERS
    assert layers_that_fit(decoder, sizes[1], bits=8) == 1


@ON_AVX2
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_in_whole_numbers_memory_is_known_before_and_the_bias_stays(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(low_bit, "LEAST_FOR_INT8", 0)
    decoder = LayeredDecoder(tiny_model("llama with biases").to(dtype))
    view = LowBitView(decoder, 2, bits=8)
    assert view.bytes == view_bytes(decoder, 2, bits=8) == sum(p.bytes for p in packed_in(view.of(decoder)))
    assert view.bytes > view_bytes(decoder, 2, bits=4)
    exact, viewed = logits_of(decoder, 2), logits_of(view.of(decoder), 2)
    assert viewed.dtype == dtype
    torch.testing.assert_close(viewed.float(), exact.float(), rtol=0, atol=0.1 * float(exact.abs().max()))
