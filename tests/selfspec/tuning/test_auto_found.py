"""Free drafts in the default strategy: when found tokens are taken, and what they are taken beside."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_rounds import LOW_BIT, World
from tiny_models import padded, random_prompts

import selfspec
from selfspec.config import SpeculationConfig
from selfspec.drafting import Lookup
from selfspec.drafting.lookup import Found, MatchRates
from selfspec.modes import Greedy
from selfspec.pacing import MEASURING_SHARE, PayCheck, TrialBudget
from selfspec.round import Draft
from selfspec.rows import Rows
from selfspec.strategy import Strategy
from selfspec.tree import chain
from selfspec.tuning.costs import PassCosts

VIEW = {"draft": "low_bit"}


class NoLookup:
    """Stands in for a lookup; what it would find is put in."""

    def __init__(self, found: list[Found]) -> None:
        self.found = found

    def find(self, call: Any, limit: int) -> list[Found]:
        return self.found

    def draft_of(self, call: Any, tokens: list[list[int]]) -> Any:
        return tokens


@pytest.mark.parametrize(
    ("found", "chance", "worth"),
    [
        (Found(list(range(15)), 30), 0.5, True),  # long, and after a long match
        (Found([1, 2], 1), 0.95, False),  # little, after a match that means little
        (Found([], 0), 0.0, False),
    ],
)
def test_found_tokens_are_taken_when_they_promise_more_than_the_arm(
    found: Found, chance: float, worth: bool
) -> None:
    world = World({LOW_BIT: chance})
    for _ in range(50):
        world.known.tally(LOW_BIT, False).note(int(chance * 20), 20)
    auto = world.auto(lookup=NoLookup([found]))
    auto._choose(None)  # type: ignore[arg-type]
    assert auto._worth([found]) is worth


def test_found_tokens_are_compared_with_what_a_trial_may_draft() -> None:
    found = [Found([1, 2, 3], 3)]
    for check, worth in ((None, False), (PayCheck(), True)):
        auto = World({LOW_BIT: 0.9}).auto(lookup=NoLookup(found), check=check)
        auto.draft_length(100)
        auto._choose(None)  # type: ignore[arg-type]
        assert auto._worth(found) is worth  # less than a draft of 10 promises, more than one of 2
    assert check is not None
    check.budget.lost = 10.0
    assert auto._worth([Found([1], 1)])  # nothing else may be drafted


@pytest.mark.parametrize(("right", "tried"), [(0, range(1, 200)), (4, range(400, 401))])
def test_found_tokens_that_never_stand_cost_less_than_three_percent(right: int, tried: range) -> None:
    """However much is promised by how far the text matches."""
    found = [Found([1, 2, 3, 4], 8)]
    world = World({LOW_BIT: 0.0})
    world.known.exact = PassCosts((1.0, 1.1, 1.3, 1.6, 2.0, 3.0), (0.1,) * 6)
    auto = world.auto(lookup=NoLookup(found), check=PayCheck())
    lost, times = 0.0, 0
    for number in range(400):
        auto.draft_length(1000)
        taken = auto._affordable(found)
        auto._looked_up, length = auto._worth(taken), len(taken[0].tokens)
        if auto._looked_up:
            times += 1
            stands = min(right, length)
            lost += auto.speeds.plain_rounds_of_found(length, 1) - (1 + stands)
        auto.observe(length * auto._looked_up, 1 + min(right, length) * auto._looked_up, 1.0)
        assert lost <= 0.03 * (number + 48)
    assert times in tried


def test_found_tokens_are_cut_to_what_may_be_lost() -> None:
    world = World({LOW_BIT: 0.0})
    world.known.exact = PassCosts((1.0, 1.1, 1.3, 1.6, 2.0, 3.0), (0.1,) * 6)
    auto = world.auto(lookup=NoLookup([]), check=PayCheck(found=TrialBudget(0.01)))
    auto.draft_length(1000)
    (cut,) = auto._affordable([Found(list(range(15)), 30)])
    assert cut == Found([0, 1], 30)  # 0.48 plain rounds may be lost, half of them at once
    assert auto.speeds.plain_rounds_of_found(2, 1) - 1 <= 0.24 < auto.speeds.plain_rounds_of_found(3, 1) - 1
    auto.check.found.lost = 10.0
    (cut,) = auto._affordable([Found([1], 30)])
    assert not cut.tokens
    free = world.auto(lookup=NoLookup([]))
    assert free._affordable([Found([1, 2], 3)]) == [Found([1, 2], 3)]


def test_found_tokens_are_counted_by_all_rows() -> None:
    """One row's find must pay for the passes of all of them."""
    world = World({LOW_BIT: 0.9})
    for _ in range(50):
        world.known.tally(LOW_BIT, False).note(18, 20)
    auto = world.auto(lookup=NoLookup([]))
    auto._choose(None)  # type: ignore[arg-type]
    good, nothing = Found(list(range(15)), 30), Found([], 0)
    assert auto._worth([good])
    assert auto._worth([good, good])
    assert not auto._worth([good] + [nothing] * 7)


def test_rounds_of_found_tokens_teach_nothing_about_the_arms(llama: Any) -> None:
    selfspec.wrap(llama, draft="hybrid", draft_length=3, exit_layer=2)
    knowledge_of = llama.speculation.knowledge
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selfspec.tuning.auto.Auto, "_worth", lambda self, found: True)
        llama.generate(torch.tensor([[*range(10, 20)] * 3]), max_new_tokens=20)
    assert all(tally.tested == 0 for tally in knowledge_of.tallies.values())
    llama.generate(torch.tensor([[*range(10, 20)] * 3]), max_new_tokens=20)


