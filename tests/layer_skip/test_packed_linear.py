"""Products with packed weights, against the weights that they stand for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from layer_skip.packed_linear import PackedLinear, packed_bytes
from layer_skip.rounding import round_weights

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def stored_weights(weight: Tensor, bits: int, group: int) -> Tensor:
    """What packing makes of weight [N, K], by its definition."""
    if bits == 8:
        scale = (weight.float().abs().amax(dim=1, keepdim=True) / 127).clamp(min=1e-10)
        scale = scale.bfloat16().float()
        return (weight.float() / scale).round().clamp(-127, 127) * scale
    spare = -weight.shape[1] % group
    padded = F.pad(weight, (0, spare))
    return round_weights(padded, 4, group, torch.bfloat16).weights()[:, : weight.shape[1]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, 64), (8, 64)])
@pytest.mark.parametrize(
    ("outputs", "inputs"), [(16, 64), (97, 64), (1, 128), (33, 48), (48, 100), (64, 1), (17, 65), (128, 192)]
)
def test_a_product_is_that_with_the_weights_that_are_stored(
    outputs: int, inputs: int, bits: int, group: int, dtype: torch.dtype
) -> None:
    weight = random(outputs, inputs, seed=1, dtype=dtype)
    packed = PackedLinear(weight, None, bits, group)
    expected = stored_weights(weight, bits, group)
    for rows in (1, 2, 3, 17):
        x = random(rows, inputs, seed=2, dtype=dtype)
        actual = packed(x)
        assert actual.shape == (rows, outputs)
        assert actual.dtype == dtype
        reference = x.bfloat16().float() @ expected.T
        # The result is rounded to bf16.
        torch.testing.assert_close(
            actual.float(), reference, rtol=5e-3, atol=1e-4 * float(reference.abs().max())
        )


@pytest.mark.parametrize(("bits", "group"), [(4, 32), (8, 64)])
def test_what_comes_in_another_dtype_is_taken_in_the_products(bits: int, group: int) -> None:
    """As autocast to bf16 hands on what a norm left in fp32."""
    packed = PackedLinear(random(48, 64, seed=1, dtype=torch.bfloat16), None, bits, group)
    x = random(3, 64, seed=2)
    assert torch.equal(packed(x), packed(x.bfloat16()))
    assert packed(x).dtype == torch.bfloat16


def test_padding_takes_no_part() -> None:
    """Inputs beside the last whole group have levels of their own; what is padded is cut off."""
    weight = random(20, 70, seed=1)
    packed = PackedLinear(weight, None, 4, 64)
    assert (packed.spare_inputs, packed.spare_outputs) == (58, 12)
    one_hot = torch.eye(70)
    rounded = packed(one_hot).T
    torch.testing.assert_close(rounded, stored_weights(weight, 4, 64), rtol=5e-3, atol=1e-3)
    assert (rounded - weight).abs().max() < 0.35  # a step of the widest group


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("outputs", [32, 33])
def test_a_bias_is_added_and_stays_the_models_own(bits: int, outputs: int) -> None:
    weight, bias = random(outputs, 64, seed=1), random(outputs, seed=3)
    packed, plain = PackedLinear(weight, bias, bits, 32), PackedLinear(weight, None, bits, 32)
    x = random(2, 64, seed=2)
    torch.testing.assert_close(packed(x), plain(x) + bias)
    assert packed.bytes == plain.bytes
    assert not list(packed.parameters())
    bias += 1
    torch.testing.assert_close(packed(x), plain(x) + bias)


@pytest.mark.parametrize("shape", [(64,), (2, 64), (2, 3, 64), (1, 1, 1, 64)])
def test_leading_dimensions_are_kept(shape: tuple[int, ...]) -> None:
    packed = PackedLinear(random(40, 64, seed=1), None, 4, 32)
    x = random(*shape, seed=2)
    out = packed(x)
    assert out.shape == (*shape[:-1], 40)
    torch.testing.assert_close(out.view(-1, 40), packed(x.reshape(-1, 64)))


def test_inputs_need_not_lie_together_in_memory() -> None:
    packed = PackedLinear(random(16, 64, seed=1), None, 4, 32)
    x = random(64, 5, seed=2).T
    torch.testing.assert_close(packed(x), packed(x.contiguous()))
    weight = random(64, 16, seed=1)
    for bits in (4, 8):
        transposed = PackedLinear(weight.T, None, bits, 32)  # as GPT-2 keeps its matrices
        torch.testing.assert_close(transposed(x), PackedLinear(weight.T.contiguous(), None, bits, 32)(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("outputs", "inputs"), [(16, 64), (97, 100), (256, 32)])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_memory_is_known_before_anything_is_packed(
    bits: int, outputs: int, inputs: int, dtype: torch.dtype
) -> None:
    weight = random(outputs, inputs, seed=1, dtype=dtype)
    for group in (32, 64):
        packed = PackedLinear(weight, None, bits, group)
        held = [t for t in vars(packed).values() if isinstance(t, Tensor)]
        held += list(packed.buffers())
        assert packed.bytes == packed_bytes(weight, bits, group)
        assert packed.bytes == sum(t.untyped_storage().nbytes() for t in held)


def test_four_bits_of_bf16_take_at_most_a_third_of_the_memory() -> None:
    weight = random(128, 256, seed=1, dtype=torch.bfloat16)
    assert PackedLinear(weight, None, 4, 64).bytes == 0.28125 * 2 * weight.numel()
    assert PackedLinear(weight, None, 4, 32).bytes == 0.3125 * 2 * weight.numel()


def test_eight_bits_are_nearer_than_four() -> None:
    weight, x = random(64, 128, seed=1), random(8, 128, seed=2)
    errors = [float((PackedLinear(weight, None, b, 32)(x) - x @ weight.T).abs().mean()) for b in (8, 4)]
    assert errors[0] < 0.2 * errors[1]


def test_rows_of_tiny_weights_and_of_zeros_stay_what_they_are() -> None:
    weight = random(16, 64, seed=1).half()
    weight[3], weight[5] = 0, 1e-7
    packed = PackedLinear(weight, None, 8, 32)
    stored = packed.packed.float() * packed.scales.float()[:, None]
    torch.testing.assert_close(
        stored[:6], weight[:6].float(), rtol=0.01, atol=float(weight.abs().max()) / 127
    )
    torch.testing.assert_close(stored[[3, 5]], weight[[3, 5]].float(), rtol=0.01, atol=0)
