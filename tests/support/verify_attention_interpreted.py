"""Runs the attention kernels in Triton's interpreter and prints what came out; see `interpreter`."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from itertools import product
from types import ModuleType
from typing import Any

import numpy as np
import torch
from interpreter import prepare, run
from torch import Tensor

from selfspec_kernels import verify_attention_launch
from selfspec_kernels.verify_attention import verify_attention
from selfspec_kernels.verify_attention_reference import Attention, reference_attention, tree_bits

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
NAN = float("nan")
PARENTS = (0, 1, 0, 2, 3, *range(2, 30), *range(33, 63))
"""Of a tree's nodes 1 to 63, or of the first of them: branches, and a chain behind node 33."""
CLEARLY_WRONG = 0.1
"""A difference behind which nothing more is asked."""


@dataclass(frozen=True)
class Case:
    lengths: tuple[int, ...]
    width: int = 1
    heads: int = 1
    kv_heads: int = 1
    size: int = 64
    capacity: int = 80
    dtype: torch.dtype = FP32
    tree: bool = False
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    scaling: float = 0.2
    span: int = 64
    part: int = 32
    block: int = 16


CASES = {
    "one token, one row, nothing before it": Case((0,), capacity=64),
    "lengths 0 and 1, spans with nothing in them": Case((0, 1), 2, capacity=200),
    "groups, a chain, rows of several spans": Case((5, 70), 3, 4, 2),
    "bf16, more queries than a program takes": Case(
        (70,), 17, 4, 1, dtype=BF16, capacity=128, span=256, part=128, block=64
    ),
    "heads of 80": Case((64,), 3, 2, 1, 80, capacity=100, dtype=FP16),
    "heads of 96": Case((20,), 2, 2, 1, 96, capacity=40, dtype=BF16),
    "heads of 128": Case((0, 33), 1, 2, 1, 128, capacity=70, dtype=FP16),
    "heads of 256": Case((30,), 2, 1, 1, 256, capacity=40),
    "64 tokens": Case((9,), 64, capacity=90, part=64, block=64),
    "a tree of 64": Case((20,), 64, capacity=84, tree=True, part=64, block=64),
    "a tree over two spans": Case((61, 3), 6, 2, 1, tree=True),
    "a window": Case((100, 10), 4, capacity=128, window=20),
    "a tree in a window": Case((75,), 6, tree=True, window=3, capacity=81),
    "a window of one": Case((65,), 2, window=1),
    "sinks over several spans, soft cap": Case((100,), 2, 2, 2, sinks=True, softcap=2.0, capacity=128),
    "sinks within one span": Case((10,), 3, 2, 2, sinks=True, capacity=16),
}
MUTATIONS = {
    "tokens see those after them": (
        "groups, a chain, rows of several spans",
        "<= own[:, None]",
        "<= own[:, None] + 1",
    ),
    "own key heads for every head": (
        "groups, a chain, rows of several spans",
        "head = kv_head * groups + r // m",
        "head = kv_head + r // m",
    ),
    "one row's length": ("groups, a chain, rows of several spans", "lengths_ptr + b", "lengths_ptr + b * 0"),
    "one span": (
        "groups, a chain, rows of several spans",
        "first = tl.program_id(2) * PIECE",
        "first = 0 * PIECE",
    ),
    "spans are not weighed": (
        "groups, a chain, rows of several spans",
        "next_total * next_scale[:, None])",
        "next_total)",
    ),
    "blocks are not weighed": (
        "bf16, more queries than a program takes",
        "tl.fma(total, scale[:, None],",
        "tl.fma(total, 1.0,",
    ),
    "parts are not summed by themselves": (
        "groups, a chain, rows of several spans",
        "(start + BLOCK_N) % PART == 0",
        "False",
    ),
    "blocks are not summed by themselves": (
        "groups, a chain, rows of several spans",
        "(start + BLOCK_N) % PART == 0",
        "(start + BLOCK_N) % BLOCK_N == 0",
    ),
    "spans are taken for parts": (
        "groups, a chain, rows of several spans",
        "span * (PARTS * BLOCKS) + one",
        "span * BLOCKS + one",
    ),
    "parts are taken for blocks": (
        "groups, a chain, rows of several spans",
        "piece + part * BLOCKS",
        "piece + part",
    ),
    "scratch is read": (
        "lengths 0 and 1, spans with nothing in them",
        "first + PIECE, length + m), S)",
        "first + PIECE, S), S)",
    ),
    "pieces of scratch are read": (
        "lengths 0 and 1, spans with nothing in them",
        "end = tl.cdiv(tl.minimum(length + m, S), PIECE)",
        "end = pieces",
    ),
    "pieces before the window are read": (
        "a window",
        "begin = first_seen(length, window, BLOCK_N) // PIECE",
        "begin = 0",
    ),
    "half of a tree": ("a tree of 64", "low[:, None], high[:, None]", "low[:, None], low[:, None]"),
    "all of the head": ("heads of 80", "d_in = d < SIZE", "d_in = d < 64"),
    "a tree is a chain": ("a tree over two spans", "if tree_ptr is None", "if True"),
    "no window": ("a window", "if window is not None", "if False"),
    "a window that is one longer": ("a window", "> own[:, None] - window", ">= own[:, None] - window"),
    "slots for positions": ("a tree in a window", "if depths_ptr is None", "if True"),
    "no sinks": ("sinks over several spans, soft cap", "sink is not None", "False"),
    "no soft cap": ("sinks over several spans, soft cap", "softcap is not None", "False"),
    "no scaling": ("heads of 256", "* scaling", "* 1.0"),
}


