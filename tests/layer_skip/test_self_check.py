"""Models that LayeredDecoder does not reproduce are refused, with the reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import VARIANTS, tiny_model
from torch import Tensor, nn

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


class Int8Product(nn.Module):
    """x W^T with both in 8 bits, as libraries make products of whole numbers."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.scale = float(linear.weight.detach().abs().max()) / 127
        self.register_buffer("weight", (linear.weight.detach() / self.scale).round().to(torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        scale = x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-6) / 127
        product = nn.functional.linear((x / scale).round(), self.weight.float())
        return product * scale * self.scale


def test_products_that_round_what_goes_in_are_reproduced_up_to_that(llama: Any) -> None:
    """The last bit of a sum decides which way a value is rounded: a 127th, far more than fp32 loses."""
    for layer in llama.model.layers:
        layer.mlp.up_proj = Int8Product(layer.mlp.up_proj)
    decoder = LayeredDecoder(llama)
    assert check_decoder(llama, decoder) < 0.05
    llama.model.norm.register_forward_hook(lambda module, given, out: out.flip(-1))
    decoder._norm = nn.Identity()
    with pytest.raises(UnsupportedModelError, match="gives other logits than its own forward"):
        check_decoder(llama, decoder)


class Closed(nn.Parameter):
    """Weights that know few operations."""

    def isfinite(self) -> Tensor:
        raise NotImplementedError("isfinite")


def test_weights_that_cannot_be_asked_for_nan_are_no_reason_to_hide_the_real_one(llama: Any) -> None:
    llama.model.layers[0].mlp.up_proj.weight = Closed(llama.model.layers[0].mlp.up_proj.weight.detach())
    decoder = LayeredDecoder(llama)
    decoder._norm = nn.Identity()
    with pytest.raises(UnsupportedModelError, match="gives other logits than its own forward"):
        check_decoder(llama, decoder)


def test_a_model_without_weights_yet_is_refused() -> None:
    model = tiny_model("llama").to("meta")
    with pytest.raises(UnsupportedModelError, match="on the meta device: load them, then wrap it"):
        check_decoder(model, LayeredDecoder(model))