class Spy:
    """A model's drafter that notes what it is asked for."""

    stop = None

    def __init__(self) -> None:
        self.asked: list[tuple[int, Any]] = []

    def draft(self, call: Any, length: int, graft: Any = None) -> Any:
        self.asked.append((length, None if graft is None else graft.tolist()))
        nowhere: Any = None
        return Draft(chain(length), nowhere, torch.zeros(len(call.rows.active), length), nowhere)


REPEATING = [1, 2, 3, 4, 5, 1, 2]


def rows_of(*prompts: list[int], new_tokens: int = 50) -> Any:
    batch = padded(prompts)
    rows = Rows.of_prompts(
        batch["input_ids"], batch["attention_mask"], new_tokens, 80, eos_tokens=frozenset(), pad_token=0
    )
    return SimpleNamespace(rows=rows, mode=Greedy(), decoder=None)


def drafted(monkeypatch: pytest.MonkeyPatch, call: Any, worth: bool, **settings: Any) -> tuple[Any, Any, Spy]:
    """What a first round drafts, with an arm of K = 5: what it found, its draft, and the spy in its place."""
    monkeypatch.setattr(selfspec.tuning.auto.Auto, "_worth", lambda self, found: worth)
    world, spy = World({LOW_BIT: 0.9}), Spy()
    auto = world.auto(lengths=[5], lookup=Lookup(MatchRates()), **settings)
    auto.arms, auto.plain = {LOW_BIT: spy}, spy  # type: ignore
    found: list[Any] = []
    find = auto.lookup.find  # type: ignore[union-attr]
    auto.lookup.find = lambda *arguments: found.append(find(*arguments)) or found[-1]  # type: ignore
    auto.lookup.draft_of = lambda call, tokens: tokens  # type: ignore
    return found, auto.draft(call, auto.draft_length(call.rows.remaining)), spy


@pytest.mark.parametrize("branches", [False, True])
def test_what_is_not_worth_it_is_left_to_the_model_and_joins_only_trees(
    monkeypatch: pytest.MonkeyPatch, branches: bool
) -> None:
    call = rows_of(REPEATING, [9, 8])
    found, _, spy = drafted(monkeypatch, call, worth=False, branches=branches)
    assert found == [[Found([3, 4, 5, 1], 2), Found([], 0)]]
    assert spy.asked == [(5, [[3, 4, 5, 1], [-1] * 4] if branches else None)]


def test_what_is_not_worth_it_joins_no_round_without_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    spent = PayCheck(warmup=0, budget=TrialBudget(lost=10.0))  # the arm may not be tried
    _, draft, spy = drafted(monkeypatch, rows_of(REPEATING), worth=False, branches=True, check=spent)
    assert spy.asked == [(0, None)]
    assert not draft.tokens.numel()


def test_nothing_found_is_no_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, spy = drafted(monkeypatch, rows_of([1, 2]), worth=False, branches=True)
    assert spy.asked == [(5, None)]


def test_what_is_worth_it_is_drafted_in_place_of_the_models_own(monkeypatch: pytest.MonkeyPatch) -> None:
    _, draft, spy = drafted(monkeypatch, rows_of(REPEATING), worth=True)
    assert draft == [[3, 4, 5, 1]]  # as long as the match allows
    assert spy.asked == []


@pytest.mark.parametrize(("remaining", "most", "longest"), [(2, 15, 1), (4, 15, 3), (50, 15, 4), (50, 2, 2)])
def test_no_more_is_looked_up_than_may_be_drafted(
    monkeypatch: pytest.MonkeyPatch, remaining: int, most: int, longest: int
) -> None:
    call = rows_of(REPEATING, new_tokens=remaining)
    found, _, _ = drafted(monkeypatch, call, worth=False, longest_found=most)
    assert len(found[0][0].tokens) == longest


def test_statistics_name_both_sources(llama: Any) -> None:
    selfspec.wrap(llama, draft="hybrid", draft_length=3)
    llama.generate(**random_prompts(9), max_new_tokens=12)
    stats = llama.speculation.stats
    assert stats.strategy == "lookup, low_bit"
    assert "free drafts where text repeats" in stats.choice
    assert stats.view.startswith("4-bit view of 4 of 4 layers and the head")


def test_a_set_draft_length_holds_for_found_tokens_too(llama: Any) -> None:
    selfspec.wrap(llama, draft="hybrid", draft_length=3, exit_layer=2)
    events: list[Any] = []
    llama.generate(torch.tensor([[*range(10, 20)] * 3]), max_new_tokens=40, on_round=events.append)
    assert max(event.deepest for event in events) == 3


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize(
    ("settings", "arms", "of_found"), [({}, True, 1 / 3), ({"draft": "lookup"}, False, 1), (VIEW, True, 0)]
)
def test_all_that_finding_out_may_cost_is_three_percent(
    settings: dict[str, Any], arms: bool, of_found: float, reads: bool
) -> None:
    known = World({LOW_BIT: 0.5}).known
    check = Strategy(SpeculationConfig(**settings), known, None, None)._check(1, arms, reads)
    assert check.found.share == pytest.approx(MEASURING_SHARE * of_found)
    shares = check.found.share + check.budget.share
    assert shares < MEASURING_SHARE if reads else shares == pytest.approx(MEASURING_SHARE)
