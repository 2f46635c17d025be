"""Models that change after they were wrapped: the model's own text, or an error that says what changed."""

from __future__ import annotations

import copy
import types
from typing import Any

import pytest
import torch
from checks import exactly_one_warning, own_generate
from tiny_models import random_prompts, tiny_model
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import selfspec
from layer_skip.families import UnsupportedModelError

REQUEST = {**random_prompts(24, 3, 9), "max_new_tokens": 14}
SETTINGS = {"exit_layer": 2, "draft_length": 4}
WAYS = [SETTINGS, {"draft": "auto"}, {"draft": "low_bit", "exit_layer": 4, "draft_length": 4}]


def assert_own_text(model: Any, **request: Any) -> None:
    """Speculated, and the model's own."""
    calls = model.speculation.total.calls
    request = {**REQUEST, **request}
    assert torch.equal(model.generate(**request), own_generate(model, **request))
    assert model.speculation.total.calls == calls + 1


# --- another dtype, other weights, another mode


@pytest.mark.parametrize("setting", WAYS, ids=str)
def test_a_model_cast_after_it_was_wrapped_generates_in_its_new_dtype(
    llama: Any, setting: dict[str, Any]
) -> None:
    selfspec.wrap(llama, **setting, strict=True)
    assert_own_text(llama)
    llama.double()
    assert_own_text(llama)
    llama.float()
    assert_own_text(llama)


def test_a_model_whose_weights_were_taken_away_is_a_clear_error(llama: Any) -> None:
    selfspec.wrap(llama, **SETTINGS)
    llama.to("meta")
    with pytest.raises(UnsupportedModelError, match="on the meta device: load them"):
        llama.generate(**REQUEST)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_model_moved_after_it_was_wrapped_generates_where_it_is(llama: Any) -> None:
    selfspec.wrap(llama, **SETTINGS, strict=True)
    assert_own_text(llama)
    llama.cuda()
    assert_own_text(llama, **{name: REQUEST[name].cuda() for name in ("input_ids", "attention_mask")})
    llama.cpu()
    assert_own_text(llama)


