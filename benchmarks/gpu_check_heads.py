"""The exit head against its reference: what an LM head may have around it, and sizes that divide nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from gpu_bench import Bench
from gpu_checks import BF16, FP16, FP32, INFINITY, LIMIT, NAN, Check, noise_of, normal, poisoned, worst

from selfspec_kernels.exit_head import exit_head
from selfspec_kernels.exit_head_reference import Calibration, Head, reference_logits
from selfspec_kernels.row_norm_reference import Norm


@dataclass(frozen=True)
class HeadCase:
    """An exit head with what it may have around it."""

    dtype: torch.dtype = BF16
    rows: int = 1
    width: int = 1
    vocabulary: int = 128_256
    inputs: int = 4096
    count: int = 1
    norm: Any = "rms"
    bias: bool = False
    rank: int = 0
    int8: bool = False
    softcap: float | None = None
    shortlist: int = 0
    noisy: bool = False
    apart: int = 0
    """Inputs between the rows of the weight."""
    equal: bool = False


HEADS = {
    "8B head, 1 row": HeadCase(),
    "8B head, 2 rows of 8, noise": HeadCase(rows=2, width=8, noisy=True, count=2),
    "17 rows, biases, LayerNorm, soft cap": HeadCase(
        FP16, 17, vocabulary=50_257, inputs=1600, norm="layer", bias=True, softcap=3.0
    ),
    "fp32, one token": HeadCase(FP32, vocabulary=1, inputs=16, norm=None),
    "fp32, odd vocabulary": HeadCase(FP32, 3, vocabulary=4097, inputs=1000),
    "int8": HeadCase(rows=3, int8=True, norm="rms_one", noisy=True),
    "shortlist, calibration, 8 choices": HeadCase(rows=4, shortlist=32_767, rank=32, count=8, noisy=True),
    "weights past 2^31 elements": HeadCase(rows=8, apart=14_000, count=2),
    "equal logits": HeadCase(rows=2, equal=True, count=2),
}


def head_of(bench: Bench, case: HeadCase) -> Head:
    """The weights of a case."""
    size, inputs, device = case.vocabulary, case.inputs, bench.device
    weight = normal(bench, size, inputs, dtype=case.dtype, scale=0.0 if case.equal else 0.03)
    if case.apart:
        wide = torch.full((size, inputs + case.apart), NAN, dtype=case.dtype, device=device)
        wide[:, :inputs] = weight
        weight = wide[:, :inputs]
    if case.int8:
        weight = torch.randint(-127, 128, (size, inputs), dtype=torch.int8, device=device)
    layer = case.norm == "layer"
    norm_bias = normal(bench, inputs, dtype=case.dtype) if layer else None
    low_rank = [normal(bench, case.rank, inputs, dtype=case.dtype, scale=0.05) for _ in range(2)]
    listed = torch.randperm(size, device=device)[: case.shortlist].to(torch.int32)
    return Head(
        weight,
        scale=torch.rand(size, device=device) * 4e-4 + 1e-4 if case.int8 else None,
        bias=normal(bench, size, dtype=case.dtype) if case.bias else None,
        norm=Norm(case.norm, normal(bench, inputs, dtype=case.dtype), norm_bias) if case.norm else None,
        calibration=Calibration(*low_rank) if case.rank else None,
        softcap=case.softcap,
        shortlist=listed if case.shortlist else None,
    )


def head_error(bench: Bench, case: HeadCase) -> float:
    """Scores and log-probabilities, by the reference's word on the tokens: near-ties may fall either way."""
    vocabulary = bench.pick(case.vocabulary, min(case.vocabulary, 300))
    case = replace(case, vocabulary=vocabulary, inputs=bench.pick(case.inputs, 64))
    case = replace(case, shortlist=min(case.shortlist, vocabulary // 2))
    head = head_of(bench, case)
    hidden = normal(bench, case.rows, case.width, case.inputs, dtype=case.dtype)
    temperature = torch.full((case.rows,), 0.6, device=bench.device) if case.noisy else None
    noise = noise_of(bench, case.rows, case.width) if case.noisy else None
    with poisoned():
        found = exit_head(
            hidden, head, count=case.count, temperature=temperature, noise=noise, backend=bench.backend
        )
    listed = torch.arange(vocabulary, device=bench.device)
    listed = listed if head.shortlist is None else head.shortlist.long()
    scores = reference_logits(hidden, head)
    scores = scores if temperature is None else scores / temperature[:, None, None]
    noisy = scores if noise is None else scores + noise.at(listed)
    at = (found.tokens[..., None] == listed).int().argmax(dim=-1)
    chosen = at.sort(dim=-1).values
    if not torch.equal(listed[at], found.tokens) or bool((chosen[..., 1:] == chosen[..., :-1]).any()):
        return INFINITY
    if case.equal and not torch.equal(found.tokens[0, 0], listed[: case.count]):
        return INFINITY
    best = noisy.sort(dim=-1, descending=True, stable=True).values[..., : case.count]
    logprobs = scores.log_softmax(dim=-1).gather(-1, at)
    pairs = ((found.scores, best), (found.scores, noisy.gather(-1, at)), (found.logprobs, logprobs))
    return max(worst(one, other) for one, other in pairs)


def a_row_of_nan(bench: Bench) -> float:
    """One row's NaN shows in that row's log-probability and in no other."""
    case = HeadCase(rows=3, vocabulary=bench.pick(4097, 70), inputs=64)
    hidden = normal(bench, 3, 1, 64, dtype=BF16)
    hidden[1] = NAN
    found = exit_head(hidden, head_of(bench, case), backend=bench.backend).logprobs.isnan().flatten()
    return 0.0 if found.tolist() == [False, True, False] else INFINITY


def checks() -> list[Check]:
    """All of them."""
    return [
        *(Check("exit_head", name, partial(head_error, case=c), LIMIT[c.dtype]) for name, c in HEADS.items()),
        Check("exit_head", "a row of NaN", a_row_of_nan, 0.0),
    ]
