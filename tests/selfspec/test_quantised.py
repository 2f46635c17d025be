"""Models that quantisation libraries have been at: torchao and bitsandbytes on the CPU, their real modules.

Where only weights are rounded, fp32 text is the model's own. Where what goes into a product is rounded to 8
bits as well, the last bit of a sum can move a value by a 127th, so that a close call may fall the other way:
there every token has to be the model's own choice up to that rounding.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from checks import own_generate
from tiny_models import random_prompts, tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM

import selfspec

REQUEST = {**random_prompts(24, 3, 9), "max_new_tokens": 14}
WAYS = [
    {"exit_layer": 2, "draft_length": 4},
    {"draft": "low_bit", "exit_layer": 4, "draft_length": 4},
    {"draft": "auto"},
    {"draft": "hybrid"},
]
SIZES = {"hidden_size": 64, "intermediate_size": 128}
CLOSE_CALL = 0.05
"""Of the largest logit: a few roundings to 8 bits."""


@torch.no_grad()
def worst_choice(model: Any, out: Tensor) -> float:
    """How far the logit of any generated token is below the best one there, relative to the largest logit."""
    mask = torch.cat([REQUEST["attention_mask"], torch.ones(len(out), out.shape[1] - 24)], dim=1).long()
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    logits = model(out, attention_mask=mask, position_ids=positions).logits[:, 23:-1].float()
    chosen = logits.gather(2, out[:, 24:, None])[..., 0]
    return float((logits.amax(dim=2) - chosen).max() / logits.abs().max())


def speculated(model: Any, setting: dict[str, Any]) -> Tensor:
    """The text under a setting, which is said to be open to rounding."""
    selfspec.wrap(model, **setting, strict=True)
    out: Tensor = model.generate(**REQUEST)
    assert model.speculation.total.calls == 1
    assert "quantised weights: rounding may flip" in model.speculation.stats.shapes
    selfspec.unwrap(model)
    return out


@pytest.fixture
def torchao() -> Any:
    pytest.importorskip("torchao", reason="torchao is an optional library for quantised weights")
    return pytest.importorskip("torchao.quantization", reason="this torchao has no quantize_")


def test_torchao_weights_are_run_as_they_are(torchao: Any) -> None:
    int4 = {"weight_dtype": torch.int4, "granularity": torchao.PerGroup(16)}
    configs = [
        torchao.Int8WeightOnlyConfig(),
        torchao.IntxWeightOnlyConfig(**int4),
        torchao.Float8WeightOnlyConfig(),
    ]
    for config in configs:
        model = tiny_model("llama", **SIZES)
        torchao.quantize_(model, config)
        assert type(model.model.layers[0].mlp.up_proj.weight) is not torch.nn.Parameter
        expected = own_generate(model, **REQUEST)
        for setting in WAYS:
            assert torch.equal(speculated(model, setting), expected), (config, setting)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torchao_that_rounds_what_goes_in_is_the_models_own_up_to_that(
    torchao: Any, dtype: torch.dtype
) -> None:
    model = tiny_model("llama", **SIZES).to(dtype)
    torchao.quantize_(model, torchao.Int8DynamicActivationInt8WeightConfig())
    for setting in WAYS:
        assert worst_choice(model, speculated(model, setting)) <= CLOSE_CALL, setting


def test_torchao_may_come_after_the_wrap(torchao: Any) -> None:
    model = selfspec.wrap(tiny_model("llama", **SIZES), draft="low_bit", strict=True)
    model.generate(**REQUEST)
    assert model.speculation.view is not None
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    assert torch.equal(model.generate(**REQUEST), own_generate(model, **REQUEST))


@pytest.fixture
def load(tmp_path: Path) -> Any:
    """Loads the tiny model with a configuration of bitsandbytes."""
    from transformers import BitsAndBytesConfig

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # a line for every product
    tiny_model("llama", **SIZES).save_pretrained(tmp_path)

    def load(dtype: torch.dtype, **config: Any) -> Any:
        return AutoModelForCausalLM.from_pretrained(
            tmp_path, quantization_config=BitsAndBytesConfig(**config), dtype=dtype, device_map="cpu"
        ).eval()

    return load


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("twice", [False, True])
def test_bitsandbytes_weights_in_4_bits_are_run_as_they_are(load: Any, kind: str, twice: bool) -> None:
    config = {"bnb_4bit_quant_type": kind, "bnb_4bit_use_double_quant": twice}
    model = load(torch.float32, load_in_4bit=True, **config)
    assert type(model.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    expected = own_generate(model, **REQUEST)
    for setting in WAYS:
        assert torch.equal(speculated(model, setting), expected), setting


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bitsandbytes_weights_in_8_bits_are_the_models_own_up_to_rounding(
    load: Any, dtype: torch.dtype
) -> None:
    model = load(dtype, load_in_8bit=True)
    assert type(model.model.layers[0].mlp.up_proj).__name__ == "Linear8bitLt"
    for setting in WAYS:
        assert worst_choice(model, speculated(model, setting)) <= CLOSE_CALL, setting


def test_an_adapter_over_bitsandbytes_weights_may_be_switched_off(load: Any) -> None:
    peft = pytest.importorskip("peft", reason="adapters need peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(load(torch.float32, load_in_4bit=True), config).eval()
    for name, parameter in model.named_parameters():
        if "lora" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    adapted = model.generate(**REQUEST)
    with model.disable_adapter():
        plain = model.generate(**REQUEST)
    assert not torch.equal(adapted, plain)
    for setting in WAYS:
        selfspec.wrap(model, **setting, strict=True)
        assert torch.equal(model.generate(**REQUEST), adapted), setting
        with model.disable_adapter():
            assert torch.equal(model.generate(**REQUEST), plain), setting
        assert model.speculation.total.calls == 2
        selfspec.unwrap(model)
