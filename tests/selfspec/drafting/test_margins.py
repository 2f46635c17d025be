"""Drafting as long as it is sure: what margins are worth is learned from the text that came."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checks import own_generate
from tiny_models import LAYERS, padded, random_prompts

import selfspec
from selfspec.drafting import EarlyExit, LowBit
from selfspec.drafting.margins import MarginRates, MarginStop
from selfspec.rows import Rows


def some_rows(*prompts: list[int]) -> Rows:
    batch = padded(prompts)
    return Rows.of_prompts(
        batch["input_ids"], batch["attention_mask"], 100, 80, eos_tokens=frozenset(), pad_token=0
    )


def scores(*margins: float) -> torch.Tensor:
    """The two best scores [B, 2] of rows with these margins."""
    return torch.tensor([[10.0, 10.0 - margin] for margin in margins])


def test_a_wider_margin_promises_more_before_anything_is_known() -> None:
    chances = [MarginRates().chance(margin) for margin in (0.0, 0.3, 0.8, 1.7, 3.5, 9.0)]
    assert chances == sorted(chances)
    assert 0.4 < chances[0] < 0.5
    assert chances[-1] > 0.98


def test_rates_follow_what_was_seen_margin_by_margin() -> None:
    rates, untouched = MarginRates(), MarginRates()
    for _ in range(500):
        rates.note(0.3, True)
        rates.note(9.0, False)
    assert rates.chance(0.3) > 0.97
    assert rates.chance(9.0) < 0.03
    assert rates.chance(1.2) == untouched.chance(1.2)
    assert 0.3 < rates.usual < 0.8


def test_rows_draft_on_while_the_mean_chance_that_all_stands_is_high_enough() -> None:
    stop = MarginStop(MarginRates(), least=0.5)
    stop.open(some_rows([1, 2], [3]))
    sure, unsure = 9.0, 0.0
    assert stop.going(torch.tensor([5, 6]), scores(sure, unsure))  # (0.99 + 0.45) / 2
    assert stop.going(torch.tensor([5, 6]), scores(0.9, sure))  # (0.99 * 0.65 + 0.45) / 2
    assert not stop.going(torch.tensor([5, 6]), scores(0.9, sure))  # (0.99 * 0.65 ** 2 + 0.45) / 2


def test_the_first_token_is_always_drafted_and_the_next_one_only_where_it_pays() -> None:
    stop = MarginStop(MarginRates(), least=0.999)
    stop.open(some_rows([1, 2]))
    assert not stop.going(torch.tensor([5]), scores(9.0))


def test_depths_at_which_a_row_is_not_sure_are_kept_for_siblings() -> None:
    stop = MarginStop(MarginRates(), least=0.1)
    stop.open(some_rows([1, 2], [3]))
    stop.going(torch.tensor([5, 6]), scores(9.0, 9.0))
    stop.going(torch.tensor([5, 6]), scores(9.0, 0.3))
    stop.going(torch.tensor([5, 6]), scores(9.0, 9.0))
    assert stop.unsure == [1]
    stop.open(some_rows([1, 2], [3]))
    assert stop.unsure == []


def test_drafted_tokens_are_compared_with_the_text_up_to_the_first_that_differs() -> None:
    rates, untouched = MarginRates(), MarginRates()
    rows = some_rows([1, 2])
    stop = MarginStop(rates, least=0.0)
    stop.open(rows)
    for token, margin in ((5, 9.0), (6, 1.2), (7, 0.3), (8, 3.5)):
        stop.going(torch.tensor([token]), scores(margin))
    rows.append(0, [5, 6, 9, 9])
    stop.open(rows)
    assert rates.chance(9.0) > untouched.chance(9.0)
    assert rates.chance(1.2) > untouched.chance(1.2)
    assert rates.chance(0.3) < untouched.chance(0.3)
    assert rates.chance(3.5) == untouched.chance(3.5)  # after the first miss nothing was looked at
    before = list(rates.tested)
    stop.open(rows)
    assert rates.tested == before  # nothing is counted twice


def test_a_row_that_ended_is_learned_from_and_then_left_out() -> None:
    rates = MarginRates()
    rows = some_rows([1, 2], [3])
    stop = MarginStop(rates, least=0.0)
    stop.open(rows)
    stop.going(torch.tensor([5, 6]), scores(9.0, 9.0))
    rows.append(0, [5])
    rows.append(1, [6])
    rows.active = [1]
    before = sum(rates.tested)
    stop.open(rows)
    assert sum(rates.tested) > before + 1
    assert stop.going(torch.tensor([6]), scores(9.0))


@pytest.mark.parametrize("tree", ["chain", "siblings"])
@pytest.mark.parametrize("least", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("low_bit", [True, False])
def test_how_sure_it_must_be_changes_the_drafts_and_never_the_text(
    llama: Any, monkeypatch: pytest.MonkeyPatch, tree: str, least: float, low_bit: bool
) -> None:
    prompts = random_prompts(9, 4, 14)
    expected = own_generate(llama, **prompts, max_new_tokens=20)
    selfspec.wrap(llama, draft="low_bit", exit_layer=LAYERS, draft_length=6, tree=tree)
    view = llama.speculation.view
    rates = MarginRates()

    def drafter(self: Any, arm: Any, *_: Any) -> Any:
        stop, siblings = MarginStop(rates, least), tree == "siblings"
        if low_bit:
            return LowBit(view, LAYERS, stop=stop, siblings=siblings)
        return EarlyExit(2, stop=stop, siblings=siblings)

    monkeypatch.setattr(selfspec.strategy.Strategy, "_drafter", drafter)
    events: list[Any] = []
    assert torch.equal(llama.generate(**prompts, max_new_tokens=20, on_round=events.append), expected)
    lengths = [event.deepest for event in events]
    assert max(lengths) <= 6
    if least == 0.95:
        assert sum(lengths) < 2.5 * len(lengths)
    if least == 0.05:
        assert max(lengths) == 6
    assert any(len(event.drafted) > event.deepest for event in events) == (tree == "siblings")
    assert sum(rates.tested) > sum(MarginRates().tested)
