"""The narrow product: its reference, its dispatcher, and the Triton kernels beside it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from interpreter import environment, results_of
from torch import nn

from selfspec_kernels.backend import KernelInputError
from selfspec_kernels.narrow_product import gated_product, narrow_product
from selfspec_kernels.narrow_product_reference import reference_gated, reference_product

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2**-7}
"""Over the largest output."""
INTERPRETED = {"torch.float32": 1e-5, "torch.float16": 4e-3, "torch.bfloat16": 4e-2}
"""The interpreter cuts bf16 where a GPU rounds, up to four times one after the other."""
ACTIVATIONS = {"silu": nn.SiLU(), "gelu_tanh": nn.GELU(approximate="tanh"), "gelu": nn.GELU()}


def operands(sizes=(24, 8, 8), k=48, m=3, dtype=torch.float32, device="cpu"):
    """x, weights, biases, residual."""
    draw = torch.Generator().manual_seed(sum(sizes) + k)
    x = torch.randn(m, k, generator=draw)
    weights = [torch.randn(n, k, generator=draw) * k**-0.5 for n in sizes]
    biases = [torch.randn(n, generator=draw) for n in sizes]
    residual = torch.randn(m, sum(sizes), generator=draw)
    moved = [t.to(device, dtype) for t in (x, residual, *weights, *biases)]
    return moved[0], moved[2 : 2 + len(sizes)], moved[2 + len(sizes) :], moved[1]


# Reference and dispatcher


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_reference_is_the_modules_one_after_the_other(dtype):
    x, weights, biases, residual = operands(dtype=dtype)
    whole = torch.cat([F.linear(x, w, b) for w, b in zip(weights, biases, strict=True)], dim=-1)
    tolerance = TOLERANCE[dtype]
    found = narrow_product(x, weights, biases)
    torch.testing.assert_close(found, whole, rtol=tolerance, atol=tolerance)
    found = narrow_product(x, weights, biases, residual=residual, multiplier=0.22)
    torch.testing.assert_close(found, residual + whole * 0.22, rtol=tolerance, atol=2 * tolerance)


def test_a_multiplier_of_one_is_exact():
    x, weights, biases, residual = operands(dtype=torch.bfloat16)
    found = narrow_product(x, weights, biases, residual=residual)
    assert torch.equal(found, residual + narrow_product(x, weights, biases))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_gated_reference_is_the_models_own_half(activation, dtype):
    x, (gate, up), _, _ = operands((20, 20), dtype=dtype)
    expected = ACTIVATIONS[activation](F.linear(x, gate)) * F.linear(x, up)
    found = gated_product(x, gate, up, activation=activation)
    torch.testing.assert_close(found, expected, rtol=4 * TOLERANCE[dtype], atol=4 * TOLERANCE[dtype])


def test_leading_dimensions_are_kept():
    x, weights, biases, residual = operands(m=6)
    expected = reference_product(x, weights, biases, residual)
    found = narrow_product(x.view(2, 3, -1), weights, biases, residual=residual.view(2, 3, -1))
    assert torch.equal(found, expected.view(2, 3, -1))
    assert narrow_product(x[0], weights[:2]).shape == (32,)
    assert narrow_product(x[:0], weights).shape == (0, 40)
    assert gated_product(x.view(2, 3, -1), weights[1], weights[2]).shape == (2, 3, 8)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter runs anywhere")
def test_a_processor_gets_the_reference_and_refuses_triton():
    x, weights, *_ = operands()
    assert torch.equal(narrow_product(x, weights), narrow_product(x, weights, backend="reference"))
    if sys.platform == "linux":
        with pytest.raises(KernelInputError, match="needs a CUDA device, x is on cpu"):
            narrow_product(x, weights, backend="triton")
        with pytest.raises(KernelInputError, match="needs a CUDA device, x is on cpu"):
            gated_product(x, weights[1], weights[2], backend="triton")
    with pytest.raises(KernelInputError, match="not 'cuda'"):
        narrow_product(x, weights, backend="cuda")


def test_the_product_does_not_import_the_kernels():
    code = (
        "import sys, selfspec_kernels.narrow_product;"
        "sys.exit('selfspec_kernels.narrow_product_launch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=environment())


BROKEN = {
    r"x must be \[..., K\]": lambda x, w, b, r: ((x.double(), w), {}),
    "0 weights: allowed are 1 to 3": lambda x, w, b, r: ((x, []), {}),
    "4 weights: allowed are 1 to 3": lambda x, w, b, r: ((x, [*w, w[0]]), {}),
    "2 biases for 3 weights": lambda x, w, b, r: ((x, w, b[:2]), {}),
    r"weight 1 must be \[N, K\]": lambda x, w, b, r: ((x, [w[0], w[1][0]]), {}),
    r"weight 0 must be \[N, K\] with N above 0": lambda x, w, b, r: ((x, [w[0][:0]]), {}),
    r"weight 1 must be \[8, 48\], not \[8, 47\]": lambda x, w, b, r: ((x, [w[0], w[1][:, 1:]]), {}),
    "weight 0 must be torch.float32, not torch.bfloat16": lambda x, w, b, r: ((x, [w[0].bfloat16()]), {}),
    "weight 0 must be contiguous in its last": lambda x, w, b, r: ((x, [w[0].t().contiguous().t()]), {}),
    "weight 2 is on meta, x on cpu": lambda x, w, b, r: ((x, [*w[:2], w[2].to("meta")]), {}),
    r"bias 1 must be \[8\], not \[5\]": lambda x, w, b, r: ((x, w, [None, b[1][:5], None]), {}),
    "bias 0 must be torch.float32 or torch.float32, not torch.float16": lambda x, w, b, r: (
        (x, w[:1], [b[0].half()]),
        {},
    ),
    r"residual must be \[3, 40\], not \[3, 39\]": lambda x, w, b, r: ((x, w), {"residual": r[:, 1:]}),
    "residual must be torch.float32, not": lambda x, w, b, r: ((x, w), {"residual": r.half()}),
    "residual is on meta": lambda x, w, b, r: ((x, w), {"residual": r.to("meta")}),
    "a multiplier of 0.5 needs a residual": lambda x, w, b, r: ((x, w), {"multiplier": 0.5}),
}


@pytest.mark.parametrize("message", BROKEN)
def test_what_does_not_belong_together_is_named(message):
    arguments, keywords = BROKEN[message](*operands())
    with pytest.raises(KernelInputError, match=message):
        narrow_product(*arguments, **keywords)


def test_what_a_gated_product_does_not_take_is_named():
    x, (wide, gate, up), *_ = operands()
    with pytest.raises(
        KernelInputError, match="activation must be 'silu', 'gelu_tanh' or 'gelu', not 'relu'"
    ):
        gated_product(x, gate, up, activation="relu")
    with pytest.raises(KernelInputError, match=r"up must be \[8, 48\], not \[24, 48\]"):
        gated_product(x, gate, wide)
    with pytest.raises(KernelInputError, match=r"gate must be torch\.float32"):
        gated_product(x, gate.half(), up)
    with pytest.raises(KernelInputError, match="up is on meta, x on cpu"):
        gated_product(x, gate, up.to("meta"))


# Triton's interpreter


def test_kernels_agree_with_the_reference_in_every_odd_shape():
    found = results_of("narrow_product")
    assert len(found["cases"]) >= 18
    for case, error in found["cases"].items():
        assert error < INTERPRETED[found["dtypes"][case]], case


def test_broken_kernels_do_not_pass():
    found = results_of("narrow_product")
    assert len(found["mutations"]) >= 22
    for mutation, spoilt in found["mutations"].items():
        assert spoilt["error"] > 3 * INTERPRETED[found["dtypes"][spoilt["case"]]], mutation


def test_a_nan_stays_in_its_row():
    assert results_of("narrow_product")["nan"] == [[5], [5]]


def test_weights_may_lie_further_apart_than_int32_counts():
    assert results_of("narrow_product")["far apart"] == [0.0, 16.0, 32.0]


def test_the_dispatchers_hand_rows_to_triton():
    assert results_of("narrow_product")["dispatched"] == [[2, 3, 21], [0, 3, 16], [3], [0, 3, 16]]


# On a GPU

SHAPES = [
    ((4096, 1024, 1024), 4096),
    ((4096,), 14336),
    ((2048, 512, 512), 2048),
    ((2048,), 2048),
    ((14336,), 4096),
    ((1,), 1),
    ((100, 33), 1000),
]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("sizes", "k"), SHAPES, ids=str)
def test_triton_agrees_with_the_reference_on_the_gpu(sizes, k, dtype, cuda):
    x, weights, biases, residual = operands(sizes, k, 70, dtype, cuda)
    biases[0] = None
    for m in (1, 2, 5, 16, 17, 40, 70):
        expected = reference_product(x[:m], weights, biases).float()
        found = narrow_product(x[:m], weights, biases, backend="triton").float()
        assert (found - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max()
    added = narrow_product(x, weights, biases, residual=residual, multiplier=0.22, backend="triton")
    product = narrow_product(x, weights, biases, backend="triton")
    assert torch.equal(added, residual + product * 0.22)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("n", "k"), [(14336, 4096), (8192, 2048), (1500, 1000), (33, 70)])
def test_the_gated_product_agrees_with_the_reference_on_the_gpu(n, k, activation, dtype, cuda):
    x, (gate, up), _, _ = operands((n, n), k, 40, dtype, cuda)
    for m in (1, 7, 17, 40):
        expected = reference_gated(x[:m], gate, up, activation).float()
        found = gated_product(x[:m], gate, up, activation=activation, backend="triton").float()
        assert (found - expected).abs().max() <= 2 * TOLERANCE[dtype] * expected.abs().max()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("sizes", "k"), SHAPES, ids=str)
def test_a_rows_bits_do_not_depend_on_the_rows_beside_it(sizes, k, dtype, cuda):
    x, weights, biases, residual = operands(sizes, k, 70, dtype, cuda)
    whole = narrow_product(x, weights, biases, residual=residual, backend="triton")
    half = gated_product(x, weights[0], weights[0], backend="triton")
    for m in (1, 2, 5, 16, 17, 40):
        few = narrow_product(x[-m:], weights, biases, residual=residual[-m:], backend="triton")
        assert torch.equal(few, whole[-m:]), m
        few = gated_product(x[-m:], weights[0], weights[0], backend="triton")
        assert torch.equal(few, half[-m:]), m


@pytest.mark.gpu
def test_every_candidate_agrees_with_the_reference_on_the_gpu(cuda):
    from selfspec_kernels.launching import processors
    from selfspec_kernels.narrow_product_launch import candidates, gated, product

    count = processors(torch.device(cuda, 0))
    x, weights, biases, _ = operands((4096, 1024, 1024), 4096, 5, torch.bfloat16, cuda)
    expected = reference_product(x, weights, biases).float()
    for chosen in candidates(6144, 4096, x.dtype, count):
        found = product(x, weights, biases, chosen=chosen).float()
        assert (found - expected).abs().max() <= 2**-7 * expected.abs().max(), chosen
    x, (gate, up), _, _ = operands((8192, 8192), 2048, 5, torch.bfloat16, cuda)
    expected = reference_gated(x, gate, up).float()
    for chosen in candidates(8192, 2048, x.dtype, count, streams=2):
        found = gated(x, gate, up, "silu", chosen).float()
        assert (found - expected).abs().max() <= 2**-6 * expected.abs().max(), chosen


@pytest.mark.gpu
def test_weights_inside_of_a_larger_matrix_on_the_gpu(cuda):
    x, (weight,), _, _ = operands((96,), 4096, 5, torch.bfloat16, cuda)
    inner = weight[::2, 1000:2025]  # rows apart, a first element on no 16-byte boundary, an odd K
    expected = reference_product(x[:, 7:1032], [inner]).float()
    found = narrow_product(x[:, 7:1032], [inner], backend="triton").float()
    assert (found - expected).abs().max() <= 2**-7 * expected.abs().max()


@pytest.mark.gpu
def test_a_cuda_graph_replays_the_products(cuda):
    x, weights, _, _ = operands((2048, 2048), 2048, 2, torch.bfloat16, cuda)
    expected = narrow_product(x, weights), gated_product(x, *weights)  # compiles, which a capture must not
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = narrow_product(x, weights), gated_product(x, *weights)
    for one in out:
        one.fill_(float("nan"))
    graph.replay()
    assert all(map(torch.equal, out, expected))
