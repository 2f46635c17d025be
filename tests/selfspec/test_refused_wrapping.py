"""What wrap refuses: the reason is given, and the model stays as it was."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from checks import own_generate
from tiny_models import random_prompts, tiny_model
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

import selfspec
from selfspec import wrapping

REQUEST = {**random_prompts(6, 11, 3), "max_new_tokens": 12}
SETTINGS = {"exit_layer": 2, "draft_length": 3}


def test_a_refused_second_wrapping_leaves_the_first(llama: Any) -> None:
    selfspec.wrap(llama, **SETTINGS)
    speculation = llama.speculation
    with pytest.raises(selfspec.ConfigError):
        selfspec.wrap(llama, exit_layer=4)
    assert llama.speculation is speculation
    assert torch.equal(llama.generate(**REQUEST), own_generate(llama, **REQUEST))


def test_unwrapping_what_is_not_wrapped_says_so(llama: Any) -> None:
    with pytest.raises(
        ValueError, match=r"this LlamaForCausalLM is not wrapped: call selfspec.wrap\(model\) first"
    ):
        selfspec.unwrap(llama)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"exit_layer": 0}, "exit_layer=0"),
        ({"exit_layer": 4}, "exit_layer=4: this model has 4 layers, allowed are 1 to 3 or 'auto'"),
        ({"exit_layer": -1}, "exit_layer=-1"),
        ({"exit_layer": "3"}, "exit_layer='3'"),
        ({"exit_layer": True}, "exit_layer=True"),
        ({"draft_length": -1}, "draft_length=-1"),
        ({"draft_length": 10_000}, "draft_length=10000: .* from 0 to 64"),
        ({"draft_lenght": 3}, "unknown setting 'draft_lenght': did you mean 'draft_length'"),
    ],
)
def test_an_impossible_setting_is_refused_and_nothing_is_changed(
    llama: Any, settings: dict[str, Any], message: str
) -> None:
    before = dict(vars(llama))
    with pytest.raises(selfspec.ConfigError, match=message):
        selfspec.wrap(llama, **settings)
    assert vars(llama) == before


def contradicted() -> Any:
    """A Llama whose attention does not scale as Llama's does."""
    model = tiny_model("llama")
    forward = model.model.forward

    def scaled(*arguments: Any, **keywords: Any) -> Any:
        output = forward(*arguments, **keywords)
        output.last_hidden_state = output.last_hidden_state + 1
        return output

    model.model.forward = scaled
    return model


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (contradicted, "gives other logits than its own forward"),
        (lambda: tiny_model("llama", num_hidden_layers=1), "one layer"),
        (
            lambda: T5ForConditionalGeneration(
                T5Config(vocab_size=40, d_model=16, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
            ),
            "encoder-decoder",
        ),
        (lambda: nn.Linear(2, 2), "not a Hugging Face model"),
    ],
)
def test_a_model_that_cannot_be_taken_apart_is_refused_with_the_reason(build: Any, message: str) -> None:
    model = build()
    before = dict(vars(model))
    with pytest.raises(selfspec.UnsupportedModelError, match=message):
        selfspec.wrap(model)
    assert vars(model) == before


def test_weights_that_do_not_fit_the_config_any_more_are_refused() -> None:
    model = tiny_model("gemma2")
    model.model.layers[1].mlp = nn.Linear(16, 16)
    with pytest.raises(selfspec.UnsupportedModelError, match="could not be run layer by layer"):
        selfspec.wrap(model)
    assert not selfspec.is_wrapped(model)


def test_a_generate_that_somebody_put_on_the_instance_is_not_lost(llama: Any) -> None:
    own = functools.partial(type(llama).generate, llama)
    llama.generate = own
    with pytest.raises(selfspec.UnsupportedModelError, match="has a generate of its own"):
        selfspec.wrap(llama)
    assert llama.generate is own


def test_nothing_is_put_on_the_model_before_all_of_it_is_there(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Any, model: Any) -> None:
        raise AttributeError("a class without generate")

    monkeypatch.setattr(wrapping.SpeculativeGenerate, "__init__", fail)
    before = dict(vars(llama))
    with pytest.raises(AttributeError, match="a class without generate"):
        selfspec.wrap(llama, **SETTINGS)
    assert vars(llama) == before
