"""The page of never_slower.py where a text was another."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import never_slower
import pytest
from never_slower import AGAIN, AR, AUTO, GENERATE

OPTIONS: Any = SimpleNamespace(prompt_tokens=128, new_tokens=64)
CONDITIONS = {"versions": {}, "hardware": "CPU", "threads": 2, "dtype": "float32"}


def report(*refused: str) -> Any:
    """Three calls of everyone, the default twice as fast as AR; none of those that are refused."""
    seconds = {GENERATE: 1.0, AR: 2.0, AGAIN: 2.0, AUTO: 1.0}
    lines = {
        name: SimpleNamespace(
            name=name,
            seconds=() if name in refused else [own] * 3,
            acceptance_length=None,
            distinct_3grams=1.0,
            checked="",
            about="",
        )
        for name, own in seconds.items()
    }
    return SimpleNamespace(lines=lines.values(), line=lines.__getitem__, conditions=CONDITIONS)


@pytest.mark.parametrize(
    ("refused", "cells"),
    [
        ((), "2.00 (2.00-2.00) | 1.00 (1.00-1.00) | 1.00 (1.00-1.00)"),
        ((AUTO,), "refused | 1.00 (1.00-1.00) | refused"),
        ((AR, AGAIN, AUTO), "refused | refused | refused"),
        ((AR,), "refused | refused | 1.00 (1.00-1.00)"),
    ],
)
def test_a_speed_is_given_only_where_both_texts_stand(refused: tuple[str, ...], cells: str) -> None:
    page = never_slower.page({"reference, chat, greedy": never_slower.row(report(*refused))}, OPTIONS)
    assert f"| reference, chat, greedy | {cells} |" in page
    assert ("target 0.97: MISSED" in page) is bool(refused)
