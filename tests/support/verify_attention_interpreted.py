"""Runs the attention kernels in Triton's interpreter and prints what came out; see `interpreter`."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
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
PARENTS = (0, 1, 0, 2, 3)
"""Of a tree's nodes 1 to 5."""
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


CASES = {
    "one token, one row, nothing before it": Case((0,), capacity=64),
    "lengths 0 and 1, spans with nothing in them": Case((0, 1), 2, capacity=200),
    "groups, a chain, rows of several spans": Case((5, 130), 5, 4, 2, capacity=192),
    "bf16, more queries than a program takes": Case(
        (70,), 17, 4, 1, dtype=BF16, capacity=128, span=256, part=128
    ),
    "heads of 80": Case((64,), 3, 2, 1, 80, capacity=100, dtype=FP16),
    "heads of 256": Case((30,), 2, 1, 1, 256, capacity=40),
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
        "first = tl.program_id(2) * SPAN",
        "first = 0 * SPAN",
    ),
    "spans are not weighed": (
        "groups, a chain, rows of several spans",
        "+ next_total * next_scale[:, None]",
        "+ next_total",
    ),
    "parts are not summed by themselves": (
        "groups, a chain, rows of several spans",
        "(start + BLOCK_N) % PART == 0",
        "False",
    ),
    "spans are taken for parts": (
        "groups, a chain, rows of several spans",
        "first + span * PARTS + part",
        "first + span + part",
    ),
    "blocks are not weighed": (
        "bf16, more queries than a program takes",
        "total * scale[:, None], input",
        "total, input",
    ),
    "scratch is read": (
        "lengths 0 and 1, spans with nothing in them",
        "first + SPAN, length + m), S)",
        "first + SPAN, S), S)",
    ),
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
        "tree": tree_bits(ancestors()) if case.tree else None,
        "depths": depths() if case.tree and case.window is not None else None,
        "window": case.window,
        "softcap": case.softcap,
        "sinks": torch.randn(case.heads, generator=draw).to(case.dtype) if case.sinks else None,
    }


def ancestors() -> Tensor:
    seen = torch.eye(len(PARENTS) + 1, dtype=torch.bool)
    for node, parent in enumerate(PARENTS, start=1):
        seen[node] |= seen[parent]
    return seen


def depths() -> Tensor:
    return (ancestors().sum(dim=1) - 1).to(torch.int32)


def attended(case: Case, launch: ModuleType, tensors: dict[str, Any], whole: bool | None = None) -> Tensor:
    default = launch.plan(case.size, case.dtype)
    chosen = replace(default, span=case.span, part=case.part, block_n=min(case.part, default.block_n))
    return launch.attend(Attention(**tensors), chosen, whole)


def error(case: Case, launch: ModuleType) -> float:
    """Largest difference to the reference; infinity where an output is not finite.

    And where a program that takes a span gives other bits than programs that take its parts.
    """
    tensors = tensors_of(case)
    found = attended(case, launch, tensors, whole=True).float()
    # The kernel must not read what nobody has written; of the reference that is not asked.
    clean = {name: tensors[name].nan_to_num() for name in ("key", "value")}
    expected = reference_attention(Attention(**tensors | clean))
    difference = float((found - expected.float()).abs().max())
    if not found.isfinite().all() or difference > CLEARLY_WRONG:
        return float("inf")
    return difference if torch.equal(found, attended(case, launch, tensors, False).float()) else float("inf")


def alone_and_together() -> list[bool]:
    """Whether a token's bits stay when it is verified among others, in a batch, in a larger cache."""
    # Six queries a program: the interpreter's products treat the first six rows of a matrix alike, not all.
    whole = Case((130, 5), 3, 2, 1, capacity=192)
    tensors = tensors_of(whole)
    both = attended(whole, verify_attention_launch, tensors)
    same = []
    for column in range(3):
        alone = tensors | {
            "query": tensors["query"][:1, :, column : column + 1],
            "key": tensors["key"][:1, :, :140],
            "value": tensors["value"][:1, :, :140],
            "lengths": tensors["lengths"][:1] + column,
        }
        found = attended(replace(whole, width=1), verify_attention_launch, alone)
        same.append(torch.equal(found[0, 0], both[0, column]))
    short = Case((5,), 2, capacity=64)
    tensors = tensors_of(short)
    one_span = attended(short, verify_attention_launch, tensors)
    two_spans = attended(replace(short, span=32, part=32), verify_attention_launch, tensors)
    return [*same, torch.equal(one_span, two_spans)]


def far_apart() -> float:
    """Heads whose keys lie 2^31 elements behind the first one's."""
    memory = torch.from_numpy(np.empty(2**31 + 64 * 64, dtype=np.float16))
    keys = memory.as_strided((1, 3, 64, 64), (0, 2**30, 64, 1))
    draw = torch.Generator().manual_seed(0)
    for head in range(3):
        keys[0, head] = torch.randn(64, 64, generator=draw)
    query = torch.randn(1, 3, 1, 64, generator=draw).half()
    given = Attention(query, keys, keys, torch.tensor([63]))
    found, expected = (verify_attention(given, backend=backend) for backend in ("triton", "reference"))
    return float((found.float() - expected.float()).abs().max())


def main() -> None:
    prepare()
    results = run(CASES, MUTATIONS, error, "verify_attention_launch")
    results["dtypes"] = {name: str(case.dtype) for name, case in CASES.items()}
    results |= {"same bits": alone_and_together(), "far apart": far_apart()}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
