"""Runs the kernels of rejection in Triton's interpreter and prints what came out; see `interpreter`."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import ModuleType

import torch
from acceptance_cases import NAN, Case, difference, logits_of, noise_of, settings_of, stored
from interpreter import prepare, run
from torch import Tensor

from selfspec_kernels.accept_reference import Sampling, processed
from selfspec_kernels.rejection import accept_rejection, reference_rejection

BF16, FP16 = torch.bfloat16, torch.float16


def unanswered(launch: ModuleType, fill: float, sampling: Sampling) -> float:
    """0 if NaN shows in those rows, and those alone, from whose scores no token can be drawn.

    The first has `fill` in place of all scores, the second behind an accepted token: as one NaN, or as all.
    """
    logits = torch.zeros(3, 2, 100)
    logits[0] = fill
    logits[1, 1, 70 if fill != fill else slice(None)] = fill
    draft, q = torch.zeros(3, 1, dtype=torch.int64), torch.full((3, 1, 100), 1e-6)
    deciding, drawing = noise_of(Case(3), 1, 2), noise_of(Case(3), 1, 3)
    found = launch.reject(logits, draft, q, sampling, deciding, drawing, None, block=64)
    shown, accepted = found.logprobs.isnan().any(dim=1).tolist(), found.accepted.tolist()
    return 0.0 if (shown, accepted) == ([True, True, False], [0, 1, 1]) else float("inf")


def not_a_number(launch: ModuleType) -> float:
    return max(unanswered(launch, NAN, sampling) for sampling in WAYS)


def nothing_allowed(launch: ModuleType) -> float:
    return max(unanswered(launch, float("-inf"), sampling) for sampling in WAYS)


WAYS = Sampling(), settings_of(Case(3, temperature=0.7)), settings_of(Case(3, top_k=200, min_p=0.001))
CASES: dict[str, Case | Callable[[ModuleType], float]] = {
    "a chain": Case(5, 140),
    "nothing drafted": Case(2, 60, 0),
    "filters, nothing contiguous": Case(3, 100, 2, temperature=3.0, top_k=3, min_p=0.001, apart=True),
    "tokens that were found": Case(6, 90, 2, found=True),
    "one row, bf16": Case(1, 70, 2, BF16),
    "seven tokens, fp16, top-p": Case(4, 110, 7, FP16, temperature=0.8, top_p=0.7),
    "a wide chain": Case(2, 40, 20, BF16, apart=True),
    "not a number": not_a_number,
    "nothing allowed": nothing_allowed,
}
MUTATIONS = {
    "always accepted": ("a chain", "(u * q < tl.exp(logprob)) & drafted", "drafted"),
    "never accepted": ("a chain", "(u * q < tl.exp(logprob)) & drafted", "drafted & (u < 0)"),
    "drawn from p": ("a chain", "tl.exp(logp) - q_here", "tl.exp(logp)"),
    "drawn without noise": ("nothing drafted", "tl.log(residual) + gumbel(key, n)", "tl.log(residual)"),
    "no filters": ("filters, nothing contiguous", "thresholds_ptr is not None", "False"),
    "found as if drawn": ("tokens that were found", "if found_ptr is not None", "if False"),
    "the first position's q": ("a chain", "node.to(tl.int64) * q_column_stride", "0"),
    "no top-p": ("seven tokens, fp16, top-p", "if p < 1.0", "if p < 0.0"),
    "NaN is hidden": ("not a number", "log_sum > float", "log_sum != float"),
    "nothing is hidden": ("nothing allowed", 'log_sum > float("-inf")', "log_sum == log_sum"),
}


def error(case: Case | Callable[[ModuleType], float], launch: ModuleType) -> float:
    """Against the reference, see `difference`."""
    if not isinstance(case, Case):
        return case(launch)
    draw = torch.Generator().manual_seed(case.vocabulary + case.candidates)
    logits, sampling = logits_of(case, draw), settings_of(case)
    scores = processed(logits, sampling)
    draft, q = drawn(case, scores, draw)
    rows = torch.arange(case.rows) % 2 == 0 if case.found else None
    if rows is not None:
        q[rows] = NAN
    q = stored(q, case)
    deciding, drawing = noise_of(case, case.candidates, 2), noise_of(case, 1, 3)
    found = launch.reject(logits, draft, q, sampling, deciding, drawing, rows, block=64)
    return difference(found, reference_rejection(scores, draft, q, deciding, drawing, rows))


def drawn(case: Case, scores: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """A draft from a q near p; one row drafted less."""
    shape = (case.rows, case.candidates, case.vocabulary)
    q = (scores[:, :-1] + torch.randn(shape, generator=draw) * 0.7).softmax(dim=-1)
    draft = torch.zeros(shape[:2], dtype=torch.int64)
    for column in range(case.candidates):
        draft[:, column] = torch.multinomial(q[:, column], 1, generator=draw)[:, 0]
    draft[1:2, -1:] = -1
    return draft, q


def dispatched() -> float:
    """`accept_rejection` through its dispatcher."""
    case = Case(1, 70, 1)
    logits, q = torch.zeros(1, 2, 70), torch.full((1, 1, 70), 1 / 70)
    arguments = {"deciding": noise_of(case, 1), "drawing": noise_of(case, 1, 1)}
    draft = torch.zeros(1, 1, dtype=torch.int64)
    verdicts = [
        accept_rejection(logits, draft, q, **arguments, backend=name) for name in ("triton", "reference")
    ]
    return difference(*verdicts)


def main() -> None:
    prepare()
    results = run(CASES, MUTATIONS, error, "rejection_launch")
    print(json.dumps(results | {"dispatched": dispatched()}))


if __name__ == "__main__":
    main()
