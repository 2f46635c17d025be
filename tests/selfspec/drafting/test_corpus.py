"""The corpus that lookup may copy from: what is read, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checks import own_generate
from strategies import costs_under_which_drafts_pay
from tiny_models import random_prompts
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import selfspec
from selfspec import speculation
from selfspec.config import ConfigError
from selfspec.drafting.corpus import read_corpus


def test_a_corpus_of_token_ids_is_taken_as_it_is() -> None:
    corpus = read_corpus(None, [1, 2, 3, 1], 4)
    assert corpus is not None
    assert corpus.tokens.tolist() == [1, 2, 3, 1]
    assert read_corpus(None, None, 4) is None


@pytest.fixture
def in_a_folder(llama: Any, tmp_path: Path) -> Any:
    """A model that names the folder of its tokenizer: one token a word."""
    words = {word: i for i, word in enumerate(["<unk>", "to", "be", "or", "not"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(tmp_path)
    llama.config._name_or_path = str(tmp_path)
    return llama


def test_a_corpus_file_is_read_with_the_models_own_tokenizer(in_a_folder: Any, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("to be or not to be", encoding="utf-8")
    for corpus in (path, str(path)):
        automaton = read_corpus(in_a_folder, corpus, 97)
        assert automaton is not None
        assert automaton.tokens.tolist() == [1, 2, 3, 4, 1, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"corpus='.*notes.txt': No such file or directory"),
        (b"\xff\xfe\x00\x81", r"corpus='.*notes.txt': not a UTF-8 text file \(invalid start byte\)"),
        (b"\x00\x01to be", r"corpus='.*notes.txt': not a text file \(it holds NUL characters\)"),
    ],
)
def test_a_corpus_that_cannot_be_read_is_refused_and_nothing_is_changed(
    in_a_folder: Any, tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "notes.txt"
    if content is not None:
        path.write_bytes(content)
    before = dict(vars(in_a_folder))
    with pytest.raises(ConfigError, match=message):
        selfspec.wrap(in_a_folder, draft="lookup", corpus=str(path))
    assert vars(in_a_folder) == before


def test_a_corpus_file_for_a_model_without_a_tokenizer_says_what_to_pass(llama: Any, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("to be", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"pass token ids: corpus=tokenizer\(text\)\.input_ids"):
        selfspec.wrap(llama, draft="hybrid", corpus=str(path))
    assert not selfspec.is_wrapped(llama)


@pytest.mark.parametrize("draft", ["auto", "lookup", "hybrid"])
def test_tokens_that_the_model_has_not_are_refused_and_nothing_is_changed(llama: Any, draft: str) -> None:
    before = dict(vars(llama))
    with pytest.raises(ConfigError, match="corpus: token id 97 is outside the model's vocabulary of 97"):
        selfspec.wrap(llama, draft=draft, corpus=[1, 96, 97, 2])
    assert vars(llama) == before
    selfspec.wrap(llama, draft=draft, corpus=[1, 96, 2])


def test_a_tokenizer_with_more_tokens_than_the_model_embeds_is_noticed(
    in_a_folder: Any, tmp_path: Path
) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("to be or not", encoding="utf-8")
    in_a_folder.resize_token_embeddings(4)
    with pytest.raises(ConfigError, match=r"id 4 is outside .* 4: its tokenizer has more tokens than"):
        selfspec.wrap(in_a_folder, draft="lookup", corpus=path)


@pytest.mark.parametrize(
    "settings", [{}, {"draft_length": 4}, {"draft": "lookup"}, {"draft": "hybrid"}], ids=str
)
def test_every_draft_that_looks_up_reads_the_corpus(llama: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="corpus='/does/not/exist': No such file"):
        selfspec.wrap(llama, corpus="/does/not/exist", **settings)


def test_the_default_draft_copies_from_the_corpus(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speculation, "time_passes", costs_under_which_drafts_pay)
    prompt = random_prompts(7)["input_ids"]
    text = own_generate(llama, prompt, max_new_tokens=48)
    rounds = []
    for corpus in (None, text[0].tolist()):
        selfspec.wrap(llama, draft_memory=0, draft_length=8, corpus=corpus)
        assert torch.equal(llama.generate(prompt, max_new_tokens=48), text)
        rounds.append(llama.speculation.stats.rounds)
    assert rounds[1] < 0.7 * rounds[0]
