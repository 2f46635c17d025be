"""A low-bit view of a model whose weights change after it was made."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from low_bit_views import TOKENS, logits_of, packed_in
from tiny_models import LAYERS, tiny_model
from torch import Tensor, nn

from layer_skip import low_bit
from layer_skip.decoder import LayeredDecoder
from layer_skip.low_bit import LowBitView, view_bytes
from layer_skip.packed_linear import PackedLinear


def changed_in_place(model: Any) -> None:
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(-1)


def changed_behind_the_counter(model: Any) -> None:
    """Half of its rows, as where one matrix of a fused one is merged with an adapter."""
    weight = model.model.layers[1].mlp.up_proj.weight
    weight.data[len(weight) // 2 :] += 0.5


def trained(model: Any) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(TOKENS, labels=TOKENS).loss.backward()
    optimizer.step()


def replaced_module(model: Any) -> None:
    model.model.layers[1].mlp.up_proj = copy.deepcopy(model.model.layers[1].mlp.up_proj)
    changed_in_place(model)


def replaced_weight(model: Any) -> None:
    old = model.model.layers[1].mlp.up_proj
    old.weight = nn.Parameter(-old.weight.detach())


def replaced_layer(model: Any) -> None:
    model.model.layers[1] = copy.deepcopy(model.model.layers[2])


def replaced_head(model: Any) -> None:
    head = nn.Linear(32, 97, bias=False)
    with torch.no_grad():
        head.weight.copy_(model.lm_head.weight.flip(0))
    model.lm_head = head


def other_weights(model: Any) -> None:
    model.load_state_dict(tiny_model("llama", seed=1).state_dict())


def replaced_norm(model: Any) -> None:
    norm = copy.deepcopy(model.model.layers[1].input_layernorm)
    with torch.no_grad():
        norm.weight.mul_(3)
    model.model.layers[1].input_layernorm = norm


CHANGES = [
    changed_in_place,
    changed_behind_the_counter,
    trained,
    replaced_module,
    replaced_weight,
    replaced_layer,
    replaced_head,
    other_weights,
    replaced_norm,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_the_view_follows_weights_that_change(change: Any) -> None:
    """At the next use, as a view that is made anew; what did not change is not packed again."""
    model = tiny_model("llama")
    view = LowBitView(LayeredDecoder(model), LAYERS)
    before = logits_of(view.of(LayeredDecoder(model)), LAYERS)
    kept = {id(p) for p in packed_in(view.of(LayeredDecoder(model)))}
    change(model)
    decoder = LayeredDecoder(model)
    after = logits_of(view.of(decoder), LAYERS)
    assert torch.equal(after, logits_of(LowBitView(decoder, LAYERS).of(decoder), LAYERS))
    assert not torch.allclose(after, before, atol=1e-3)
    assert view.bytes == view_bytes(decoder, LAYERS)
    same = sum(id(p) in kept for p in packed_in(view.of(decoder)))
    again = {"trained": 29, "other_weights": 29, "replaced_layer": 7, "replaced_norm": 0}
    assert 29 - same == again.get(change.__name__, 1)


def test_a_view_of_unchanged_weights_is_not_made_again(llama: Any) -> None:
    view = LowBitView(LayeredDecoder(llama), LAYERS)
    first = view.of(LayeredDecoder(llama))
    llama(TOKENS)
    assert view.of(LayeredDecoder(llama)) is first


def lora(peft: Any, model: Any, **options: Any) -> None:
    """Put a LoRA adapter that changes what comes out around a projection of layer 0."""
    name = "layers.0.self_attn.q_proj"
    peft.inject_adapter_in_model(
        peft.LoraConfig(r=4, target_modules=[name], init_lora_weights=False, **options), model
    )


def test_an_adapters_base_matrix_is_packed_and_the_adapter_takes_part(llama: Any) -> None:
    peft = pytest.importorskip("peft", reason="adapters need peft")
    view = LowBitView(LayeredDecoder(llama), LAYERS)
    before = logits_of(view.of(LayeredDecoder(llama)), LAYERS)
    attention = llama.model.layers[0].self_attn
    base = attention.q_proj
    lora(peft, llama)
    viewed = view.of(LayeredDecoder(llama))
    adapter = viewed.layers[0].self_attn.q_proj
    assert isinstance(adapter, peft.tuners.lora.Linear)
    assert isinstance(adapter.base_layer, PackedLinear)
    assert attention.q_proj.base_layer is base
    assert not torch.allclose(logits_of(viewed, LAYERS), before, atol=1e-3)
    with torch.no_grad():
        attention.q_proj.lora_B["default"].weight.zero_()
    torch.testing.assert_close(logits_of(view.of(LayeredDecoder(llama)), LAYERS), before)


def test_an_adapter_that_is_switched_off_is_out_of_the_view_too(llama: Any) -> None:
    peft = pytest.importorskip("peft", reason="adapters need peft")
    lora(peft, llama)
    view = LowBitView(LayeredDecoder(llama), LAYERS)
    adapter = llama.model.layers[0].self_attn.q_proj
    texts, packed = [], packed_in(view.of(LayeredDecoder(llama)))
    for enabled in (False, True):
        adapter.enable_adapters(enabled)
        decoder = LayeredDecoder(llama)
        texts.append(logits_of(view.of(decoder), LAYERS))
        assert torch.equal(texts[-1], logits_of(LowBitView(decoder, LAYERS).of(decoder), LAYERS))
    assert not torch.allclose(*texts, atol=1e-3)
    again = packed_in(view.of(LayeredDecoder(llama)))
    assert all(a is b for a, b in zip(packed, again, strict=True))


def test_modules_that_an_adapter_saves_are_switched_with_it(llama: Any) -> None:
    peft = pytest.importorskip("peft", reason="adapters need peft")
    saved = {"target_modules": ["q_proj"], "modules_to_save": ["down_proj"], "task_type": "CAUSAL_LM"}
    adapted = peft.get_peft_model(llama, peft.LoraConfig(r=4, **saved)).eval()
    with torch.no_grad():
        llama.model.layers[0].mlp.down_proj.modules_to_save["default"].weight.mul_(-1)
    view = LowBitView(LayeredDecoder(llama), LAYERS)
    with adapted.disable_adapter():
        decoder = LayeredDecoder(llama)
        off = logits_of(view.of(decoder), LAYERS)
        assert torch.equal(off, logits_of(LowBitView(decoder, LAYERS).of(decoder), LAYERS))
    assert not torch.allclose(off, logits_of(view.of(LayeredDecoder(llama)), LAYERS), atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_merged_adapter_is_packed_with_its_matrix(dtype: torch.dtype) -> None:
    peft = pytest.importorskip("peft", reason="adapters need peft")
    model = tiny_model("llama").to(dtype)
    lora(peft, model)
    view = LowBitView(LayeredDecoder(model), LAYERS)
    projection = model.model.layers[0].self_attn.q_proj
    for change in (projection.merge, projection.unmerge):
        old = packed_in(view.of(LayeredDecoder(model)))
        change()
        decoder = LayeredDecoder(model)
        after = logits_of(view.of(decoder), LAYERS)
        assert torch.equal(after, logits_of(LowBitView(decoder, LAYERS).of(decoder), LAYERS))
        assert sum(a is not b for a, b in zip(old, packed_in(view.of(decoder)), strict=True)) == 1


def test_weights_that_are_no_numbers_are_not_packed_again_and_again(llama: Any) -> None:
    with torch.no_grad():
        llama.model.layers[1].mlp.up_proj.weight.fill_(torch.nan)
    view = LowBitView(LayeredDecoder(llama), LAYERS)
    assert view.of(LayeredDecoder(llama)) is view.of(LayeredDecoder(llama))


def test_a_matrix_that_its_adapter_reads_is_kept_from_when_the_adapter_comes(llama: Any) -> None:
    peft = pytest.importorskip("peft", reason="adapters need peft")
    view = LowBitView(LayeredDecoder(llama), LAYERS)
    assert view.kept == ""
    base = llama.model.layers[0].self_attn.q_proj
    lora(peft, llama, use_dora=True)
    viewed = view.of(LayeredDecoder(llama))
    assert viewed.layers[0].self_attn.q_proj.base_layer is base
    assert "what peft.tuners.lora.layer.Linear adapts" in view.kept
    assert len(packed_in(viewed)) == 7 * LAYERS  # the head, and all matrices but one
    logits_of(viewed, LAYERS)


class WithAdapter(nn.Module):
    """As an adapter library that nobody has heard of may do it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.beside = nn.Linear(base.in_features, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.base_layer.weight + self.beside.weight)


