"""Runs the kernel of rope_store in Triton's interpreter and prints what came out; see `interpreter`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from interpreter import guarded, prepare, run
from torch import Tensor

from selfspec_kernels.rope_store import rope_store
from selfspec_kernels.rope_store_reference import Projections, reference_rope_store

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
NAN = float("nan")


@dataclass(frozen=True)
class Case:
    slots: tuple[tuple[int, ...], ...]
    heads: int = 4
    kv_heads: int = 2
    size: int = 64
    turning: int = 64
    dtype: torch.dtype = FP16
    angles: torch.dtype = FP16
    norm: bool = False


CASES = {
    "one token": Case(((0,),)),
    "three rows of two, slots apart": Case(((5, 2), (0, 8), (3, 4))),
    "bf16": Case(((1, 2),), dtype=BF16, angles=BF16),
    "bf16, angles in fp32": Case(((1, 2),), dtype=BF16, angles=FP32),
    "fp16, angles in fp32": Case(((1, 2), (4, 0)), angles=FP32),
    "fp32": Case(((7,), (2,)), dtype=FP32, angles=FP32),
    "heads of 80 that turn by 32": Case(((3, 1),), 3, 1, 80, 32),
    "heads of 6 that turn by 2": Case(((3, 1, 0),), 2, 2, 6, 2),
    "no rotation": Case(((3, 1), (0, 1)), turning=0),
    "normed heads": Case(((3, 1), (0, 1)), norm=True),
    "normed heads of 80 that turn in part": Case(((3,),), 2, 1, 80, 32, norm=True),
    "normed heads that do not turn": Case(((3,),), 2, 1, 96, 0, norm=True),
    "normed heads of 128 in bf16": Case(((3, 4),), 2, 1, 128, 128, BF16, BF16, norm=True),
}
MUTATIONS = {
    "turned the other way": ("one token", "tl.where(d < HALF, -partner, partner)", "partner"),
    "products are not rounded": (
        "three rows of two, slots apart",
        "turned = (x * cos).to(dtype).to(tl.float32) + (partner * sin).to(dtype).to(tl.float32)",
        "turned = x * cos + partner * sin",
    ),
    "products are rounded where torch promotes": (
        "fp16, angles in fp32",
        "dtype = cos_ptr.dtype.element_ty",
        "dtype = tl.float16",
    ),
    "all of the head turns": ("heads of 80 that turn by 32", "turns = d < TURNING", "turns = d < SIZE"),
    "the first row's angles": ("three rows of two, slots apart", "cos_ptr += b * cos_row", "cos_ptr += 0"),
    "the first token's angles": (
        "three rows of two, slots apart",
        "sin_ptr += b * sin_row + t * sin_token",
        "sin_ptr += b * sin_row",
    ),
    "the first token's slot": ("three rows of two, slots apart", "b * slots_row + t)", "b * slots_row)"),
    "the first row's slots": ("three rows of two, slots apart", "b * slots_row + t)", "t)"),
    "keys' strides for values": ("one token", "* values_head", "* keys_head"),
    "queries by token": (
        "three rows of two, slots apart",
        "((b * heads + head) * width + t)",
        "((b * width + t) * heads + head)",
    ),
    "query norm for keys": ("normed heads", "sin_ptr, key_norm_ptr", "sin_ptr, query_norm_ptr"),
    "partners without their own weight": ("normed heads", "weight_ptr, other, turns", "weight_ptr, d, turns"),
    "mean over the block": (
        "normed heads of 80 that turn in part",
        "/ SIZE + eps",
        "/ 128 + eps",
    ),
    "no eps": ("normed heads", "/ SIZE + eps", "/ SIZE"),
    "values turn too": ("one token", "if own < kv_heads:", "if own >= 0:"),
}


def tensors_of(case: Case) -> dict[str, Any]:
    """Arguments of the kernel: views of larger tensors, NaN around them and in the whole cache."""
    draw = torch.Generator().manual_seed(case.size + case.turning)
    rows, width = len(case.slots), len(case.slots[0])
    total = (case.heads + 2 * case.kv_heads) * case.size
    qkv = torch.full((rows, width, total + 16), NAN, dtype=case.dtype)
    qkv[..., :total] = torch.randn(rows, width, total, generator=draw)
    half = torch.rand(rows, width, case.turning // 2, generator=draw) * 6
    angles = torch.cat([half, half], dim=-1)
    turning = case.turning > 0
    # Larger than a mutation can reach.
    cache = torch.full((2, rows + 1, 2 * case.kv_heads, 9, case.size + 4), NAN, dtype=case.dtype)
    cache = cache[:, :rows, ..., : case.size]
    norms = torch.rand(2, case.size, generator=draw).to(case.dtype) + 0.5
    return {
        "qkv": qkv[..., :total],
        "cos": guarded(angles.cos().to(case.angles), NAN) if turning else None,
        "sin": guarded(angles.sin().to(case.angles), NAN) if turning else None,
        "keys": cache[0, :, : case.kv_heads],
        "values": cache[1, :, ::2],
        "slots": torch.tensor(case.slots),
        "heads": case.heads,
        "query_norm": guarded(norms[0], NAN) if case.norm else None,
        "key_norm": guarded(norms[1], NAN) if case.norm else None,
        "eps": 0.01,
    }


def whole(cache: Tensor) -> Tensor:
    """All that lies around a cache, too."""
    return cache if cache._base is None else cache._base


def error(case: Case, launch: ModuleType) -> float:
    """Largest difference of queries and caches to the reference; infinity where NaN is not where it was."""
    found, expected = tensors_of(case), tensors_of(case)
    pairs = [(launch.store(Projections(**found)), reference_rope_store(Projections(**expected)))]
    pairs += [(whole(found[name]), whole(expected[name])) for name in ("keys", "values")]
    worst = 0.0
    for ours, theirs in pairs:
        if not torch.equal(ours.isnan(), theirs.isnan()):
            return float("inf")
        worst = max(worst, float((ours.float() - theirs.float()).nan_to_num().abs().max()))
    return worst


def far_apart() -> bool:
    """Whether heads and slots that lie 2^31 elements behind the first one's are found."""
    memory = torch.from_numpy(np.empty(2**31 + 2**30 + 64, dtype=np.float16))
    keys = memory.as_strided((1, 3, 2, 16), (0, 2**30, 2**30, 1))
    draw = torch.Generator().manual_seed(0)
    qkv = torch.randn(1, 1, 9 * 16, generator=draw).half()
    new = Projections(qkv, None, None, keys, keys, torch.tensor([[1]]), heads=3)
    rope_store(new, backend="triton")
    return torch.equal(keys[0, :, 1].flatten(), qkv[0, 0, 6 * 16 :])


def main() -> None:
    prepare()
    results: dict[str, Any] = run(CASES, MUTATIONS, error, "rope_store_launch")
    results["dtypes"] = {name: str(case.dtype) for name, case in CASES.items()}
    results["normed"] = [name for name, case in CASES.items() if case.norm]
    print(json.dumps(results | {"far apart": far_apart()}))


if __name__ == "__main__":
    main()
