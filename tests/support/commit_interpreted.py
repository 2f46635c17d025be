"""Runs the kernel of committing in Triton's interpreter and prints what came out; see `interpreter`."""

from __future__ import annotations

import json
from dataclasses import fields
from types import ModuleType

import torch
from interpreter import prepare, run

from selfspec_kernels.accept_reference import Accepted
from selfspec_kernels.commit import commit
from selfspec_kernels.commit_reference import RowState, reference_commit

WIDTH = 12

Case = tuple[list[int], list[list[int]], int]
"""Accepted tokens and tokens of five rows, and how many each drafted."""

CASES: dict[str, Case] = {
    "four tokens a row": ([3] * 5, [[10, 11, 12, 13]] * 3 + [[10, 901, 12, 900]] * 2, 3),
    "fewer accepted": ([0, 1, 1, 2, 0], [[10, 11, 12, 901]] * 5, 3),
    "nothing drafted": ([0] * 5, [[10]] * 3 + [[902]] * 2, 0),
}
MUTATIONS = {
    "all accepted": ("fewer accepted", "(step <= accepted)", "(step < width)"),
    "past the limit": ("four tokens a row", "& (step < limit - length)", ""),
    "past the end token": ("four tokens a row", "(step <= first_end)", "(step < width)"),
    "without the end token": ("four tokens a row", "(step <= first_end)", "(step < first_end)"),
    "finished rows go on": ("four tokens a row", "tl.load(finished_ptr + b).to(tl.int32) == 0", "b >= 0"),
    "never finished": ("nothing drafted", "tl.store(finished_ptr + b, done)", "pass"),
    "uncounted rejections": ("fewer accepted", "tl.load(counter + 3) + rejected", "tl.load(counter + 3)"),
    "rows that follow each other": ("nothing drafted", "b * row_stride", f"b * {WIDTH}"),
}


def state() -> RowState:
    """Five rows: plain, finished, near their limit, plain, one token from their limit."""
    return RowState(
        sequences=torch.arange(5 * 2 * WIDTH).view(5, 2 * WIDTH)[:, :WIDTH],
        lengths=torch.tensor([3, 4, 5, 2, 11]),
        limits=torch.tensor([12, 12, 7, 12, 12]),
        finished=torch.tensor([False, True, False, False, False]),
        counters=torch.arange(25).view(5, 5).clone(),
        end_tokens=torch.tensor([900, 901, 902]),
    )


def error(case: Case, launch: ModuleType) -> float:
    """0 where the state is the reference's, infinity where it is not."""
    accepted, tokens, drafted = case
    nothing = torch.zeros(5, 1)
    verdict = Accepted(torch.tensor(accepted), torch.tensor(tokens), nothing, nothing)
    deepest = torch.full((5,), drafted)
    found, expected = state(), state()
    launch.commit(found, verdict, deepest, deepest)
    reference_commit(expected, verdict, deepest, deepest)
    same = all(torch.equal(getattr(found, f.name), getattr(expected, f.name)) for f in fields(RowState))
    # Nothing beside the rows' own columns was touched either.
    whole = [rows.sequences.as_strided((5, 2 * WIDTH), (2 * WIDTH, 1)) for rows in (found, expected)]
    return 0.0 if same and torch.equal(*whole) else float("inf")


def dispatched() -> list[int]:
    """Lengths after `commit` through its dispatcher."""
    rows, tokens = state(), torch.zeros(5, 2, dtype=torch.int64)
    accepted = torch.ones(5, dtype=torch.int64)
    commit(rows, Accepted(accepted, tokens, tokens.float(), tokens), accepted, accepted, backend="triton")
    return rows.lengths.tolist()


def main() -> None:
    prepare()
    results = run(CASES, MUTATIONS, error, "commit_launch")
    print(json.dumps(results | {"dispatched": dispatched()}))


if __name__ == "__main__":
    main()
