"""Drafting with a view of few bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checks import own_generate
from tiny_models import LAYERS, random_prompts, tiny_model

import selfspec
from layer_skip import low_bit
from layer_skip.decoder import LayeredDecoder
from layer_skip.exits import exit_choices


@pytest.mark.parametrize("exit_layer", [1, LAYERS])
def test_the_draft_is_what_the_view_says_after_the_drafted_tokens(family: str, exit_layer: int) -> None:
    """After one token: later drafts read the target's exact K/V, which the view alone would not compute."""
    model = tiny_model(family)
    prompts = random_prompts(1)  # one token: the view runs all of it itself
    selfspec.wrap(model, draft="low_bit", exit_layer=exit_layer, draft_length=5, draft_bits=8)
    events: list[Any] = []
    model.generate(**prompts, max_new_tokens=8, on_round=events.append)
    view = model.speculation.view
    text = torch.tensor(prompts["input_ids"][0].tolist() + events[0].drafted)
    choices = exit_choices(view.of(LayeredDecoder(model)), text[:-1], last=5)
    assert events[0].drafted == choices.tokens[exit_layer - 1].tolist()


def test_a_view_of_all_layers_in_eight_bits_is_nearly_always_right(llama: Any) -> None:
    prompts = random_prompts(9, 14)
    expected = own_generate(llama, **prompts, max_new_tokens=40)
    selfspec.wrap(llama, draft="low_bit", exit_layer=LAYERS, draft_length=4, draft_bits=8)
    assert torch.equal(llama.generate(**prompts, max_new_tokens=40), expected)
    assert llama.speculation.stats.acceptance_rate > 0.8
    assert llama.speculation.stats.strategy == "low_bit"


def test_drafting_runs_the_view_and_verification_all_layers_once(llama: Any) -> None:
    selfspec.wrap(llama, draft="low_bit", exit_layer=2, draft_length=3, deterministic=False)
    columns = [0] * LAYERS
    for index, layer in enumerate(llama.model.layers):

        def count(_: Any, inputs: Any, __: Any, index: int = index) -> None:
            columns[index] += inputs[0].shape[1]

        layer.input_layernorm.register_forward_hook(count)  # shared by the view
    llama.generate(**random_prompts(7), max_new_tokens=16)
    stats = llama.speculation.stats
    verified = 6 + stats.rounds + stats.drafted
    assert columns == [verified + stats.drafted] * 2 + [verified] * 2


def test_a_threshold_stops_these_drafts_too(llama: Any) -> None:
    prompts = random_prompts(9, 4)
    expected = own_generate(llama, **prompts, max_new_tokens=20)
    drafted = []
    for threshold in (0.0, 0.3, 0.999):
        selfspec.wrap(llama, draft="low_bit", exit_layer=4, draft_length=5, confidence_threshold=threshold)
        assert torch.equal(llama.generate(**prompts, max_new_tokens=20), expected)
        drafted.append(llama.speculation.stats.drafted)
    assert drafted[0] > drafted[1] > drafted[2] > 0


def test_weights_changed_after_wrapping_are_drafted_with(llama: Any) -> None:
    request = {**random_prompts(9, 4), "max_new_tokens": 20}
    selfspec.wrap(llama, draft="low_bit", exit_layer=LAYERS, draft_length=4, draft_bits=8)
    llama.generate(**request)
    llama.load_state_dict(tiny_model("llama", seed=1).state_dict())
    assert torch.equal(llama.generate(**request), own_generate(llama, **request))
    assert llama.speculation.stats.acceptance_rate > 0.8  # a stale view would be right by chance only


def test_whether_weights_have_changed_is_asked_once_a_call(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    selfspec.wrap(llama, draft="low_bit", exit_layer=2, draft_length=3)
    asked = []
    state_of = low_bit._state_of
    monkeypatch.setattr(low_bit, "_state_of", lambda *arguments: asked.append(1) or state_of(*arguments))
    for calls in (1, 2):
        llama.generate(**random_prompts(9), max_new_tokens=24)
        assert llama.speculation.stats.rounds > 3
        assert len(asked) == calls
