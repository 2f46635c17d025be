"""Shapes whose rows do not depend on the shape."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from torch import nn

from layer_skip.decoder import LayeredDecoder
from selfspec import shapes
from selfspec.shapes import FASTEST, ShapePlan, probe


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


def test_a_machine_without_such_shapes_is_said_to_have_none(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapes, "_probe_attention", lambda *_: (frozenset(), None))
    assert not probe(LayeredDecoder(llama)).exact
    monkeypatch.setattr(shapes, "_probe_attention", lambda *_: (frozenset(range(1, 99)), 64))
    assert not probe(LayeredDecoder(llama)).exact


def test_modules_without_an_ordinary_weight_are_left_out_of_the_probe() -> None:
    module = nn.Module()
    module.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    assert shapes._bad_row_counts(module) == frozenset()
    module.weight = nn.Parameter(torch.zeros(4))
    assert shapes._bad_row_counts(module) == frozenset()
