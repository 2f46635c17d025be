"""Verification's attention and what stands in front of it, against their references."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from gpu_bench import Bench
from gpu_checks import BF16, FP16, FP32, INFINITY, LIMIT, NAN, Check, normal, poisoned, worst
from torch import Tensor

from selfspec_kernels.verify_attention import verify_attention
from selfspec_kernels.verify_attention_reference import Attention, tree_bits


@dataclass(frozen=True)
class AttentionCase:
    """A verification pass; slots behind what is written hold NaN."""

    lengths: tuple[int, ...]
    width: int = 1
    heads: int = 32
    kv_heads: int = 8
    size: int = 128
    dtype: torch.dtype = BF16
    tree: bool = False
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False


ATTENTION = {
    "nothing before the token": AttentionCase((0,)),
    "lengths 0, 1, 511, 512, 513, 8 tokens": AttentionCase((0, 1, 511, 512, 513), 8),
    "16k, 8 tokens": AttentionCase((16_384, 3), 8),
    "fp16, 64 tokens, heads of 64": AttentionCase((1000, 20), 64, 8, 2, 64, FP16),
    "fp32, heads of 128": AttentionCase((700,), 5, 4, 4, 128, FP32),
    "heads of 80, one key head": AttentionCase((700,), 3, 6, 1, 80),
    "heads of 96, window": AttentionCase((1500, 40), 4, 8, 4, 96, window=600),
    "heads of 256, soft cap": AttentionCase((1030,), 7, 8, 4, 256, softcap=20.0),
    "a tree over two spans": AttentionCase((510, 30), 6, tree=True),
    "a tree in a window": AttentionCase((900,), 6, tree=True, window=3),
    "sinks": AttentionCase((1500, 2), 8, 16, 8, 64, sinks=True),
}
PARENTS = (0, 1, 0, 2, 3)
"""Of a tree's nodes 1 to 5."""


def attention_error(bench: Bench, case: AttentionCase) -> float:
    """Views of a larger cache."""
    lengths = tuple(bench.pick(n, min(n, 40)) for n in case.lengths)
    query, cache = attention_operands(bench, replace(case, lengths=lengths))
    key, value = cache
    seen = torch.eye(len(PARENTS) + 1, dtype=torch.bool)
    for node, parent in enumerate(PARENTS, start=1):
        seen[node] |= seen[parent]
    depths = (seen.sum(dim=1) - 1).to(bench.device, torch.int32)
    keywords: dict[str, Any] = {
        "tree": tree_bits(seen).to(bench.device) if case.tree else None,
        "depths": depths if case.tree and case.window is not None else None,
        "window": case.window,
        "softcap": case.softcap,
        "sinks": normal(bench, case.heads, dtype=case.dtype) if case.sinks else None,
    }
    at = torch.tensor(lengths, device=bench.device)
    with poisoned():
        found = verify_attention(Attention(query, key, value, at, **keywords), backend=bench.backend)
    # The kernel must not read what nobody has written; of the reference that is not asked.
    clean = Attention(query, key.nan_to_num(), value.nan_to_num(), at, **keywords)
    return worst(found, verify_attention(clean, backend="reference"))


def attention_operands(bench: Bench, case: AttentionCase) -> tuple[Tensor, Tensor]:
    """The query [B, H, m, Dh], and keys and values [2, B, Hkv, S, Dh]."""
    rows, slots = len(case.lengths), max(case.lengths) + case.width + 5
    query = normal(bench, rows, case.width, case.heads, case.size, dtype=case.dtype).transpose(1, 2)
    shape = (2, rows + 1, case.kv_heads, slots + 9, case.size)
    cache = torch.full(shape, NAN, dtype=case.dtype, device=bench.device)
    for row, length in enumerate(case.lengths):
        written = length + case.width
        cache[:, row, :, :written] = normal(bench, 2, case.kv_heads, written, case.size, dtype=case.dtype)
    return query, cache[:, :rows, :, :slots]


