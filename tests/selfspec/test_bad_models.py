"""Models that were changed by hand: a clear error from wrap, or the model's own text."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch
from checks import own_generate
from tiny_models import random_prompts, tiny_model
from torch import nn

import selfspec
from layer_skip.families import UnsupportedModelError

REQUEST = {**random_prompts(24, 3, 9), "max_new_tokens": 14}
SETTINGS = {"exit_layer": 1, "draft_length": 4, "strict": True}


def prune(model: Any, *layers: int) -> None:
    """Keep these layers only, as a user would: nothing else is changed."""
    model.model.layers = nn.ModuleList(model.model.layers[i] for i in layers)


def renumber(model: Any) -> None:
    for index, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = index


def test_pruned_layers_that_the_config_does_not_know_of_are_refused(llama: Any) -> None:
    prune(llama, 0, 1, 3)
    with pytest.raises(UnsupportedModelError, match="has 3 layers, its config says num_hidden_layers=4"):
        selfspec.wrap(llama)
    llama.config.num_hidden_layers = 3
    with pytest.raises(
        UnsupportedModelError, match=r"layer_idx \[0, 1, 3\]: layers were removed or repeated"
    ):
        selfspec.wrap(llama)
    renumber(llama)
    expected = own_generate(llama, **REQUEST)
    assert torch.equal(selfspec.wrap(llama, **SETTINGS).generate(**REQUEST), expected)


def test_a_layer_that_stands_twice_is_refused(llama: Any) -> None:
    prune(llama, 0, 1, 1, 2)
    with pytest.raises(UnsupportedModelError, match=r"layer_idx \[0, 1, 1, 2\]"):
        selfspec.wrap(llama)


def test_layers_in_another_order_are_the_models_own_text(llama: Any) -> None:
    prune(llama, 0, 2, 1, 3)
    expected = own_generate(llama, **REQUEST)
    assert torch.equal(selfspec.wrap(llama, **SETTINGS).generate(**REQUEST), expected)


@pytest.mark.parametrize("part", ["layer", "attention", "mlp"])
def test_a_patched_forward_is_run(llama: Any, part: str) -> None:
    layer = llama.model.layers[2]
    module = {"layer": layer, "attention": layer.self_attn, "mlp": layer.mlp}[part]
    forward = type(module).forward

    def patched(self: Any, *arguments: Any, **keywords: Any) -> Any:
        out = forward(self, *arguments, **keywords)
        return (1.7 * out[0], *out[1:]) if isinstance(out, tuple) else 1.7 * out

    plain = own_generate(llama, **REQUEST)
    module.forward = types.MethodType(patched, module)
    expected = own_generate(llama, **REQUEST)
    assert not torch.equal(plain, expected)
    assert torch.equal(selfspec.wrap(llama, **SETTINGS).generate(**REQUEST), expected)


def test_a_patched_model_that_does_more_than_its_layers_is_refused(llama: Any) -> None:
    forward = type(llama).forward

    def patched(self: Any, *arguments: Any, **keywords: Any) -> Any:
        out = forward(self, *arguments, **keywords)
        out.logits = out.logits.flip(-1)
        return out

    llama.forward = types.MethodType(patched, llama)
    with pytest.raises(UnsupportedModelError, match="gives other logits than its own forward"):
        selfspec.wrap(llama)


def test_an_embedding_smaller_than_the_config_says_is_refused(llama: Any) -> None:
    llama.config.vocab_size = 200
    with pytest.raises(UnsupportedModelError, match="embeds 97 tokens, its config says vocab_size=200"):
        selfspec.wrap(llama)


def test_a_window_that_disagrees_with_the_layers_is_refused_or_right() -> None:
    """transformers builds masks from the config, so a window set afterwards counts for both."""
    model = tiny_model("mistral")
    model.config.sliding_window = 5
    expected = own_generate(model, **REQUEST)
    assert torch.equal(selfspec.wrap(model, **SETTINGS).generate(**REQUEST), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(llama: Any, value: float) -> None:
    with torch.no_grad():
        llama.model.layers[1].self_attn.v_proj.weight[3, 3] = value
    with pytest.raises(
        UnsupportedModelError, match=r"not finite: model\.layers\.1\.self_attn\.v_proj\.weight"
    ):
        selfspec.wrap(llama)


def test_a_model_without_an_lm_head_is_refused(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama, "get_output_embeddings", lambda: None)
    with pytest.raises(UnsupportedModelError, match="no LM head"):
        selfspec.wrap(llama, **SETTINGS)


def test_a_refused_model_is_left_as_it_was(llama: Any) -> None:
    prune(llama, 0, 1)
    llama.train()
    before = dict(vars(llama))
    with pytest.raises(UnsupportedModelError):
        selfspec.wrap(llama)
    assert vars(llama) == before
    assert llama.training
