"""Models that LayeredDecoder does not reproduce are refused, with the reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import VARIANTS, tiny_model

from layer_skip.decoder import LayeredDecoder
from layer_skip.families import FAMILIES, UnsupportedModelError
from layer_skip.self_check import check_decoder


@pytest.mark.parametrize("name", [*FAMILIES, *VARIANTS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_family_is_reproduced_up_to_rounding(name: str, dtype: torch.dtype) -> None:
    model = tiny_model(name).to(dtype)
    allowed = {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}[dtype]
    assert check_decoder(model, LayeredDecoder(model)) < allowed


def test_the_models_mode_is_as_before(llama: Any) -> None:
    for mode in (True, False):
        llama.train(mode)
        check_decoder(llama, LayeredDecoder(llama))
        assert llama.training is mode
        assert llama.model.layers[0].training is mode


def test_a_config_that_contradicts_the_layers_is_refused() -> None:
    model = tiny_model("gemma2")
    model.config.final_logit_softcapping = 1.0
    decoder = LayeredDecoder(model)
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(UnsupportedModelError, match="gives other logits than its own forward"):
        check_decoder(model, decoder)


def test_a_layer_that_does_something_of_its_own_is_refused(llama: Any) -> None:
    forward = llama.model.forward

    def doubled(*arguments: Any, **keywords: Any) -> Any:
        output = forward(*arguments, **keywords)
        output.last_hidden_state = output.last_hidden_state * 2 + 1
        return output

    llama.model.forward = doubled
    with pytest.raises(UnsupportedModelError, match="its layers differ from family 'llama'"):
        check_decoder(llama, LayeredDecoder(llama))


def test_weights_with_nan_are_refused(llama: Any) -> None:
    with torch.no_grad():
        llama.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(
        UnsupportedModelError, match=r"not finite: model.layers.1.mlp.down_proj.weight holds NaN"
    ):
        check_decoder(llama, LayeredDecoder(llama))


def test_weights_of_another_size_than_the_config_says_are_refused(llama: Any) -> None:
    llama.model.layers[2].mlp = torch.nn.Linear(16, 16)
    with pytest.raises(UnsupportedModelError, match="could not be run layer by layer"):
        check_decoder(llama, LayeredDecoder(llama))


def test_a_model_of_one_layer_is_refused() -> None:
    model = tiny_model("llama", num_hidden_layers=1)
    with pytest.raises(UnsupportedModelError, match="one layer: there is none to exit from early"):
        check_decoder(model, LayeredDecoder(model))
