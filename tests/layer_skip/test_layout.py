"""Spans of a model: what its layers see, and where tokens stand."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_model

from layer_skip.decoder import LayeredDecoder


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


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_candidates_share_positions_and_take_slots_of_their_own(family: str) -> None:
    decoder = LayeredDecoder(tiny_model(family))
    depths = torch.tensor([0, 1, 1, 2])
    ancestors = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1]]).bool()
    span = decoder.span(torch.tensor([[4], [9]]) + depths, 16, None, ancestors)
    assert span.positions.tolist() == [[4, 5, 5, 6], [9, 10, 10, 11]]
    assert span.slots.tolist() == [[4, 5, 6, 7], [9, 10, 11, 12]]
    part = span.narrow(2, 2)
    assert part.slots.tolist() == [[6, 7], [11, 12]]
    assert part.positions.tolist() == [[5, 6], [10, 11]]
    for window, mask in part.masks.items():
        assert torch.equal(mask, span.masks[window][:, :, 2:])
    assert set(span.masks) == ({None, 12} if family == "gemma2" else {None})
    if span.rope is not None:
        cosine = span.rope[0].expand(2, -1, -1)
        assert torch.equal(cosine[:, 1], cosine[:, 2])
        assert not torch.equal(cosine[:, 1], cosine[:, 3])


def test_rotary_scaling_that_depends_on_the_length_is_known() -> None:
    assert LayeredDecoder(tiny_model("llama")).fixed_rope_length is None
    assert LayeredDecoder(tiny_model("gpt2")).fixed_rope_length is None
    assert LayeredDecoder(tiny_model("llama with yarn")).fixed_rope_length is None
    dynamic = tiny_model("llama", rope_scaling={"rope_type": "dynamic", "factor": 2.0})
    assert LayeredDecoder(dynamic).fixed_rope_length == 256
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    longrope = tiny_model(
        "phi3", rope_scaling={"rope_type": "longrope", **factors}, original_max_position_embeddings=96
    )
    assert LayeredDecoder(longrope).fixed_rope_length == 96
