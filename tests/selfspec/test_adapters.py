"""PEFT adapters: switched, merged and removed on a wrapped model, or wrapped with it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from checks import exactly_one_warning, own_generate
from tiny_models import random_prompts

import selfspec

REQUEST = {**random_prompts(24, 3, 9), "max_new_tokens": 14}
SETTINGS = {"exit_layer": 2, "draft_length": 4}
WAYS = [SETTINGS, {"draft": "auto"}, {"draft": "low_bit", "exit_layer": 4, "draft_length": 4}]


@pytest.fixture
def peft() -> Any:
    return pytest.importorskip("peft", reason="adapters need peft")


def adapted(peft: Any, model: Any) -> Any:
    """Two adapters that change the text, "first" active."""
    wrapped = None
    for seed, name in enumerate(("first", "second")):
        config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
        if wrapped is None:
            wrapped = peft.get_peft_model(model, config, adapter_name=name)
        else:
            wrapped.add_adapter(name, config)
        generator = torch.Generator().manual_seed(seed)
        for key, parameter in wrapped.named_parameters():
            if f".{name}." in key:
                parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    assert wrapped is not None
    return wrapped.eval()


@pytest.mark.parametrize("setting", WAYS, ids=str)
@pytest.mark.parametrize("wrapped_first", [True, False])
def test_adapters_may_be_switched_between_calls(
    peft: Any, llama: Any, setting: dict[str, Any], wrapped_first: bool
) -> None:
    """The model may be wrapped, or the PEFT model over it."""
    reference = adapted(peft, copy.deepcopy(llama))
    if wrapped_first:
        model = adapted(peft, selfspec.wrap(llama, **setting, strict=True))
    else:
        model = adapted(peft, llama)
        assert selfspec.wrap(model, **setting, strict=True) is model
    assert selfspec.is_wrapped(model)
    texts = []

    def same() -> None:
        expected = reference.generate(**REQUEST)
        assert torch.equal(model.generate(**REQUEST), expected)
        texts.append(tuple(expected.flatten().tolist()))

    for name in ("first", "second", "first"):
        model.set_adapter(name)
        reference.set_adapter(name)
        same()
    with model.disable_adapter(), reference.disable_adapter():
        same()
    for one in (model, reference):
        one.delete_adapter("first")
        one.set_adapter("second")
    same()
    assert texts[0] == texts[2]
    assert texts[1] == texts[4]
    assert len(set(texts)) == 3
    assert model.speculation.total.calls == 5
    plain, expected = model.merge_and_unload(), reference.merge_and_unload()
    assert torch.equal(plain.generate(**REQUEST), own_generate(expected, **REQUEST))
    assert plain.speculation.total.calls == 6
    selfspec.unwrap(plain)
    assert not selfspec.is_wrapped(plain)


def other_kinds(peft: Any) -> dict[str, Any]:
    """Adapters of other kinds than plain LoRA; some of them read the matrix that they adapt."""
    common = {"target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    low_rank = {"r": 4, **common}
    return {
        "DoRA": peft.LoraConfig(use_dora=True, init_lora_weights=False, **low_rank),
        "LoHa": peft.LoHaConfig(init_weights=False, **low_rank),
        "LoKr": peft.LoKrConfig(init_weights=False, **low_rank),
        "HRA": peft.HRAConfig(init_weights=False, **low_rank),
        "IA3": peft.IA3Config(
            init_ia3_weights=False, **{**common, "target_modules": ["k_proj"]}, feedforward_modules=[]
        ),
        "OFT": peft.OFTConfig(r=4, oft_block_size=0, **common),
        "VeRA": peft.VeraConfig(**low_rank),
        "a parameter": peft.LoraConfig(
            r=4, target_parameters=["q_proj.weight"], target_modules=[], init_lora_weights=False
        ),
    }


@pytest.mark.parametrize("setting", WAYS, ids=str)
@pytest.mark.parametrize("kind", ["DoRA", "LoHa", "LoKr", "HRA", "IA3", "OFT", "VeRA", "a parameter"])
def test_adapters_of_every_kind_can_be_drafted_with(
    peft: Any, llama: Any, kind: str, setting: dict[str, Any]
) -> None:
    model = peft.get_peft_model(llama, other_kinds(peft)[kind]).eval()
    expected = model.generate(**REQUEST)
    selfspec.wrap(model, **setting, strict=True)
    assert torch.equal(model.generate(**REQUEST), expected)
    if setting.get("draft") == "low_bit":
        assert model.speculation.view is not None
        reading = kind in ("DoRA", "LoHa", "LoKr", "HRA", "a parameter")
        assert ("adapts" in model.speculation.stats.view) is reading


@pytest.mark.parametrize("names", [["first", "second"], ["__base__", "first"], ["second", "second"]])
def test_rows_with_an_adapter_each_are_left_to_the_model_itself(
    peft: Any, llama: Any, names: list[str]
) -> None:
    model = adapted(peft, llama)
    request = {**REQUEST, **random_prompts(9, 4), "adapter_names": names}
    expected = model.generate(**request)
    selfspec.wrap(model, **SETTINGS)
    with exactly_one_warning(naming="adapter_names"):
        assert torch.equal(model.generate(**request), expected)


def test_a_peft_model_is_unwrapped_as_it_was(peft: Any, llama: Any) -> None:
    model = adapted(peft, llama)
    before, inside = dict(vars(model)), dict(vars(llama))
    selfspec.wrap(model, **SETTINGS)
    model.generate(**REQUEST)
    assert selfspec.unwrap(model) is model
    assert vars(model).keys() == before.keys()
    assert vars(llama).keys() == inside.keys()
    with pytest.raises(ValueError, match="is not wrapped"):
        selfspec.unwrap(model)


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_a_soft_prompt_is_not_overlooked(peft: Any, llama: Any, kind: str) -> None:
    """PEFT puts it in front of the text in a prepare_inputs_for_generation of its own."""
    torch.manual_seed(0)
    config = getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=5)
    model = peft.get_peft_model(llama, config).eval()
    expected = model.generate(**REQUEST)
    selfspec.wrap(model, **SETTINGS)
    with exactly_one_warning(naming="prepare_inputs_for_generation"):
        assert torch.equal(model.generate(**REQUEST), expected)
