"""Drafting with the target's own first layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checks import own_generate
from tiny_models import random_prompts, tiny_model

import selfspec
from layer_skip.decoder import LayeredDecoder
from layer_skip.exits import exit_choices


@pytest.mark.parametrize("exit_layer", [1, 2, 3])
def test_the_draft_is_what_the_exit_says_after_the_drafted_tokens(family: str, exit_layer: int) -> None:
    """Every drafted token equals the exit's choice after the committed text and the drafts before it."""
    model = tiny_model(family)
    prompts = random_prompts(9)
    selfspec.wrap(model, exit_layer=exit_layer, draft_length=3)
    events: list[Any] = []
    model.generate(**prompts, max_new_tokens=12, on_round=events.append)
    committed = prompts["input_ids"][0].tolist()
    for event in events:
        if event.drafted:
            text = torch.tensor(committed + event.drafted)
            choices = exit_choices(LayeredDecoder(model), text[:-1], last=len(event.drafted))
            assert event.drafted == choices.tokens[exit_layer - 1].tolist()
        committed += event.committed
    assert sum(len(e.drafted) for e in events) > 10


def test_a_confidence_threshold_stops_drafting_and_never_changes_the_text(family: str) -> None:
    model = tiny_model(family)
    prompts = random_prompts(9, 4, 14)
    expected = own_generate(model, **prompts, max_new_tokens=20)
    drafted = []
    for threshold in (0.0, 0.2, 0.5, 0.999):
        selfspec.wrap(model, exit_layer=2, draft_length=5, confidence_threshold=threshold)
        events: list[Any] = []
        out = model.generate(**prompts, max_new_tokens=20, on_round=events.append)
        assert torch.equal(out, expected)
        drafted.append(model.speculation.stats.drafted)
        assert drafted[-1] == sum(len(e.drafted) for e in events)
        assert model.speculation.stats.accepted <= drafted[-1]
        selfspec.unwrap(model)
    assert drafted == sorted(drafted, reverse=True)
    assert drafted[-1] < drafted[0]


def test_a_row_stops_after_its_first_token_below_the_threshold(llama: Any) -> None:
    threshold = 0.3
    selfspec.wrap(llama, exit_layer=2, draft_length=5, confidence_threshold=threshold)
    prompts = random_prompts(9)
    events: list[Any] = []
    llama.generate(**prompts, max_new_tokens=30, on_round=events.append)
    committed = prompts["input_ids"][0].tolist()
    lengths = set()
    for event in events:
        if event.drafted:
            text = torch.tensor(committed + event.drafted)
            choices = exit_choices(LayeredDecoder(llama), text[:-1], last=len(event.drafted))
            *before, last = (choices.confidence[1] < threshold).tolist()
            assert not any(before)
            lengths.add(len(event.drafted))
            if len(event.drafted) < min(5, 30 + 9 - len(committed) - 1):
                assert last
        committed += event.committed
    assert len(lengths) > 2


def test_a_threshold_does_not_change_sampled_text_in_coupled_mode(llama: Any) -> None:
    prompts = random_prompts(9, 4, 14)
    texts = []
    for threshold in (0.0, 0.3, 0.9):
        selfspec.wrap(llama, exit_layer=2, draft_length=4, confidence_threshold=threshold)
        torch.manual_seed(5)
        texts.append(llama.generate(**prompts, max_new_tokens=20, do_sample=True))
    assert torch.equal(texts[0], texts[1])
    assert torch.equal(texts[0], texts[2])
