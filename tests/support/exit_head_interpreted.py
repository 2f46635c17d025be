"""Runs the exit head's kernels in Triton's interpreter and prints what came out; see `interpreter`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import ModuleType

import torch
from interpreter import guarded, prepare, run
from torch import Tensor

from selfspec_kernels import exit_head_launch
from selfspec_kernels.exit_head import exit_head
from selfspec_kernels.exit_head_reference import Calibration, Head, reference_logits
from selfspec_kernels.noise import Noise, stream_keys
from selfspec_kernels.row_norm_reference import Norm

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
NAN = float("nan")


@dataclass(frozen=True)
class Case:
    dtype: torch.dtype = FP32
    rows: int = 1
    width: int = 1
    vocabulary: int = 130
    inputs: int = 48
    count: int = 1
    norm: str | None = None
    bias: bool = False
    rank: int = 0
    int8: bool = False
    multiplier: float = 1.0
    softcap: float | None = None
    shortlist: int = 0
    noisy: bool = False
    apart: bool = False
    """Non-contiguous hidden states and positions, weights whose rows lie apart."""
    equal: bool = False
    """All logits are equal."""


CASES = {
    "one row, a vocabulary that blocks do not divide": Case(),
    "one token": Case(vocabulary=1, inputs=16),
    "bf16, two rows of two, RMS norm, noise": Case(
        BF16, 2, 2, vocabulary=70, inputs=160, norm="rms", noisy=True, count=2
    ),
    "fp16, more rows than a program takes, LayerNorm, biases, soft cap": Case(
        FP16, 17, vocabulary=65, norm="layer", bias=True, softcap=3.0
    ),
    "int8 weights, the norm's weight over one, a multiplier": Case(
        BF16, 3, vocabulary=96, norm="rms_one", int8=True, multiplier=0.25
    ),
    "a shortlist, calibration, three choices": Case(
        rows=2, norm="rms", rank=5, shortlist=67, noisy=True, count=3, inputs=80
    ),
    "calibration alone": Case(rank=3, inputs=33, bias=True),
    "nothing contiguous": Case(
        rows=2, width=3, inputs=40, vocabulary=64, noisy=True, apart=True, norm="layer"
    ),
    "equal logits": Case(vocabulary=200, equal=True, count=2),
}
MUTATIONS = {
    "no scale": (
        "int8 weights, the norm's weight over one, a multiplier",
        "total *= tl.load(scale_ptr",
        "tl.load(scale_ptr",
    ),
    "no multiplier": (
        "int8 weights, the norm's weight over one, a multiplier",
        "(total * multiplier)",
        "total",
    ),
    "norm's weight not over one": (
        "int8 weights, the norm's weight over one, a multiplier",
        "(1.0 + weight)",
        "weight",
    ),
    "no soft cap": (
        "fp16, more rows than a program takes, LayerNorm, biases, soft cap",
        "softcap is not None",
        "False",
    ),
    "no mean": (
        "fp16, more rows than a program takes, LayerNorm, biases, soft cap",
        'KIND == "layer"',
        "False",
    ),
    "the first token's bias for all": (
        "calibration alone",
        "tl.load(bias_ptr + token, mask=token_in",
        "tl.load(bias_ptr + token * 0, mask=token_in",
    ),
    "calibration added twice": ("calibration alone", "x = (x + added)", "x = (x + 2 * added)"),
    "tokens by their place in the shortlist": (
        "a shortlist, calibration, three choices",
        "token = tl.load(shortlist_ptr + n, mask=token_in, other=0)",
        "pass",
    ),
    "no temperature": (
        "bf16, two rows of two, RMS norm, noise",
        "if temperature_ptr is not None",
        "if False",
    ),
    "the first row's noise": (
        "bf16, two rows of two, RMS norm, noise",
        "keys_ptr + r // width",
        "keys_ptr + r * 0",
    ),
    "positions in a row of their own": ("nothing contiguous", "r % width * column_stride", "r % width"),
    "hidden states in a row of their own": (
        "nothing contiguous",
        "row % width * column_stride",
        "row % width * D",
    ),
    "weights in a row of their own": ("nothing contiguous", "[:, None] * weight_stride", "[:, None] * D"),
    "the last block is not masked": (
        "one row, a vocabulary that blocks do not divide",
        'tl.where(token_in[:, None], scores, float("-inf"))',
        "scores",
    ),
    "one block's sum": (
        "one row, a vocabulary that blocks do not divide",
        "block_in = tl.arange(0, BLOCKS) < blocks",
        "block_in = tl.arange(0, BLOCKS) < 1",
    ),
    "the best token twice": (
        "bf16, two rows of two, RMS norm, noise",
        'value = tl.where(left, value, float("-inf"))',
        "pass",
    ),
    "log-probability with the noise": (
        "bf16, two rows of two, RMS norm, noise",
        "tl.load(logits_ptr + start + best_at) - log_sum",
        "best - log_sum",
    ),
}


def head_of(case: Case, draw: torch.Generator) -> Head:
    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return guarded((torch.randn(*shape, generator=draw) * scale).to(case.dtype), NAN)

    size, inputs = case.vocabulary, case.inputs
    weight = normal(size, inputs, scale=0.0 if case.equal else 0.3)
    if case.int8:
        weight = guarded(torch.randint(-127, 128, (size, inputs), dtype=torch.int8, generator=draw), 127)
    if case.apart:
        weight = torch.cat([weight, torch.full_like(weight, NAN)], dim=1)[:, :inputs]
    norm = case.norm and Norm(
        case.norm, normal(inputs), normal(inputs) if case.norm == "layer" else None, 1e-5
    )
    shortlist = torch.randperm(size, generator=draw)[: case.shortlist].to(torch.int32)
    return Head(
        weight,
        scale=torch.rand(size, generator=draw) * 0.004 + 0.001 if case.int8 else None,
        bias=normal(size) if case.bias else None,
        norm=norm or None,
        calibration=Calibration(normal(case.rank, inputs, scale=0.2), normal(case.rank, inputs, scale=0.2))
        if case.rank
        else None,
        multiplier=case.multiplier,
        softcap=case.softcap,
        shortlist=shortlist if case.shortlist else None,
    )


def noise_of(case: Case) -> Noise | None:
    if not case.noisy:
        return None
    keys = stream_keys(7, torch.arange(case.rows) + 3)
    positions = torch.arange(case.rows * case.width).view(case.rows, case.width) * 5 + 1
    if case.apart:
        positions = positions.t().contiguous().t()
    return Noise(keys, positions)


def error(case: Case, launch: ModuleType) -> float:
    """Largest difference of scores and log-probabilities, over the largest score; infinity for NaN."""
    draw = torch.Generator().manual_seed(case.vocabulary + case.inputs)
    head = head_of(case, draw)
    hidden = guarded(torch.randn(case.rows, case.width, case.inputs, generator=draw).to(case.dtype), NAN)
    if case.apart:
        hidden = hidden.transpose(0, 1).contiguous().transpose(0, 1)
    temperature = torch.full((case.rows,), 0.6) if case.noisy else None
    noise = noise_of(case)
    found = launch.choose(hidden, head, case.count, temperature, noise)
    expected = exit_head(
        hidden, head, count=case.count, temperature=temperature, noise=noise, backend="reference"
    )
    # What the reference says of the tokens that were chosen: near-ties may fall either way in 16 bits.
    tokens = torch.arange(case.vocabulary) if head.shortlist is None else head.shortlist.long()
    scores = reference_logits(hidden, head)
    scores = scores if temperature is None else scores / temperature[:, None, None]
    at = (found.tokens[..., None] == tokens).int().argmax(dim=-1)
    if not torch.equal(tokens[at], found.tokens) or any(
        len(set(row)) < case.count for row in at.flatten(0, 1).tolist()
    ):
        return float("inf")
    noisy = scores if noise is None else scores + noise.at(tokens)
    differences = (
        found.scores - expected.scores,
        found.scores - noisy.gather(-1, at),
        found.logprobs - scores.log_softmax(dim=-1).gather(-1, at),
    )
    worst = max(float(difference.abs().max()) for difference in differences) / max(
        1.0, float(scores.abs().max())
    )
    if case.dtype == FP32 and not torch.equal(found.tokens, expected.tokens):
        return float("inf")
    return worst if all(difference.isfinite().all() for difference in differences) else float("inf")


def not_a_number() -> list[bool]:
    """Of two rows, one with a NaN: which log-probabilities are NaN."""
    hidden = torch.ones(2, 1, 16)
    hidden[0] = NAN
    found = exit_head_launch.choose(hidden, Head(torch.ones(70, 16)), 1, None, None)
    return found.logprobs.isnan().flatten().tolist()


def rounded() -> list[list[float]]:
    """Logits 256 and 257, alike in bf16, as they are, with a factor and with a soft cap: token and score."""
    weight = torch.full((3, 16), 16.0)
    weight[1, 0] = 17.0
    found = []
    for around in ({}, {"multiplier": 0.5}, {"softcap": 300.0}):
        hidden, head = torch.ones(1, 1, 16).bfloat16(), Head(weight.bfloat16(), **around)
        for choices in (
            exit_head_launch.choose(hidden, head, 1, None, None),
            exit_head(hidden, head, backend="reference"),
        ):
            found.append([choices.tokens.item(), choices.scores.item()])
    return found


def far_apart() -> list[int]:
    """A token whose weights begin 2^31 elements behind the first one's."""
    weight = torch.from_numpy(memory(2**31 + 16)).as_strided((3, 16), (2**30, 1))
    for row in range(3):
        weight[row] = row
    choices = exit_head_launch.choose(torch.ones(1, 1, 16), Head(weight, torch.ones(3)), 3, None, None)
    return choices.tokens.flatten().tolist()


def memory(size: int):
    """Bytes that take no room until they are written."""
    import numpy as np

    return np.empty(size, dtype=np.int8)


def dispatched() -> bool:
    """Whether the dispatcher's answer is the kernel's."""
    called = []
    choose = exit_head_launch.choose
    exit_head_launch.choose = lambda *arguments: called.append(1) or choose(*arguments)
    found = exit_head(torch.ones(1, 2, 16), Head(torch.eye(16)), backend="triton")
    exit_head_launch.choose = choose
    return bool(called) and found.tokens.shape == (1, 2, 1)


def main() -> None:
    prepare()
    results = run(CASES, MUTATIONS, error, "exit_head_launch")
    results["dtypes"] = {name: str(case.dtype) for name, case in CASES.items()}
    results |= {
        "nan": not_a_number(),
        "rounded": rounded(),
        "far apart": far_apart(),
        "dispatched": dispatched(),
    }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
