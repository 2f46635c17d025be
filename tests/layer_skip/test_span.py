"""Spans and masks."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_model

from layer_skip.decoder import LayeredDecoder
from layer_skip.span import Chunk, causal_mask


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


def test_sliding_and_full_layers_have_masks_of_their_own() -> None:
    decoder = LayeredDecoder(tiny_model("gemma2"))
    span = decoder.span(torch.arange(20)[None], 20, 0)
    assert set(span.masks) == {None, 12}
    assert (span.masks[None][0, 0, 19] == 0).sum() == 20
    assert (span.masks[12][0, 0, 19] == 0).sum() == 12


def test_rows_at_unequal_positions_have_no_common_start() -> None:
    decoder = LayeredDecoder(tiny_model("llama"))
    span = decoder.span(torch.tensor([[3, 4], [7, 8]]), 16, None)
    assert span.narrow(1, 1).start is None
