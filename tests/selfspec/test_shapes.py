"""Shapes whose rows do not depend on the shape."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from torch import nn

from layer_skip.decoder import LayeredDecoder
from selfspec import shapes
from selfspec.shapes import FASTEST, ShapePlan, describe, padding_on_device, probe


@pytest.mark.parametrize(
    ("rows", "width", "expected"),
    [(1, 1, 4), (1, 4, 4), (1, 5, 6), (1, 6, 6), (2, 1, 4), (3, 2, 4), (4, 4, 4), (4, 5, 6), (2, 7, 8)],
)
def test_a_width_is_the_least_safe_one(rows: int, width: int, expected: int) -> None:
    plan = ShapePlan(bad_widths=frozenset({1, 2, 3, 5}), bad_rows=frozenset({1, 2, 3, 14}))
    assert plan.width(rows, width) == expected
    assert all(w in plan.bad_widths or rows * w in plan.bad_rows for w in range(width, expected))


def test_widths_count_rows_times_width_for_products() -> None:
    plan = ShapePlan(bad_rows=frozenset({1, 2, 3, 6}))
    assert [plan.width(rows, 1) for rows in (1, 2, 3, 4)] == [4, 2, 3, 1]


@pytest.mark.parametrize(("slots", "expected"), [(1, 128), (127, 128), (128, 128), (129, 256), (1000, 1024)])
def test_key_lengths_are_rounded_up_to_the_quantum(slots: int, expected: int) -> None:
    assert ShapePlan(key_quantum=128).key_length(slots) == expected


def test_lean_layers_need_no_padding_and_others_are_padded_as_they_were_probed() -> None:
    probed = ShapePlan(bad_widths=frozenset({1, 2}), bad_rows=frozenset({1, 2, 3}), key_quantum=256)
    lean = padding_on_device("", lambda: pytest.fail("lean layers need no probe"))
    assert all(lean.width(rows, width) == width for rows in range(1, 9) for width in range(1, 9))
    assert lean.exact
    assert padding_on_device("layers run module by module", lambda: probed) is probed


def test_the_fastest_shapes_pad_no_query() -> None:
    assert all(FASTEST.width(rows, width) == width for rows in range(1, 9) for width in range(1, 9))
    assert not FASTEST.exact


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_products_at_planned_shapes_are_bit_equal_whatever_the_shape(family: str, dtype: torch.dtype) -> None:
    model = tiny_model(family).to(dtype)
    decoder = LayeredDecoder(model)
    plan = probe(decoder)
    if not plan.exact:
        pytest.skip("this machine offers no such shapes")
    generator = torch.Generator().manual_seed(1)
    head = list(decoder.products())[-1]
    x = torch.randn(64, 32, generator=generator).to(dtype)
    with torch.no_grad():
        whole = head(x)
        for wanted in range(1, 17):
            n = plan.width(1, wanted)
            for first in (0, 3):
                assert torch.equal(head(x[first : first + n]), whole[first : first + n])


def test_a_plan_is_probed_once_and_again_after_the_number_of_threads_changed(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes._probe_product.cache_clear()
    probe(LayeredDecoder(llama))
    misses = shapes._probe_product.cache_info().misses
    assert misses > 0
    probe(LayeredDecoder(llama))
    assert shapes._probe_product.cache_info().misses == misses
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    probe(LayeredDecoder(llama))
    assert shapes._probe_product.cache_info().misses == 2 * misses


@pytest.mark.parametrize("odd", [1, 5, 10, 11, 14])
def test_every_width_of_attention_is_probed(odd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def attend(_: Any, query: torch.Tensor, *__: Any) -> tuple[torch.Tensor, None]:
        return query.transpose(1, 2) + (query.shape[2] == odd), None

    monkeypatch.setattr(shapes, "attend", attend)
    probed = shapes._probe_attention.__wrapped__
    assert probed(16, 2, torch.float32, torch.device("cpu"), 1)[0] == {odd}


def test_a_machine_without_such_shapes_is_said_to_have_none(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapes, "_probe_attention", lambda *_: (frozenset(), None))
    assert not probe(LayeredDecoder(llama)).exact
    monkeypatch.setattr(shapes, "_probe_attention", lambda *_: (frozenset(range(1, 99)), 64))
    assert not probe(LayeredDecoder(llama)).exact


@pytest.fixture
def all_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which every product and attention that is probed is bit-equal."""
    monkeypatch.setattr(shapes, "_probe_attention", lambda *_: (frozenset(), 64))
    monkeypatch.setattr(shapes, "_probe_product", lambda *_: frozenset())