def test_a_model_is_checked_again_once_for_every_change(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = []
    check = selfspec.rechecking.check_decoder
    monkeypatch.setattr(
        selfspec.rechecking, "check_decoder", lambda *a: (checked.append(a[1].dtype), check(*a))
    )
    selfspec.wrap(llama, **SETTINGS)
    for _ in range(2):
        assert_own_text(llama)
    llama.double()
    for _ in range(2):
        assert_own_text(llama)
    assert checked == [torch.float32, torch.float64]
    assert_own_text(copy.deepcopy(llama))
    assert len(checked) == 2


def test_a_model_in_train_mode_is_speculated_where_that_changes_nothing(llama: Any) -> None:
    llama.train()
    selfspec.wrap(llama, **SETTINGS, strict=True)
    assert llama.training
    assert_own_text(llama)


@pytest.mark.parametrize("where", ["a module", "the config"])
def test_dropout_in_train_mode_is_left_to_the_model_itself(where: str) -> None:
    if where == "a module":
        model = tiny_model("gpt2")
        assert any(isinstance(m, nn.Dropout) and m.p for m in model.modules())
    else:
        model = tiny_model("llama", attention_dropout=0.3)
    selfspec.wrap(model, **SETTINGS)
    assert_own_text(model)
    model.train()
    torch.manual_seed(0)
    expected = own_generate(model, **REQUEST)
    torch.manual_seed(0)
    with exactly_one_warning(naming="train() mode with dropout"):
        assert torch.equal(model.generate(**REQUEST), expected)
    assert model.training
    model.eval()
    assert_own_text(model)


def test_gradient_checkpointing_in_train_mode_is_left_to_the_model_itself(llama: Any) -> None:
    selfspec.wrap(llama, **SETTINGS)
    llama.gradient_checkpointing_enable()
    assert_own_text(llama)
    llama.train()
    expected = own_generate(llama, **REQUEST)
    with exactly_one_warning(naming="gradient checkpointing"):
        assert torch.equal(llama.generate(**REQUEST), expected)


def test_generate_builds_no_graph_where_gradients_are_on(llama: Any) -> None:
    selfspec.wrap(llama, **SETTINGS)
    with torch.enable_grad():
        out = llama.generate(**REQUEST, return_dict_in_generate=True, output_scores=True, output_logits=True)
    assert all(p.requires_grad for p in llama.parameters())
    tensors = [out.sequences, *out.scores, *out.logits, *(layer.keys for layer in out.past_key_values.layers)]
    assert not any(tensor.requires_grad for tensor in tensors)


def test_nan_that_weights_got_after_wrapping_is_an_error(llama: Any) -> None:
    selfspec.wrap(llama, **SETTINGS)
    with torch.no_grad():
        llama.lm_head.weight[3, 3] = float("nan")
    with pytest.raises(ValueError, match=r"the scores hold NaN .* the model's weights"):
        llama.generate(**REQUEST)


# --- other layers


def test_layers_pruned_after_wrapping_are_noticed(llama: Any) -> None:
    selfspec.wrap(llama, exit_layer=3, draft_length=4)
    llama.model.layers = llama.model.layers[:3]
    with pytest.raises(selfspec.ConfigError, match="exit_layer=3: this model has 3 layers"):
        llama.generate(**REQUEST)
    selfspec.unwrap(llama)
    llama.config.num_hidden_layers = 3
    selfspec.wrap(llama, exit_layer=1, draft_length=4)
    llama.model.layers = llama.model.layers[:2]
    with pytest.raises(UnsupportedModelError, match="has 2 layers, its config says num_hidden_layers=3"):
        llama.generate(**REQUEST)
    llama.config.num_hidden_layers = 2
    assert_own_text(llama)


@pytest.mark.parametrize("part", ["layer", "mlp"])
def test_a_layer_patched_after_wrapping_is_run_as_it_is(llama: Any, part: str) -> None:
    selfspec.wrap(llama, **SETTINGS)
    layer = llama.model.layers[2]
    module = layer if part == "layer" else layer.mlp
    plain = own_generate(llama, **REQUEST)

    def patched(self: Any, *arguments: Any, **keywords: Any) -> Any:
        return 1.7 * type(self).forward(self, *arguments, **keywords)

    module.forward = types.MethodType(patched, module)
    assert not torch.equal(own_generate(llama, **REQUEST), plain)
    assert_own_text(llama)


def test_a_forward_patched_after_wrapping_is_noticed(llama: Any) -> None:
    selfspec.wrap(llama, **SETTINGS)

    def patched(self: Any, *arguments: Any, **keywords: Any) -> Any:
        out = type(self).forward(self, *arguments, **keywords)
        out.logits = out.logits.flip(-1)
        return out

    llama.forward = types.MethodType(patched, llama)
    with pytest.raises(UnsupportedModelError, match="gives other logits than its own forward"):
        llama.generate(**REQUEST)
    del llama.forward
    assert_own_text(llama)


def test_an_attention_function_of_ones_own_set_after_wrapping_is_noticed(llama: Any) -> None:
    def own_attention(*arguments: Any, **keywords: Any) -> Any:
        out, weights = sdpa_attention_forward(*arguments, **keywords)
        return 2 * out, weights

    AttentionInterface.register("twice", own_attention)
    try:
        selfspec.wrap(llama, **SETTINGS)
        llama.set_attn_implementation("twice")
        with pytest.raises(UnsupportedModelError, match="attention function 'twice'"):
            llama.generate(**REQUEST)
        llama.set_attn_implementation("eager")
        assert_own_text(llama)
    finally:
        AttentionInterface._global_mapping.pop("twice", None)


class Int8Linear(nn.Module):
    """x (s W)^T + b with W in int8, of 15 levels: what quantisation libraries put in a Linear's place."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.detach().abs().amax(dim=1, keepdim=True) / 7
        self.register_buffer("weight", (linear.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


def quantise(model: nn.Module) -> None:
    for name, module in [*model.named_modules()]:
        if type(module) is nn.Linear and not name.endswith("lm_head"):
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], Int8Linear(module))


@pytest.mark.parametrize("setting", WAYS, ids=str)
def test_quantised_modules_are_run_as_they_are(llama: Any, setting: dict[str, Any]) -> None:
    """Whether they were there before the wrap, or came after it."""
    selfspec.wrap(llama, **setting)
    plain = llama.generate(**REQUEST)
    quantise(llama)
    assert_own_text(llama)
    assert not torch.equal(llama.generate(**REQUEST), plain)
    selfspec.wrap(llama, **setting)
    assert_own_text(llama)


def test_inputs_that_an_instance_prepares_by_itself_are_not_overlooked(llama: Any) -> None:
    selfspec.wrap(llama, **SETTINGS)
    plain = llama.generate(**REQUEST)

    def shifted(self: Any, input_ids: Tensor, **kwargs: Any) -> Any:
        return type(self).prepare_inputs_for_generation(self, (input_ids + 1) % 97, **kwargs)

    llama.prepare_inputs_for_generation = types.MethodType(shifted, llama)
    expected = own_generate(llama, **REQUEST)
    assert not torch.equal(expected, plain)
    with exactly_one_warning(naming="prepare_inputs_for_generation"):
        assert torch.equal(llama.generate(**REQUEST), expected)
    llama.prepare_inputs_for_generation = types.MethodType(type(llama).prepare_inputs_for_generation, llama)
    assert_own_text(llama)
