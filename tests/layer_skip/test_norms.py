"""A norm is recognised by what it computes."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_model
from torch import nn

from layer_skip.decoder import LayeredDecoder
from layer_skip.norms import LeanNorm, norm_of

KINDS = {
    "llama": "rms",
    "qwen3": "rms",
    "gemma": "rms_one",
    "gemma2": "rms_one",
    "gpt2": "layer",
    "phi": "layer",
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", KINDS)
def test_the_final_norm_of_every_kind_is_found(family: str, dtype: torch.dtype) -> None:
    module = LayeredDecoder(tiny_model(family).to(dtype)).norm
    assert module is not None
    with torch.no_grad():
        module.weight.uniform_(0.5, 1.5)
    norm = norm_of(module)
    assert norm is not None
    assert norm.kind == KINDS[family]
    hidden = torch.randn(2, 3, 32, dtype=dtype)
    with torch.inference_mode():
        torch.testing.assert_close(LeanNorm(norm)(hidden), module(hidden), rtol=2e-2, atol=2e-2)
    assert norm_of(LeanNorm(norm)) is norm


class Squared(nn.Module):
    """Has a norm's parts and computes something else."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(32))
        self.eps = 1e-6

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.square() * self.weight


@pytest.mark.parametrize(
    "module", [None, nn.Identity(), nn.Linear(4, 4), nn.LayerNorm(4, bias=False), Squared()]
)
def test_what_is_no_such_norm_is_not_taken_for_one(module: nn.Module | None) -> None:
    found = norm_of(module)
    assert found is None or isinstance(module, nn.LayerNorm)


def test_cohere_and_olmo_have_norms_of_their_own() -> None:
    assert norm_of(LayeredDecoder(tiny_model("olmo")).norm) is None
