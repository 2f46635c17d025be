"""Runs the norm's kernel in Triton's interpreter and prints what came out; see `interpreter`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import ModuleType

import torch
from interpreter import guarded, prepare, run
from torch import Tensor

from selfspec_kernels import row_norm_launch
from selfspec_kernels.row_norm import row_norm
from selfspec_kernels.row_norm_reference import Norm, reference_norm

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
NAN = float("nan")


@dataclass(frozen=True)
class Case:
    kind: str
    inputs: int = 48
    shape: tuple[int, int] = (1, 1)
    dtype: torch.dtype = FP16
    weight: torch.dtype = FP16
    bias: bool = False
    apart: bool = False
    """Hidden states whose rows and tokens lie in another order."""
    spread: bool = False
    """And whose elements do not lie side by side."""


CASES = {
    "one row": Case("rms"),
    "one element": Case("rms", 1),
    "bf16": Case("rms", 4096, (2, 3), BF16, BF16),
    "a weight in fp32": Case("rms", 100, (2, 1), weight=FP32),
    "fp32": Case("rms", 130, (1, 2), FP32, FP32),
    "rows apart": Case("rms", 33, (3, 2), apart=True),
    "elements apart": Case("layer", 50, (2, 3), apart=True, spread=True),
    "the weight over one": Case("rms_one", 200, (1, 5)),
    "LayerNorm": Case("layer", 77, (2, 2)),
    "LayerNorm with a bias": Case("layer", 128, (2, 2), bias=True),
}
MUTATIONS = {
    "the first row for all": ("rows apart", "row % width * column_stride", "row % width * 0"),
    "rows that follow each other": ("rows apart", "row // width * row_stride", "row // width * width * D"),
    "not rounded before the weight": ("one row", "x.to(dtype).to(tl.float32) * weight", "x * weight"),
    "the mean of a block": ("one row", "/ D + eps", "/ BLOCK_D + eps"),
    "no eps": ("one row", "/ D + eps", "/ D"),
    "the weight itself": ("the weight over one", "(1.0 + weight)", "weight"),
    "no mean": ("LayerNorm", 'KIND == "layer"', "False"),
    "padding is centred, too": (
        "LayerNorm",
        "tl.where(inside, x - tl.sum(x, axis=0) / D, 0.0)",
        "x - tl.sum(x, axis=0) / D",
    ),
    "no bias": ("LayerNorm with a bias", "bias_ptr is not None", "False"),
}


def operands(case: Case) -> tuple[Tensor, Norm]:
    draw = torch.Generator().manual_seed(case.inputs)
    hidden = torch.randn(*case.shape, case.inputs, generator=draw).to(case.dtype) + 0.5
    if case.apart:
        hidden = guarded(hidden.transpose(0, 1).contiguous(), NAN).transpose(0, 1)
    else:
        hidden = guarded(hidden, NAN)
    if case.spread:
        hidden = torch.stack([hidden, torch.full_like(hidden, NAN)], dim=-1)[..., 0]
    weight = guarded((torch.rand(case.inputs, generator=draw) + 0.5).to(case.weight), NAN)
    bias = guarded(torch.randn(case.inputs, generator=draw).to(case.weight), NAN) if case.bias else None
    return hidden, Norm(case.kind, weight, bias, 0.01)


def error(case: Case, launch: ModuleType) -> float:
    """Largest difference to the reference; infinity where an output is not finite."""
    hidden, norm = operands(case)
    found, expected = launch.normalized(hidden, norm).float(), reference_norm(hidden, norm).float()
    return float((found - expected).abs().max()) if found.isfinite().all() else float("inf")


def dispatched() -> bool:
    """Whether the dispatcher's answer is the kernel's, contiguous."""
    hidden, norm = operands(CASES["rows apart"])
    found = row_norm(hidden, norm, backend="triton")
    return found.is_contiguous() and torch.equal(found, row_norm_launch.normalized(hidden, norm))


def main() -> None:
    prepare()
    results = run(CASES, MUTATIONS, error, "row_norm_launch")
    results["dtypes"] = {name: str(case.dtype) for name, case in CASES.items()}
    print(json.dumps(results | {"dispatched": dispatched()}))


if __name__ == "__main__":
    main()
