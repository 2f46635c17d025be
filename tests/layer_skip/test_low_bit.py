"""The low-bit view of a model: what it packs, what it shares, and that it follows the weights."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from low_bit_views import ON_AVX2, logits_of, packed_in
from tiny_models import LAYERS, VARIANTS, tiny_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from layer_skip import low_bit
from layer_skip.decoder import LayeredDecoder
from layer_skip.exits import exit_choices
from layer_skip.families import FAMILIES
from layer_skip.low_bit import (
    COARSE_GROUP,
    FINE_GROUP,
    LowBitView,
    NothingToViewError,
    n_matrices,
)
from layer_skip.packed_linear import PackedLinear
from layer_skip.rounding import round_weights


@torch.no_grad()
def with_rounded_weights(model: Any, n_layers: int) -> Any:
    """A copy of `model` whose matrices are what four bits make of them, a small head what eight do."""
    other = copy.deepcopy(model)
    decoder = LayeredDecoder(other)
    weights = 0
    for layer in decoder.layers[:n_layers]:
        attention = set(getattr(layer, decoder.family.attention).modules())
        for module in layer.modules():
            if type(module) in (nn.Linear, Conv1D):
                round_in_place(module, FINE_GROUP if module in attention else COARSE_GROUP)
                weights += module.weight.numel()
    if 6 * decoder.head.weight.numel() > weights:
        round_in_place(decoder.head, FINE_GROUP)
    else:
        rows = decoder.head.weight
        scales = (rows.abs().amax(dim=1, keepdim=True) / 127).bfloat16().float()
        rows.copy_((rows / scales).round().clamp(-127, 127) * scales)
        multiply_in_bf16(decoder.head)
    return other


def round_in_place(module: Any, group: int) -> None:
    weight = module.weight.T if isinstance(module, Conv1D) else module.weight
    padded = nn.functional.pad(weight, (0, -weight.shape[1] % group))
    weight.copy_(round_weights(padded, 4, group, torch.bfloat16).weights()[:, : weight.shape[1]])
    multiply_in_bf16(module)


def multiply_in_bf16(module: Any) -> None:
    """What goes into a product and what comes out of it is rounded to bf16, the bias is not."""
    weight = module.weight.T if isinstance(module, Conv1D) else module.weight
    bias = 0 if module.bias is None else module.bias
    module.forward = lambda x: (x.bfloat16().float() @ weight.T).bfloat16().float() + bias


DENSE = [
    "gemma2",
    "gpt2",
    "gpt_neox",
    "llama",
    "mistral",
    "opt",
    "phi3",
    "qwen3",
    "bloom",
    "cohere",
]


@pytest.mark.parametrize("name", [*DENSE, "llama with biases", "opt projected", "gpt_neox serial"])
def test_the_view_computes_with_the_rounded_weights_and_with_nothing_else_changed(name: str) -> None:
    model = tiny_model(name)
    decoder = LayeredDecoder(model)
    for n_layers in (1, LAYERS // 2, LAYERS):
        view = LowBitView(decoder, n_layers)
        actual = logits_of(view.of(decoder), n_layers)
        expected = logits_of(LayeredDecoder(with_rounded_weights(model, n_layers)), n_layers)
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("rounds_inputs", [False, pytest.param(True, marks=ON_AVX2)])
def test_eight_bits_say_nearly_what_the_model_says(
    family: str, rounds_inputs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(low_bit, "LEAST_FOR_INT8", 0 if rounds_inputs else math.inf)
    decoder = LayeredDecoder(tiny_model(family))
    view = LowBitView(decoder, LAYERS, bits=8)
    exact = logits_of(decoder, LAYERS)
    difference = (logits_of(view.of(decoder), LAYERS) - exact).abs().max() / exact.abs().max()
    assert float(difference) < 0.1
    four = LowBitView(decoder, LAYERS)
    assert float((logits_of(four.of(decoder), LAYERS) - exact).abs().max() / exact.abs().max()) > difference


@pytest.mark.parametrize("name", [*DENSE, "llama with tied head", "opt projected", "gpt2 scaled by layer"])
def test_every_matrix_of_the_layers_and_the_head_is_packed_and_the_rest_shared(name: str) -> None:
    model = tiny_model(name)
    decoder = LayeredDecoder(model)
    before = {n: (p.data_ptr(), p._version) for n, p in model.named_parameters()}
    modules = [id(module) for module in model.modules()]
    view = LowBitView(decoder, 2)
    viewed = view.of(decoder)
    assert viewed.n_layers == 2
    assert len(packed_in(viewed)) == n_matrices(decoder, 2)
    assert not [
        m for part in (*viewed.layers, viewed.head) for m in part.modules() if type(m) in (nn.Linear, Conv1D)
    ]
    own = {id(p) for p in model.parameters()}
    shared = [p for part in (*viewed.layers, viewed.head) for p in part.parameters()]
    assert all(id(p) in own for p in shared)
    assert (viewed._embed, viewed._norm, viewed._positions) == (
        decoder._embed,
        decoder._norm,
        decoder._positions,
    )
    assert view.kept == ""
    # The model itself is as it was.
    assert {n: (p.data_ptr(), p._version) for n, p in model.named_parameters()} == before
    assert [id(module) for module in model.modules()] == modules
    assert not any(isinstance(module, PackedLinear) for module in model.modules())


def test_a_head_that_is_small_beside_the_layers_has_eight_bits() -> None:
    decoder = LayeredDecoder(tiny_model("llama", vocab=320, hidden_size=64, intermediate_size=256))
    bits = {n: packed_in(LowBitView(decoder, n).of(decoder))[-1].bits for n in (1, LAYERS)}
    assert bits == {1: 4, LAYERS: 8}


def test_progress_names_every_matrix_once() -> None:
    decoder = LayeredDecoder(tiny_model("llama"))
    names: list[str] = []
    view = LowBitView(decoder, 2, advance=names.append)
    assert len(names) == len(set(names)) == n_matrices(decoder, 2) == 2 * 7 + 1
    assert names[0].startswith("layer 0: self_attn")
    assert names[-1] == "head"
    view.of(decoder)
    assert len(names) == 15


def test_a_view_without_the_head_leaves_the_models_own() -> None:
    decoder = LayeredDecoder(tiny_model("llama"))
    view = LowBitView(decoder, 1, head=False)
    assert view.of(decoder).head is decoder.head
    assert len(packed_in(view.of(decoder))) == 7


def test_what_a_view_has_packed_is_taken_over_by_a_larger_one(llama: Any) -> None:
    decoder = LayeredDecoder(llama)
    begun = LowBitView(decoder, 1, head=False)
    first = packed_in(begun.of(decoder))
    larger = packed_in(LowBitView(decoder, 2, begun=begun).of(decoder))
    assert [id(packed) for packed in larger[: len(first)]] == [id(packed) for packed in first]
    assert len(larger) == 2 * len(first) + 1
    other = packed_in(LowBitView(decoder, 2, begun=begun, dtype=torch.float32).of(decoder))
    assert {packed.scales.dtype for packed in other} == {torch.float32}


class Scaled(nn.Linear):
    """Not what a Linear computes."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * super().forward(x)


