"""How far drafts from every position of recorded texts would stand, and where a rule would stop them."""

from __future__ import annotations

import torch
from torch import Tensor

from selfspec.config import MAX_DRAFT_LENGTH
from selfspec.drafting.stopping import StopRule
from selfspec.round import Arm
from selfspec.tree import Tree
from selfspec.tuning.recording import Recording

NEVER = 1 << 20
"""Longer than any text."""


def run_lengths(right: Tensor) -> Tensor:
    """How many positions from each one on are right without a gap: [J, P, N] bool -> [P, N+1] int64.

    Args:
        right: by draft position, J = 1 where that makes no difference.
    """
    first = right[0]
    out = torch.zeros(first.shape[0], first.shape[1] + 1, dtype=torch.int64)
    if len(right) == 1:
        for t in reversed(range(first.shape[1])):
            out[:, t] = torch.where(first[:, t], out[:, t + 1] + 1, 0)
        return out
    standing = torch.ones_like(first)
    for j, here in enumerate(right):
        # Column t is the round that began there; its draft position j stands at column t + j.
        width = first.shape[1] - j
        standing = standing[:, :width] & here[:, j:]
        out[:, :width] += standing
    return out


def path_lengths(recording: Recording, arm: Arm, tree: Tree | None) -> Tensor:
    """How many tokens of a tree (None: of a chain) would stand, drafted from each position: [P, N+1] int64.

    A branch that the text leaves is never accepted, so only the path that it follows is looked at, and along
    that an arm drafts what it would draft in a chain: a candidate sees its ancestors alone.
    """
    if tree is None:
        return run_lengths(recording.right(arm))
    choices, texts = recording.of(arm), recording.tokens
    out = torch.zeros(texts.shape[0], texts.shape[1] + 1, dtype=torch.int64)
    standing = [torch.ones_like(texts, dtype=torch.bool)]
    for parent, rank, depth in zip(tree.parents, tree.ranks, tree.depths[1:], strict=True):
        # Column t is the round that began there; a node of depth d stands at column t + d - 1.
        here = (choices.at(depth - 1)[0][..., rank] == texts) & recording.inside
        stands = standing[parent][:, : max(texts.shape[1] + 1 - depth, 0)] & here[:, depth - 1 :]
        standing.append(stands)
        out[:, : stands.shape[1]] += stands  # of the nodes of one depth one at most
    return out


def stop_lengths(confidence: Tensor, inside: Tensor, rule: StopRule | None) -> Tensor:
    """Tokens that a rule lets a round from each position draft along the text: [J, P, N] -> [P, N+1] int64.

    A very large number where the rule does not stop before the longest draft or the end of the text.

    Args:
        confidence: by draft position; the last one holds for those after it.
        inside: [P, N] bool, columns that belong to a text.
    """
    out = torch.full((inside.shape[0], inside.shape[1] + 1), NEVER)
    if rule is None:
        return out
    worth: Tensor | None = None
    going = inside.clone()
    for step in range(min(MAX_DRAFT_LENGTH, inside.shape[1])):
        # As in `run_lengths`: draft position `step` of the round that began at column t.
        width = inside.shape[1] - step
        before = None if worth is None else worth[:, :width]
        worth = rule.worth(before, confidence[min(step, len(confidence) - 1)][:, step:], step)
        going = going[:, :width] & inside[:, step:]
        stops = going & rule.stops(worth, step)
        out[:, :width][stops] = step + 1
        going = going & ~stops
        if not bool(going.any()):
            break
    return out


def sibling_hits(recording: Recording, arm: Arm, siblings: int) -> Tensor:
    """Whether one of the next best candidates is the target's choice, by draft position: [J, P, N+1] bool."""
    others = recording.of(arm).candidates[..., 1:siblings]
    hits = (others == recording.tokens[..., None]).any(dim=-1) & recording.inside
    return torch.nn.functional.pad(hits, (0, 1))
