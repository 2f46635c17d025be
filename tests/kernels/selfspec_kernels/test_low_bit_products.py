"""A layer's low-bit products in one launch: reference, dispatcher, and the Triton kernels beside them."""

from __future__ import annotations

import os
import sys

import pytest
import torch
import torch.nn.functional as F
from interpreter import results_of

from selfspec_kernels.low_bit_product import low_bit_product
from selfspec_kernels.low_bit_product_reference import pack_levels, pack_scales
from selfspec_kernels.low_bit_products import low_bit_gated, low_bit_products
from selfspec_kernels.low_bit_products_reference import PackedMatrix

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2**-6}
"""Over the largest output; of bf16 two last bits, one of the product and one of what follows it."""
ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


def matrix(n=48, k=192, group=32, dtype=torch.float32, device="cpu", bias=True):
    draw = torch.Generator().manual_seed(n + k)
    q = torch.randint(0, 16, (n, k), dtype=torch.uint8, generator=draw)
    scale = (torch.rand(n, k // group, generator=draw) + 0.1) / k**0.5 / 3
    offset = torch.randn(n, k // group, generator=draw) / k**0.5
    b = torch.randn(n, generator=draw).to(device, dtype) if bias else None
    scales = pack_scales(scale, offset).to(device, dtype)
    return PackedMatrix(pack_levels(q, group).to(device), scales, b)


def rows(m=3, k=192, dtype=torch.float32, device="cpu"):
    return torch.randn(m, k, generator=torch.Generator().manual_seed(m)).to(device, dtype)


def alone(x, one, backend=None):
    return low_bit_product(x, one.packed, one.scales, one.bias, backend=backend)


# Reference and dispatcher


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_products_stand_side_by_side_and_are_added_with_a_models_own_roundings(dtype):
    x, matrices = rows(dtype=dtype), [matrix(n, dtype=dtype) for n in (48, 7, 20)]
    side_by_side = torch.cat([alone(x, one) for one in matrices], dim=-1)
    assert torch.equal(low_bit_products(x, matrices), side_by_side)
    residual = torch.randn(3, 75).to(dtype)
    assert torch.equal(low_bit_products(x, matrices, residual=residual), residual + side_by_side)
    found = low_bit_products(x, matrices, residual=residual, multiplier=0.22)
    assert torch.equal(found, residual + side_by_side * 0.22)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_gated_product_is_activation_of_gate_times_up(activation):
    x, gate, up = rows(dtype=torch.bfloat16), matrix(dtype=torch.bfloat16), matrix(dtype=torch.bfloat16)
    found = low_bit_gated(x, gate, up, activation=activation)
    assert torch.equal(found, ACTIVATIONS[activation](alone(x, gate)) * alone(x, up))


def test_leading_dimensions_are_kept():
    x, one = rows(6), matrix()
    assert low_bit_products(x.view(2, 3, -1), [one], residual=torch.ones(2, 3, 48)).shape == (2, 3, 48)
    assert low_bit_products(x[0], [one, one]).shape == (96,)
    assert low_bit_gated(x.view(2, 3, -1), one, one, activation="silu").shape == (2, 3, 48)
    assert low_bit_products(x[:0], [one]).shape == (0, 48)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter runs anywhere")
def test_a_processor_refuses_triton():
    if sys.platform == "linux":
        with pytest.raises(ValueError, match="needs a CUDA device, x is on cpu"):
            low_bit_products(rows(), [matrix()], backend="triton")
        with pytest.raises(ValueError, match="needs a CUDA device, x is on cpu"):
            low_bit_gated(rows(), matrix(), matrix(), activation="silu", backend="triton")


def test_what_does_not_belong_together_is_named():
    x, one = rows(), matrix()
    with pytest.raises(ValueError, match="0 matrices: allowed are 1 to 3"):
        low_bit_products(x, [])
    with pytest.raises(ValueError, match=r"groups of \[32, 64\] inputs"):
        low_bit_products(x, [one, matrix(group=64)])
    with pytest.raises(ValueError, match=r"packed as \[48, 128\], not as \[48, 96\]"):
        low_bit_products(rows(k=256), [PackedMatrix(one.packed, torch.zeros(8, 48, 2))])
    with pytest.raises(ValueError, match=r"bias is torch\.float16"):
        low_bit_products(x, [one, PackedMatrix(one.packed, one.scales, torch.zeros(48).half())])
    with pytest.raises(ValueError, match=r"residual must be \[3, 48\]"):
        low_bit_products(x, [one], residual=torch.ones(3, 47))
    with pytest.raises(ValueError, match=r"residual must be torch\.float32"):
        low_bit_products(x, [one], residual=torch.ones(3, 48).half())
    with pytest.raises(ValueError, match="residual is on meta"):
        low_bit_products(x, [one], residual=torch.ones(3, 48, device="meta"))
    with pytest.raises(ValueError, match="gate has 48 outputs, up 20"):
        low_bit_gated(x, one, matrix(20), activation="silu")
    with pytest.raises(ValueError, match="must be one of 'silu', 'gelu_tanh', 'gelu', not 'relu'"):
        low_bit_gated(x, one, one, activation="relu")


# How products are cut


@pytest.mark.skipif(sys.platform != "linux", reason="triton is for Linux")
def test_few_outputs_are_cut_smaller_and_rows_do_not_decide_it():
    from selfspec_kernels.low_bit_products_launch import candidates, plan

    assert plan(1, 4096, 14336, 64, 132).block_n == 16
    assert plan(1, 28_672, 4096, 64, 132).block_n == 32
    assert len({plan(m, 6144, 4096, 64, 132).block_n for m in range(1, 17)}) == 1
    for m in (1, 16):
        for n, k in ((4096, 4096), (6144, 4096), (28_672, 4096), (4096, 14336)):
            assert plan(m, n, k, 64, 132) in candidates(m, k, 64)


@pytest.mark.skipif(sys.platform != "linux", reason="triton is for Linux")
def test_steps_come_out_even_where_they_can():
    from selfspec_kernels.low_bit_products_launch import plan

    for n, k in ((4096, 4096), (6144, 4096), (28_672, 4096), (4096, 14336), (2048, 8192), (896, 4864)):
        chosen = plan(1, n, k, 64, 132)
        assert k % (64 * chosen.slices * chosen.stages) == 0


# Triton's interpreter, in a process of its own


@pytest.fixture(scope="module")
def interpreted() -> dict:
    """See support/low_bit_products_interpreted.py."""
    return results_of("low_bit_products")


def test_kernels_agree_with_the_reference_in_every_odd_shape(interpreted):
    assert len(interpreted["cases"]) >= 14
    tolerance = {str(dtype): most for dtype, most in TOLERANCE.items()}
    for case, error in interpreted["cases"].items():
        assert error < tolerance[interpreted["dtypes"][case]], case


def test_broken_kernels_do_not_pass(interpreted):
    assert len(interpreted["mutations"]) >= 14
    for mutation, found in interpreted["mutations"].items():
        assert found["error"] > 0.05, mutation


def test_the_dispatcher_hands_rows_to_triton(interpreted):
    assert interpreted["dispatched"] == [True] * 6


# On a GPU


def assert_near(found, expected):
    error = (found.float() - expected.float()).abs().max() / expected.float().abs().max()
    assert error < TOLERANCE[expected.dtype]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize(("sizes", "k"), [((4096, 1024, 1024), 4096), ((896,), 4864), ((33, 1), 640)])
def test_triton_products_agree_with_the_reference_on_the_gpu(sizes, k, group, dtype, cuda):
    matrices = [matrix(n, k, group, dtype, cuda, bias=n != 1024) for n in sizes]
    for m in (1, 2, 8, 9, 16, 17):
        x, residual = rows(m, k, dtype, cuda), rows(m, sum(sizes), dtype, cuda)
        for more in ({}, {"residual": residual}, {"residual": residual, "multiplier": 0.22}):
            found, expected = (
                low_bit_products(x, matrices, **more, backend=backend) for backend in ("triton", "reference")
            )
            assert_near(found, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("n", "k", "group"), [(14336, 4096, 64), (4864, 896, 128), (33, 96, 32)])
def test_triton_gated_agrees_with_the_reference_on_the_gpu(n, k, group, activation, dtype, cuda):
    gate, up = (matrix(n, k, group, dtype, cuda, bias=bias) for bias in (False, True))
    for m in (1, 3, 16, 17):
        x = rows(m, k, dtype, cuda)
        found, expected = (
            low_bit_gated(x, gate, up, activation=activation, backend=backend)
            for backend in ("triton", "reference")
        )
        assert_near(found, expected)


@pytest.mark.gpu
def test_every_plan_of_the_sweep_agrees_with_the_reference_on_the_gpu(cuda):
    from selfspec_kernels import low_bit_products_launch as launch
    from selfspec_kernels.low_bit_products_reference import reference_gated, reference_products

    one = matrix(4096, 4096, 64, torch.bfloat16, cuda)
    for m in (1, 16):
        x = rows(m, 4096, torch.bfloat16, cuda)
        product, gated = reference_products(x, [one], None, 1.0), reference_gated(x, one, one, "silu")
        for chosen in launch.candidates(m, 4096, 64):
            assert_near(launch.products(x, [one], None, 1.0, chosen), product)
            assert_near(launch.gated(x, one, one, "silu", chosen), gated)


@pytest.mark.gpu
def test_equal_inputs_give_equal_bits_and_a_cuda_graph_replays_them(cuda):
    matrices = [matrix(n, 4096, 64, torch.bfloat16, cuda) for n in (4096, 1024, 1024)]
    x = rows(2, 4096, torch.bfloat16, cuda)
    expected = low_bit_products(x, matrices)  # compiles, which a capture must not
    gated = low_bit_gated(x, matrices[1], matrices[2], activation="silu")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outs = low_bit_products(x, matrices), low_bit_gated(x, *matrices[1:], activation="silu")
    for _ in range(20):
        for out in outs:
            out.fill_(float("nan"))
        graph.replay()
        assert torch.equal(outs[0], expected) and torch.equal(outs[1], gated)