def tensors_of(case: Case) -> dict[str, Any]:
    """The arguments of the kernel: views of a larger cache, NaN in the slots that nobody has written."""
    draw = torch.Generator().manual_seed(case.capacity + case.size + case.width)
    rows, shape = len(case.lengths), (case.kv_heads, case.capacity, case.size)
    query = (
        torch.randn(rows, case.width, case.heads, case.size, generator=draw).to(case.dtype).transpose(1, 2)
    )
    cache = torch.full((2, rows + 1, case.kv_heads, case.capacity + 9, case.size), NAN, dtype=case.dtype)
    for row, length in enumerate(case.lengths):
        written = torch.randn(2, *shape, generator=draw)[:, :, : length + case.width]
        cache[:, row, :, : length + case.width] = written.to(case.dtype)
    key, value = cache[:, :rows, :, : case.capacity]
    return {
        "query": query,
        "key": key,
        "value": value,
        "lengths": torch.tensor(case.lengths),
        "scaling": case.scaling,
        "tree": tree_bits(ancestors(case.width)) if case.tree else None,
        "depths": depths(case.width) if case.tree and case.window is not None else None,
        "window": case.window,
        "softcap": case.softcap,
        "sinks": torch.randn(case.heads, generator=draw).to(case.dtype) if case.sinks else None,
    }


def ancestors(size: int) -> Tensor:
    seen = torch.eye(size, dtype=torch.bool)
    for node, parent in enumerate(PARENTS[: size - 1], start=1):
        seen[node] |= seen[parent]
    return seen


def depths(size: int) -> Tensor:
    return (ancestors(size).sum(dim=1) - 1).to(torch.int32)


def attended(case: Case, launch: ModuleType, tensors: dict[str, Any], piece: int | None = None) -> Tensor:
    default = launch.plan(case.size, case.dtype)
    chosen = replace(default, span=case.span, part=case.part, block_n=case.block)
    return launch.attend(Attention(**tensors), chosen, piece)


def error(case: Case, launch: ModuleType) -> float:
    """Largest difference to the reference; infinity where an output is not finite.

    And where programs that take spans give other bits than those that take parts or blocks of them.
    """
    tensors = tensors_of(case)
    found = attended(case, launch, tensors, case.span).float()
    # The kernel must not read what nobody has written; of the reference that is not asked.
    clean = {name: tensors[name].nan_to_num() for name in ("key", "value")}
    expected = reference_attention(Attention(**tensors | clean))
    difference = float((found - expected.float()).abs().max())
    if not found.isfinite().all() or difference > CLEARLY_WRONG:
        return float("inf")
    shorter = {case.part, case.block} - {case.span}
    others = [attended(case, launch, tensors, piece).float() for piece in shorter]
    return difference if all(torch.equal(found, other) for other in others) else float("inf")


def alone_and_together() -> list[bool]:
    """Whether a token's bits stay when it is verified among others, in a batch, in a larger cache."""
    # Six queries a program: the interpreter's products treat the first six rows of a matrix alike, not all.
    whole = Case((130, 5), 3, 2, 1, capacity=192)
    tensors = tensors_of(whole)
    both = attended(whole, verify_attention_launch, tensors)
    same = []
    for column, piece in product(range(3), (whole.span, whole.part, whole.block)):
        alone = tensors | {
            "query": tensors["query"][:1, :, column : column + 1],
            "key": tensors["key"][:1, :, :140],
            "value": tensors["value"][:1, :, :140],
            "lengths": tensors["lengths"][:1] + column,
        }
        found = attended(replace(whole, width=1), verify_attention_launch, alone, piece)
        same.append(torch.equal(found[0, 0], both[0, column]))
    return same


def left_alone() -> list[bool]:
    """Which of a row's pieces are never written: 70 + 2 tokens, of which a window reaches back to 51."""
    case = Case((70,), 2, capacity=200, window=20)
    made, make = [], torch.empty
    torch.empty = lambda *size, **options: made.append(make(*size, **options)) or made[-1]
    attended(case, verify_attention_launch, tensors_of(case), case.block)
    torch.empty = make
    (totals,) = (tensor for tensor in made if tensor.dim() == 5)
    return totals.isnan().all(dim=-1).all(dim=2).flatten().tolist()


def far_apart() -> float:
    """Heads, rows or slots whose keys lie up to 2^31 elements behind the first ones."""
    draw = torch.Generator().manual_seed(0)
    worst = 0.0
    for shape, strides in (
        ((1, 3, 40, 64), (0, 2**30, 64, 1)),
        ((3, 1, 40, 64), (2**30, 0, 64, 1)),
        ((1, 1, 33, 64), (0, 0, 2**26, 1)),
    ):
        memory = torch.from_numpy(np.empty(2**31 + 40 * 64, dtype=np.float16))
        keys = memory.as_strided(shape, strides)
        for row, head, slot in product(*map(range, shape[:3])):
            keys[row, head, slot] = torch.randn(64, generator=draw)
        query = torch.randn(shape[0], shape[1], 1, 64, generator=draw).half()
        given = Attention(query, keys, keys, torch.full(shape[:1], shape[2] - 1))
        found, expected = (verify_attention(given, backend=backend) for backend in ("triton", "reference"))
        worst = max(worst, float((found.float() - expected.float()).abs().max()))
    return worst


def main() -> None:
    prepare()
    results = run(CASES, MUTATIONS, error, "verify_attention_launch")
    results["dtypes"] = {name: str(case.dtype) for name, case in CASES.items()}
    results |= {"same bits": alone_and_together(), "far apart": far_apart(), "left alone": left_alone()}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
