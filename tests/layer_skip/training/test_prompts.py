"""Benchmark prompts come from held-out text and have the length that their id says."""

from __future__ import annotations

import json

import pytest

from layer_skip.training import prompts
from layer_skip.training.data import Corpus, SourceFile
from layer_skip.training.prompts import as_jsonl, held_out_prompts
from layer_skip.training.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer(corpus):
    return train_tokenizer([file.text for file in corpus.train], 400)


@pytest.fixture(autouse=True)
def two_lengths(monkeypatch):
    monkeypatch.setattr(prompts, "SPREAD_LENGTHS", (8, 40))


def test_prompts_have_the_promised_lengths_and_come_from_held_out_files(corpus, tokenizer):
    rows = held_out_prompts(corpus, tokenizer, count=6, length=24)
    lengths = [len(tokenizer(row["prompt"])["input_ids"]) for row in rows]
    assert lengths == [24] * 6 + [8, 40]
    assert [int(row["id"].rsplit(":", 1)[1]) for row in rows] == lengths
    for row in rows:
        assert any(row["prompt"] in file.text for file in corpus.held_out)
        assert not any(row["prompt"] in file.text for file in corpus.train)
    assert len({row["id"].split(":")[1] for row in rows[:6]}) == len(corpus.held_out)


def test_text_that_training_repeats_is_left_out(corpus, tokenizer):
    leaked = SourceFile("made-up/leak.py", "made-up", corpus.held_out[0].text)
    rows = held_out_prompts(
        Corpus((*corpus.train, leaked), corpus.held_out, corpus.versions), tokenizer, count=4, length=24
    )
    assert {row["id"].split(":")[1] for row in rows} == {corpus.held_out[1].name}


def test_too_little_held_out_text_is_an_error(corpus, tokenizer):
    with pytest.raises(ValueError, match="prompts of 24 tokens in the held-out files; needed: 9999"):
        held_out_prompts(corpus, tokenizer, count=9999, length=24)


def test_rows_are_json_lines(corpus, tokenizer):
    rows = held_out_prompts(corpus, tokenizer, count=2, length=24)
    assert [json.loads(line) for line in as_jsonl(rows).splitlines()] == rows
