"""Prompts from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from selfspec.benchmarking.prompts import PromptsError, bundled_prompts, read_prompts, tokenized


def split(text: str) -> dict[str, Any]:
    """A tokenizer: one token a character."""
    return {"input_ids": [ord(c) for c in text]}


def test_both_kinds_of_line_are_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "one"}\n\n{"turns": ["two", "later"]}\n', encoding="utf-8")
    assert read_prompts(path) == ["one", "two"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "no prompts"),
        (b"\n\n", "no prompts"),
        (b'{"prompt": "fine"}\n{"prompt":', "line 2: not JSON"),
        (b'{"text": "x"}', 'line 1: needs "prompt"'),
        (b'{"prompt": ""}', 'line 1: needs "prompt"'),
        (b'{"turns": []}', 'line 1: needs "prompt"'),
        (b'["prompt"]', 'line 1: needs "prompt"'),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_an_unusable_file_is_refused_with_its_line(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(content)
    with pytest.raises(PromptsError, match=complaint) as caught:
        read_prompts(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PromptsError, match="No such file"):
        read_prompts(tmp_path / "none.jsonl")


def test_prompts_are_cut_and_short_ones_left_out() -> None:
    assert tokenized(split, ["abc", "a", "abcd"], 2, None) == [[97, 98], [97, 98]]
    assert tokenized(split, ["abc", "", "a"], None, 1) == [[97, 98, 99]]


def test_prompts_that_are_all_too_short_are_refused() -> None:
    with pytest.raises(PromptsError, match="no prompt has 9 tokens"):
        tokenized(split, ["abc"], 9, None)


def test_the_bundled_prompts_are_there() -> None:
    assert len(read_prompts(bundled_prompts())) >= 100
