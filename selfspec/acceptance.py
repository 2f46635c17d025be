"""Which draft tokens stand, and the token after them: pure functions of tensors.

`B` rows, `K` draft tokens of a chain, `n` candidates of a tree, `V` vocabulary. A candidate that a row does
not have is NOTHING, which no choice ever matches.
"""

import torch
from torch import Tensor

from selfspec.round import NOTHING, Verdict
from selfspec.tree import Tree


def accept_matching(draft: Tensor, choices: Tensor) -> Verdict:
    """Greedy and coupled acceptance of a chain: a draft token stands if it is the target's own choice.

    Exact by construction: every committed token is a choice of the target after its true prefix
    (Daliri et al. 2024, arXiv 2408.07978, algorithm 1, for the coupled case).

    Args:
        draft: draft tokens [B, K].
        choices: the target's choice after each prefix [B, K+1].
    """
    return Verdict(_leading(draft == choices[:, :-1]), choices)


def accept_in_tree(draft: Tensor, choices: Tensor, tree: Tree) -> Verdict:
    """The same over a tree: walk down while the target's own choice is among the children.

    One draw of the target decides at each node, so the text is that of the target alone, whatever the
    candidates (SpecInfer's greedy verification, Miao et al. 2023, arXiv 2305.09781, with coupled noise for
    sampling; the i.i.d. multi-branch rule would be biased by candidates that are not drawn independently).

    Args:
        draft: candidates [B, n].
        choices: the target's choice after each node [B, n+1].
    """
    parents = torch.tensor(tree.parents, dtype=torch.int64, device=draft.device)
    matches = torch.nn.functional.pad(draft == choices[:, parents], (1, 0), value=True)
    ancestors = tree.ancestors(tree.size).to(draft.device)
    stands = (matches[:, None] | ~ancestors).all(dim=2)
    depths = torch.tensor(tree.depths, device=draft.device)
    accepted, deepest = torch.where(stands, depths, -1).max(dim=1)
    columns = tree.path_columns.to(draft.device)[deepest]
    return Verdict(accepted, choices.gather(1, columns), columns)


def accept_rejection(draft: Tensor, q: Tensor, p: Tensor, uniforms: Tensor, noise: Tensor) -> Verdict:
    """Speculative sampling: accept x with probability min(1, p(x) / q(x)), else draw from max(0, p - q).

    Leviathan et al. 2022 (arXiv 2211.17192, algorithm 1) and Chen et al. 2023 (arXiv 2302.01318, theorem 1).

    Args:
        draft: draft tokens [B, K], drawn from q.
        q: the draft's distributions [B, K, V].
        p: the target's distributions [B, K+1, V].
        uniforms: [B, K] in (0, 1), independent of the draft's own draws.
        noise: Gumbel noise [B, V] for the token after the accepted ones.
    """
    drafted = draft != NOTHING
    draft = draft.clamp(min=0)
    p_of_draft = p[:, :-1].gather(2, draft[..., None]).squeeze(2)
    q_of_draft = q.gather(2, draft[..., None]).squeeze(2)
    accepted = _leading((uniforms * q_of_draft < p_of_draft) & drafted)
    rows = torch.arange(len(draft), device=draft.device)
    target = p[rows, accepted]
    # After a full acceptance nothing is subtracted: the bonus token is drawn from p itself.
    rejected = accepted < drafted.sum(dim=1)
    padded_q = torch.cat([q, torch.zeros_like(p[:, :1])], dim=1)
    residual = (target - padded_q[rows, accepted] * rejected[:, None]).clamp(min=0)
    token = (residual.log() + noise).argmax(dim=1)
    committed = torch.cat([draft, torch.zeros_like(token)[:, None]], dim=1)
    committed[rows, accepted] = token
    return Verdict(accepted, committed)


def _leading(stands: Tensor) -> Tensor:
    """How many of stands [B, K] hold before the first that does not, [B]."""
    return stands.cumprod(dim=1).sum(dim=1)
