"""Rounding to few bits: nearer than plain rounding, exact where it can be."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from layer_skip import rounding
from layer_skip.rounding import _CHUNK, Rounded


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.02


def round_weights(weight: Tensor, bits: int, group: int) -> Rounded:
    """With scales and offsets in the weights' own dtype."""
    return rounding.round_weights(weight, bits, group, weight.dtype)


def error(weight: Tensor, stored: Tensor) -> float:
    return float((weight.float() - stored).square().mean())


def min_max(weight: Tensor, bits: int, group: int) -> Tensor:
    """Levels from the smallest to the largest weight of a group."""
    x = weight.view(len(weight), -1, group)
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    scale = (high - low) / (2**bits - 1)
    return (((x - low) / scale).round() * scale + low).view_as(weight)


def symmetric(weight: Tensor, bits: int, group: int) -> Tensor:
    """Levels around 0, the largest magnitude at the end."""
    x = weight.view(len(weight), -1, group)
    scale = x.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    return ((x / scale).round() * scale).view_as(weight)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_the_error_is_smaller_than_that_of_plain_and_of_symmetric_rounding(bits: int, group: int) -> None:
    weight = gaussian(64, 256)
    rounded = round_weights(weight, bits, group)
    ours = error(weight, rounded.weights())
    # At 8 bits there is next to nothing left to gain.
    assert ours < (0.92 if bits <= 4 else 0.999) * error(weight, min_max(weight, bits, group))
    assert ours < 0.8 * error(weight, symmetric(weight, bits, group))


def test_weights_off_centre_cost_no_levels() -> None:
    weight = gaussian(16, 128) + 0.1
    ours = error(weight, round_weights(weight, 4, 64).weights())
    assert ours < 0.1 * error(weight, symmetric(weight, 4, 64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_groups_of_one_value_are_exact(dtype: torch.dtype) -> None:
    values = torch.tensor([[0.0, 1.0, -3.5, 0.015625]], dtype=dtype)
    weight = values.repeat_interleave(32, dim=1).repeat(5, 1)
    for bits in (4, 8):
        assert torch.equal(round_weights(weight, bits, 32).weights(), weight.float())
    assert torch.equal(round_weights(torch.zeros(16, 64, dtype=dtype), 4, 64).weights(), torch.zeros(16, 64))


def test_weights_on_evenly_spaced_levels_are_exact() -> None:
    levels = torch.randint(0, 16, (8, 64), generator=torch.Generator().manual_seed(0))
    levels[:, :2] = torch.tensor([0, 15])
    weight = 0.25 * levels.float() - 1.5
    torch.testing.assert_close(round_weights(weight, 4, 64).weights(), weight, rtol=0, atol=1e-6)


def test_in_bf16_levels_are_chosen_for_the_scale_and_offset_that_are_stored() -> None:
    """Every weight is at the nearest level: no other level of its group would be nearer."""
    weight = gaussian(32, 128).bfloat16()
    rounded = round_weights(weight, 4, 64)
    assert rounded.scale.dtype == rounded.offset.dtype == torch.bfloat16
    assert (rounded.q.dtype, int(rounded.q.max()) <= 15) == (torch.uint8, True)
    scale, offset = (
        t.float().repeat_interleave(64, dim=1)[..., None] for t in (rounded.scale, rounded.offset)
    )
    levels = (torch.arange(16) - 8) * scale + offset
    nearest = (levels - weight.float()[..., None]).abs().amin(dim=-1)
    chosen = (rounded.weights() - weight.float()).abs()
    torch.testing.assert_close(chosen, nearest, rtol=0, atol=1e-8)
    in_fp32 = error(weight, round_weights(weight.float(), 4, 64).weights())
    assert error(weight, rounded.weights()) < 1.05 * in_fp32


def test_a_group_is_rounded_by_itself() -> None:
    weight = gaussian(4, 128)
    before = round_weights(weight, 4, 64).weights()
    weight[:, 64:] *= 1000
    assert torch.equal(round_weights(weight, 4, 64).weights()[:, :64], before[:, :64])


def test_many_rows_are_rounded_as_few_are() -> None:
    weight = gaussian(_CHUNK // 64 + 5, 64)
    rounded = round_weights(weight, 4, 64)
    assert torch.equal(rounded.q[-7:], round_weights(weight[-7:], 4, 64).q)
    assert rounded.scale.shape == rounded.offset.shape == (len(weight), 1)


def test_inputs_that_are_no_whole_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="100 inputs do not divide into groups of 64"):
        round_weights(gaussian(4, 100), 4, 64)
