"""Attention over the cache: its reference, its dispatcher, and the Triton kernels beside it."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest
import torch
from interpreter import results_of

from layer_skip.attention import attend
from layer_skip.span import causal_mask, tree_keys, tree_mask
from selfspec.tree import chain, with_siblings
from selfspec_kernels.backend import KernelInputError
from selfspec_kernels.verify_attention import verify_attention
from selfspec_kernels.verify_attention_reference import HEAD_SIZES, LARGEST_IN_FP32, Attention, tree_bits

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
TOLERANCE = {"torch.float32": 1e-5, "torch.float16": 2e-3, "torch.bfloat16": 2e-2}
"""Of values of size 1; the interpreter cuts bf16 where a GPU rounds."""


def operands(width=5, heads=4, kv_heads=2, slots=40, size=64, dtype=torch.float32, device="cpu", rows=2):
    draw = torch.Generator().manual_seed(width + slots)
    query = torch.randn(rows, heads, width, size, generator=draw)
    key, value = torch.randn(2, rows, kv_heads, slots, size, generator=draw)
    lengths = torch.linspace(0, slots - width, rows).long()
    return [*(tensor.to(device, dtype) for tensor in (query, key, value)), lengths.to(device)]


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("tree", [chain(4), with_siblings(3)], ids=["chain", "tree"])
@pytest.mark.parametrize(("softcap", "sinks"), [(None, False), (3.0, True)])
def test_the_reference_is_the_engines_attention_under_its_masks(tree, window, softcap, sinks):
    query, key, value, lengths = operands(tree.size)
    keywords = {"softcap": softcap, "s_aux": torch.randn(4) if sinks else None, "scaling": 0.3}
    depths = torch.tensor(tree.depths)
    positions, ancestors = lengths[:, None] + depths, tree.ancestors(tree.size)
    if tree.is_chain:
        mask = causal_mask(positions, 40, window, torch.float32)
    else:
        mask = tree_mask(positions, tree_keys(positions, 40), window, torch.float32, ancestors)
    expected, _ = attend(SimpleNamespace(), query, key, value, mask, **keywords)
    shape = {} if tree.is_chain else {"tree": tree_bits(ancestors)}
    if window is not None and shape:
        shape["depths"] = depths.int()
    given = Attention(
        query,
        key,
        value,
        lengths,
        scaling=0.3,
        softcap=softcap,
        sinks=keywords["s_aux"],
        window=window,
        **shape,
    )
    found = verify_attention(given)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert found.is_contiguous()


def test_a_tree_of_64_tokens_fits_into_its_bits():
    tree = chain(63)
    query, key, value, lengths = operands(64, slots=80)
    bits = tree_bits(tree.ancestors(64))
    assert bits[63] == -1
    torch.testing.assert_close(
        verify_attention(Attention(query, key, value, lengths, tree=bits)),
        verify_attention(Attention(query, key, value, lengths)),
    )


def test_what_nobody_sees_may_hold_anything():
    query, key, value, lengths = operands(rows=1)
    lengths = lengths + 7
    given = Attention(query, key, value, lengths)
    expected = verify_attention(given)
    key[:, :, 12:], value[:, :, 12:] = float("nan"), float("nan")
    assert torch.equal(verify_attention(given), expected)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter runs anywhere")
def test_a_processor_gets_the_reference_and_refuses_triton():
    given = Attention(*operands())
    assert torch.equal(verify_attention(given), verify_attention(given, backend="reference"))
    if sys.platform == "linux":
        with pytest.raises(KernelInputError, match="needs a CUDA device, query is on cpu"):
            verify_attention(given, backend="triton")


def test_large_heads_in_fp32_are_the_references():
    given = Attention(*operands(size=256))
    assert torch.equal(verify_attention(given), verify_attention(given, backend="reference"))
    with pytest.raises(KernelInputError, match="heads of 256 in fp32: the Triton backend has them up to 128"):
        verify_attention(given, backend="triton")


@pytest.mark.skipif(sys.platform != "linux", reason="triton is for Linux")
@pytest.mark.parametrize(
    ("rows", "slots", "message"),
    [
        (65_536, 1, r"rows times key heads: 65536: .*65536 programs along one axis, of which CUDA has 65535"),
        (1, 65_536 * 1024, r"slots: 67108864: .*65536 programs along one axis"),
    ],
)
def test_more_programs_than_a_launch_has_are_named(rows, slots, message):
    from selfspec_kernels.verify_attention_launch import attend

    query, key = torch.zeros(1, 1, 1, 64).expand(rows, 1, 1, 64), torch.zeros(1, 1, 1, 64)
    key = key.expand(rows, 1, slots, 64)
    with pytest.raises(KernelInputError, match=message):
        attend(Attention(query, key, key, torch.zeros(rows, dtype=torch.int64)), piece=1024)


BITS = torch.ones(5).long()
BROKEN = {
    r"query and key must be \[B, H, m, Dh\]": lambda q, k, v, n: ((q[0], k, v, n), {}),
    "not torch.float64": lambda q, k, v, n: ((q.double(), k, v, n), {}),
    "heads of 32: allowed are 64, 80, 96, 128, 256": lambda q, k, v, n: (
        (q[..., :32], k[..., :32], v[..., :32], n),
        {},
    ),
    "65 tokens a row: allowed are 1 to 64": lambda q, k, v, n: (
        (q[:, :, :1].expand(-1, -1, 65, -1), k, v, n),
        {},
    ),
    "4 query heads do not divide among 3": lambda q, k, v, n: ((q, k[:, :1].expand(-1, 3, -1, -1), v, n), {}),
    "4 slots do not hold 5 tokens": lambda q, k, v, n: ((q, k[:, :, :4], v[:, :, :4], n), {}),
    "key must be torch.float32": lambda q, k, v, n: ((q, k.half(), v, n), {}),
    r"value must be \[2, 2, 40, 64\]": lambda q, k, v, n: ((q, k, v[:, :, 1:], n), {}),
    "value must be contiguous in its last": lambda q, k, v, n: (
        (q, k, v.transpose(2, 3).contiguous().transpose(2, 3), n),
        {},
    ),
    "lengths must be torch.int64": lambda q, k, v, n: ((q, k, v, n.int()), {}),
    "lengths is on meta, query on cpu": lambda q, k, v, n: ((q, k, v, n.to("meta")), {}),
    "indices above int32": lambda q, k, v, n: ((q, k[:, :, :1].expand(-1, -1, 2**31, -1), v, n), {}),
    r"tree must be \[5\]": lambda q, k, v, n: ((q, k, v, n), {"tree": BITS[1:]}),
    "depths go with a tree in a window": lambda q, k, v, n: ((q, k, v, n), {"tree": BITS, "window": 3}),
    "and with nothing else": lambda q, k, v, n: ((q, k, v, n), {"depths": BITS.int()}),
    "window must hold at least the token itself": lambda q, k, v, n: ((q, k, v, n), {"window": 0}),
    "soft cap must be above 0": lambda q, k, v, n: ((q, k, v, n), {"softcap": -1.0}),
    r"sinks must be \[4\]": lambda q, k, v, n: ((q, k, v, n), {"sinks": torch.ones(2)}),
}


@pytest.mark.parametrize("message", BROKEN)
def test_what_does_not_belong_together_is_named(message):
    arguments, keywords = BROKEN[message](*operands())
    with pytest.raises(KernelInputError, match=message):
        Attention(*arguments, **keywords)


# Triton's interpreter


def test_kernels_agree_with_the_reference_in_every_odd_shape():
    found = results_of("verify_attention")
    assert len(found["cases"]) >= 16
    for case, error in found["cases"].items():
        assert error < TOLERANCE[found["dtypes"][case]], case


def test_broken_kernels_do_not_pass():
    found = results_of("verify_attention")
    assert len(found["mutations"]) >= 20
    for mutation, spoilt in found["mutations"].items():
        assert spoilt["error"] > 3 * TOLERANCE[found["dtypes"][spoilt["case"]]], mutation


def test_a_tokens_bits_do_not_depend_on_width_batch_or_capacity():
    assert all(results_of("verify_attention")["same bits"])


def test_pieces_that_nobody_sees_are_not_written():
    seen = range(51 // 16, -(-72 // 16))
    assert results_of("verify_attention")["left alone"] == [piece not in seen for piece in range(13)]


def test_keys_may_lie_further_apart_than_int32_counts():
    assert results_of("verify_attention")["far apart"] < TOLERANCE["torch.float16"]


# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", HEAD_SIZES)
@pytest.mark.parametrize("slots", [64, 600, 5000])
def test_triton_agrees_with_the_reference_on_the_gpu(slots, size, dtype, cuda):
    if dtype == torch.float32 and size > LARGEST_IN_FP32:
        pytest.skip("the reference's")
    for width in (1, 8, 64):
        tensors = operands(width, 8, 2, slots, size, dtype, cuda, rows=3)
        tree = tree_bits(with_siblings(3).ancestors(width)).to(cuda) if width == 8 else None
        keywords = {"tree": tree, "softcap": 20.0, "sinks": torch.randn(8, device=cuda)}
        given = Attention(*tensors, **keywords)
        found = verify_attention(given, backend="triton")
        expected = verify_attention(given, backend="reference")
        assert (found.float() - expected.float()).abs().max() < TOLERANCE[str(dtype)]


@pytest.mark.gpu
def test_a_tokens_bits_do_not_depend_on_who_is_beside_it_on_the_gpu(cuda):
    query, key, value, lengths = operands(8, 8, 2, 5000, 128, torch.bfloat16, cuda, rows=4)
    whole = verify_attention(Attention(query, key, value, lengths))
    for column in range(8):
        alone = Attention(query[-1:, :, column : column + 1], key[-1:], value[-1:], lengths[-1:] + column)
        assert torch.equal(verify_attention(alone)[0, 0], whole[-1, column])


@pytest.mark.gpu
@pytest.mark.parametrize("size", HEAD_SIZES)
@pytest.mark.parametrize("slots", [200, 1500, 9000])
def test_spans_parts_and_blocks_give_the_same_bits_on_the_gpu(slots, size, cuda):
    from selfspec_kernels.verify_attention_launch import attend, plan

    tensors = operands(8, 8, 2, slots, size, torch.bfloat16, cuda, rows=3)
    given = Attention(*tensors, scaling=0.1, sinks=torch.randn(8, device=cuda))
    chosen = plan(size, torch.bfloat16)
    spans, *others = (attend(given, piece=piece) for piece in (chosen.span, chosen.part, chosen.block_n))
    assert all(torch.equal(spans, other) for other in others)
