"""wrap and unwrap: one line in, one line out, and nothing else changes."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from checks import NewTensors, own_generate
from tiny_models import random_prompts, tiny_model
from transformers import AutoModelForCausalLM, GenerationMixin

import selfspec
from selfspec import speculation, views
from selfspec.tuning.costs import time_passes

PROMPTS = random_prompts(6, 11, 3)
REQUEST = {**PROMPTS, "max_new_tokens": 12}
SETTINGS = {"exit_layer": 2, "draft_length": 3}


def test_wrap_returns_the_same_object_of_the_same_class(family: str) -> None:
    model = tiny_model(family)
    kind = type(model)
    assert not selfspec.is_wrapped(model)
    assert selfspec.wrap(model) is model
    assert selfspec.is_wrapped(model)
    assert type(model) is kind
    assert isinstance(model, GenerationMixin)


def test_unwrap_restores_the_model_exactly(family: str) -> None:
    model = tiny_model(family)
    before = dict(vars(model))
    selfspec.wrap(model, **SETTINGS)
    model.generate(**REQUEST)
    assert selfspec.unwrap(model) is model
    assert not selfspec.is_wrapped(model)
    assert vars(model).keys() == before.keys()
    assert all(vars(model)[name] is before[name] for name in before)
    assert model.generate.__func__ is type(model).generate


def test_wrapping_changes_neither_weights_nor_modules_nor_forward(family: str) -> None:
    model = tiny_model(family)
    ids = PROMPTS["input_ids"]

    def look() -> Any:
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        config, defaults = copy.deepcopy(model.config.to_dict()), model.generation_config.to_dict()
        return (
            [(name, id(tensor), tensor.data_ptr(), tensor._version) for name, tensor in tensors.items()],
            [(name, id(module), type(module), module.training) for name, module in model.named_modules()],
            list(model.state_dict()),
            config,
            defaults,
            model.config._attn_implementation,
        )

    with torch.no_grad():
        logits, before = model(ids).logits, look()
        selfspec.wrap(model, **SETTINGS)
        assert look() == before
        model.generate(**REQUEST)
        assert look() == before
        assert torch.equal(model(ids).logits, logits)


@pytest.mark.parametrize(
    "settings", [{"draft": "early_exit"}, {"draft_memory": 0}, {"draft": "lookup"}], ids=str
)
def test_wrapping_adds_no_tensors_and_a_call_leaves_none_behind(settings: dict[str, Any]) -> None:
    model = tiny_model("llama")
    new = NewTensors()
    selfspec.wrap(model, **settings)
    assert new.count == 0
    out = model.generate(**REQUEST)
    del out
    assert new.count == 0


@pytest.mark.parametrize(
    "settings", [{}, {"draft": "low_bit"}, {"draft": "hybrid", "exit_layer": 2}], ids=str
)
def test_a_low_bit_view_adds_the_memory_that_it_reports_and_no_more(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At shapes of whole groups: about 30% of the weights that it stands for."""
    monkeypatch.setattr(views, "_WORTHWHILE", math.inf)
    monkeypatch.setattr(views, "_may_pay", lambda *_: True)
    sizes = {"hidden_size": 128, "intermediate_size": 512, "vocab": 320}
    model = tiny_model("llama", **sizes).bfloat16()
    weights = {p.data_ptr() for p in model.parameters()}

    selfspec.wrap(model, draft="early_exit")  # what is made once for a machine and shape is there before
    model.generate(**REQUEST)
    new = NewTensors()
    selfspec.wrap(model, draft_bits=4, **settings)
    model.generate(**REQUEST)
    view = model.speculation.view
    assert new.bytes == view.bytes
    assert view.bytes <= 0.31 * view.viewed_bytes  # a head in 8 bits weighs more beside few layers
    layers = settings.get("exit_layer", model.config.num_hidden_layers)
    assert f"of {layers} of 4 layers and the head" in model.speculation.stats.view
    assert {p.data_ptr() for p in model.parameters()} == weights
    selfspec.unwrap(model)
    del view
    assert new.bytes == 0


def test_a_wrapped_model_trains_as_before(llama: Any) -> None:
    selfspec.wrap(llama, **SETTINGS)
    llama.generate(**REQUEST)
    llama.train()
    ids = PROMPTS["input_ids"]
    llama(ids, labels=ids).loss.backward()
    assert all(p.grad is not None for p in llama.parameters())
    assert llama.training


