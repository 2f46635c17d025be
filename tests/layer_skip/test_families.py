"""The table of model families."""

from __future__ import annotations

import ast
import inspect
from typing import Any

import pytest
import torch
from tiny_models import VARIANTS, random_prompts, tiny_model

from layer_skip import families
from layer_skip.decoder import LayeredDecoder
from layer_skip.exits import exit_choices
from layer_skip.families import FAMILIES
from layer_skip.refusals import REFUSED


def test_a_family_is_a_row_of_at_most_ten_lines() -> None:
    tree = ast.parse(inspect.getsource(families))
    rows: Any = next(
        n for n in tree.body if isinstance(n, ast.Assign) and "_ROWS" in ast.unparse(n.targets[0])
    )
    lengths = {row.args[0].value: row.end_lineno - row.lineno + 1 for row in rows.value.elts}
    assert lengths.keys() == FAMILIES.keys()
    assert max(lengths.values()) <= 10, max(lengths, key=lengths.__getitem__)


def test_no_family_is_both_supported_and_refused() -> None:
    assert not FAMILIES.keys() & REFUSED.keys()


@pytest.mark.parametrize("name", [*FAMILIES, *VARIANTS])
def test_tiny_models_are_lively_enough_to_test_with(name: str) -> None:
    """Of the tests' own models: greedy text varies, exits are right sometimes and not always."""
    model: Any = tiny_model(name)
    out = model.generate(**random_prompts(6, 9, 12, 15), max_new_tokens=40, do_sample=False)
    assert torch.unique(out[:, -40:]).numel() >= 15
    agreement = exit_choices(LayeredDecoder(model), out[3]).agreement
    assert all(share < 0.95 for share in agreement[:-1])
    assert max(agreement[:-1]) > 0.05
