"""The low-bit product: its storage, its reference, and the Triton kernels beside it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from interpreter import environment, results_of

from selfspec_kernels.low_bit_product import low_bit_product
from selfspec_kernels.low_bit_product_reference import (
    GROUPS,
    pack_levels,
    pack_scales,
    reference_product,
    unpack_levels,
)

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2**-7}
"""Over the largest output; bf16 a whole last bit, because the interpreter cuts where a GPU rounds."""


def operands(n=48, k=192, group=32, m=3, dtype=torch.float32, device="cpu"):
    """x, levels, scale, offset, bias."""
    draw = torch.Generator().manual_seed(n + k + m)
    q = torch.randint(0, 16, (n, k), dtype=torch.uint8, generator=draw)
    scale = torch.rand(n, k // group, generator=draw) * 0.1 + 0.01
    offset = torch.randn(n, k // group, generator=draw) * 0.2
    x, bias = torch.randn(m, k, generator=draw), torch.randn(n, generator=draw)
    return [t.to(device) if t is q else t.to(device, dtype) for t in (x, q, scale, offset, bias)]


def stored(group=32, **settings):
    """x, packed levels, scales, bias."""
    x, q, scale, offset, bias = operands(group=group, **settings)
    return x, pack_levels(q, group), pack_scales(scale, offset), bias


# Storage


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("groups", [1, 2, 5])
def test_levels_come_back_as_they_were(group, groups):
    q = torch.randint(0, 16, (7, groups * group), dtype=torch.uint8)
    packed = pack_levels(q, group)
    assert packed.shape == (16, -(-groups * group // 64) * 32)
    assert torch.equal(unpack_levels(packed, 7, q.shape[1]), q)


def test_a_thread_finds_its_part_of_a_tile_side_by_side():
    q = torch.zeros(16, 128, dtype=torch.uint8)
    thread = 4 * 3 + 2  # outputs 3 and 11, inputs 16 to 23 and 48 to 55 of each tile
    q[3, 64 + 16], q[3, 64 + 48 + 1] = 5, 9
    q[11, 64 + 16 + 2], q[11, 64 + 48 + 4] = 6, 7
    mine = pack_levels(q, 32).view(-1, 32, 16)[1, thread]
    words = torch.zeros(4, 4, dtype=torch.uint8)
    words[0, 0], words[0, 2] = 5, 9 << 4
    words[3, 0], words[2, 1] = 6, 7 << 4
    assert torch.equal(mine, words.flatten())


def test_memory_is_half_a_byte_a_weight_and_two_numbers_a_group():
    _, packed, scales, _ = stored(n=64, k=512, group=64, dtype=torch.bfloat16)
    assert packed.nbytes == 64 * 512 // 2
    assert scales.nbytes == 64 * 512 // 64 * 4


@pytest.mark.parametrize(
    ("q", "group", "message"),
    [
        (torch.zeros(4, 48, dtype=torch.uint8), 32, "48 inputs do not divide into groups of 32"),
        (torch.zeros(4, 48, dtype=torch.uint8), 48, "groups must be of 32, 64, 128 inputs, not 48"),
        (torch.zeros(4, 0, dtype=torch.uint8), 32, "0 inputs"),
        (torch.zeros(4, 32), 32, "must be uint8"),
        (torch.zeros(32, dtype=torch.uint8), 32, "must be uint8"),
        (torch.full((4, 32), 16, dtype=torch.uint8), 32, "from 0 to 15, found 16"),
    ],
)
def test_levels_that_cannot_be_stored_are_named(q, group, message):
    with pytest.raises(ValueError, match=message):
        pack_levels(q, group)


# Reference and dispatcher


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("m", "k", "group"), [(1, 32, 32), (3, 96, 32), (16, 320, 64), (2, 384, 128)])
def test_the_reference_is_the_product_with_the_rounded_weights(m, k, group, dtype):
    x, q, scale, offset, bias = operands(k=k, group=group, m=m, dtype=dtype)
    weight = (q.double() - 8).view(48, -1, group) * scale.double()[..., None] + offset.double()[..., None]
    expected = F.linear(x.double(), weight.flatten(1), bias.double())
    found = reference_product(x, pack_levels(q, group), pack_scales(scale, offset), bias)
    assert found.dtype == dtype
    tolerance = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}[dtype]
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


def test_leading_dimensions_are_kept():
    x, packed, scales, bias = stored(m=6)
    out = low_bit_product(x.view(2, 3, -1), packed, scales, bias)
    assert torch.equal(out, reference_product(x, packed, scales, bias).view(2, 3, -1))
    assert low_bit_product(x[0], packed, scales).shape == (48,)
    assert low_bit_product(x[:0], packed, scales).shape == (0, 48)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter runs anywhere")
def test_a_processor_gets_the_reference_and_refuses_triton():
    x, packed, scales, bias = stored()
    out = low_bit_product(x, packed, scales, bias)
    assert torch.equal(out, low_bit_product(x, packed, scales, bias, backend="reference"))
    if sys.platform == "linux":
        with pytest.raises(ValueError, match="needs a CUDA device, x is on cpu"):
            low_bit_product(x, packed, scales, bias, backend="triton")
    with pytest.raises(ValueError, match="not 'cuda'"):
        low_bit_product(x, packed, scales, bias, backend="cuda")


def test_importing_the_product_does_not_import_the_kernels():
    code = (
        "import sys, selfspec_kernels.low_bit_product;"
        "sys.exit('selfspec_kernels.low_bit_launch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=environment())


BROKEN = {
    "x must be": lambda x, p, s, b: (x.double(), p, s, b),
    "packed levels must be uint8": lambda x, p, s, b: (x, p.int(), s, b),
    r"scales must be \[K / group, N, 2\]": lambda x, p, s, b: (x, p, s.transpose(1, 2), b),
    "190 inputs do not divide into the 6 groups": lambda x, p, s, b: (x[:, :190], p, s, b),
    "not 96": lambda x, p, s, b: (x, p, s[:2].contiguous(), b),
    r"packed as \[48, 96\], not as \[48, 64\]": lambda x, p, s, b: (x, p[:, :64].contiguous(), s, b),
    r"bias must be \[48\]": lambda x, p, s, b: (x, p, s, b[:5]),
    "scales is torch.bfloat16, x torch.float32": lambda x, p, s, b: (x, p, s.bfloat16(), b),
    "bias is torch.float16": lambda x, p, s, b: (x, p, s, b.half()),
    "packed must be contiguous": lambda x, p, s, b: (x, p.t().contiguous().t(), s, b),
    "scales must be contiguous": lambda x, p, s, b: (x, p, s.transpose(0, 2).contiguous().transpose(0, 2), b),
    "packed is on meta, x on cpu": lambda x, p, s, b: (x, p.to("meta"), s, b),
    "bias is on meta": lambda x, p, s, b: (x, p, s, b.to("meta")),
}


@pytest.mark.parametrize("message", BROKEN)
def test_what_does_not_belong_together_is_named(message):
    with pytest.raises(ValueError, match=message):
        low_bit_product(*BROKEN[message](*stored()))


# Triton's interpreter, in a process of its own: kernels imported here are for compilation


@pytest.fixture(scope="module")
def interpreted() -> dict[str, dict]:
    """Errors by case and by mutation; see support/low_bit_interpreted.py."""
    return results_of("low_bit")


def test_kernels_agree_with_the_reference_in_every_odd_shape(interpreted):
    assert len(interpreted["cases"]) >= 10
    tolerance = {str(dtype): most for dtype, most in TOLERANCE.items()}
    for case, found in interpreted["cases"].items():
        assert found["error"] < tolerance[found["dtype"]], case


def test_broken_kernels_do_not_pass(interpreted):
    assert len(interpreted["mutations"]) >= 10
    for mutation, found in interpreted["mutations"].items():
        assert found["error"] > 0.05, mutation


def test_the_dispatcher_hands_rows_to_triton(interpreted):
    assert interpreted["dispatched"] == {"shape": [1, 2, 33], "equal": True}


# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(
    ("n", "k"), [(48, 128), (33, 384), (1, 640), (1024, 4096), (2048, 8192), (4096, 14336), (151_937, 896)]
)
def test_triton_agrees_with_the_reference_on_the_gpu(n, k, group, dtype, cuda):
    x, packed, scales, bias = stored(n=n, k=k, group=group, m=17, dtype=dtype, device=cuda)
    expected = reference_product(x, packed, scales, bias).float()
    for m in (1, 2, 3, 5, 8, 9, 16, 17):
        found = low_bit_product(x[:m], packed, scales, bias, backend="triton").float()
        assert (found - expected[:m]).abs().max() < TOLERANCE[dtype] * expected[:m].abs().max()


@pytest.mark.gpu
def test_equal_inputs_give_equal_bits_on_the_gpu(cuda):
    for n in (1024, 4096):
        x, packed, scales, bias = stored(n=n, k=4096, m=5, dtype=torch.bfloat16, device=cuda)
        first = low_bit_product(x, packed, scales, bias, backend="triton")
        for _ in range(20):
            assert torch.equal(low_bit_product(x, packed, scales, bias, backend="triton"), first)


@pytest.mark.gpu
def test_a_cuda_graph_replays_the_product(cuda):
    x, packed, scales, bias = stored(n=1024, k=4096, m=2, dtype=torch.bfloat16, device=cuda)
    expected = low_bit_product(x, packed, scales, bias)  # compiles, which a capture must not
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = low_bit_product(x, packed, scales, bias)
    out.fill_(float("nan"))
    graph.replay()
    assert torch.equal(out, expected)
