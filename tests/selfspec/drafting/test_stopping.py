"""Stop rules: what they look at, and that every chain of the model's own layers obeys them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checks import own_generate
from tiny_models import random_prompts

import selfspec
from selfspec import strategy
from selfspec.drafting.stopping import StopRule

REQUEST: dict[str, Any] = {**random_prompts(6), "max_new_tokens": 30, "pad_token_id": 0}


def test_without_a_table_a_token_is_worth_its_own_confidence() -> None:
    rule = StopRule((0.5, 0.2))
    confidence = torch.tensor([0.6, 0.3])
    worth = rule.worth(torch.tensor([0.01, 0.01]), confidence, 1)
    assert torch.equal(worth, confidence)
    assert rule.stops(worth, 0).tolist() == [False, True]
    assert rule.stops(worth, 7).tolist() == [False, False]  # the last threshold holds from there on


def test_with_a_table_a_token_is_worth_the_chance_of_the_whole_chain() -> None:
    rule = StopRule((0.5,), chances=((0.25, 0.75), (0.5, 1.0)))
    first = rule.worth(None, torch.tensor([0.1, 0.9, 1.0]), 0)
    assert first.tolist() == [0.25, 0.75, 0.75]
    assert rule.worth(first, torch.tensor([0.9, 0.1, 0.9]), 1).tolist() == [0.25, 0.375, 0.75]


def test_a_threshold_of_zero_is_no_rule() -> None:
    assert StopRule.below(0.0) is None
    assert StopRule.below(0.5) == StopRule((0.5,))


@pytest.mark.parametrize(
    ("thresholds", "chances", "complaint"),
    [
        ((), (), "one or more numbers"),
        ((1.5,), (), "from 0 to 1"),
        ((0.5,), ((0.1,), (0.1, 0.2)), "same number of bins"),
        ((0.5,), ((),), "at least one"),
    ],
)
def test_an_impossible_rule_is_refused(thresholds: Any, chances: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        StopRule(thresholds, chances)


@pytest.mark.parametrize("draft", ["early_exit", "low_bit"])
@pytest.mark.parametrize(
    "rule", [StopRule((0.4,)), StopRule((0.5, 0.3), chances=((0.2, 0.6, 0.9), (0.1, 0.5, 0.8)))]
)
def test_chains_of_both_kinds_stop_by_a_rule_and_keep_the_text(
    llama: Any, draft: str, rule: StopRule, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = own_generate(llama, **REQUEST)
    drafted = []
    for stop in (None, rule):
        monkeypatch.setattr(strategy.StopRule, "below", lambda _, stop=stop: stop)
        selfspec.wrap(llama, draft=draft, exit_layer=3, draft_length=5)
        assert torch.equal(llama.generate(**REQUEST), expected)
        assert llama.speculation.stats.strategy == draft
        drafted.append(llama.speculation.stats.drafted / llama.speculation.stats.rounds)
    assert drafted[1] < drafted[0]
