"""Which draft tokens stand, and the token after them: pure functions of tensors.

`B` rows, `K` draft tokens, `V` vocabulary. `drafted` [B] says how many of its K columns a row really drafted.
"""

import torch
from torch import Tensor


def leading(stands: Tensor, drafted: Tensor) -> Tensor:
    """Accepted draft tokens [B]: how many of stands [B, K] hold before the first that does not."""
    counted = torch.arange(stands.shape[1], device=stands.device) < drafted[:, None]
    return (stands & counted).cumprod(dim=1).sum(dim=1)


def accept_matching(draft: Tensor, drafted: Tensor, choices: Tensor) -> tuple[Tensor, Tensor]:
    """Greedy and coupled acceptance: a draft token stands if it is the target's own choice.

    Exact by construction: every committed token is a choice of the target after its true prefix
    (Daliri et al. 2024, arXiv 2408.07978, algorithm 1, for the coupled case).

    Args:
        draft: draft tokens [B, K].
        drafted: [B].
        choices: the target's choice after each prefix [B, K+1].

    Returns:
        accepted [B] and committed [B, K+1], of which the first accepted+1 count.
    """
    return leading(draft == choices[:, :-1], drafted), choices


def accept_rejection(
    draft: Tensor, drafted: Tensor, q: Tensor, p: Tensor, uniforms: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Speculative sampling: accept x with probability min(1, p(x) / q(x)), else draw from max(0, p - q).

    Leviathan et al. 2022 (arXiv 2211.17192, algorithm 1) and Chen et al. 2023 (arXiv 2302.01318, theorem 1).

    Args:
        draft: draft tokens [B, K], drawn from q.
        drafted: [B].
        q: the draft's distributions [B, K, V].
        p: the target's distributions [B, K+1, V].
        uniforms: [B, K] in (0, 1), independent of the draft's own draws.
        noise: Gumbel noise [B, V] for the token after the accepted ones.

    Returns:
        accepted [B] and committed [B, K+1], of which the first accepted+1 count.
    """
    p_of_draft = p[:, :-1].gather(2, draft[..., None]).squeeze(2)
    q_of_draft = q.gather(2, draft[..., None]).squeeze(2)
    accepted = leading(uniforms * q_of_draft < p_of_draft, drafted)
    rows = torch.arange(len(draft), device=draft.device)
    target = p[rows, accepted]
    # After a full acceptance nothing is subtracted: the bonus token is drawn from p itself.
    rejected = accepted < drafted
    padded_q = torch.cat([q, torch.zeros_like(p[:, :1])], dim=1)
    residual = (target - padded_q[rows, accepted] * rejected[:, None]).clamp(min=0)
    token = (residual.log() + noise).argmax(dim=1)
    committed = torch.cat([draft, torch.zeros_like(token)[:, None]], dim=1)
    committed[rows, accepted] = token
    return accepted, committed
