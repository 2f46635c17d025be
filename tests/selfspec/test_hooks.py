"""Hooks, a user's and accelerate's: they are run, or said not to be."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from checks import exactly_one_warning, own_generate
from tiny_models import random_prompts, tiny_model

import selfspec
from layer_skip.families import UnsupportedModelError

REQUEST = {**random_prompts(24, 3, 9), "max_new_tokens": 14}
SETTINGS = {"exit_layer": 2, "draft_length": 4}


def flipped(module: Any, inputs: Any, output: Any) -> Any:
    """What comes out of a module, the other way round."""
    if isinstance(output, tuple):
        return (output[0].flip(-1), *output[1:])
    for name in ("logits", "last_hidden_state"):
        if hasattr(output, name):
            setattr(output, name, getattr(output, name).flip(-1))
            return output
    return output.flip(-1)


def other_tokens(module: Any, inputs: Any, keywords: dict[str, Any]) -> Any:
    """The inputs of a module, every token another."""
    if keywords.get("input_ids") is None:
        return None
    return inputs, {**keywords, "input_ids": (keywords["input_ids"] + 1) % 97}


def hook(model: Any, part: str, kind: str) -> Any:
    module = model.get_submodule(part)
    if kind == "before":
        return module.register_forward_pre_hook(other_tokens, with_kwargs=True)
    return module.register_forward_hook(flipped)


@pytest.mark.parametrize("kind", ["before", "after"])
@pytest.mark.parametrize("after_wrapping", [True, False])
@pytest.mark.parametrize(("name", "part"), [("llama", ""), ("llama", "model"), ("opt", "model.decoder")])
def test_hooks_on_the_model_itself_that_change_its_text_are_refused_by_name(
    name: str, part: str, after_wrapping: bool, kind: str
) -> None:
    model = tiny_model(name)
    expected = own_generate(model, **REQUEST)
    if after_wrapping:
        selfspec.wrap(model, **SETTINGS)
    handle = hook(model, part, kind)
    hooked = type(model.get_submodule(part)).__name__
    assert not torch.equal(own_generate(model, **REQUEST), expected)
    with pytest.raises(UnsupportedModelError, match=f"a forward hook on {hooked} itself changes what"):
        model.generate(**REQUEST) if after_wrapping else selfspec.wrap(model)
    handle.remove()
    if not after_wrapping:
        selfspec.wrap(model, **SETTINGS)
    assert torch.equal(model.generate(**REQUEST), expected)
    assert model.speculation.total.calls == 1


def test_a_hook_that_only_looks_on_is_no_reason_to_refuse(llama: Any) -> None:
    selfspec.wrap(llama, **SETTINGS, strict=True)
    expected = own_generate(llama, **REQUEST)
    llama.model.register_forward_hook(lambda *_: None)
    for model in (llama, copy.deepcopy(llama)):
        assert torch.equal(model.generate(**REQUEST), expected)


def test_a_wrapped_model_with_hooks_can_be_pickled(llama: Any) -> None:
    llama.model.register_forward_hook(looks_on)
    selfspec.wrap(llama, **SETTINGS)
    again = pickle.loads(pickle.dumps(llama))
    assert torch.equal(again.generate(**REQUEST), own_generate(llama, **REQUEST))


def looks_on(*_: Any) -> None:
    """A hook that changes nothing."""


@pytest.mark.parametrize("part", ["model.layers.2", "model.norm", "model.embed_tokens", "lm_head"])
@pytest.mark.parametrize("after_wrapping", [True, False])
def test_hooks_on_parts_are_run(llama: Any, part: str, after_wrapping: bool) -> None:
    plain = own_generate(llama, **REQUEST)
    if after_wrapping:
        selfspec.wrap(llama, **SETTINGS)
    hook(llama, part, "after")
    if not after_wrapping:
        selfspec.wrap(llama, **SETTINGS)
    expected = own_generate(llama, **REQUEST)
    assert not torch.equal(expected, plain)
    assert torch.equal(llama.generate(**REQUEST), expected)


# --- accelerate's


@pytest.fixture
def accelerate() -> Any:
    return pytest.importorskip("accelerate", reason="device maps need accelerate")


@pytest.mark.parametrize("after", [True, False])
def test_a_model_with_hooks_on_every_module_generates_its_own_text(
    accelerate: Any, llama: Any, after: bool
) -> None:
    expected = own_generate(llama, **REQUEST)
    if after:
        selfspec.wrap(llama, **SETTINGS)
    accelerate.dispatch_model(llama, device_map={"": "cpu"}, force_hooks=True)
    if not after:
        selfspec.wrap(llama, **SETTINGS)
    assert torch.equal(llama.generate(**REQUEST), expected)
    assert llama.speculation.total.calls == 1


def test_a_model_that_is_spread_is_refused_with_the_reason(
    accelerate: Any, llama: Any, tmp_path: Any
) -> None:
    offload(accelerate, llama, "in part", tmp_path)
    with pytest.raises(UnsupportedModelError, match="spread over cpu, disk by its device_map"):
        selfspec.wrap(llama)


def offload(accelerate: Any, model: Any, how: str, folder: Any) -> None:
    if how == "to the CPU":
        accelerate.cpu_offload(model, execution_device="cpu")
    elif how == "to disk":
        accelerate.disk_offload(model, folder, execution_device="cpu")
    else:
        places = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
        places |= {f"model.layers.{i}": "cpu" if i < 2 else "disk" for i in range(4)}
        accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=folder)


@pytest.mark.parametrize("how", ["to the CPU", "to disk"])
def test_a_model_that_is_offloaded_whole_is_refused_as_such(
    accelerate: Any, llama: Any, tmp_path: Any, how: str
) -> None:
    offload(accelerate, llama, how, tmp_path)
    before = dict(vars(llama))
    with pytest.raises(UnsupportedModelError, match="is offloaded by accelerate, which loads its weights"):
        selfspec.wrap(llama)
    assert vars(llama) == before


@pytest.mark.parametrize("how", ["to the CPU", "to disk", "in part"])
@pytest.mark.parametrize("setting", [SETTINGS, {"draft": "low_bit", "draft_length": 4}], ids=str)
def test_a_model_that_is_offloaded_once_it_is_wrapped_is_left_to_itself(
    accelerate: Any, llama: Any, tmp_path: Any, how: str, setting: dict[str, Any]
) -> None:
    selfspec.wrap(llama, **setting)
    expected = llama.generate(**REQUEST)
    offload(accelerate, llama, how, tmp_path)
    with exactly_one_warning(naming="a model that accelerate offloads"):
        assert torch.equal(llama.generate(**REQUEST), expected)
    accelerate.hooks.remove_hook_from_submodules(llama)
    vars(llama).pop("hf_device_map", None)
    assert torch.equal(llama.generate(**REQUEST), expected)
    assert llama.speculation.total.calls == 2