def test_a_subclass_that_may_compute_something_else_is_kept_and_named(llama: Any) -> None:
    projection = llama.model.layers[0].mlp.down_proj
    scaled = Scaled(48, 32, bias=False)
    scaled.load_state_dict(projection.state_dict())
    llama.model.layers[0].mlp.down_proj = scaled
    decoder = LayeredDecoder(llama)
    view = LowBitView(decoder, 2)
    assert view.of(decoder).layers[0].mlp.down_proj is scaled
    assert view.kept == "Scaled"
    assert len(packed_in(view.of(decoder))) == n_matrices(decoder, 2) == 14


class Opaque(nn.Module):
    """A quantised matrix, as somebody else keeps it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("levels", (base.weight.detach() * 100).round().to(torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.levels.to(x.dtype).T / 100


def test_a_model_without_plain_matrices_is_refused_with_the_reason(llama: Any) -> None:
    for parent in list(llama.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, Opaque(child))
    decoder = LayeredDecoder(llama)
    assert n_matrices(decoder, LAYERS) == 0
    with pytest.raises(NothingToViewError, match="no weight matrix of this model can be viewed in low bits"):
        LowBitView(decoder, LAYERS)


class Reading(nn.Module):
    """Not a product alone: it looks at the matrix itself."""

    def __init__(self, inside: nn.Linear) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.inside.weight.clamp(-1, 1))


def test_layers_that_do_not_run_with_packed_weights_are_refused_with_the_reason(llama: Any) -> None:
    mlp = llama.model.layers[1].mlp
    mlp.up_proj = Reading(mlp.up_proj)
    decoder = LayeredDecoder(llama)
    with pytest.raises(NothingToViewError, match=r"do not run with weights in low bits .*'weight'"):
        LowBitView(decoder, LAYERS)
    LowBitView(decoder, 1)  # the layer before it can be viewed


@pytest.mark.parametrize("name", [*FAMILIES, *VARIANTS])
def test_every_family_can_be_viewed(name: str) -> None:
    """Experts kept in one stack are no plain matrices: they stay as they are, and that is said."""
    model = tiny_model(name)
    decoder = LayeredDecoder(model)
    view = LowBitView(decoder, LAYERS, bits=8)
    exact, viewed = logits_of(decoder, LAYERS), logits_of(view.of(decoder), LAYERS)
    # Eight bits say nearly the same, but where rounding sends a token to another expert.
    assert float((exact.argmax(-1) == viewed.argmax(-1)).float().mean()) >= 0.7
    stacked = any(p.dim() == 3 for p in model.parameters())
    assert not stacked or view.kept


def test_four_bits_of_all_layers_agree_with_the_model_far_more_than_an_early_exit(
    reference_model: Any, held_out_prompts: list[list[int]]
) -> None:
    """What makes the view a draft: on a trained model it says nearly always what the model says."""
    decoder = LayeredDecoder(reference_model)
    view = LowBitView(decoder, decoder.n_layers)
    text = torch.tensor(held_out_prompts[60][:96])
    own = exit_choices(decoder, text)
    viewed = exit_choices(view.of(decoder), text)
    agreement = float((viewed.tokens[-1] == own.tokens[-1]).float().mean())
    assert agreement > 0.85
    assert agreement > own.agreement[decoder.n_layers // 4 - 1]
