"""Acceptance and commit against their references: greedy, coupled, filtered, trees, ties, nothing drafted."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from gpu_bench import Bench
from gpu_checks import BF16, FP16, FP32, INFINITY, Check, noise_of, normal, poisoned
from torch import Tensor

from selfspec_kernels.accept import accept, accept_choices
from selfspec_kernels.accept_reference import Accepted, Sampling, processed
from selfspec_kernels.commit import commit
from selfspec_kernels.commit_reference import RowState
from selfspec_kernels.noise import Noise, stream_keys
from selfspec_kernels.rejection import accept_rejection


@dataclass(frozen=True)
class AcceptCase:
    """Logits, and how they are sampled."""

    rows: int = 1
    candidates: int = 7
    vocabulary: int = 128_256
    dtype: torch.dtype = BF16
    noisy: bool = False
    filters: bool = False
    tree: bool = False
    equal: bool = False
    """Few different scores, among them -0.0 beside 0.0 and minus infinity."""


ACCEPTS = {
    "greedy": AcceptCase(),
    "coupled, 3 rows": AcceptCase(3, noisy=True),
    "coupled, fp32, filters": AcceptCase(2, dtype=FP32, noisy=True, filters=True),
    "one token": AcceptCase(vocabulary=1, dtype=FP32),
    "odd vocabulary, 33 rows": AcceptCase(33, vocabulary=50_257, noisy=True),
    "equal scores": AcceptCase(4, vocabulary=4097, equal=True, filters=True),
    "nothing drafted": AcceptCase(4, candidates=0),
    "63 candidates": AcceptCase(2, candidates=63, vocabulary=5000, dtype=FP16),
    "a tree": AcceptCase(5, candidates=6, tree=True, noisy=True),
    "filters, nothing drafted": AcceptCase(33, candidates=0, noisy=True, filters=True),
    "filters, 33 rows": AcceptCase(33, vocabulary=50_257, noisy=True, filters=True),
    "filters, 63 candidates": AcceptCase(4, candidates=63, vocabulary=5000, filters=True),
    "filters, a tree": AcceptCase(5, candidates=6, tree=True, noisy=True, filters=True),
}
PARENTS, DEPTH = (0, 0, 1, 1, 2, 3), 3


def accept_error(bench: Bench, case: AcceptCase) -> float:
    """Log-probabilities; infinity where a token, a length or a column differs."""
    vocabulary = bench.pick(case.vocabulary, min(case.vocabulary, 300))
    logits = normal(bench, case.rows, case.candidates + 1, vocabulary, scale=3.0)
    if case.equal:
        logits = logits.round().clamp(-1, 2) * -1.0
        logits[..., ::7] = -INFINITY
    logits = logits.to(case.dtype)
    noise = noise_of(bench, case.rows, case.candidates + 1) if case.noisy else None
    sampling = sampling_of(bench, case.rows, case.filters) if case.noisy or case.filters else Sampling()
    scores = processed(logits, sampling)
    if noise is not None:
        scores = scores + noise.at(torch.arange(vocabulary, device=bench.device))
    parents = torch.tensor(PARENTS if case.tree else range(case.candidates), dtype=torch.int32)
    draft = scores.argmax(dim=-1)[:, parents.long().to(bench.device)]
    if case.tree:  # the second of two siblings is another token
        draft[:, [1, 3]] -= 1
    for row in range(case.rows):  # wrong in another place in every row, nowhere in the first
        draft[row, case.candidates - row :][:1] -= 1
    tree: dict[str, Any] = {"parents": parents.to(bench.device), "depth": DEPTH} if case.tree else {}
    verdicts = []
    for backend in (bench.backend, "reference"):
        with poisoned():
            verdicts.append(accept(logits, draft, sampling=sampling, noise=noise, **tree, backend=backend))
    return difference(*verdicts)


def sampling_of(bench: Bench, rows: int, filters: bool) -> Sampling:
    """Temperature 0.8; with filters all of them."""

    def each(value: float, dtype: torch.dtype = FP32) -> Tensor:
        return torch.full((rows,), value, dtype=dtype, device=bench.device)

    if not filters:
        return Sampling(each(0.8))
    return Sampling(each(0.8), each(50, torch.int32), each(0.95), each(0.01))


def difference(found: Accepted, expected: Accepted) -> float:
    """Of two verdicts: infinity unless all but the log-probabilities is equal."""
    for field in fields(Accepted):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        if one.shape != other.shape or (one.dtype == torch.int64 and not torch.equal(one, other)):
            return INFINITY
    apart = (found.logprobs - expected.logprobs).abs()
    return float(apart.max()) if bool(apart.isfinite().all()) else INFINITY


def walk_error(bench: Bench) -> float:
    """`accept_choices` over choices that agree less and less."""
    choices = torch.randint(0, 3, (64, 8), device=bench.device)
    draft = torch.randint(0, 3, (64, 7), device=bench.device)
    logprobs = -torch.rand(64, 8, device=bench.device)
    verdicts = []
    for backend in (bench.backend, "reference"):
        with poisoned():
            verdicts.append(accept_choices(choices, logprobs, draft, backend=backend))
    return difference(*verdicts)


def commit_error(bench: Bench) -> float:
    """0 where every field of the state is the reference's after some rounds."""
    rows, states = 33, []
    torch.manual_seed(0)
    rounds = [
        (torch.randint(0, 5, (rows,)), torch.randint(0, 40, (rows, 5)), torch.randint(0, 5, (rows,)))
        for _ in range(4)
    ]
    for backend in (bench.backend, "reference"):
        state = RowState(
            torch.full((rows, 64), -1, device=bench.device),
            torch.arange(rows, device=bench.device) % 9,
            torch.arange(rows, device=bench.device) % 9 + 14,
            torch.arange(rows, device=bench.device) % 5 == 4,
            torch.zeros(rows, 5, dtype=torch.int64, device=bench.device),
            torch.tensor([7, 39], device=bench.device),
        )
        for accepted, tokens, drafted in rounds:
            on = [tensor.to(bench.device) for tensor in (accepted, tokens, drafted)]
            verdict = Accepted(on[0], on[1], on[1].float(), on[1])
            commit(state, verdict, on[2], torch.maximum(on[2], on[0]), backend=backend)
        states.append([getattr(state, field.name) for field in fields(RowState)])
    return 0.0 if all(torch.equal(*pair) for pair in zip(*states, strict=True)) else INFINITY


