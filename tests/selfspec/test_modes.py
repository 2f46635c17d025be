"""Greedy, coupled, rejection: shared choices of draft and target, new draws where they must be new."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from selfspec.modes import Coupled, Greedy, Rejection
from selfspec.round import Draft
from selfspec.sampling import request_keys

VOCAB, ROWS, LENGTH = 13, 64, 4
REQUESTS = request_keys([[row] for row in range(ROWS)])


def scores(seed: int = 0) -> Tensor:
    return 2 * torch.randn(ROWS, LENGTH + 1, VOCAB, generator=torch.Generator().manual_seed(seed))


def positions(first: int = 10, count: int = LENGTH + 1) -> Tensor:
    return (first + torch.arange(ROWS))[:, None] + torch.arange(count)


def modes() -> list[Any]:
    return [Greedy(), Coupled(3, REQUESTS, VOCAB), Rejection(3, REQUESTS, VOCAB)]


def drafted_from(mode: Any, draft_scores: Tensor, drafted: int = LENGTH) -> Draft:
    tokens = torch.stack([mode.choose(draft_scores[:, step], step) for step in range(LENGTH)], dim=1)
    return Draft(tokens, torch.full((ROWS,), drafted), torch.empty(0), 1)


@pytest.mark.parametrize("mode", modes(), ids=lambda mode: type(mode).__name__)
def test_a_draft_that_is_the_target_is_always_accepted(mode: Any) -> None:
    mode.open(positions())
    draft = drafted_from(mode, scores())
    accepted, committed = mode.accept(draft, scores())
    assert (accepted == LENGTH).all()
    assert torch.equal(committed[:, :LENGTH], draft.tokens)


@pytest.mark.parametrize("mode", modes(), ids=lambda mode: type(mode).__name__)
def test_what_was_not_drafted_is_not_accepted(mode: Any) -> None:
    mode.open(positions())
    accepted, _ = mode.accept(drafted_from(mode, scores(), drafted=2), scores())
    assert (accepted == 2).all()


@pytest.mark.parametrize("mode", modes(), ids=lambda mode: type(mode).__name__)
def test_nan_scores_are_an_error_not_a_token(mode: Any) -> None:
    broken = scores()
    broken[5, 2, 7] = float("nan")
    mode.open(positions())
    draft = drafted_from(mode, scores())
    with pytest.raises(ValueError, match="the scores hold NaN after the logits processors"):
        mode.accept(draft, broken)


def test_greedy_chooses_the_largest_score() -> None:
    assert torch.equal(Greedy().choose(scores()[:, 0], 0), scores()[:, 0].argmax(dim=-1))


def test_a_coupled_choice_depends_on_its_position_not_on_the_round_that_makes_it() -> None:
    whole = Coupled(3, REQUESTS, VOCAB)
    whole.open(positions())
    expected = [whole.choose(scores()[:, step], step) for step in range(LENGTH)]
    apart = Coupled(3, REQUESTS, VOCAB)
    for step in range(LENGTH):
        apart.open(positions(10 + step, 1))
        assert torch.equal(apart.choose(scores()[:, step], 0), expected[step])


def test_a_coupled_choice_does_not_depend_on_how_much_noise_is_made_ahead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    choices = []
    for budget in (1, 1 << 12, 1 << 18):
        monkeypatch.setattr("selfspec.modes._NOISE_BUDGET", budget)
        mode = Coupled(3, REQUESTS, VOCAB)
        chosen = []
        # Rows go on at different speeds, and a round may begin inside the noise that is there, or past it.
        for first in (0, 1, 4, 5, 40, 41):
            mode.open(positions(first))
            chosen += [mode.choose(scores(first)[:, step], step) for step in range(LENGTH)]
        choices.append(torch.stack(chosen))
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
    expected = all_rows.choose(scores()[:, 0], 2)[kept]
    assert torch.equal(some.choose(scores()[kept, 0], 2), expected)


def test_coupled_choices_of_other_seeds_requests_and_positions_differ() -> None:
    flat = torch.zeros(ROWS, VOCAB)

    def choices(seed: int, first: int) -> Tensor:
        mode = Coupled(seed, REQUESTS, VOCAB)
        mode.open(positions(first))
        return mode.choose(flat, 0)

    assert len(choices(3, 10).unique()) == VOCAB
    for other in (choices(4, 10), choices(3, 11)):
        assert (choices(3, 10) == other).float().mean() < 0.3


def test_rejection_draws_anew_when_a_position_is_drafted_again() -> None:
    mode = Rejection(3, REQUESTS, VOCAB)
    flat = torch.zeros(ROWS, VOCAB)
    drawn = []
    for _ in range(2):
        mode.open(positions())
        drawn += [mode.choose(flat, 0), mode.choose(flat, 1)]
    for one in range(4):
        for other in range(one):
            assert (drawn[one] == drawn[other]).float().mean() < 0.3


def test_rejection_draws_are_the_same_under_one_seed() -> None:
    outcomes = []
    for _ in range(2):
        mode = Rejection(3, REQUESTS, VOCAB)
        mode.open(positions())
        accepted, committed = mode.accept(drafted_from(mode, scores(1)), scores())
        outcomes.append((accepted, committed))
    assert torch.equal(outcomes[0][0], outcomes[1][0])
    assert torch.equal(outcomes[0][1], outcomes[1][1])
