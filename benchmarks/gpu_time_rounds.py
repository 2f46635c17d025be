"""What chooses, accepts and commits tokens: time over floor."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from gpu_bench import Bench, Row
from gpu_checks import BF16, FP32, noise_of, normal
from gpu_rows import n_sets, reached, timed_row

from selfspec_kernels.accept import accept, accept_choices
from selfspec_kernels.accept_reference import Accepted, Sampling
from selfspec_kernels.commit import commit
from selfspec_kernels.commit_reference import RowState
from selfspec_kernels.exit_head import exit_head
from selfspec_kernels.exit_head_reference import Head
from selfspec_kernels.row_norm_reference import Norm

MOST_OVER_FLOOR = 1.25
MANY_ROWS = 32
"""From so many on, the bytes of accept take longer than its launches."""
ACCEPTED = (
    (1, BF16, ("greedy", "coupled", "filters")),
    (1, FP32, ("greedy", "coupled", "filters")),
    (4, BF16, ("coupled",)),
    (MANY_ROWS, BF16, ("greedy", "coupled")),
)
Timing = tuple[str, str, partial[Row]]


def timings(bench: Bench) -> Iterator[Timing]:
    """Kernel, name and work of every row."""
    for inputs in (4096, 2048):
        for rows in (1, 8, 16):
            for noisy in (False, True) if inputs == 4096 else (False,):
                name = f"D = {inputs}, {rows} rows, {'noisy' if noisy else 'greedy'}"
                yield "exit_head", name, partial(exit_head_row, bench, inputs, rows, noisy)
    yield "exit_head", "D = 4096, 8 rows, shortlist", partial(exit_head_row, bench, 4096, 8, False, 32_768)
    for rows, dtype, ways in ACCEPTED:
        for how in ways:
            name = f"B = {rows}, K = 7, {str(dtype).removeprefix('torch.')}, {how}"
            yield "accept", name, partial(accept_row, bench, rows, dtype, how)
    for rows in (1, 32):
        yield "accept_choices", f"B = {rows}, K = 7", partial(walk_row, bench, rows)
        yield "commit", f"B = {rows}, K = 7", partial(commit_row, bench, rows)


def exit_head_row(bench: Bench, inputs: int, rows: int, noisy: bool, shortlist: int = 0) -> Row:
    """Final norm, LM head and the best token."""
    vocabulary = bench.pick(128_256, 300)
    inputs, read = bench.pick(inputs, 64), bench.pick(shortlist, shortlist and 100) or vocabulary
    norm = Norm("rms", normal(bench, inputs, dtype=BF16))
    listed = torch.randperm(vocabulary, device=bench.device)[:read].sort().values.to(torch.int32)
    nbytes = 2 * inputs * (read + rows) + 4 * bool(shortlist) * read
    sets = [
        Head(
            normal(bench, vocabulary, inputs, dtype=BF16, scale=0.03),
            norm=norm,
            shortlist=listed if shortlist else None,
        )
        for _ in range(n_sets(bench, nbytes))
    ]
    hidden = normal(bench, 1, rows, inputs, dtype=BF16)
    noise = noise_of(bench, 1, rows) if noisy else None

    def run(head: Head) -> object:
        return exit_head(hidden, head, noise=noise, backend=bench.backend)

    return reached(timed_row(bench, run, sets, nbytes, launches=3), "over floor", MOST_OVER_FLOOR)


def accept_row(bench: Bench, rows: int, dtype: torch.dtype, how: str) -> Row:
    """From logits to what stands."""
    vocabulary = bench.pick(128_256, 300)
    nbytes = rows * 8 * vocabulary * dtype.itemsize
    sets = [normal(bench, rows, 8, vocabulary, dtype=dtype, scale=3.0) for _ in range(n_sets(bench, nbytes))]
    draft = torch.randint(0, vocabulary, (rows, 7), device=bench.device)
    temperature = torch.full((rows,), 0.8, device=bench.device)
    top_p = torch.full((rows,), 0.95, device=bench.device) if how == "filters" else None
    sampling = Sampling() if how == "greedy" else Sampling(temperature, top_p=top_p)
    noise = None if how == "greedy" else noise_of(bench, rows, 8)

    def run(logits: torch.Tensor) -> object:
        return accept(logits, draft, sampling=sampling, noise=noise, backend=bench.backend)

    row = timed_row(bench, run, sets, nbytes, launches=2)
    floor = "over floor" if rows >= MANY_ROWS else "over floor and launches"
    return row if how == "filters" else reached(row, floor, MOST_OVER_FLOOR)


def walk_row(bench: Bench, rows: int) -> Row:
    """The walk over choices that were made before: a launch and next to no bytes."""
    choices = torch.randint(0, 2, (rows, 8), device=bench.device)
    logprobs = -torch.rand(rows, 8, device=bench.device)
    draft = choices[:, :7].contiguous()
    nbytes = rows * (8 * (8 + 4) + 7 * 8 + 8 * (8 + 4 + 8) + 8)

    def run(_: int) -> object:
        return accept_choices(choices, logprobs, draft, backend=bench.backend)

    return launched(timed_row(bench, run, [0], nbytes, launches=1))


def commit_row(bench: Bench, rows: int) -> Row:
    """Tokens appended to sequences that are not full yet."""
    device = bench.device
    state = RowState(
        torch.zeros(rows, 8192, dtype=torch.int64, device=device),
        torch.zeros(rows, dtype=torch.int64, device=device),
        torch.full((rows,), 8192, dtype=torch.int64, device=device),
        torch.zeros(rows, dtype=torch.bool, device=device),
        torch.zeros(rows, 5, dtype=torch.int64, device=device),
        torch.tensor([2], device=device),
    )
    tokens = torch.full((rows, 8), 5, dtype=torch.int64, device=device)
    zero = torch.zeros(rows, dtype=torch.int64, device=device)
    verdict = Accepted(zero, tokens, tokens.float(), tokens)

    def run(_: int) -> None:
        commit(state, verdict, zero, zero, backend=bench.backend)

    return launched(timed_row(bench, run, [0], rows * (8 * 8 + 5 * 8 * 2 + 6 * 8), launches=1))


def launched(row: Row) -> Row:
    """Of a kernel whose bytes take no time: its time, and over that of an empty launch."""
    return {"µs": row["µs"], "over an empty launch": row["over floor and launches"]}
