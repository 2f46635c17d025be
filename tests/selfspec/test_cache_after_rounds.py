"""What the cache holds after every round: what a fresh forward over the committed text computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checks import own_generate
from fake_drafters import RIGHT, TREE
from tiny_models import LAYERS, random_prompts, tiny_model
from torch import Tensor
from transformers import DynamicCache

import selfspec
from selfspec.call import Call


@pytest.mark.parametrize("right", RIGHT)
@pytest.mark.parametrize("lengths", [(9,), (6, 6), (4, 11, 7)])
def test_the_cache_holds_after_every_round_what_a_fresh_forward_computes(
    family: str, scripted: Any, after_every_round: Any, right: str, lengths: tuple[int, ...]
) -> None:
    prompts = random_prompts(*lengths)
    model = scripted(tiny_model(family), prompts, RIGHT[right], 3)
    looked: list[int] = []
    after_every_round(lambda call: looked.extend(rows_with_a_right_cache(model, call)))
    model.generate(**prompts, max_new_tokens=14)
    assert set(looked) == set(range(len(lengths)))


def rows_with_a_right_cache(model: Any, call: Call) -> list[int]:
    """Compare the cache of every active row with that of a forward over its committed tokens."""
    rows = call.rows
    for i, row in enumerate(rows.active):
        committed = rows.sequences[row : row + 1, rows.pads[row] : rows.ends()[i]]
        assert committed.shape[1] == rows.cached[i] + 1
        fresh = DynamicCache()  # keeps every key, in sliding layers too
        model(committed[:, :-1], past_key_values=fresh)
        for layer in range(LAYERS):
            for stored, expected in (
                (call.cache.keys[layer], fresh.layers[layer].keys),
                (call.cache.values[layer], fresh.layers[layer].values),
            ):
                assert stored is not None
                actual = stored[i : i + 1, :, : rows.cached[i]]
                torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)
    return list(rows.active)


@pytest.mark.parametrize("tree", ["siblings", TREE], ids=str)
@pytest.mark.parametrize("lengths", [(9,), (4, 11, 7)])
def test_the_cache_holds_that_after_rounds_with_trees_too(
    family: str, scripted: Any, after_every_round: Any, tree: Any, lengths: tuple[int, ...]
) -> None:
    prompts = random_prompts(*lengths)
    model = scripted(
        tiny_model(family),
        prompts,
        lambda row, index: (index + row) % 5 != 4,
        3,
        place=lambda row, index: (index * (row + 1)) % 3 % 2,
        tree=tree,
    )
    looked: list[int] = []
    moved: list[Tensor] = []
    gather = selfspec.cache.KVCache.gather

    def noted(self: Any, starts: Tensor, columns: Tensor) -> None:
        moved.append(columns)
        gather(self, starts, columns)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selfspec.cache.KVCache, "gather", noted)
        after_every_round(lambda call: looked.extend(rows_with_a_right_cache(model, call)))
        out = model.generate(**prompts, max_new_tokens=14)
    assert torch.equal(out, own_generate(model, **prompts, max_new_tokens=14))
    assert set(looked) == set(range(len(lengths)))
    in_order = [torch.equal(c, torch.arange(c.shape[1]).expand_as(c)) for c in moved]
    assert not all(in_order)  # branches were brought together


@pytest.mark.parametrize(
    "settings",
    [
        {"draft": "low_bit", "exit_layer": LAYERS},
        {"draft": "low_bit", "exit_layer": 2, "tree": "siblings"},
        {"draft": "lookup"},
        {"draft": "hybrid", "tree": TREE},
    ],
    ids=str,
)
def test_the_cache_holds_that_whoever_drafts(after_every_round: Any, settings: dict[str, Any]) -> None:
    """What a view of few bits wrote for its drafts is gone, and found tokens are run by all layers."""
    model = tiny_model("gemma2")
    prompts = random_prompts(9, 4, 12)
    prompts["input_ids"][:, -4:-2] = prompts["input_ids"][:, -2:]  # something to find
    selfspec.wrap(model, **settings, draft_length=3)
    looked: list[int] = []
    after_every_round(lambda call: looked.extend(rows_with_a_right_cache(model, call)))
    model.generate(**prompts, max_new_tokens=24)
    assert set(looked) == {0, 1, 2}
    assert model.speculation.stats.drafted > 0