def rejection_error(bench: Bench) -> float:
    """Share of rows whose verdict differs: a last bit may turn a decision, hardly ever."""
    rows, length, vocabulary = bench.pick((64, 4, 50_257), (4, 2, 50))
    logits = normal(bench, rows, length + 1, vocabulary, scale=2.0)
    q = (logits[:, :-1] + normal(bench, rows, length, vocabulary)).softmax(dim=-1)
    draft = torch.multinomial(q.flatten(0, 1), 1).view(rows, length)
    found = torch.arange(rows, device=bench.device) % 5 == 0
    drawing = Noise(
        stream_keys(9, torch.arange(rows)).to(bench.device),
        torch.full((rows, 1), 4, dtype=torch.int64, device=bench.device),
    )
    verdicts = []
    for backend in (bench.backend, "reference"):
        with poisoned():
            verdicts.append(
                accept_rejection(
                    logits,
                    draft,
                    q,
                    deciding=noise_of(bench, rows, length),
                    drawing=drawing,
                    found=found,
                    backend=backend,
                )
            )
    same = (verdicts[0].tokens == verdicts[1].tokens).all(dim=1) & verdicts[0].logprobs.isfinite().all(dim=1)
    return 1.0 - float(same.float().mean())


def checks() -> list[Check]:
    """All of them."""
    return [
        *(Check("accept", name, partial(accept_error, case=case), 1e-3) for name, case in ACCEPTS.items()),
        Check("accept_choices", "64 rows", walk_error, 0.0),
        Check("accept_rejection", "64 rows, share that differs", rejection_error, 0.03),
        Check("commit", "33 rows, 4 rounds", commit_error, 0.0),
    ]