def test_a_matrix_inside_an_adapter_that_is_not_known_is_kept_and_named(llama: Any) -> None:
    attention = llama.model.layers[0].self_attn
    attention.q_proj = WithAdapter(attention.q_proj)
    view = LowBitView(LayeredDecoder(llama), LAYERS)
    assert view.of(LayeredDecoder(llama)).layers[0].self_attn.q_proj is attention.q_proj
    assert f"what {__name__}.WithAdapter adapts" in view.kept


def test_a_bias_that_was_replaced_is_the_views_too() -> None:
    model = tiny_model("qwen2")
    view = LowBitView(LayeredDecoder(model), LAYERS)
    before = logits_of(view.of(LayeredDecoder(model)), LAYERS)
    projection = model.model.layers[0].self_attn.q_proj
    projection.bias = nn.Parameter(projection.bias.detach() + 3 * torch.arange(len(projection.bias)).cos())
    decoder = LayeredDecoder(model)
    after = logits_of(view.of(decoder), LAYERS)
    assert not torch.allclose(after, before, atol=1e-3)
    assert torch.equal(after, logits_of(LowBitView(decoder, LAYERS).of(decoder), LAYERS))


def test_what_was_packed_of_a_module_that_is_gone_is_not_taken_for_anothers(llama: Any) -> None:
    """As if a new module had got the memory, and so the id, of an old one."""
    view = LowBitView(LayeredDecoder(llama), LAYERS)
    mlp = llama.model.layers[0].mlp
    old, new = mlp.up_proj, copy.deepcopy(llama.model.layers[1].mlp.up_proj)
    reference, _, packed = view._packed.pop(id(old))
    view._packed[id(new)] = reference, (low_bit._version(new), *low_bit._samples([new])), packed
    mlp.up_proj = new
    decoder = LayeredDecoder(llama)
    assert torch.equal(
        logits_of(view.of(decoder), LAYERS), logits_of(LowBitView(decoder, LAYERS).of(decoder), LAYERS)
    )
