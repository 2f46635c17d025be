"""A lean layer computes what the model's own layer computes, and stores the same keys and values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import VOCAB, tiny_model, wide_model

from layer_skip.decoder import LayeredDecoder
from layer_skip.families import FAMILIES
from layer_skip.lean import lean
from selfspec.cache import KVCache
from selfspec.device.window import DeviceWindow

LEAN = [name for name, family in FAMILIES.items() if family.lean]
SLOTS = 64


def passes(decoder: LayeredDecoder, tokens: torch.Tensor, first: list[int]) -> tuple[torch.Tensor, KVCache]:
    """Logits of tokens [B, m] from slots `first` on, over a cache that is not empty before them."""
    draw = torch.Generator().manual_seed(0)
    cache = KVCache(len(tokens), decoder.n_layers, SLOTS)
    starts = torch.tensor(first)
    span = decoder.span_on_device(starts, tokens.shape[1])
    # What an earlier pass left: the same for both decoders.
    shape = (len(tokens), decoder.config.num_key_value_heads, SLOTS, decoder.config.head_dim)
    for layer in range(decoder.n_layers):
        cache.keys[layer] = torch.randn(shape, generator=draw).to(decoder.dtype)
        cache.values[layer] = torch.randn(shape, generator=draw).to(decoder.dtype)
    hidden = decoder.embed(tokens, span)
    hidden = decoder.run(hidden, 0, decoder.n_layers, span, DeviceWindow(cache, span))
    return decoder.logits(hidden), cache


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", LEAN)
@torch.inference_mode()
def test_logits_and_cache_are_those_of_the_models_own_layers(family: str, dtype: torch.dtype) -> None:
    model = wide_model(family).to(dtype)
    own = LayeredDecoder(model)
    quick, why_not = lean(own)
    assert why_not == ""
    tokens = torch.randint(VOCAB, (3, 5), generator=torch.Generator().manual_seed(1))
    (expected, cache), (found, other) = (passes(d, tokens, [0, 17, 40]) for d in (own, quick))
    tolerance = {"rtol": 2e-4, "atol": 2e-4} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.25}
    torch.testing.assert_close(found, expected, **tolerance)
    for mine, theirs in zip((*cache.keys, *cache.values), (*other.keys, *other.values), strict=True):
        torch.testing.assert_close(mine, theirs, **tolerance)


@torch.inference_mode()
def test_biases_tied_heads_and_residual_scales_are_heeded() -> None:
    for family, settings in (
        ("llama", {"attention_bias": True}),
        ("llama", {"tie_word_embeddings": True}),
        ("granite", {"residual_multiplier": 0.7}),
        ("qwen3", {"attention_bias": True}),
    ):
        model = wide_model(family, **settings)
        own = LayeredDecoder(model)
        tokens = torch.randint(VOCAB, (1, 4), generator=torch.Generator().manual_seed(1))
        (expected, _), (found, _) = (passes(d, tokens, [9]) for d in (own, lean(own)[0]))
        torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(
    ("family", "settings", "reason"),
    [
        ("gemma2", {}, "layers of 'gemma2' run module by module"),
        ("llama", {"head_dim": 24}, "layers run module by module: heads of 24"),
    ],
)
def test_other_layers_stay_as_they_are_and_say_why(
    family: str, settings: dict[str, Any], reason: str
) -> None:
    decoder = LayeredDecoder(tiny_model(family, **settings))
    same, why = lean(decoder)
    assert same is decoder
    assert why == reason


def test_a_forward_of_somebodys_own_is_not_passed_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a module, or put into its class as libraries of faster layers do."""
    model = wide_model("llama")
    mlp = model.model.layers[1].mlp
    mlp.forward = lambda x: 2 * type(mlp).forward(mlp, x)
    decoder = LayeredDecoder(model)
    assert lean(decoder) == (decoder, "layers run module by module: LlamaMLP has a forward of its own")
    del mlp.forward
    assert lean(decoder)[1] == ""
    other = type("OtherMLP", (type(mlp),), {"forward": lambda self, x: 2 * x, "__module__": __name__})
    mlp.__class__ = other
    assert lean(decoder)[1] == "layers run module by module: OtherMLP has a forward of its own"
    mlp.__class__ = other.__base__

    def attend(self: Any, *inputs: Any, **more: Any) -> Any:
        raise NotImplementedError

    monkeypatch.setattr(type(model.model.layers[0].self_attn), "forward", attend)
    reason = "layers run module by module: LlamaAttention has a forward of its own"
    assert lean(decoder) == (decoder, reason)


def test_where_products_are_modules_own_rows_are_not_said_to_be_computed_alike() -> None:
    from peft import LoraConfig, get_peft_model

    own = "rows may be rounded by how many they are: some products are modules' own"
    for settings in ({"target_modules": ["v_proj"]}, {"target_modules": ["lm_head"]}):
        model = wide_model("llama")
        get_peft_model(model, LoraConfig(**settings))
        assert lean(LayeredDecoder(model))[1] == own
    assert lean(LayeredDecoder(wide_model("llama", mlp_bias=True)))[1] == own
    assert lean(LayeredDecoder(wide_model("llama", hidden_act="relu")))[1] == own
    assert lean(LayeredDecoder(wide_model("llama", attention_bias=True)))[1] == ""


def test_a_layer_with_adapters_keeps_them() -> None:
    """PEFT's modules are no plain matrices: they are called as they are."""
    from peft import LoraConfig, get_peft_model

    model = wide_model("llama")
    adapted = get_peft_model(
        model, LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    )
    own = LayeredDecoder(adapted.get_base_model())
    tokens = torch.randint(VOCAB, (1, 4), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        (expected, _), (found, _) = (passes(d, tokens, [9]) for d in (own, lean(own)[0]))
        torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-4)
        with adapted.disable_adapter():
            plain, _ = passes(LayeredDecoder(adapted.get_base_model()), tokens, [9])
    assert not torch.allclose(plain, expected, atol=1e-2)
