"""Growing a round's candidates from a draft's own distributions, one pass per level."""

from collections.abc import Callable

import torch
from torch import Tensor

from selfspec.call import Call
from selfspec.drafting.margins import MarginStop
from selfspec.drafting.stopping import StopRule
from selfspec.round import NOTHING
from selfspec.tree import Level, Tree, chain, forked, grafted

ReadLevel = Callable[[Tensor, Level], Tensor]
"""(tokens [B, w], level) -> the draft's logits [B, w, V] for the nodes of a level that have children."""


def expand(
    call: Call, tree: Tree, read: ReadLevel, rule: StopRule | None = None, graft: Tensor | None = None
) -> tuple[Tree, Tensor]:
    """Choose the candidates of `tree` level by level.

    Args:
        rule: when a row of a chain stops, None for never.
        graft: tokens [B, tree.grafted] of the branch that comes from elsewhere.

    Returns:
        The tree, cut where every row has stopped, and its tokens [B, n] (NOTHING where a row had stopped).
    """
    nodes = call.rows.last_tokens()[:, None].repeat(1, tree.size)
    if graft is not None:
        nodes[:, tree.size - tree.grafted :] = graft
    going = torch.ones(len(nodes), dtype=torch.bool, device=nodes.device)
    worth: Tensor | None = None
    for level in tree.levels:
        logits = read(nodes[:, level.first : level.last].clamp(min=0), level)
        scores = call.processors(logits, call.rows, nodes[:, 1:], tree.paths[level.first : level.last])
        picked = call.mode.candidates(scores, level.depth, level.breadth)
        if len(level.children) == 1:
            nodes[:, level.children[0]] = picked[:, 0, 0]
        else:
            nodes[:, list(level.children)] = picked[:, list(level.parents), list(level.ranks)]
        if rule is not None:
            worth = rule.worth(worth, confidence_of(picked[:, 0, 0], scores[:, 0]), level.depth)
            nodes[:, level.children[0]].masked_fill_(~going, NOTHING)
            going &= ~rule.stops(worth, level.depth)
            if not bool(going.any()):
                tree = chain(level.depth + 1)
                break
    return tree, nodes[:, 1 : tree.size]


def expand_while_sure(
    call: Call, longest: int, read: ReadLevel, stop: MarginStop, siblings: bool, graft: Tensor | None = None
) -> tuple[Tree, Tensor]:
    """Draft a chain as long as `stop` finds that another token pays, `longest` at most.

    Args:
        siblings: whether tokens that the draft was not sure of get the second choice beside them.
        graft: tokens [B, n] of a branch that comes from elsewhere.
    """
    token = call.rows.last_tokens()
    tokens: list[Tensor] = []
    seconds: list[Tensor] = []
    chosen = token.new_empty(len(token), 0)
    stop.open(call.rows)
    for level in chain(longest).levels:
        scores = call.processors(read(token[:, None], level), call.rows, chosen, [range(len(tokens))])
        values, best = call.mode.noisy(scores, level.depth)[:, 0].topk(2, dim=-1)
        token = best[:, 0]
        tokens.append(token)
        seconds.append(best[:, 1])
        chosen = torch.stack(tokens, dim=1)
        if not stop.going(token, values):
            break
    tree = forked(len(tokens), tuple(stop.unsure) if siblings else ())
    parts = [chosen, *(seconds[depth][:, None] for depth in (stop.unsure if siblings else ()))]
    if graft is not None:
        tree = grafted(tree, graft.shape[1])
        parts.append(graft)
    return tree, torch.cat(parts, dim=1)


def with_graft(tree: Tree, graft: Tensor | None) -> Tree:
    """`tree` with a branch for the tokens [B, n] of `graft`."""
    return tree if graft is None else grafted(tree, graft.shape[1])


def confidence_of(token: Tensor, scores: Tensor) -> Tensor:
    """The draft's own probability [B] of token [B] under processed scores [B, V]."""
    return scores.softmax(dim=-1).gather(1, token[:, None])[:, 0]
