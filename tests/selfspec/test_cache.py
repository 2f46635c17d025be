"""The one KV cache."""

from __future__ import annotations

import torch
from torch import Tensor

from layer_skip.span import Span, causal_mask
from selfspec.cache import KVCache

LAYERS, HEADS, SIZE = 2, 3, 4


def span(starts: list[int], width: int, key_length: int) -> Span:
    positions = torch.tensor(starts)[:, None] + torch.arange(width)
    start = starts[0] if len(set(starts)) == 1 else None
    return Span(
        positions, positions, None, {None: causal_mask(positions, key_length, None, torch.float32)}, start
    )


def numbered(rows: int, width: int, first: int) -> Tensor:
    """[rows, HEADS, width, SIZE] of numbers that occur once."""
    count = rows * HEADS * width * SIZE
    return torch.arange(first, first + count, dtype=torch.float32).reshape(rows, HEADS, width, SIZE)


def test_nothing_is_allocated_before_a_layer_writes() -> None:
    cache = KVCache(2, LAYERS, 8)
    assert cache.keys == cache.values == [None, None]
    cache.window(span([0, 0], 3, 8)).update(numbered(2, 3, 0), numbered(2, 3, 100), 1)
    assert cache.keys[0] is None
    assert cache.keys[1].shape == (2, HEADS, 8, SIZE)


def test_a_window_writes_at_its_positions_and_reads_the_first_slots() -> None:
    for starts in ([2, 2], [2, 5]):
        cache = KVCache(2, LAYERS, 16)
        key, value = numbered(2, 3, 1), numbered(2, 3, 1000)
        keys, values = cache.window(span(starts, 3, 9)).update(key, value, 0)
        assert keys.shape == values.shape == (2, HEADS, 9, SIZE)
        for row, start in enumerate(starts):
            assert torch.equal(keys[row, :, start : start + 3], key[row])
            assert torch.equal(values[row, :, start : start + 3], value[row])
            assert (keys[row].sum(dim=(0, 2)) != 0).sum() == 3


def test_rollback_is_writing_again_from_a_smaller_length() -> None:
    cache = KVCache(1, LAYERS, 8)
    cache.window(span([0], 5, 8)).update(numbered(1, 5, 0), numbered(1, 5, 100), 0)
    cache.window(span([3], 2, 8)).update(numbered(1, 2, 500), numbered(1, 2, 600), 0)
    assert torch.equal(cache.keys[0][:, :, :3], numbered(1, 5, 0)[:, :, :3])
    assert torch.equal(cache.keys[0][:, :, 3:5], numbered(1, 2, 500))


def test_reserve_keeps_what_is_stored_and_at_least_doubles() -> None:
    cache = KVCache(2, LAYERS, 8)
    window = cache.window(span([0, 0], 8, 8))
    window.update(numbered(2, 8, 0), numbered(2, 8, 1000), 0)
    cache.reserve(8)
    assert cache.capacity == 8
    cache.reserve(9)
    assert cache.capacity == 16
    cache.reserve(100)
    assert cache.capacity == 100
    assert cache.keys[1] is None
    assert torch.equal(cache.keys[0][:, :, :8], numbered(2, 8, 0))
    assert torch.equal(cache.values[0][:, :, :8], numbered(2, 8, 1000))
    assert (cache.keys[0][:, :, 8:] == 0).all()


def test_keep_drops_the_other_rows_from_every_layer() -> None:
    cache = KVCache(4, LAYERS, 8)
    key = numbered(4, 2, 0)
    cache.window(span([0] * 4, 2, 8)).update(key, -key, 0)
    cache.keep(torch.tensor([3, 1]))
    assert cache.rows == 2
    assert torch.equal(cache.keys[0][:, :, :2], key[[3, 1]])
    assert torch.equal(cache.values[0][:, :, :2], -key[[3, 1]])
    late = cache.window(span([0, 0], 1, 8)).update(numbered(2, 1, 0), numbered(2, 1, 0), 1)
    assert late[0].shape[0] == 2


def test_a_window_over_some_rows_leaves_the_others_alone() -> None:
    cache = KVCache(3, LAYERS, 8)
    cache.window(span([0], 4, 8), slice(1, 2)).update(numbered(1, 4, 1), numbered(1, 4, 1), 0)
    assert cache.keys[0].shape[0] == 3
    assert (cache.keys[0][[0, 2]] == 0).all()
    assert torch.equal(cache.keys[0][1:2, :, :4], numbered(1, 4, 1))


def test_unwritten_slots_are_zeros_since_a_masked_nan_would_still_spread() -> None:
    cache = KVCache(1, LAYERS, 64)
    for index in range(LAYERS):
        keys, _ = cache.layer(index, numbered(1, 1, 0), numbered(1, 1, 0))
        assert (keys == 0).all()
    cache.reserve(200)
    assert all((keys == 0).all() for keys in cache.keys)


def in_slots(cache: KVCache, layer: int, slots: list[int]) -> Tensor:
    keys = cache.keys[layer]
    assert keys is not None
    return keys[0, :, slots]


def test_an_accepted_branch_is_brought_together_in_every_layer_and_row() -> None:
    cache = KVCache(2, LAYERS, 16)
    starts, columns = torch.tensor([3, 5]), torch.tensor([[0, 2, 5, 6], [0, 1, 4, 4]])
    for layer in range(LAYERS):
        key = numbered(2, 12, 1000 * layer)
        cache.window(span([0, 0], 12, 16)).update(key, -key, layer)
    before = [tensor.clone() for tensor in (*cache.keys, *cache.values) if tensor is not None]
    cache.gather(starts, columns)
    for tensor, old in zip((*cache.keys, *cache.values), before, strict=True):
        assert tensor is not None
        for row, (start, path) in enumerate(zip([3, 5], columns.tolist(), strict=True)):
            moved = old[row][:, [start + column for column in path]]
            assert torch.equal(tensor[row, :, start : start + 4], moved)
            assert torch.equal(tensor[row, :, :start], old[row, :, :start])  # what is committed stays
            assert torch.equal(tensor[row, :, start + 4 :], old[row, :, start + 4 :])


def test_gathering_reads_every_slot_before_it_writes_one() -> None:
    """A path may read a slot that another of its tokens moves to."""
    cache = KVCache(1, 1, 8)
    cache.window(span([0], 8, 8)).update(numbered(1, 8, 0), numbered(1, 8, 0), 0)
    expected = in_slots(cache, 0, [0, 3, 1, 2]).clone()
    cache.gather(torch.tensor([0]), torch.tensor([[0, 3, 1, 2]]))
    assert torch.equal(in_slots(cache, 0, [0, 1, 2, 3]), expected)


def test_gathering_leaves_layers_alone_that_hold_nothing() -> None:
    cache = KVCache(1, LAYERS, 8)
    cache.window(span([0], 4, 8)).update(numbered(1, 4, 0), numbered(1, 4, 0), 1)
    cache.gather(torch.tensor([0]), torch.tensor([[0, 2]]))
    assert cache.keys[0] is None
    assert torch.equal(in_slots(cache, 1, [1]), numbered(1, 4, 0)[0, :, [2]])
