"""Which draft tokens stand, and the token after them: where acceptance ends, and what never stands."""

from __future__ import annotations

import torch

from selfspec.acceptance import _leading, accept_in_tree, accept_matching, accept_rejection
from selfspec.round import NOTHING
from selfspec.tree import chain

VOCAB = 7


def test_acceptance_ends_at_the_first_token_that_does_not_stand() -> None:
    stands = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 1], [1, 1, 0]]).bool()
    assert _leading(stands).tolist() == [3, 1, 0, 2]
    assert _leading(stands[:, :0]).tolist() == [0, 0, 0, 0]


def test_a_token_that_is_not_there_never_stands() -> None:
    draft = torch.tensor([[4, 5, NOTHING], [4, NOTHING, NOTHING], [NOTHING, NOTHING, NOTHING]])
    choices = torch.tensor([[4, 5, 6, 7]]).expand(3, -1)
    assert accept_matching(draft, choices).accepted.tolist() == [2, 1, 0]
    flat = torch.full((3, 4, VOCAB + 1), 1 / (VOCAB + 1))
    uniforms = torch.full((3, 3), 2.0**-32)
    verdict = accept_rejection(draft, flat[:, :3], flat, uniforms, torch.zeros(3, VOCAB + 1))
    assert verdict.accepted.tolist() == [2, 1, 0]
    assert (verdict.tokens[torch.arange(3), verdict.accepted] >= 0).all()


def test_nothing_drafted_means_nothing_accepted_and_one_token_of_the_target() -> None:
    none = torch.empty(3, 0, dtype=torch.int64)
    p = torch.eye(VOCAB)[[4, 5, 6]][:, None]
    choices = torch.tensor([[4], [5], [6]])
    for verdict in (
        accept_matching(none, choices),
        accept_in_tree(none, choices, chain(0)),
        accept_rejection(none, p[:, :0], p, torch.empty(3, 0), torch.zeros(3, VOCAB)),
    ):
        assert verdict.accepted.tolist() == [0, 0, 0]
        assert verdict.tokens.tolist() == [[4], [5], [6]]


def test_a_draft_token_outside_the_targets_support_is_never_accepted() -> None:
    p = torch.tensor([0.5, 0.5, 0.0])
    q = torch.tensor([0.0, 0.5, 0.5])
    drafts = torch.tensor([[2], [1]])
    # The smallest uniform there is.
    uniforms = torch.full((2, 1), 2.0**-32)
    verdict = accept_rejection(drafts, q.expand(2, 1, -1), p.expand(2, 2, -1), uniforms, torch.zeros(2, 3))
    assert verdict.accepted.tolist() == [0, 1]
    assert verdict.tokens[0, 0] == 0  # all that max(0, p - q) leaves
