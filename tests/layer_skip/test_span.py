"""Spans and masks."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_model

from layer_skip.decoder import LayeredDecoder
from layer_skip.span import Chunk, Reach, causal_mask, tree_keys, tree_mask


@pytest.mark.parametrize("window", [None, 1, 3, 100])
def test_a_token_sees_its_own_slot_and_at_most_the_window_before_it(window: int | None) -> None:
    positions = torch.tensor([[0, 1, 2], [6, 7, 8]])
    mask = causal_mask(positions, 10, window, torch.float32)
    assert mask.shape == (2, 1, 3, 10)
    for row in range(2):
        for column in range(3):
            own = int(positions[row, column])
            seen = [slot for slot in range(10) if mask[row, 0, column, slot] == 0]
            assert seen == list(range(max(0, own + 1 - (window or 10)), own + 1))
    assert set(mask.unique().tolist()) <= {0.0, torch.finfo(torch.float32).min}


def test_a_token_sees_the_slots_of_its_own_chunk_up_to_itself() -> None:
    mask = causal_mask(torch.tensor([[0, 3, 4, 5, 11]]), 14, Chunk(4), torch.float32)
    seen = [[slot for slot in range(14) if row[slot] == 0] for row in mask[0, 0].tolist()]
    assert seen == [[0], [0, 1, 2, 3], [4], [4, 5], [8, 9, 10, 11]]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gemma3_text", "llama4_text", "bloom", "mpt"])
def test_a_narrowed_span_is_the_span_of_those_columns(family: str) -> None:
    decoder = LayeredDecoder(tiny_model(family))
    positions = torch.arange(4, 12)[None]
    wide = decoder.span(positions, 16, 4).narrow(2, 3)
    own = decoder.span(positions[:, 2:5], 16, 6)
    assert torch.equal(wide.positions, own.positions)
    assert (wide.start, wide.width, wide.key_length) == (own.start, 3, 16)
    assert wide.masks.keys() == own.masks.keys()
    for window, mask in own.masks.items():
        assert torch.equal(wide.masks[window], mask)
    torch.testing.assert_close(wide.rope, own.rope)
    torch.testing.assert_close(wide.arguments, own.arguments)


PARENTS = (0, 0, 1, 2, 2, 3, 5)
"""Of the columns 1, 2, ...; depths 0 1 1 2 2 2 3 3."""


def way_to(column: int) -> list[int]:
    """The columns from the root to `column`."""
    way = [column]
    while way[0]:
        way.insert(0, PARENTS[way[0] - 1])
    return way


@pytest.mark.parametrize("reach", [None, 1, 2, 3, 5, 100, Chunk(3), Chunk(4)], ids=str)
@pytest.mark.parametrize("starts", [[0], [4, 4], [9, 0, 5]])
def test_a_candidate_sees_the_committed_text_and_its_own_branch(starts: list[int], reach: Reach) -> None:
    """Node by node: those on its way from the first token, of which a window keeps the last, or its chunk."""
    ways = [way_to(column) for column in range(len(PARENTS) + 1)]
    ancestors = torch.zeros(len(ways), len(ways), dtype=torch.bool)
    for column, way in enumerate(ways):
        ancestors[column, way] = True
    depths = torch.tensor([len(way) - 1 for way in ways])
    positions = torch.tensor(starts)[:, None] + depths
    mask = tree_mask(positions, tree_keys(positions, 24), reach, torch.float32, ancestors)
    assert mask.shape == (len(starts), 1, len(ways), 24)
    for row, start in enumerate(starts):
        for column, way in enumerate(ways):
            slots = list(range(start)) + [start + c for c in way]
            if isinstance(reach, Chunk):  # in the order of positions, slots are 0, 1, 2, ...
                expected = slots[(len(slots) - 1) // reach.size * reach.size :]
            else:
                expected = slots[-reach:] if reach else slots
            assert [slot for slot in range(24) if mask[row, 0, column, slot] == 0] == expected
    assert set(mask.unique().tolist()) <= {0.0, torch.finfo(torch.float32).min}


@pytest.mark.parametrize("window", [None, 3])
def test_the_mask_of_a_chain_is_the_causal_one(window: int | None) -> None:
    positions = torch.tensor([[2], [7]]) + torch.arange(5)
    chain = torch.ones(5, 5).tril().bool()
    as_tree = tree_mask(positions, tree_keys(positions, 16), window, torch.float32, chain)
    assert torch.equal(as_tree, causal_mask(positions, 16, window, torch.float32))


def test_keys_of_candidates_stand_at_the_positions_of_their_depth() -> None:
    positions = torch.tensor([[4, 5, 5, 6], [0, 1, 1, 2]])
    assert tree_keys(positions, 10).tolist() == [
        [0, 1, 2, 3, 4, 5, 5, 6, 8, 9],
        [0, 1, 1, 2, 4, 5, 6, 7, 8, 9],
    ]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gemma3_text"])
def test_a_shortened_span_sees_the_same_keys(family: str) -> None:
    decoder = LayeredDecoder(tiny_model(family))
    span = decoder.span(torch.tensor([[3, 4], [7, 8]]), 64, None)
    short = span.shortened(9)
    assert short.key_length == 9
    for reach, mask in span.masks.items():
        assert torch.equal(short.masks[reach], mask[..., :9])
        assert bool((mask[..., 9:] != 0).all())
    assert short.slots is span.slots
