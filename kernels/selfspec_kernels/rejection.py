"""Speculative sampling on the device: accept or reject a chain, and draw the token after it.

Two launches, three with filters: those of `accept` sum up every position of the target's logits;
`rejection_kernel`, one program a row, decides and then draws from the residual at the one position where that
is needed.

How the engine calls it: in place of `Rejection.accept`, with what that mode holds: the draft's distributions
`q`, which rows were `given`, and its two kinds of draws as `Noise`, at positions that hold the round.
"""

import torch
from torch import Tensor

from selfspec_kernels.accept_reference import Accepted, Sampling, check_logits, processed
from selfspec_kernels.backend import Backend, check, check_together, choose_backend
from selfspec_kernels.noise import Noise, gumbel, position_keys, uniform


def accept_rejection(
    logits: Tensor,
    draft: Tensor,
    q: Tensor,
    *,
    deciding: Noise,
    drawing: Noise,
    sampling: Sampling | None = None,
    found: Tensor | None = None,
    backend: Backend | None = None,
) -> Accepted:
    """Accept x with probability min(1, p(x) / q(x)), else draw from max(0, p - q); after all, draw from p.

    Leviathan et al. 2022 (arXiv 2211.17192, algorithm 1), Chen et al. 2023 (arXiv 2302.01318, theorem 1).

    Args:
        logits: the target's [B, K+1, V], contiguous in V.
        draft: a chain [B, K] int64, drawn from q; negative ones, at its end, are none.
        q: the draft's distributions [B, K, V] fp32, contiguous in V.
        deciding: positions [B, K]; a token's uniform number is the first of its key.
        drawing: positions [B, 1]; Gumbel noise for the token after the accepted ones.
        sampling: what makes p of the logits.
        found: [B] bool: rows whose tokens were found, not drawn: q is 1 at the token there, and not read.
        backend: "triton" or "reference"; by default Triton on CUDA, the reference elsewhere.

    Raises:
        KernelInputError: shapes, dtypes, layouts or devices that do not belong together, or a backend that
            is unknown or cannot run where the logits are.
    """
    sampling = sampling or Sampling()
    check_logits(logits, draft, sampling)
    tensors = {"logits": logits, "q": q, "found": found}
    for name, noise in (("deciding", deciding), ("drawing", drawing)):
        tensors |= {f"{name} keys": noise.keys, f"{name} positions": noise.positions}
    check_together(tensors)
    (rows, tokens), vocabulary = draft.shape, logits.shape[2]
    check("q", q, (rows, tokens, vocabulary), torch.float32, layout="rows")
    check("found", found, (rows,), torch.bool)
    deciding.check(rows, tokens)
    drawing.check(rows, 1)
    if choose_backend(backend, "logits", logits) == "triton":
        from selfspec_kernels import rejection_launch

        return rejection_launch.reject(logits, draft, q, sampling, deciding, drawing, found)
    return reference_rejection(processed(logits, sampling), draft, q, deciding, drawing, found)


def reference_rejection(
    scores: Tensor, draft: Tensor, q: Tensor, deciding: Noise, drawing: Noise, found: Tensor | None
) -> Accepted:
    """The same in plain PyTorch, from processed scores [B, K+1, V]."""
    every = torch.arange(scores.shape[2], device=scores.device)
    if found is not None:
        q = torch.where(found[:, None, None], (draft[..., None] == every).to(q.dtype), q)
    logp = scores.log_softmax(dim=-1)
    at = draft.clamp(min=0)[..., None]
    logp_of_draft = logp[:, :-1].gather(2, at)[..., 0]
    u = uniform(position_keys(deciding.keys, deciding.positions), every[:1])[..., 0]
    stands = (u * q.gather(2, at)[..., 0] < logp_of_draft.exp()) & (draft >= 0)
    accepted = stands.long().cumprod(dim=1).sum(dim=1)
    rows = torch.arange(len(draft), device=draft.device)
    rejected = accepted < (draft >= 0).sum(dim=1)
    # After a full acceptance nothing is subtracted: the bonus token is drawn from p itself.
    taken = torch.cat([q, torch.zeros_like(scores[:, :1])], dim=1)[rows, accepted] * rejected[:, None]
    residual = (logp[rows, accepted].exp() - taken).clamp(min=0)
    token = (residual.log() + gumbel(position_keys(drawing.keys, drawing.positions), every)[:, 0]).argmax(1)
    columns = torch.arange(draft.shape[1] + 1, device=draft.device)
    columns = torch.minimum(columns, accepted[:, None])
    follow = columns == accepted[:, None]
    padded = torch.cat([draft, token[:, None]], dim=1)
    logprobs = torch.cat([logp_of_draft, logp[rows, accepted].gather(1, token[:, None])], dim=1)
    return Accepted(
        accepted,
        torch.where(follow, token[:, None], padded),
        torch.where(follow, logprobs[:, -1:], logprobs),
        columns,
    )
