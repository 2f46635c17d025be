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

Case = tuple[list[int], list[list[int]], int, tuple[int, ...]]
"""Accepted tokens and tokens of up to five rows, how many each drafted, and the end tokens."""
ENDS = (900, 901, 902)
FULL = (*range(900, 930), *[-2] * 34)
"""As many as there may be, filled up with what is no token, as the engine does."""

CASES: dict[str, Case] = {
    "four tokens a row": ([3] * 5, [[10, 11, 12, 13]] * 3 + [[10, 901, 12, 900]] * 2, 3, ENDS),
    "fewer accepted": ([0, 1, 1, 2, 0], [[10, 11, 12, 901]] * 5, 3, ENDS),
    "nothing drafted": ([0] * 5, [[10]] * 3 + [[902]] * 2, 0, ENDS),
    "one row": ([1], [[10, 11]], 1, ENDS),
    "no end tokens": ([2] * 5, [[0, 900, -1]] * 5, 2, ()),
    "64 end tokens": (
        [4] * 5,
        [[10, 929, 12, 13, 14], [10] * 5, [10] * 5, [0, -1, 0, 11, 12], [7] * 5],
        4,
        FULL,
    ),
    "64 tokens, 64 end tokens": ([8] * 5, [[*range(8), 929, *range(55)]] * 5, 63, FULL),
}
MUTATIONS = {
    "all accepted": ("fewer accepted", "(step <= accepted)", "(step < width)"),
    "past the limit": ("four tokens a row", "& (step < limit - length)", ""),
    "past the end token": ("four tokens a row", "(step <= first_end)", "(step < width)"),
    "without the end token": ("four tokens a row", "(step <= first_end)", "(step < first_end)"),
    "finished rows go on": ("four tokens a row", "tl.load(finished_ptr + b).to(tl.int32) == 0", "b >= 0"),
    "never finished": ("nothing drafted", "tl.store(finished_ptr + b, done)", "pass"),
    "uncounted rejections": ("fewer accepted", "tl.load(counter + 3) + rejected", "tl.load(counter + 3)"),
    "the first end tokens": ("64 end tokens", "mask=end < ends", "mask=end < 16"),
    "ends where there are none": ("no end tokens", "& (end < ends)[None, :]", ""),
    "rows that follow each other": ("nothing drafted", "b * row_stride", f"b * {WIDTH}"),
}


def state(rows: int = 5, ends: tuple[int, ...] = ENDS) -> RowState:
    """Up to five rows: plain, finished, near their limit, plain, one token from their limit."""
    return RowState(
        sequences=torch.arange(rows * 2 * WIDTH).view(rows, 2 * WIDTH)[:, :WIDTH],
        lengths=torch.tensor([3, 4, 5, 2, 11])[:rows],
        limits=torch.tensor([12, 12, 7, 12, 12])[:rows],
        finished=torch.tensor([False, True, False, False, False])[:rows],
        counters=torch.arange(5 * rows).view(rows, 5).clone(),
        end_tokens=torch.tensor(ends, dtype=torch.int64),
    )


def error(case: Case, launch: ModuleType) -> float:
    """0 where the state is the reference's, infinity where it is not."""
    accepted, tokens, drafted, ends = case
    rows = len(accepted)
    nothing = torch.zeros(rows, 1)
    verdict = Accepted(torch.tensor(accepted), torch.tensor(tokens), nothing, nothing)
    deepest = torch.full((rows,), drafted)
    found, expected = state(rows, ends), state(rows, ends)
    launch.commit(found, verdict, deepest, deepest)
    reference_commit(expected, verdict, deepest, deepest)
    same = all(torch.equal(getattr(found, f.name), getattr(expected, f.name)) for f in fields(RowState))
    # Nothing beside the rows' own columns was touched either.
    whole = [one.sequences.as_strided((rows, 2 * WIDTH), (2 * WIDTH, 1)) for one in (found, expected)]
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
