"""What drafts by the model's own layers have in common."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checks import own_generate
from strategies import costs_under_which_drafts_pay
from tiny_models import random_prompts

import selfspec
from selfspec import speculation
from selfspec.modes import Greedy
from selfspec.tuning import knowledge


@pytest.mark.parametrize("draft", ["early_exit", "low_bit"])
@pytest.mark.parametrize("tree", ["chain", "siblings"])
def test_every_round_is_opened_once_whatever_the_draft_turns_out_to_be(
    llama: Any, monkeypatch: pytest.MonkeyPatch, draft: str, tree: str
) -> None:
    monkeypatch.setattr(speculation, "time_passes", costs_under_which_drafts_pay)
    monkeypatch.setattr(knowledge, "_PRIOR_AGREEMENT", 0.9)
    opened: list[Any] = []
    monkeypatch.setattr(Greedy, "open", lambda self, positions: opened.append(positions))
    prompts = random_prompts(9, 4)
    expected = own_generate(llama, **prompts, max_new_tokens=24)
    selfspec.wrap(llama, draft=draft, tree=tree)
    events: list[Any] = []
    out = llama.generate(**prompts, max_new_tokens=24, on_round=events.append)
    assert torch.equal(out, expected)
    assert len(opened) == llama.speculation.stats.rounds
    assert any(len(event.drafted) > event.deepest for event in events) == (tree == "siblings")
