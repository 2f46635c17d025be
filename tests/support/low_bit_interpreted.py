"""Runs the low-bit kernels in Triton's interpreter and prints what came out; see `interpreter`.

Errors are relative to the largest output.
"""

from __future__ import annotations

import json
from dataclasses import replace
from types import ModuleType

import torch
from interpreter import guarded, prepare, run

from selfspec_kernels import low_bit_launch
from selfspec_kernels.low_bit_product import low_bit_product
from selfspec_kernels.low_bit_product_reference import pack_levels, pack_scales, reference_product

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
CASES: dict[str, tuple[torch.dtype, int, int, int, int, int, bool]] = {
    # dtype, rows, outputs, inputs, group, splits, bias
    "one row, one group": (BF16, 1, 40, 32, 32, 1, True),
    "two rows, odd number of groups": (BF16, 2, 33, 96, 32, 1, False),
    "five rows, several tiles a slice": (BF16, 5, 33, 2080, 32, 1, True),
    "two splits, the second cut short": (FP32, 2, 20, 1120, 32, 2, True),
    "three rows, groups of 128": (BF16, 3, 50, 384, 128, 1, True),
    "sixteen rows, fewer outputs than a block": (BF16, 16, 7, 384, 64, 1, True),
    "more rows than a block": (FP16, 18, 33, 128, 64, 1, True),
    "a split with nothing to do": (FP32, 3, 20, 384, 64, 3, True),
    "fp16, one output": (FP16, 3, 1, 576, 32, 1, False),
    "fp32, one row": (FP32, 1, 17, 608, 32, 1, True),
    "fp32, five rows, groups of 64, splits": (FP32, 5, 33, 192, 64, 2, True),
    "fp32, three rows, groups of 128": (FP32, 3, 16, 384, 128, 1, False),
}
MUTATIONS: dict[str, tuple[str, str, str]] = {
    # case, source, what it becomes
    "no offset": ("one row, one group", "tl.fma(scale, -(BASE + 8.0), offset)", "scale * -(BASE + 8.0)"),
    "zero level": ("one row, one group", "-(BASE + 8.0)", "-BASE"),
    "low nibbles twice": (
        "two rows, odd number of groups",
        "_nibbles(pairs, 4, BASE)",
        "_nibbles(pairs, 0, BASE)",
    ),
    "words the other way round": (
        "one row, one group",
        "first, second = tl.split",
        "second, first = tl.split",
    ),
    "halves of words the other way round": (
        "one row, one group",
        "AT + 16 * tl.arange(0, 2)",
        "AT + 16 - 16 * tl.arange(0, 2)",
    ),
    "one scale for both halves": (
        "two rows, odd number of groups",
        "high_pair, TILES",
        "low_pair, TILES",
    ),
    "scales beyond the last group": (
        "two rows, odd number of groups",
        "mask=(first + slice) * 64 + 32 < K, other=0",
        "mask=(first + slice) * 64 < K, other=0",
    ),
    "scales of the first tile": (
        "five rows, several tiles a slice",
        "pair_ptrs += SLICES * 64 // GROUP * apart",
        "pair_ptrs += 0",
    ),
    "rows of a block in the wrong order": ("more rows than a block", "at // (256 * SLICES) * 8 + at", "at"),
    "inputs in the order of memory": ("one row, one group", "(1, 5, 3, 4, 6, 0, 2)", "(1, 3, 4, 5, 6, 0, 2)"),
    "every split the first": ("two splits, the second cut short", "tl.program_id(1) * steps", "0 * steps"),
    "one split is not added": ("two splits, the second cut short", "range(splits)", "range(1)"),
    "bias twice": ("fp32, one row", "total += tl.load(bias_ptr + n,", "total += 2 * tl.load(bias_ptr + n,"),
    "offsets of fp32": ("fp32, one row", "scales_ptrs + 1", "scales_ptrs"),
    "bytes of fp32": ("fp32, one row", "j % 8 // 4", "0"),
}


def operands(case: str) -> tuple[list[torch.Tensor | None], int]:
    """x, packed levels, scales and bias of a case, and its splits."""
    dtype, m, n, k, group, splits, bias = CASES[case]
    draw = torch.Generator().manual_seed(len(case))
    q = torch.randint(0, 16, (n, k), dtype=torch.uint8, generator=draw)
    scale = (torch.rand(n, k // group, generator=draw) * 0.1 + 0.01).to(dtype)
    offset = torch.randn(n, k // group, generator=draw).mul_(0.2).to(dtype)
    nan = float("nan")
    x = guarded(torch.randn(m, k, generator=draw).to(dtype), nan)
    scales = guarded(pack_scales(scale, offset), nan)
    b = guarded(torch.randn(n, generator=draw).to(dtype), nan) if bias else None
    return [x, guarded(pack_levels(q, group), 255), scales, b], splits


def error(case: str, launch: ModuleType) -> float:
    """Largest difference to the reference over the largest output; infinity where an output is not finite."""
    tensors, splits = operands(case)
    x, _, scales, _ = tensors
    groups, n, _ = scales.shape
    chosen = launch.plan(len(x), n, x.shape[1], x.shape[1] // groups, x.dtype, 132)
    out = launch.product(*tensors, replace(chosen, splits=splits)).float()
    expected = reference_product(*tensors).float()
    relative = (out - expected).abs().max() / expected.abs().max()
    return float(relative) if out.isfinite().all() else float("inf")


def main() -> None:
    """Print errors by case and by mutation."""
    prepare()
    every = {case: case for case in CASES}
    found: dict = run(every, MUTATIONS, error, "low_bit_launch")
    for case, worst in found["cases"].items():
        found["cases"][case] = {"dtype": str(CASES[case][0]), "error": worst}
    (x, *rest), _ = operands("two rows, odd number of groups")
    # Between other numbers, and in columns: the dispatcher's answer is that of the rows by themselves.
    spread = torch.stack([x, torch.full_like(x, float("nan"))], dim=-1)[..., 0]
    outs = [
        low_bit_product(given[None], *rest, backend="triton") for given in (x, spread, x.t().contiguous().t())
    ]
    expected = low_bit_launch.product(x, *rest)
    found["dispatched"] = {
        "shape": list(outs[0].shape),
        "equal": all(torch.equal(out[0], expected) for out in outs),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
