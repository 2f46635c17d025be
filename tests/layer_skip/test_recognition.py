"""Which row describes a model, and models without a row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checks import own_generate
from tiny_models import random_prompts, tiny_model
from torch import nn

import selfspec
from layer_skip import layout, recognition
from layer_skip.decoder import LayeredDecoder
from layer_skip.families import FAMILIES, UnsupportedModelError
from layer_skip.recognition import family_of, is_guessed
from layer_skip.self_check import check_decoder


def test_a_family_is_found_by_its_model_type(family: str) -> None:
    assert family_of(tiny_model(family)) is FAMILIES[family]


@pytest.fixture
def no_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no family had a row."""
    monkeypatch.setattr(recognition, "FAMILIES", {})


# Others say what no structure shows: spare rows of a position table, ALiBi.
@pytest.mark.parametrize(
    "name",
    [
        "llama",
        "mistral",
        "gemma3_text",
        "gpt2",
        "gpt_neox",
        "cohere2",
        "deepseek_v3",
        "llama4_text",
        "minicpm3",
        "gptj",
    ],
)
@pytest.mark.usefixtures("no_rows")
def test_a_model_without_a_row_is_guessed_by_its_structure(name: str) -> None:
    model = tiny_model(name)
    assert is_guessed(family_of(model))
    request = {**random_prompts(24, 3, 9, 30), "max_new_tokens": 12}
    expected = own_generate(model, **request)
    selfspec.wrap(model, exit_layer=2, draft_length=4)
    assert torch.equal(model.generate(**request), expected)


@pytest.mark.parametrize("name", ["bloom", "opt", "mpt"])
@pytest.mark.usefixtures("no_rows")
def test_a_structure_that_hides_something_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedModelError):
        selfspec.wrap(tiny_model(name))


@pytest.mark.usefixtures("no_rows")
@pytest.mark.parametrize(
    ("name", "field"), [("mistral", "sliding_window"), ("llama4_text", "attention_chunk_size")]
)
def test_a_window_that_means_something_else_is_noticed_at_any_length(
    monkeypatch: pytest.MonkeyPatch, name: str, field: str
) -> None:
    """Windows are longer than the check's text, so they are cut down for it."""
    model = tiny_model(name, **{field: 4096})
    check_decoder(model, LayeredDecoder(model))
    causal_mask = layout.causal_mask
    monkeypatch.setattr(layout, "causal_mask", lambda p, n, reach, dtype: causal_mask(p, n, None, dtype))
    with pytest.raises(UnsupportedModelError, match="gives other logits"):
        check_decoder(model, LayeredDecoder(model))
    assert getattr(model.config, field) == 4096


@pytest.mark.usefixtures("no_rows")
def test_a_model_whose_parts_have_other_names_is_refused_with_the_part() -> None:
    model: Any = tiny_model("llama")
    model.model.final = model.model._modules.pop("norm")
    with pytest.raises(
        UnsupportedModelError, match=r"no row for model_type='llama'.*has no final norm under"
    ):
        family_of(model)


def test_a_base_model_without_head_is_refused_with_the_missing_part() -> None:
    with pytest.raises(UnsupportedModelError, match="LlamaModel calls itself 'llama' but lacks a part"):
        LayeredDecoder(tiny_model("llama").model)


def test_a_module_without_config_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="Linear is not a Hugging Face model"):
        family_of(nn.Linear(2, 2))
