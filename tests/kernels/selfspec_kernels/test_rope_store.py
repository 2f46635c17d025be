"""Head norms, rotary embedding and cache write: the reference, the dispatcher, and the kernel beside it."""

from __future__ import annotations

import os
import sys

import pytest
import torch
from interpreter import results_of
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from selfspec_kernels.backend import KernelInputError
from selfspec_kernels.rope_store import rope_store
from selfspec_kernels.rope_store_reference import Projections, head_norm, reference_rope_store

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def operands(
    rows=2, width=3, heads=4, kv_heads=2, size=64, turning=64, dtype=torch.float32, angles=None, device="cpu"
):
    """qkv, cos, sin, keys, values, slots."""
    draw = torch.Generator().manual_seed(rows + width + size)
    qkv = torch.randn(rows, width, (heads + 2 * kv_heads) * size, generator=draw).to(dtype)
    half = torch.rand(rows, width, turning // 2, generator=draw) * 6
    angle = torch.cat([half, half], dim=-1)
    cos, sin = (tensor.to(angles or dtype) for tensor in (angle.cos(), angle.sin()))
    keys, values = torch.zeros(2, rows, kv_heads, width + 9, size, dtype=dtype)
    slots = torch.stack([torch.randperm(width + 9, generator=draw)[:width] for _ in range(rows)])
    return [tensor.to(device) for tensor in (qkv, cos, sin, keys, values, slots)]


def norms(size=64, dtype=torch.float32, device="cpu"):
    query_norm, key_norm = torch.linspace(0.5, 2, 2 * size, dtype=dtype, device=device).view(2, size)
    return {"query_norm": query_norm, "key_norm": key_norm}


# Reference and dispatcher


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_reference_is_the_models_own_rotation_bit_by_bit(dtype):
    qkv, cos, sin, keys, values, slots = operands(dtype=dtype)
    query, key, value = qkv.view(2, 3, 8, 64).transpose(1, 2).split([4, 2, 2], dim=1)
    query, key = apply_rotary_pos_emb(query, key, cos, sin)
    found = rope_store(Projections(qkv, cos, sin, keys, values, slots, heads=4))
    assert torch.equal(found, query)
    assert found.is_contiguous()
    at = slots[:, None, :, None].expand(-1, 2, -1, 64)
    assert torch.equal(keys.gather(2, at), key)
    assert torch.equal(values.gather(2, at), value)
    others = torch.ones(2, 12).scatter(1, slots, 0).bool()[:, None, :, None]
    assert not (keys * others).any() and not (values * others).any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_reference_is_the_models_own_head_norm_bit_by_bit(dtype):
    norm = Qwen3RMSNorm(64, eps=1e-5).to(dtype)
    norm.weight.data = torch.linspace(0.5, 2, 64).to(dtype)
    x = torch.randn(2, 3, 4, 64).to(dtype)
    assert torch.equal(head_norm(x, norm.weight, 1e-5), norm(x))


def test_a_part_of_a_head_turns_and_the_rest_passes():
    qkv, cos, sin, keys, values, slots = operands(size=80, turning=32)
    found = rope_store(Projections(qkv, cos, sin, keys, values, slots, heads=4))
    query = qkv.view(2, 3, 8, 80)[:, :, :4].transpose(1, 2)
    turned, _ = apply_rotary_pos_emb(query[..., :32], query[..., :32], cos, sin)
    assert torch.equal(found, torch.cat([turned, query[..., 32:]], dim=-1))


def test_a_layer_without_rotation_only_moves_its_heads():
    qkv, _, _, keys, values, slots = operands()
    found = rope_store(Projections(qkv, None, None, keys, values, slots, heads=4))
    assert torch.equal(found, qkv.view(2, 3, 8, 64)[:, :, :4].transpose(1, 2))


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter runs anywhere")
def test_a_processor_refuses_triton():
    if sys.platform == "linux":
        with pytest.raises(KernelInputError, match="needs a CUDA device, qkv is on cpu"):
            rope_store(Projections(*operands(), heads=4), backend="triton")


BROKEN = {
    "qkv and keys must be": lambda q, c, s, k, v, i: (q.double(), c, s, k, v, i),
    r"qkv must be \[2, 3, 512\]": lambda q, c, s, k, v, i: (q[..., :500], c, s, k, v, i),
    "qkv must be contiguous in its last": lambda q, c, s, k, v, i: (
        q.mT.contiguous().mT, c, s, k, v, i,
    ),
    "cos and sin go together": lambda q, c, s, k, v, i: (q, c, None, k, v, i),
    "63 elements of a head turn": lambda q, c, s, k, v, i: (q, c[..., :63], s, k, v, i),
    r"cos must be \[2, 3, 64\]": lambda q, c, s, k, v, i: (q, c[:1], s, k, v, i),
    "cos must be torch.float32": lambda q, c, s, k, v, i: (q, c.half(), s.half(), k, v, i),
    r"sin must be \[2, 3, 64\]": lambda q, c, s, k, v, i: (q, c, s[..., :32], k, v, i),
    "sin must be torch.float32": lambda q, c, s, k, v, i: (q, c, s.half(), k, v, i),
    "keys must be torch.float32": lambda q, c, s, k, v, i: (q, c, s, k.half(), v, i),
    r"values must be \[2, 2, 12, 64\]": lambda q, c, s, k, v, i: (q, c, s, k, v[:, :, :5], i),
    "values must be contiguous in its last": lambda q, c, s, k, v, i: (
        q, c, s, k, v.mT.contiguous().mT, i,
    ),
    "2 slots do not hold 3 tokens": lambda q, c, s, k, v, i: (q, c, s, k[:, :, :2], v, i),
    "slots must be torch.int64": lambda q, c, s, k, v, i: (q, c, s, k, v, i.int()),
    r"slots must be \[2, 3\]": lambda q, c, s, k, v, i: (q, c, s, k, v, i[0]),
    "slots is on meta": lambda q, c, s, k, v, i: (q, c, s, k, v, i.to("meta")),
}  # fmt: skip


@pytest.mark.parametrize("message", BROKEN)
def test_what_does_not_belong_together_is_named(message):
    with pytest.raises(KernelInputError, match=message):
        Projections(*BROKEN[message](*operands()), heads=4)


def test_heads_and_norms_that_do_not_belong_together_are_named():
    with pytest.raises(KernelInputError, match="3 query heads do not divide among 2 key heads"):
        Projections(*operands(), heads=3)
    with pytest.raises(KernelInputError, match="both or neither"):
        Projections(*operands(), heads=4, query_norm=torch.ones(64))
    with pytest.raises(KernelInputError, match=r"key_norm must be \[64\]"):
        Projections(*operands(), heads=4, query_norm=torch.ones(64), key_norm=torch.ones(32))
    with pytest.raises(KernelInputError, match="heads of 600"):
        Projections(*operands(size=600), heads=4)


# Triton's interpreter, in a process of its own


@pytest.fixture(scope="module")
def interpreted() -> dict:
    """See support/rope_store_interpreted.py."""
    return results_of("rope_store")


def test_the_kernel_says_what_the_reference_says_in_every_odd_shape(interpreted):
    assert len(interpreted["cases"]) >= 12
    for case, error in interpreted["cases"].items():
        # The interpreter cuts bf16 where a GPU rounds, and a norm's sum has an order of its own.
        bf16 = interpreted["dtypes"][case] == "torch.bfloat16"
        most = 0.1 if bf16 else 2e-3 if case in interpreted["normed"] else 0.0
        assert error <= most, case


def test_broken_kernels_do_not_pass(interpreted):
    assert len(interpreted["mutations"]) >= 14
    for mutation, found in interpreted["mutations"].items():
        least = 0.01 if found["case"] in interpreted["normed"] else 1e-3
        assert found["error"] > least, mutation


def test_offsets_above_int32_are_reached(interpreted):
    assert interpreted["far apart"]


# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "angles"), [*((d, d) for d in DTYPES), (torch.bfloat16, torch.float32)])
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 5), (1, 64)])
@pytest.mark.parametrize(("size", "turning"), [(128, 128), (80, 32), (64, 0)])
def test_triton_says_what_the_reference_says_on_the_gpu(rows, width, size, turning, dtype, angles, cuda):
    given = operands(rows, width, 8, 2, size, max(turning, 2), dtype, angles, cuda)
    if not turning:
        given[1:3] = None, None
    for normed in (False, True):
        more = norms(size, dtype, cuda) if normed else {}
        results = []
        for backend in ("triton", "reference"):
            caches = [given[3].clone(), given[4].clone()]
            new = Projections(*given[:3], *caches, given[5], heads=8, **more)
            query = rope_store(new, backend=backend)
            results.append((query, *caches))
        for found, expected in zip(*results, strict=True):
            if normed:  # its sum has another order: the last bit may differ
                error = (found.float() - expected.float()).abs().max()
                assert error <= 2 * torch.finfo(dtype).eps * expected.float().abs().max()
            else:
                assert torch.equal(found, expected)


@pytest.mark.gpu
def test_a_cuda_graph_reads_slots_that_changed(cuda):
    qkv, cos, sin, keys, values, slots = operands(dtype=torch.bfloat16, device=cuda)
    rope_store(Projections(qkv, cos, sin, keys, values, slots, heads=4))  # compiles, which a capture must not
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        query = rope_store(Projections(qkv, cos, sin, keys, values, slots, heads=4))
    slots += 1
    slots %= keys.shape[2]
    keys.zero_(), values.zero_()
    graph.replay()
    caches = [torch.zeros_like(keys), torch.zeros_like(values)]
    expected = reference_rope_store(Projections(qkv, cos, sin, *caches, slots, heads=4))
    assert torch.equal(query, expected)
    assert torch.equal(keys, caches[0]) and torch.equal(values, caches[1])