def bits_alone(bench: Bench) -> float:
    """0 where a token's bits are the same alone, in a batch and in a larger cache."""
    length = bench.pick(5000, 40)
    query, (key, value) = attention_operands(bench, AttentionCase((length,) * 4, 8))
    lengths = torch.full((4,), length, device=bench.device)
    whole = verify_attention(Attention(query, key, value, lengths), backend=bench.backend)
    same = True
    for column in range(8):
        one = Attention(
            query[-1:, :, column : column + 1],
            key[-1:, :, : length + 8],
            value[-1:, :, : length + 8],
            lengths[-1:] + column,
        )
        alone = verify_attention(one, backend=bench.backend)
        same &= torch.equal(alone[0, 0], whole[-1, column])
    return 0.0 if same or not bench.on_gpu else INFINITY


def rope_error(bench: Bench, dtype: torch.dtype, size: int, norms: bool) -> float:
    """Queries, keys and values; slots in no order, the cache around them untouched."""
    from selfspec_kernels.rope_store import rope_store
    from selfspec_kernels.rope_store_reference import Projections

    rows, width, heads, kv_heads, capacity = 3, 8, 8, 2, 100
    qkv = normal(bench, rows, width, (heads + 2 * kv_heads) * size, dtype=dtype)
    angles = normal(bench, rows, width, size // 2).repeat(1, 1, 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    slots = torch.stack([torch.randperm(capacity)[:width] for _ in range(rows)]).to(bench.device)
    query_norm, key_norm = (normal(bench, size, dtype=dtype) if norms else None for _ in range(2))
    empty = normal(bench, 2, rows, kv_heads, capacity, size, dtype=dtype)
    results = []
    for backend in (bench.backend, "reference"):
        keys, values = empty.clone()
        new = Projections(qkv, cos, sin, keys, values, slots, heads, query_norm, key_norm)
        with poisoned():
            query = rope_store(new, backend=backend)
        results.append((query, keys, values))
    return max(worst(*pair) for pair in zip(*results, strict=True))


def norm_error(bench: Bench, kind: Any, inputs: int, dtype: torch.dtype) -> float:
    """Norms of rows, of numbers that are large beside their differences too."""
    from selfspec_kernels.row_norm import row_norm
    from selfspec_kernels.row_norm_reference import Norm

    inputs = bench.pick(inputs, min(inputs, 100))
    hidden = normal(bench, 3, 7, inputs, dtype=dtype) * 8 + 3
    bias = normal(bench, inputs, dtype=dtype) if kind == "layer" else None
    norm = Norm(kind, normal(bench, inputs, dtype=dtype), bias, 1e-5)
    results = []
    for backend in (bench.backend, "reference"):
        with poisoned():
            results.append(row_norm(hidden, norm, backend=backend))
    return worst(*results)


NORMS = {
    "Llama's, 4096": ("rms", 4096, BF16),
    "Gemma's, 3000, fp16": ("rms_one", 3000, FP16),
    "LayerNorm, 16384, fp32": ("layer", 16_384, FP32),
}
ROPES = {
    "heads of 128": (BF16, 128, False),
    "heads of 128, head norms": (BF16, 128, True),
    "heads of 80, fp16": (FP16, 80, True),
    "heads of 64, fp32": (FP32, 64, True),
}


def checks() -> list[Check]:
    """All of them."""
    return [
        *(
            Check("verify_attention", name, partial(attention_error, case=c), LIMIT[c.dtype])
            for name, c in ATTENTION.items()
        ),
        Check("verify_attention", "bits alone and together", bits_alone, 0.0),
        *(
            Check("rope_store", name, partial(rope_error, dtype=dtype, size=size, norms=norms), LIMIT[dtype])
            for name, (dtype, size, norms) in ROPES.items()
        ),
        *(
            Check("row_norm", name, partial(norm_error, kind=kind, inputs=n, dtype=dtype), LIMIT[dtype])
            for name, (kind, n, dtype) in NORMS.items()
        ),
    ]
