"""The support matrix, and the README's copy of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from layer_skip.families import FAMILIES
from layer_skip.refusals import REFUSED
from layer_skip.support_matrix import END, markdown, rewrite, support_matrix

README = Path(__file__).resolve().parents[2] / "README.md"


def test_every_family_is_in_the_matrix_once() -> None:
    names = [row.family for row in support_matrix()]
    assert sorted(names) == sorted([*FAMILIES, *REFUSED])
    assert all(row.notes for row in support_matrix() if not row.supported)


def test_the_readme_has_the_current_matrix() -> None:
    text = README.read_text(encoding="utf-8")
    assert rewrite(text) == text, "run: python -m layer_skip.support_matrix README.md"


def test_rewriting_replaces_what_stood_between_the_markers() -> None:
    text = README.read_text(encoding="utf-8").replace(markdown(), "something old")
    assert markdown() in rewrite(text)
    with pytest.raises(ValueError, match="the markers"):
        rewrite(text.replace(END, ""))
