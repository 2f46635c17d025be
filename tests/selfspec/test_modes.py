"""Greedy, coupled, rejection: shared choices of draft and target, new draws where they must be new."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from selfspec.modes import Coupled, Greedy, Rejection
from selfspec.round import NOTHING, Draft
from selfspec.sampling import request_keys
from selfspec.tree import Tree, chain, with_siblings

VOCAB, ROWS, LENGTH = 13, 64, 4
REQUESTS = request_keys([[row] for row in range(ROWS)])


def scores(seed: int = 0) -> Tensor:
    return 2 * torch.randn(ROWS, LENGTH + 1, VOCAB, generator=torch.Generator().manual_seed(seed))


def positions(first: int = 10, count: int = LENGTH + 1) -> Tensor:
    return (first + torch.arange(ROWS))[:, None] + torch.arange(count)


def modes() -> list[Any]:
    return [Greedy(), Coupled(3, REQUESTS, VOCAB), Rejection(3, REQUESTS, VOCAB)]


def chosen(mode: Any, scores: Tensor, step: int) -> Tensor:
    """The likeliest candidate [B] from scores [B, V]."""
    tokens: Tensor = mode.candidates(scores[:, None], step, 1)
    assert tokens.shape == (len(scores), 1, 1)
    return tokens[:, 0, 0]


def a_draft(tokens: Tensor, tree: Tree, given: bool = False) -> Draft:
    nowhere: Any = None  # a mode looks neither at the place of a draft nor at its hidden states
    return Draft(tree, nowhere, tokens, nowhere, given=given)


def drafted_from(mode: Any, draft_scores: Tensor, drafted: int = LENGTH) -> Draft:
    tokens = torch.stack([chosen(mode, draft_scores[:, step], step) for step in range(LENGTH)], dim=1)
    tokens[:, drafted:] = NOTHING
    return a_draft(tokens, chain(LENGTH))


@pytest.mark.parametrize("mode", modes(), ids=lambda mode: type(mode).__name__)
def test_a_draft_that_is_the_target_is_always_accepted(mode: Any) -> None:
    mode.open(positions())
    draft = drafted_from(mode, scores())
    verdict = mode.accept(draft, scores())
    assert (verdict.accepted == LENGTH).all()
    assert torch.equal(verdict.tokens[:, :LENGTH], draft.tokens)


@pytest.mark.parametrize("mode", modes(), ids=lambda mode: type(mode).__name__)
def test_what_was_not_drafted_is_not_accepted(mode: Any) -> None:
    mode.open(positions())
    verdict = mode.accept(drafted_from(mode, scores(), drafted=2), scores())
    assert (verdict.accepted == 2).all()


@pytest.mark.parametrize("mode", modes(), ids=lambda mode: type(mode).__name__)
def test_nan_scores_are_an_error_not_a_token(mode: Any) -> None:
    broken = scores()
    broken[5, 2, 7] = float("nan")
    mode.open(positions())
    draft = drafted_from(mode, scores())
    with pytest.raises(ValueError, match="the scores hold NaN after the logits processors"):
        mode.accept(draft, broken)


def test_greedy_chooses_the_largest_score() -> None:
    assert torch.equal(chosen(Greedy(), scores()[:, 0], 0), scores()[:, 0].argmax(dim=-1))


def test_a_coupled_choice_depends_on_its_position_not_on_the_round_that_makes_it() -> None:
    whole = Coupled(3, REQUESTS, VOCAB)
    whole.open(positions())
    expected = [chosen(whole, scores()[:, step], step) for step in range(LENGTH)]
    apart = Coupled(3, REQUESTS, VOCAB)
    for step in range(LENGTH):
        apart.open(positions(10 + step, 1))
        assert torch.equal(chosen(apart, scores()[:, step], 0), expected[step])


def test_a_coupled_choice_does_not_depend_on_how_much_noise_is_made_ahead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    choices = []
    for budget in (1, 1 << 12, 1 << 18):
        monkeypatch.setattr("selfspec.modes._NOISE_BUDGET", budget)
        mode = Coupled(3, REQUESTS, VOCAB)
        tokens = []
        # Rows go on at different speeds, and a round may begin inside the noise there, past it, or before it.
        for first in (0, 1, 4, 5, 40, 41, 39, 2):
            mode.open(positions(first))
            tokens += [chosen(mode, scores(first)[:, step], step) for step in range(LENGTH)]
        choices.append(torch.stack(tokens))
    assert torch.equal(choices[0], choices[1])
    assert torch.equal(choices[0], choices[2])


def test_rows_that_go_on_keep_their_coupled_noise() -> None:
    all_rows, some = Coupled(3, REQUESTS, VOCAB), Coupled(3, REQUESTS, VOCAB)
    kept = torch.tensor([40, 3, 17])
    for mode in (all_rows, some):
        mode.open(positions())
    some.keep(kept)
    all_rows.open(positions(12))
    some.open(positions(12)[kept])
    expected = chosen(all_rows, scores()[:, 0], 2)[kept]
    assert torch.equal(chosen(some, scores()[kept, 0], 2), expected)


def test_coupled_choices_of_other_seeds_requests_and_positions_differ() -> None:
    flat = torch.zeros(ROWS, VOCAB)

    def choices(seed: int, first: int) -> Tensor:
        mode = Coupled(seed, REQUESTS, VOCAB)
        mode.open(positions(first))
        return chosen(mode, flat, 0)

    assert len(choices(3, 10).unique()) == VOCAB
    for other in (choices(4, 10), choices(3, 11)):
        assert (choices(3, 10) == other).float().mean() < 0.3


def test_rejection_draws_anew_when_a_position_is_drafted_again() -> None:
    mode = Rejection(3, REQUESTS, VOCAB)
    flat = torch.zeros(ROWS, VOCAB)
    drawn = []
    for _ in range(2):
        mode.open(positions())
        drawn += [chosen(mode, flat, 0), chosen(mode, flat, 1)]
    for one in range(4):
        for other in range(one):
            assert (drawn[one] == drawn[other]).float().mean() < 0.3


def test_rejection_draws_are_the_same_under_one_seed() -> None:
    outcomes = []
    for _ in range(2):
        mode = Rejection(3, REQUESTS, VOCAB)
        mode.open(positions())
        verdict = mode.accept(drafted_from(mode, scores(1)), scores())
        outcomes.append((verdict.accepted, verdict.tokens))
    assert torch.equal(outcomes[0][0], outcomes[1][0])
    assert torch.equal(outcomes[0][1], outcomes[1][1])


TREES = [with_siblings(3), Tree.of((0, 0, 1, 1, 2, 5)), Tree.of((0, 0, 0))]


def grown_from(mode: Any, tree: Tree, scores: Tensor) -> Draft:
    """The tree's candidates where the draft's scores [B, V] are the same after every node."""
    nodes = torch.zeros(len(scores), tree.size, dtype=torch.int64)
    for level in tree.levels:
        width = level.last - level.first
        picked = mode.candidates(scores[:, None].expand(-1, width, -1), level.depth, level.breadth)
        nodes[:, list(level.children)] = picked[:, list(level.parents), list(level.ranks)]
    return a_draft(nodes[:, 1:], tree)


@pytest.mark.parametrize("tree", TREES, ids=str)
@pytest.mark.parametrize("mode", modes()[:2], ids=lambda mode: type(mode).__name__)
def test_candidates_are_the_likeliest_best_first_and_all_different(mode: Any, tree: Tree) -> None:
    mode.open(positions())
    best = mode.candidates(scores(), 0, 3) if isinstance(mode, Greedy) else None
    tokens = mode.candidates(scores()[:, :1], 1, 4)
    assert tokens.shape == (ROWS, 1, 4)
    assert all(len(set(row)) == 4 for row in tokens[:, 0].tolist())
    assert torch.equal(tokens[..., :1], mode.candidates(scores()[:, :1], 1, 1))
    if best is not None:
        assert torch.equal(best, scores().sort(dim=-1, descending=True).indices[..., :3])
    draft = grown_from(mode, tree, scores()[:, 0])
    verdict = mode.accept(draft, scores()[:, :1].expand(-1, tree.size, -1))
    # Everywhere the target's choice is the draft's first candidate: as far as those have children.
    node, deepest = 0, 0
    while (node, 0) in zip(tree.parents, tree.ranks, strict=True):
        node = 1 + list(zip(tree.parents, tree.ranks, strict=True)).index((node, 0))
        deepest += 1
    assert (verdict.accepted == deepest).all()


@pytest.mark.parametrize("mode", modes()[:2], ids=lambda mode: type(mode).__name__)
def test_a_token_has_the_noise_of_its_depth_whatever_branch_it_stands_in(mode: Any) -> None:
    """The text that a tree commits is the text of chains, token by token."""
    tree = Tree.of((0, 0, 1, 1, 2, 2, 3))
    by_node = 2 * torch.randn(ROWS, tree.size, VOCAB, generator=torch.Generator().manual_seed(7))
    mode.open(positions())
    # Where every candidate is right, the walk shows the choice at every node of its path.
    tokens = torch.full((ROWS, tree.size - 1), NOTHING)
    choices: dict[int, Tensor] = {}
    for node in range(tree.size):
        choices[node] = chosen(mode, by_node[:, node], tree.depths[node])
    for leaf in (n for n in range(1, tree.size) if n not in tree.parents):
        tokens.fill_(NOTHING)
        path = [0, *(i + 1 for i in tree.paths[leaf])]
        for parent, node in itertools.pairwise(path):
            tokens[:, node - 1] = choices[parent]
        verdict = mode.accept(a_draft(tokens, tree), by_node)
        assert (verdict.accepted == tree.depths[leaf]).all()
        assert torch.equal(verdict.tokens[:, : len(path)], torch.stack([choices[n] for n in path], dim=1))


def test_rejection_takes_found_tokens_as_drawn_from_themselves_alone() -> None:
    """A found token x stands with probability p(x), whatever a draft would have drawn it from."""
    mode = Rejection(3, REQUESTS, VOCAB)
    shares = []
    tokens = scores(1).argmax(dim=-1)[:, :LENGTH]
    for _ in range(1000):
        mode.open(positions())
        shares.append(mode.accept(a_draft(tokens, chain(LENGTH), given=True), scores()).accepted > 0)
    p = scores()[:, 0].softmax(dim=-1).gather(1, scores(1)[:, 0].argmax(dim=-1, keepdim=True))[:, 0]
    assert (torch.stack(shares).float().mean(dim=0) - p).abs().max() < 0.08


def test_rejection_verifies_drafts_of_which_nothing_was_drawn() -> None:
    mode = Rejection(3, REQUESTS, VOCAB)
    mode.open(positions())
    certain = torch.full((ROWS, 3, VOCAB), -30.0)
    certain[..., 5] = 30.0
    tokens = torch.full((ROWS, 2), 5)
    tokens[::2, 1] = NOTHING
    verdict = mode.accept(a_draft(tokens, chain(2), given=True), certain)
    assert verdict.accepted.tolist() == [1, 2] * (ROWS // 2)
    assert (verdict.tokens[torch.arange(ROWS), verdict.accepted] == 5).all()
