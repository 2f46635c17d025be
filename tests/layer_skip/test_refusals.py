"""Models that cannot exit early are refused by name, or by what their config and class say."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from torch import nn
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModelForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import selfspec
from layer_skip.families import UnsupportedModelError
from layer_skip.refusals import REFUSED, reason_against

SMALL = {"hidden_size": 32, "vocab_size": 40, "num_hidden_layers": 2, "pad_token_id": 0}


def model_of(**fields: Any) -> Any:
    """Something with a config of these fields."""
    model = nn.Linear(2, 2)
    model.config = SimpleNamespace(**{"model_type": "unheard of", **fields})  # type: ignore[assignment]
    return model


@pytest.mark.parametrize(
    "name", ["mamba", "rwkv", "jamba", "recurrent_gemma", "zamba", "qwen3_next", "lfm2", "falcon_h1", "bamba"]
)
def test_recurrent_models_are_refused_by_name(name: str) -> None:
    assert "recurrent state" in REFUSED[name]
    assert "cannot be rolled back" in str(reason_against(model_of(model_type=name)))


@pytest.mark.parametrize("name", ["mamba", "recurrent_gemma", "lfm2", "qwen3_next"])
def test_wrap_refuses_a_recurrent_model_with_the_reason(name: str) -> None:
    settings = {"linear_num_value_heads": 4, "linear_num_key_heads": 2} if name == "qwen3_next" else {}
    config = AutoConfig.for_model(name, **SMALL, **settings, num_attention_heads=4, num_key_value_heads=2)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(
        UnsupportedModelError, match=rf"\({name}\) is refused: .*recurrent state.* rolled back"
    ):
        selfspec.wrap(model)
    assert "generate" not in vars(model)


@pytest.mark.parametrize(
    "field", ["mamba_d_state", "ssm_state_size", "conv_L_cache", "linear_num_value_heads"]
)
def test_a_new_recurrent_model_is_known_by_its_config(field: str) -> None:
    assert "recurrent state" in str(reason_against(model_of(**{field: 16})))
    assert reason_against(model_of(**{field: None})) is None


def test_a_new_recurrent_model_is_known_by_its_class() -> None:
    model = model_of()
    model._is_stateful = True
    assert "recurrent state" in str(reason_against(model))


def test_a_layer_kind_that_cannot_be_rolled_back_is_refused_by_name(llama: Any) -> None:
    llama.config.layer_types = ["full_attention", "linear_attention"] * 2
    with pytest.raises(UnsupportedModelError, match=r"layers of kind \['linear_attention'\]"):
        selfspec.wrap(llama)


def test_sparse_attention_with_an_index_is_refused() -> None:
    assert "keeps an index" in str(reason_against(model_of(index_topk=2048)))


def test_an_encoder_decoder_is_refused_as_such() -> None:
    config = T5Config(vocab_size=40, d_model=16, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    with pytest.raises(UnsupportedModelError, match="T5ForConditionalGeneration is an encoder-decoder"):
        selfspec.wrap(T5ForConditionalGeneration(config))


def test_an_encoder_is_refused_as_such() -> None:
    config = AutoConfig.for_model(
        "bert", **SMALL, num_attention_heads=4, intermediate_size=48, is_decoder=True
    )
    with pytest.raises(UnsupportedModelError, match="does not generate left to right"):
        selfspec.wrap(AutoModelForCausalLM.from_config(config))


def test_a_model_that_looks_ahead_is_refused_as_such() -> None:
    model = tiny_model("gemma3_text")
    model.config.use_bidirectional_attention = True
    with pytest.raises(UnsupportedModelError, match="its attention looks ahead"):
        selfspec.wrap(model)


def test_attention_that_looks_ahead_in_secret_is_refused_as_such(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def everything(module: Any, q: Any, k: Any, v: Any, mask: Any, **keywords: Any) -> Any:
        return sdpa_attention_forward(module, q, k, v, torch.zeros(1, 1, q.shape[2], k.shape[2]), **keywords)

    everything.__module__ = "transformers.somewhere"
    monkeypatch.setitem(AttentionInterface._global_mapping, "all", everything)
    llama.set_attn_implementation("all")
    with pytest.raises(
        UnsupportedModelError, match="is not causal: a later token changes the logits of an earlier"
    ):
        selfspec.wrap(llama)


def test_a_custom_attention_function_is_refused_by_name(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def mine(*arguments: Any, **keywords: Any) -> Any:
        return sdpa_attention_forward(*arguments, **keywords)

    monkeypatch.setitem(AttentionInterface._global_mapping, "mine", mine)
    llama.set_attn_implementation("mine")
    with pytest.raises(UnsupportedModelError, match=r"uses the attention function 'mine' of .*set_attn_impl"):
        selfspec.wrap(llama)
    llama.set_attn_implementation("sdpa")
    selfspec.wrap(llama)


def test_a_model_on_several_devices_is_refused_with_their_names() -> None:
    model = tiny_model("llama")
    for one in ({"": 0}, {"model": "cpu", "lm_head": "cpu"}):
        model.hf_device_map = one
        assert reason_against(model) is None
    model.hf_device_map = {"model": 0, "lm_head": 1}
    with pytest.raises(UnsupportedModelError, match="is spread over 0, 1 by its device_map"):
        selfspec.wrap(model)
