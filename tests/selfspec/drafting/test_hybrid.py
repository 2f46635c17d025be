"""Free drafts in front of the model's own, and beside them in one tree."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checks import own_generate, texts_of
from fake_drafters import use_scripted_drafts
from tiny_models import VOCAB, padded, random_prompts, tiny_model
from torch import Tensor

import selfspec
from selfspec.drafting import Hybrid, Lookup
from selfspec.drafting.lookup import LONGEST, Found, MatchRates
from selfspec.rows import Rows
from selfspec.tree import chain
from selfspec.tuning.auto import Auto


class Spy:
    """A model's drafter that notes what it is asked for."""

    shape = staticmethod(chain)
    stop = None

    def __init__(self) -> None:
        self.asked: list[tuple[int, Any]] = []

    def draft(self, call: Any, length: int, graft: Tensor | None = None) -> Any:
        self.asked.append((length, None if graft is None else graft.tolist()))
        return "the model's"


def call_with(*prompts: list[int], new_tokens: int = 50) -> Any:
    batch = padded(prompts)
    rows = Rows.of_prompts(
        batch["input_ids"], batch["attention_mask"], new_tokens, 80, eos_tokens=frozenset(), pad_token=0
    )
    return SimpleNamespace(rows=rows)


REPEATING = [1, 2, 3, 4, 5, 1, 2]


@pytest.mark.parametrize("branches", [False, True])
def test_what_is_not_worth_it_is_left_to_the_model_and_joins_only_trees(branches: bool) -> None:
    model, seen = Spy(), []

    def worth(found: list[Found], length: int) -> bool:
        seen.append((found, length))
        return False

    hybrid = Hybrid(Lookup(MatchRates()), model, worth, branches)
    assert hybrid.draft(call_with(REPEATING, [9, 8]), 5) == "the model's"
    found = Found([3, 4, 5, 1], 2)
    assert seen == [([found, Found([], 0)], 5)]
    assert model.asked == [(5, [found.tokens, [-1] * 4] if branches else None)]


def test_nothing_found_is_no_branch() -> None:
    model = Spy()
    Hybrid(Lookup(MatchRates()), model, lambda found, length: False, branches=True).draft(
        call_with([1, 2]), 3
    )
    assert model.asked == [(3, None)]


def test_what_is_worth_it_is_drafted_in_place_of_the_models_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lookup, "draft_of", lambda self, call, found: found)
    model = Spy()
    hybrid = Hybrid(Lookup(MatchRates()), model, lambda found, length: True)
    drafted: Any = hybrid.draft(call_with(REPEATING), 1)
    assert drafted == [Found([3, 4, 5, 1], 2)]  # as long as the match allows, whatever K is
    assert model.asked == []


@pytest.mark.parametrize(("remaining", "longest"), [(1, 0), (2, 1), (4, 3), (50, LONGEST)])
def test_no_more_is_looked_up_than_may_still_be_generated(remaining: int, longest: int) -> None:
    asked = []

    class Limited(Lookup):
        def find(self, call: Any, limit: int) -> list[Found]:
            asked.append(limit)
            return super().find(call, limit)

    Hybrid(Limited(MatchRates()), Spy(), lambda found, length: False).draft(
        call_with(REPEATING, new_tokens=remaining), 0
    )
    assert asked == [longest]


@pytest.mark.parametrize("lengths", [(9,), (4, 11, 7)])
@pytest.mark.parametrize("tree", ["siblings", (0, 0, 1, 1, 2)], ids=str)
def test_a_branch_of_found_tokens_wins_where_only_it_is_right(
    llama: Any, monkeypatch: pytest.MonkeyPatch, lengths: tuple[int, ...], tree: Any
) -> None:
    prompts = random_prompts(*lengths)
    expected = own_generate(llama, **prompts, max_new_tokens=20)
    texts = expected[:, prompts["input_ids"].shape[1] :].tolist()
    use_scripted_drafts(monkeypatch, texts, lambda row, index: False, VOCAB)

    def find(self: Any, call: Any, limit: int) -> list[Found]:
        rows = call.rows
        return [
            Found(texts[r][rows.generated[r] : rows.generated[r] + min(4, limit)], 9) for r in rows.active
        ]

    monkeypatch.setattr(Lookup, "find", find)
    monkeypatch.setattr(Auto, "_worth", lambda self, found, length: False)
    selfspec.wrap(llama, draft="hybrid", draft_memory=0, exit_layer=2, draft_length=3, tree=tree)
    events: list[Any] = []
    assert torch.equal(llama.generate(**prompts, max_new_tokens=20, on_round=events.append), expected)
    whole = [event for event in events if len(event.committed) == 5]
    assert len(whole) == 4 * len(lengths)  # four found tokens and one more, four times
    assert all(event.accepted == 4 for event in whole)


def test_a_branch_of_found_tokens_that_is_wrong_does_no_harm(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(family)
    prompts = random_prompts(9, 4)
    expected = own_generate(model, **prompts, max_new_tokens=16)
    monkeypatch.setattr(
        Lookup, "find", lambda self, call, limit: [Found([5] * min(3, limit), 9) for _ in call.rows.active]
    )
    monkeypatch.setattr(Auto, "_worth", lambda self, found, length: False)
    settings = [{"draft": "hybrid", "exit_layer": 2, "draft_length": 2, "tree": "siblings"}]
    for _, out in texts_of(model, settings, **prompts, max_new_tokens=16):
        assert torch.equal(out, expected)


def test_statistics_name_both_sources(llama: Any) -> None:
    selfspec.wrap(llama, draft="hybrid", draft_length=3)
    llama.generate(**random_prompts(9), max_new_tokens=12)
    stats = llama.speculation.stats
    assert stats.strategy == "lookup, low_bit"
    assert "free drafts where text repeats" in stats.choice
    assert stats.view.startswith("4-bit view of 4 of 4 layers and the head")
