"""Matrices that oneDNN multiplies in fp32: which are replaced, and that the text is the model's own."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from types import MethodType
from typing import Any

import pytest
import torch
from checks import EVERYTHING, NewTensors, own_generate
from strategies import CHAINS
from tiny_models import LAYERS, random_prompts, tiny_model
from torch import nn

import selfspec
from layer_skip import low_bit, onednn_linear
from layer_skip.decoder import LayeredDecoder
from layer_skip.onednn_linear import OneDNNLinear, onednn_is_faster, onednn_product
from selfspec import shapes
from selfspec.shapes import probe

pytestmark = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")),
    reason="this PyTorch was built without oneDNN, so its own products are all there is",
)
PROMPTS = random_prompts(9, 4)
REQUEST = {**PROMPTS, "max_new_tokens": 24, "do_sample": False}


@pytest.fixture(autouse=True)
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where oneDNN is faster for matrices of any size."""
    monkeypatch.setattr(onednn_linear, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(onednn_linear, "LEAST_WEIGHTS", 0)


def replaced_in(model: Any) -> list[OneDNNLinear]:
    decoder = LayeredDecoder(model)
    parts = (*decoder.layers, decoder.head)
    return [m for part in parts for m in part.modules() if isinstance(m, OneDNNLinear)]


@pytest.mark.parametrize("shape", [(16,), (1, 16), (2, 3, 16), (0, 16), (70, 16)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_that_of_pytorch_but_for_rounding(shape: tuple[int, ...], bias: bool) -> None:
    linear, x = nn.Linear(16, 33, bias=bias), torch.randn(shape)
    with torch.no_grad():
        torch.testing.assert_close(onednn_product(x, linear.weight, linear.bias), linear(x))
        torch.testing.assert_close(
            onednn_product(x[..., ::2], linear.weight[:, :8].contiguous()),
            x[..., ::2] @ linear.weight[:, :8].T,
        )


def test_every_plain_matrix_of_layers_and_head_is_replaced_and_the_model_is_as_it_was(llama: Any) -> None:
    before = {name: type(module) for name, module in llama.named_modules()}
    new = NewTensors()
    assert len(replaced_in(llama)) == 7 * LAYERS + 1
    assert new.count == 0
    assert {name: type(module) for name, module in llama.named_modules()} == before


def test_matrices_that_are_small_or_of_another_kind_stay(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    first, second, third, fourth = (layer.mlp for layer in llama.model.layers)
    first.up_proj.__class__ = Doubled
    second.up_proj.register_forward_hook(lambda module, args, output: 2 * output)
    third.up_proj.forward = lambda x: 2 * nn.functional.linear(x, third.up_proj.weight)
    fourth.up_proj.weight = nn.Parameter(fourth.up_proj.weight.T.contiguous().T)
    assert len(replaced_in(llama)) == 7 * LAYERS + 1 - 4
    expected = own_generate(llama, **REQUEST)
    selfspec.wrap(llama, draft="early_exit", exit_layer=2, draft_length=3)
    assert torch.equal(llama.generate(**REQUEST), expected)
    selfspec.unwrap(llama)
    assert not replaced_in(tiny_model("llama").bfloat16())
    assert not replaced_in(tiny_model("llama").double())
    monkeypatch.setattr(onednn_linear, "LEAST_WEIGHTS", 32 * 48 + 1)
    assert len(replaced_in(tiny_model("llama"))) == 1  # the head


def test_greedy_text_of_every_family_is_its_own(family: str) -> None:
    model = tiny_model(family)
    expected = own_generate(model, **REQUEST, **EVERYTHING)
    for settings in ({"draft": "early_exit", "exit_layer": 2, "draft_length": 3}, {"draft": "low_bit"}):
        selfspec.wrap(model, **settings)
        found = model.generate(**REQUEST, **EVERYTHING)
        assert torch.equal(found.sequences, expected.sequences)
        torch.testing.assert_close(
            torch.stack(found.logits), torch.stack(expected.logits), atol=1e-4, rtol=1e-4
        )


def test_sampled_text_is_ars_for_every_strategy(llama: Any) -> None:
    request = {**REQUEST, "do_sample": True, "temperature": 0.8}
    found = []
    for settings in ({"draft_length": 0}, *CHAINS):
        selfspec.wrap(llama, **settings)
        torch.manual_seed(5)
        found.append(llama.generate(**request))
    assert all(torch.equal(text, found[0]) for text in found)


def test_the_product_that_runs_is_what_is_probed(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    probed: dict[tuple[int, int], Any] = {}

    def of(product: Any, shape: tuple[int, int], *_: object) -> frozenset[int]:
        probed[shape] = product
        return frozenset()

    monkeypatch.setattr(shapes, "_probe_product", of)
    llama.model.layers[1].mlp.up_proj = nn.Linear(32, 50, bias=False)
    llama.model.layers[1].mlp.up_proj.register_forward_hook(lambda *_: None)  # stays PyTorch's
    probe(LayeredDecoder(llama))
    assert probed.pop((50, 32)) is nn.functional.linear
    assert probed and set(probed.values()) == {onednn_product}


def test_new_weights_are_multiplied_at_once(llama: Any) -> None:
    selfspec.wrap(llama, draft="low_bit", draft_length=3)
    llama.generate(**REQUEST)
    projection = llama.model.layers[0].mlp.up_proj
    with torch.no_grad():
        projection.weight.mul_(-1)
    assert torch.equal(llama.generate(**REQUEST), own_generate(llama, **REQUEST))
    projection.weight = nn.Parameter(torch.randn_like(projection.weight))
    assert torch.equal(llama.generate(**REQUEST), own_generate(llama, **REQUEST))
    llama.bfloat16()
    assert not replaced_in(llama)
    llama.generate(**REQUEST)


def test_a_view_is_not_packed_again_for_every_call(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    selfspec.wrap(llama, draft="low_bit", draft_length=3)
    llama.generate(**REQUEST)
    monkeypatch.setattr(low_bit, "PackedLinear", lambda *_: pytest.fail("packed again"))
    llama.generate(**REQUEST)


def test_what_a_module_calls_in_its_own_way_stays(llama: Any) -> None:
    """Bound to the model's own module, its forward would pass a shell by, and the probe would not know."""
    first, second, *_ = llama.model.layers
    first.mlp.forward = MethodType(lambda mlp, x: type(mlp).forward(mlp, x), first.mlp)
    second.mlp = torch.compile(second.mlp, backend="eager")
    children = dict(second.mlp._orig_mod._modules)
    expected = own_generate(llama, **REQUEST)
    assert len(replaced_in(llama)) == 7 * LAYERS + 1 - 2 * 3
    for settings in ({"draft_length": 0}, {"draft": "low_bit", "draft_length": 3}):
        selfspec.wrap(llama, **settings)
        assert torch.equal(llama.generate(**REQUEST), expected)
        selfspec.unwrap(llama)
    assert second.mlp._orig_mod._modules == children


def test_what_an_adapter_reads_stays(llama: Any) -> None:
    peft = pytest.importorskip("peft", reason="adapters need peft")
    options = {"r": 4, "target_modules": ["q_proj"], "init_lora_weights": False}
    peft.inject_adapter_in_model(peft.LoraConfig(**options, use_dora=True), llama)
    assert len(replaced_in(llama)) == 6 * LAYERS + 1
    expected = own_generate(llama, **REQUEST)
    selfspec.wrap(llama, draft="early_exit", exit_layer=2, draft_length=3)
    assert torch.equal(llama.generate(**REQUEST), expected)


def test_parameters_that_were_put_aside_are_not_kept(llama: Any) -> None:
    projection = llama.model.layers[0].mlp.up_proj
    before = replaced_in(llama)
    projection._parameters = {"weight": nn.Parameter(-projection.weight.detach()), "bias": None}
    after = replaced_in(llama)
    assert sum(a is not b for a, b in zip(before, after, strict=True)) == 1
    assert {id(m.weight) for m in after} == {id(p) for p in llama.parameters() if p.dim() == 2} - {
        id(llama.model.embed_tokens.weight)
    }


def test_gradients_and_autocast_are_pytorchs() -> None:
    model = tiny_model("llama")
    linear = replaced_in(model)[0]
    x = torch.randn(3, linear.in_features)
    linear(x).sum().backward()
    assert linear.weight.grad is not None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert linear(x).dtype == torch.bfloat16


def test_copies_and_pickles_know_nothing_of_it(llama: Any) -> None:
    selfspec.wrap(llama, draft="early_exit", exit_layer=2, draft_length=3)
    expected = llama.generate(**REQUEST)
    for other in (copy.deepcopy(llama), pickle.loads(pickle.dumps(llama))):
        assert not any(isinstance(module, OneDNNLinear) for module in other.modules())
        assert torch.equal(other.generate(**REQUEST), expected)


def test_it_goes_with_the_model() -> None:
    model = tiny_model("llama")
    replaced_in(model)
    kept = len(onednn_linear._made)
    matrices = 7 * LAYERS + 1
    del model
    gc.collect()
    assert len(onednn_linear._made) <= kept - matrices


def test_a_hook_that_comes_later_and_knows_the_model_does_not_keep_it() -> None:
    model = tiny_model("llama")
    replaced_in(model)
    seen, gone = [], weakref.ref(model)
    model.model.layers[0].mlp.up_proj.register_forward_hook(lambda *_, model=model: seen.append(model))
    with torch.no_grad():
        decoder = LayeredDecoder(model)
        decoder.layers[0].mlp(torch.zeros(1, 1, model.config.hidden_size))
    assert len(seen) == 1
    del model, decoder
    seen.clear()
    gc.collect()
    assert gone() is None


def test_a_hook_below_a_layer_is_given_the_module_that_it_was_put_on(llama: Any) -> None:
    names = {module: name for name, module in llama.named_modules()}
    seen = []
    for part in ("mlp", "mlp.up_proj"):
        hooked = llama.model.layers[1].get_submodule(part)
        hooked.register_forward_hook(lambda module, *_: seen.append(names[module]))
    LayeredDecoder(llama).layers[1].mlp(torch.zeros(1, 1, llama.config.hidden_size))
    assert seen == ["model.layers.1.mlp.up_proj", "model.layers.1.mlp"]
    assert len(replaced_in(llama)) == 7 * LAYERS + 1 - 3


@pytest.mark.parametrize("missing", ["AMD", "AVX2", "oneDNN", "MKL"])
def test_elsewhere_products_are_pytorchs_own(
    missing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("vendor_id : " + ("GenuineIntel" if missing == "AMD" else "AuthenticAMD"))
    monkeypatch.setattr(onednn_linear, "_CPUINFO", cpuinfo)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    for name, backend in (("oneDNN", torch.backends.mkldnn), ("MKL", torch.backends.mkl)):
        monkeypatch.setattr(backend, "is_available", lambda there=missing != name: there)
    if missing == "AVX2":
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    decide = onednn_is_faster.__wrapped__
    assert not decide()
    cpuinfo.write_text("vendor_id : AuthenticAMD")
    for backend in (torch.backends.mkldnn, torch.backends.mkl):
        monkeypatch.setattr(backend, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert decide()
