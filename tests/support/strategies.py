"""Every way to draft, as settings of `selfspec.wrap`."""

from __future__ import annotations

from typing import Any

from tiny_models import LAYERS
from torch import Tensor, nn

from layer_skip.decoder import LayeredDecoder
from layer_skip.packed_linear import PackedLinear
from selfspec.tuning.costs import WIDTHS, PassCosts

OWN_TREE = (0, 0, 0, 1, 1, 2, 4, 6)
"""Three firsts; two below the first of them and one below the second; one more below each of two of those."""

CHAINS: list[dict[str, Any]] = [
    {"draft": "early_exit", "exit_layer": 2, "draft_length": 3},
    {"draft": "early_exit"},
    {"draft": "low_bit", "exit_layer": 1, "draft_length": 3},
    {"draft": "low_bit", "exit_layer": LAYERS // 2, "draft_length": 2, "draft_bits": 8},
    {"draft": "low_bit", "exit_layer": LAYERS, "draft_length": 5},
    {"draft": "low_bit"},
    {"draft": "lookup", "draft_length": 5},
    {"draft": "lookup"},
    {"draft": "hybrid", "draft_length": 3},
    {"draft": "hybrid", "exit_layer": LAYERS},
    {},
]
TREES: list[dict[str, Any]] = [
    {"draft": "early_exit", "exit_layer": 3, "draft_length": 4, "tree": "siblings"},
    {"draft": "early_exit", "tree": OWN_TREE},
    {"draft": "low_bit", "exit_layer": 1, "draft_length": 3, "tree": OWN_TREE},
    {"draft": "low_bit", "exit_layer": LAYERS // 2, "draft_length": 4, "tree": "siblings"},
    {"draft": "low_bit", "exit_layer": LAYERS, "draft_length": 3, "tree": OWN_TREE},
    {"draft": "low_bit", "tree": "siblings"},
    {"draft": "hybrid", "draft_length": 3, "tree": "siblings"},
    {"draft": "hybrid", "tree": OWN_TREE},
    {"tree": "siblings"},
    {"tree": OWN_TREE},
]
EVERY = CHAINS + TREES
KINDS: list[dict[str, Any]] = [
    {"exit_layer": 2, "draft_length": 0},
    {"exit_layer": 2, "draft_length": 3},
    {"exit_layer": 3, "draft_length": 8},
    {"exit_layer": 2, "draft_length": 3, "tree": "siblings"},
    {"draft": "lookup"},
    {"draft": "auto"},
]
"""One of each kind of round, no drafts first."""


def costs_under_which_drafts_pay(decoder: LayeredDecoder, *_: object) -> PassCosts:
    """In place of timing: a pass costs the same for any tokens, and a tenth in low bits.

    On a real machine these models are bound by overhead, and "auto" would rightly draft little.
    """
    modules: list[nn.Module] = list(decoder.layers[0].modules())
    layer = 0.1 if any(isinstance(module, PackedLinear) for module in modules) else 1.0
    return PassCosts((layer,) * len(WIDTHS), (layer / 10,) * len(WIDTHS))


def with_repeats(prompts: dict[str, Tensor]) -> dict[str, Tensor]:
    """The prompts, the longer ones with a phrase of theirs repeated at the end: something to find."""
    ids = prompts["input_ids"].clone()
    for row, mask in zip(ids, prompts["attention_mask"], strict=True):
        if int(mask.sum()) >= 8:
            row[-2:] = row[-7:-5]
    return {**prompts, "input_ids": ids}
