"""How `commit` is launched: import this only where triton is installed."""

import triton
from torch import Tensor

from selfspec_kernels.accept_reference import Accepted
from selfspec_kernels.commit_kernels import commit_kernel
from selfspec_kernels.commit_reference import RowState
from selfspec_kernels.launching import on, options, pdl_of


def commit(rows: RowState, verdict: Accepted, drafted: Tensor, deepest: Tensor) -> None:
    """`commit` for checked inputs."""
    count, width = verdict.tokens.shape
    if not count:
        return
    with on(rows.sequences.device):
        commit_kernel[(count,)](
            rows.sequences, rows.lengths, rows.limits, rows.finished, rows.counters, rows.end_tokens,
            verdict.accepted, verdict.tokens, drafted, deepest,
            rows.sequences.stride(0), width, len(rows.end_tokens),
            **sizes(width, len(rows.end_tokens)),
            **options(1, pdl_of(rows.sequences.device)),
        )  # fmt: skip


def sizes(width: int, ends: int) -> dict[str, int]:
    """Powers of two that cover the tokens of a row and the end tokens."""
    return {"WIDTH": triton.next_power_of_2(width), "ENDS": triton.next_power_of_2(max(1, ends))}
