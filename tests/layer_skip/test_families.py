"""The table of model families."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_models import VARIANTS, random_prompts, tiny_model
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from layer_skip.decoder import LayeredDecoder
from layer_skip.exits import exit_choices
from layer_skip.families import FAMILIES, UnsupportedModelError, family_of


def test_a_family_is_found_by_its_model_type(family: str) -> None:
    assert family_of(tiny_model(family)) is FAMILIES[family]


def test_an_unknown_family_is_refused_with_the_known_ones() -> None:
    model = nn.Linear(2, 2)
    model.config = SimpleNamespace(model_type="mamba")
    with pytest.raises(UnsupportedModelError, match=r"no row for model_type='mamba'.*known: llama, mistral"):
        family_of(model)


def test_an_encoder_decoder_is_refused_as_such() -> None:
    config = T5Config(vocab_size=40, d_model=16, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    with pytest.raises(UnsupportedModelError, match="T5ForConditionalGeneration is an encoder-decoder"):
        family_of(T5ForConditionalGeneration(config))


def test_a_module_without_config_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="Linear is not a Hugging Face model"):
        family_of(nn.Linear(2, 2))


def test_a_base_model_without_head_is_refused_with_the_missing_part() -> None:
    with pytest.raises(UnsupportedModelError, match="LlamaModel calls itself 'llama' but lacks a part"):
        LayeredDecoder(tiny_model("llama").model)


@pytest.mark.parametrize("name", [*FAMILIES, *VARIANTS])
def test_tiny_models_are_lively_enough_to_test_with(name: str) -> None:
    """Of the tests' own models: greedy text varies, exits are right sometimes and not always."""
    model: Any = tiny_model(name)
    out = model.generate(**random_prompts(6, 9, 12, 15), max_new_tokens=40, do_sample=False)
    assert torch.unique(out[:, -40:]).numel() >= 20
    agreement = exit_choices(LayeredDecoder(model), out[3]).agreement
    assert all(share < 0.95 for share in agreement[:-1])
    assert max(agreement[:-1]) > 0.05
