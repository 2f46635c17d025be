"""Calls within torch.autocast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checks import exactly_one_warning, own_generate
from quick_tuning import PROMPTS, QUICK
from tiny_models import random_prompts, tiny_model

import selfspec

REQUEST = {**random_prompts(24, 3, 9), "max_new_tokens": 14}
WAYS: list[dict[str, Any]] = [
    {},
    {"exit_layer": 2, "draft_length": 4},
    {"draft": "low_bit"},
    {"draft": "low_bit", "exit_layer": 4, "draft_length": 4},
    {"draft": "hybrid", "draft_length": 3, "tree": "siblings"},
]


@pytest.mark.parametrize("setting", WAYS, ids=str)
def test_a_call_in_another_dtype_than_the_models_is_left_to_the_model_itself(
    llama: Any, setting: dict[str, Any]
) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        selfspec.wrap(llama, **setting)  # checks and times in the model's own dtype
        expected = own_generate(llama, **REQUEST)
        with exactly_one_warning(naming="torch.autocast to torch.bfloat16 of a model in torch.float32"):
            assert torch.equal(llama.generate(**REQUEST), expected)
        with torch.autocast("cpu", enabled=False):
            llama.generate(**REQUEST)
    assert torch.equal(llama.generate(**REQUEST), own_generate(llama, **REQUEST))
    assert llama.speculation.total.calls == 2


def test_a_bound_call_is_left_to_the_model_itself_too(llama: Any) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        expected = own_generate(llama, **REQUEST)
        with exactly_one_warning(naming="torch.autocast"):
            assert torch.equal(llama.generate(**REQUEST, custom_generate=selfspec.generate), expected)


@pytest.mark.parametrize("setting", WAYS, ids=str)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_autocast_to_the_models_own_dtype_changes_no_text(name: str, setting: dict[str, Any]) -> None:
    model = tiny_model(name).bfloat16()
    texts = []
    for settings in (setting, {"draft_length": 0}):
        selfspec.wrap(model, **settings, strict=True)
        with torch.autocast("cpu", torch.bfloat16):
            texts.append(model.generate(**REQUEST))
    assert torch.equal(*texts)


def test_tuning_within_autocast_measures_the_model_in_its_own_dtype(llama: Any) -> None:
    selfspec.wrap(llama, draft="low_bit")
    with torch.autocast("cpu", torch.bfloat16):
        profile = llama.speculation.tune(PROMPTS, workload="autocast", save=None, **QUICK)
    assert profile.workload == "autocast"