@pytest.mark.parametrize(
    ("name", "doubt"),
    [
        ("llama", ""),
        ("gpt2", ""),
        ("qwen3", ""),
        ("mixtral", "experts, whose rows follow the routing"),
        ("olmoe", "experts, whose rows follow the routing"),
        ("gptj", "attention code of the model's own"),
        ("codegen", "attention code of the model's own"),
        ("bloom", "attention code of the model's own"),
        ("mpt", "attention code of the model's own"),
        ("falcon", "attention code of the model's own"),
        ("gemma2", "soft caps on attention scores"),
        ("gpt_oss", "attention sinks"),
        ("minicpm3", "latent keys and values"),
        ("deepseek_v3", "experts, whose rows follow the routing"),
    ],
)
def test_bit_equal_rows_are_claimed_only_where_all_was_probed(all_equal: None, name: str, doubt: str) -> None:
    plan = probe(LayeredDecoder(tiny_model(name)))
    assert plan.exact == (not doubt)
    assert doubt in plan.doubt
    assert plan.key_quantum == 64  # and what can be had is had all the same
    said = describe(plan, deterministic=True)
    if doubt:
        assert said.startswith("not probed are ")
        assert said.endswith(": rounding may flip a near-tie")
    else:
        assert said.startswith("bit-equal rows: ")


class Quantised(nn.Linear):
    """A matrix in a form of its own, as libraries for quantisation replace them."""

    def __init__(self, base: nn.Linear, kind: str) -> None:
        super().__init__(base.in_features, base.out_features, bias=False)
        whole = torch.zeros(base.out_features, base.in_features, dtype=torch.int8)
        if kind == "buffer":
            del self.weight
            self.register_buffer("qweight", whole)
        else:
            self.weight = nn.Parameter(whole, requires_grad=False)


@pytest.mark.parametrize("kind", ["buffer", "parameter"])
def test_quantised_weights_of_any_layer_are_not_taken_for_safe(
    llama: Any, all_equal: None, kind: str
) -> None:
    mlp = llama.model.layers[-1].mlp
    mlp.up_proj = Quantised(mlp.up_proj, kind)
    assert probe(LayeredDecoder(llama)).doubt == "not probed are quantised weights"


def test_products_of_all_layers_are_probed(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first layer may be of another kind, and smaller, than the others."""
    probed = []
    monkeypatch.setattr(shapes, "_probe_attention", lambda *_: (frozenset(), 64))
    monkeypatch.setattr(shapes, "_probe_product", lambda *product: probed.append(product) or frozenset())
    mlp = llama.model.layers[2].mlp
    mlp.up_proj = nn.Linear(mlp.up_proj.in_features, 7 * mlp.up_proj.out_features, bias=False)
    probe(LayeredDecoder(llama))
    assert tuple(mlp.up_proj.weight.shape) in [shape for _, shape, *_ in probed]


def test_only_gpt2s_matrices_are_probed_transposed(monkeypatch: pytest.MonkeyPatch) -> None:
    probed: dict[str, set[tuple[Any, bool]]] = {}
    monkeypatch.setattr(shapes, "_probe_attention", lambda *_: (frozenset(), 64))
    for name in ("gpt2", "mixtral"):
        seen = probed[name] = set()
        monkeypatch.setattr(
            shapes,
            "_probe_product",
            lambda _, shape, how, *more, seen=seen: seen.add((shape, how)) or frozenset(),
        )
        probe(LayeredDecoder(tiny_model(name)))
    assert any(transposed for _, transposed in probed["gpt2"])
    assert not any(transposed for _, transposed in probed["mixtral"])
    vocab, hidden = tiny_model("gpt2").lm_head.weight.shape
    assert ((vocab, hidden), False) in probed["gpt2"]
    assert ((3 * hidden, hidden), True) in probed["gpt2"]


@pytest.mark.parametrize(("bad", "exact"), [({17}, True), ({1, 2, 23}, True), ({32}, False), ({64}, False)])
def test_rows_of_every_count_up_to_32_are_probed_and_padded_where_they_differ(
    llama: Any, monkeypatch: pytest.MonkeyPatch, bad: set[int], exact: bool
) -> None:
    monkeypatch.setattr(shapes, "_probe_attention", lambda *_: (frozenset(), 64))
    monkeypatch.setattr(shapes, "_probe_product", lambda *_: frozenset(bad))
    assert set(range(1, 33)) <= set(shapes._ROW_COUNTS)
    plan = probe(LayeredDecoder(llama))
    assert plan.exact is exact
    if exact:
        assert all(plan.width(1, width) not in bad for width in range(1, 33))


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ((), "bit-equal rows: keys in multiples of 64"),
        ((1, 2), "bit-equal rows: at least 3 query tokens, keys in multiples of 64"),
    ],
)
def test_the_padding_is_said(bad: tuple[int, ...], said: str) -> None:
    plan = ShapePlan(bad_rows=frozenset(bad), doubt="")
    assert describe(plan, deterministic=True) == said