def test_new_weights_are_used_at_once(llama: Any) -> None:
    selfspec.wrap(llama, **SETTINGS)
    before = llama.generate(**REQUEST)
    llama.load_state_dict(tiny_model("llama", seed=1).state_dict())
    after = llama.generate(**REQUEST)
    assert torch.equal(after, own_generate(llama, **REQUEST))
    assert not torch.equal(before, after)


def test_wrapping_twice_replaces_the_settings_and_unwraps_once(llama: Any) -> None:
    selfspec.wrap(llama, **SETTINGS)
    llama.generate(**REQUEST)
    selfspec.wrap(llama, exit_layer=1, draft_length=5)
    assert llama.speculation.stats.tokens == 0
    llama.generate(**REQUEST)
    assert (llama.speculation.stats.exit_layer, llama.speculation.stats.draft_length) == (1, 5)
    selfspec.unwrap(llama)
    assert not selfspec.is_wrapped(llama)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_of_a_wrapped_model_generates_with_its_own_weights(llama: Any, how: str) -> None:
    selfspec.wrap(llama, **SETTINGS)
    expected = llama.generate(**REQUEST)
    other = copy.deepcopy(llama) if how == "deepcopy" else pickle.loads(pickle.dumps(llama))
    assert selfspec.is_wrapped(other)
    assert other.speculation is not llama.speculation
    assert other.speculation.config == llama.speculation.config
    assert torch.equal(other.generate(**REQUEST), expected)
    other.load_state_dict(tiny_model("llama", seed=1).state_dict())
    assert torch.equal(other.generate(**REQUEST), own_generate(other, **REQUEST))
    assert torch.equal(llama.generate(**REQUEST), expected)
    selfspec.unwrap(other)
    assert selfspec.is_wrapped(llama)


def test_a_wrapped_model_is_saved_as_the_plain_one(llama: Any, tmp_path: Path) -> None:
    selfspec.wrap(llama, **SETTINGS)
    expected = llama.generate(**REQUEST)
    llama.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not selfspec.is_wrapped(loaded)
    assert loaded.state_dict().keys() == llama.state_dict().keys()
    assert torch.equal(loaded.generate(**REQUEST), expected)


def test_auto_settings_measure_once_and_give_the_same_text(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    def counted(*arguments: Any) -> Any:
        measured.append(arguments)
        return time_passes(*arguments)

    monkeypatch.setattr(speculation, "time_passes", counted)
    model = tiny_model(family)
    expected = own_generate(model, **REQUEST)
    selfspec.wrap(model)
    wrapping = len(measured)
    assert wrapping > 0
    for _ in range(3):
        assert torch.equal(model.generate(**REQUEST), expected)
        assert "prompt positions" in model.speculation.stats.choice
        assert model.speculation.stats.strategy
    assert len(measured) == wrapping
    selfspec.wrap(model, **SETTINGS)
    model.generate(**REQUEST)
    assert model.speculation.stats.choice == "as configured"


def test_what_calls_learn_is_kept_for_the_next_ones_and_for_no_other_model(llama: Any) -> None:
    selfspec.wrap(llama)
    llama.generate(**random_prompts(40), max_new_tokens=120)
    knowledge = llama.speculation.knowledge
    assert knowledge.plain[1].rounds > 0
    llama.generate(**random_prompts(40), max_new_tokens=120)
    assert llama.speculation.knowledge is knowledge
    assert not knowledge.tallies or all(not sampled for _, sampled in knowledge.tallies)
    other = copy.deepcopy(llama)
    with pytest.raises(RuntimeError, match="generate with it first"):
        _ = other.speculation.knowledge
    other.generate(**REQUEST)
    assert other.speculation.knowledge is not knowledge


def test_statistics_say_whether_rounding_can_change_the_text(llama: Any) -> None:
    selfspec.wrap(llama, **SETTINGS, deterministic=False)
    llama.generate(**REQUEST)
    assert llama.speculation.stats.shapes.startswith("not deterministic")
    selfspec.wrap(llama, **SETTINGS)
    llama.generate(**REQUEST)
    assert llama.speculation.stats.shapes.startswith(
        ("bit-equal rows: at least", "this machine offers no shapes")
    )
