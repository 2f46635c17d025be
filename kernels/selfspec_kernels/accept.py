"""What stands of a draft, and the token after it: from logits to committed tokens, greedy and coupled.

Two launches and no temporary as large as the logits: `choice_kernel` takes the target's own choice at every
position, in parts of the vocabulary; `walk_kernel`, one program a row, adds the parts up and walks down the
candidates. With filters it is `group_kernel`, in parts, and `filter_kernel`, one program a position, of which
the last of a row to finish walks. Where more than about a thousand tokens may pass, as with a large nucleus
and no top-k, one program reads a position's logits many times.

How the engine calls it: `verify` hands over the logits [B, m, V] as the head gave them. The processors'
temperature and filters become `Sampling`, `Mode.accept` one call: `accept` (noise for coupled mode, None for
greedy) or `accept_rejection`; or `accept_choices` on what `exit_head` chose, where there are no filters: then
logits are never in memory. `Accepted` has the fields of `Verdict`. `accepted`, `tokens` and `logprobs` are
all that a round must copy to the host; a NaN among the committed logprobs is what `Mode.accept` raises for.
"""

import torch
from torch import Tensor

from selfspec_kernels.accept_reference import (
    Accepted,
    Sampling,
    check_logits,
    check_tree,
    reference_accept,
    reference_walk,
)
from selfspec_kernels.backend import Backend, KernelInputError, check, check_together, choose_backend
from selfspec_kernels.noise import Noise


def accept(
    logits: Tensor,
    draft: Tensor,
    *,
    sampling: Sampling | None = None,
    noise: Noise | None = None,
    parents: Tensor | None = None,
    depth: int | None = None,
    backend: Backend | None = None,
) -> Accepted:
    """Walk down while the target's own choice is among the children (Miao et al. 2023, arXiv 2305.09781).

    The choice is argmax(processed score + noise): greedy without noise, coupled with it (Daliri et al. 2024,
    arXiv 2408.07978). Equal scores go to the lowest token.

    Args:
        logits: the target's [B, n+1, V] after the last committed token and each candidate, contiguous in V.
        draft: candidates [B, n] int64; a negative one is none.
        noise: at the positions of the tokens that the n+1 columns choose.
        parents: [n] int32, the column that each candidate 1..n follows; None for a chain.
        depth: tokens on the longest path, needed with `parents`.
        backend: "triton" or "reference"; by default Triton on CUDA, the reference elsewhere.

    Raises:
        KernelInputError: shapes, dtypes, layouts or devices that do not belong together, or a backend that
            is unknown or cannot run where the logits are.
    """
    sampling = sampling or Sampling()
    check_logits(logits, draft, sampling)
    depth = check_tree(draft, parents, depth)
    if noise is not None:
        check_together({"logits": logits, "noise keys": noise.keys, "noise positions": noise.positions})
        noise.check(*logits.shape[:2])
    if choose_backend(backend, "logits", logits) == "triton":
        from selfspec_kernels import accept_launch

        return accept_launch.accept(logits, draft, sampling, noise, parents, depth)
    return reference_accept(logits, draft, sampling, noise, parents, depth)


def accept_choices(
    choices: Tensor,
    logprobs: Tensor,
    draft: Tensor,
    *,
    parents: Tensor | None = None,
    depth: int | None = None,
    backend: Backend | None = None,
) -> Accepted:
    """The walk alone, over choices that were made before.

    Args:
        choices: the target's own choice after each node, [B, n+1] int64.
        logprobs: their log-probabilities, [B, n+1] fp32.
        draft, parents, depth, backend: as for `accept`.

    Raises:
        KernelInputError: as `accept`.
    """
    if choices.dim() != 2:
        raise KernelInputError(f"choices must be [B, n+1], not {list(choices.shape)}")
    check_together({"choices": choices, "logprobs": logprobs, "draft": draft})
    check("choices", choices, tuple(choices.shape), torch.int64)
    check("logprobs", logprobs, tuple(choices.shape), torch.float32)
    check("draft", draft, (len(choices), choices.shape[1] - 1), torch.int64, layout="rows")
    depth = check_tree(draft, parents, depth)
    if choose_backend(backend, "choices", choices) == "triton":
        from selfspec_kernels import accept_launch

        return accept_launch.walk(choices, logprobs, draft, parents, depth)
    return reference_walk(draft, choices, logprobs, parents, depth)
