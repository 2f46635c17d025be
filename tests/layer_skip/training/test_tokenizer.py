"""The code tokenizer."""

from __future__ import annotations

import pytest

from layer_skip.training.tokenizer import END_OF_TEXT, PADDING, load_tokenizer, train_tokenizer

TEXTS = [
    "def f(x):\n    if x:\n        return x + 12\n    return None\n" * 20,
    "class A:\n\n    def g(self):\n        self.value = 'a'\n" * 20,
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS, 400).save_pretrained(folder)
    return load_tokenizer(folder)


@pytest.mark.parametrize(
    "text",
    [
        *TEXTS,
        "",
        " ",
        "\n",
        "\t x  \n\n \r\n y\r",
        "naïve 🐍 ∑ \x00 \u3000",
        "  leading, trailing  ",
        "1234567890 0x1F 1_000",
        "a  ,  b . c ! d ' s 're",
    ],
)
def test_every_text_comes_back_as_it_was(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_indentation_is_one_token_and_digits_stand_alone(tokenizer):
    pieces = tokenizer.convert_ids_to_tokens(tokenizer("if x:\n        return 12")["input_ids"])
    assert "ĊĠĠĠĠĠĠĠĠ" in pieces
    assert pieces[-2:] == ["1", "2"]


def test_end_and_padding_are_different_single_tokens(tokenizer):
    assert tokenizer.eos_token == tokenizer.bos_token == END_OF_TEXT
    assert tokenizer.pad_token == PADDING
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
    assert tokenizer(END_OF_TEXT)["input_ids"] == [tokenizer.eos_token_id]


def test_a_vocabulary_without_room_for_all_bytes_is_refused():
    with pytest.raises(ValueError, match="vocab_size=100; allowed: at least 258"):
        train_tokenizer(TEXTS, 100)
