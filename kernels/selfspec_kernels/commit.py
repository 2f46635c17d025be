"""Committing a round on the device: tokens appended, lengths advanced, finished rows marked, rounds counted.

How the engine calls it: in place of the loop over rows in `engine.commit`, with the fields of `Accepted`. The
tensors of `RowState` live as long as the call and are written in place, so that a captured graph finds them;
what `Rows` and `Stats` hold is read from them when the host next looks. An accepted branch of a tree is
brought together in the cache first (`KVCache.gather`, by `Accepted.columns`). A finished row stays where it
is and is passed over. Stopping criteria that need Python are the host's to ask: it cuts the row and marks it
finished before the next round.
"""

from torch import Tensor

from selfspec_kernels.accept_reference import Accepted
from selfspec_kernels.backend import Backend, choose_backend
from selfspec_kernels.commit_reference import RowState, check_commit, reference_commit


def commit(
    rows: RowState, verdict: Accepted, drafted: Tensor, deepest: Tensor, *, backend: Backend | None = None
) -> None:
    """Append each row's accepted + 1 tokens, up to where it finishes.

    Args:
        rows: changed in place.
        verdict: of this round, for the same rows.
        drafted: [B] int64, candidates of each row.
        deepest: [B] int64, tokens on the longest path that each row drafted.
        backend: "triton" or "reference"; by default Triton on CUDA, the reference elsewhere.

    Raises:
        KernelInputError: shapes, dtypes, layouts or devices that do not belong together, or a backend that
            is unknown or cannot run where the sequences are.
    """
    check_commit(rows, verdict, drafted, deepest)
    if choose_backend(backend, "sequences", rows.sequences) == "triton":
        from selfspec_kernels import commit_launch

        commit_launch.commit(rows, verdict, drafted, deepest)
    else:
        reference_commit(rows, verdict, drafted, deepest)
