"""Attention over the shared cache, against its definition."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layer_skip.attention import attend
from layer_skip.span import causal_mask


def by_definition(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scaling: float,
    softcap: float | None,
    sinks: Tensor | None = None,
) -> Tensor:
    """softmax(cap(q k / sqrt) + mask) v, one head and one token at a time; [B, m, H, Dh]."""
    rows, heads, width, size = query.shape
    groups = heads // key.shape[1]
    out = torch.empty(rows, width, heads, size, dtype=query.dtype)
    for b in range(rows):
        for h in range(heads):
            for i in range(width):
                scores = key[b, h // groups] @ query[b, h, i] * scaling
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                scores = scores + mask[b, 0, i]
                if sinks is not None:
                    scores = torch.cat([scores, sinks[h : h + 1]])
                out[b, i, h] = scores.softmax(0)[: key.shape[2]] @ value[b, h // groups]
    return out


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("width", [1, 3])
def test_attention_is_its_definition(heads: int, kv_heads: int, width: int, softcap: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, heads, width, 8, generator=generator, dtype=torch.float64)
    key, value = torch.randn(2, 2, kv_heads, 16, 8, generator=generator, dtype=torch.float64)
    positions = torch.tensor([[5], [9]]) + torch.arange(width)
    mask = causal_mask(positions, 16, None, torch.float64)
    for scaling in (None, 0.7):
        actual, weights = attend(nn.Module(), query, key, value, mask, scaling=scaling, softcap=softcap)
        expected = by_definition(query, key, value, mask, scaling or 1 / math.sqrt(8), softcap)
        torch.testing.assert_close(actual, expected)
        assert weights is None


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 2), (4, 1)])
@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 6, 7, 11])
def test_queries_are_joined_by_others_that_leave_no_trace(
    heads: int, kv_heads: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's attention over others than whole fours rounds otherwise on a CPU: see `_dot_product`."""
    asked: list[int] = []
    own = nn.functional.scaled_dot_product_attention

    def spied(query: Tensor, *arguments: Tensor, **keywords: Any) -> Tensor:
        asked.append(query.shape[2])
        return own(query, *arguments, **keywords)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", spied)
    query, key, value = (torch.randn(2, n, 32, 16) for n in (heads, kv_heads, kv_heads))
    mask = causal_mask(torch.tensor([[9], [20]]) + torch.arange(width), 32, None, torch.float32)
    actual, _ = attend(nn.Module(), query[:, :, :width], key, value, mask)
    assert asked
    assert not any(n % 4 for n in asked)
    assert actual.shape == (2, width, heads, 16) and actual.is_contiguous()
    torch.testing.assert_close(actual, by_definition(query[:, :, :width], key, value, mask, 0.25, None))


@pytest.mark.parametrize("heads", [2, 6])
def test_a_sink_takes_part_in_the_softmax_and_carries_no_value(heads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, heads, 3, 8, generator=generator, dtype=torch.float64)
    key, value = torch.randn(2, 2, 2, 16, 8, generator=generator, dtype=torch.float64)
    sinks = torch.randn(heads, generator=generator, dtype=torch.float64)
    mask = causal_mask(torch.tensor([[5, 6, 7], [9, 10, 11]]), 16, None, torch.float64)
    actual, _ = attend(nn.Module(), query, key, value, mask, scaling=0.7, s_aux=sinks)
    torch.testing.assert_close(actual, by_definition(query, key, value, mask, 0.7, None, sinks))


def test_masked_slots_do_not_count_whatever_they_hold() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 8, 4, generator=generator) for _ in range(3))
    mask = causal_mask(torch.arange(3, 5)[None], 8, None, torch.float32)
    before, _ = attend(nn.Module(), query[:, :, :2], key, value, mask)
    key[:, :, 5:], value[:, :, 5:] = 1e4, -1e4
    after, _ = attend(nn.Module(), query[:, :, :2], key, value, mask)
    assert torch.equal(before, after)
