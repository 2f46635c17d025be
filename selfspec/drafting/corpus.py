"""The corpus that lookup may copy from, as an automaton."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfspec.drafting.suffix_automaton import SuffixAutomaton
from selfspec.values import ConfigError


def read_corpus(
    model: Any, corpus: str | Path | Sequence[int] | None, vocab_size: int
) -> SuffixAutomaton | None:
    """The automaton of a corpus: a text file, or token ids.

    Raises:
        ConfigError: a file that is not there or not text, a model without a tokenizer to read it with, or
            token ids that the model has not.
    """
    if corpus is None:
        return None
    if isinstance(corpus, (str, Path)):
        tokens, cause = _read(model, corpus), "its tokenizer has more tokens than it embeds"
    else:
        tokens, cause = corpus, "are they another tokenizer's?"
    highest = max(tokens, default=0)
    if highest >= vocab_size:
        raise ConfigError(
            f"corpus: token id {highest} is outside the model's vocabulary of {vocab_size}: {cause}"
        )
    return SuffixAutomaton(tokens)


def _read(model: Any, corpus: str | Path) -> Sequence[int]:
    """The token ids of a text file."""
    try:
        text = Path(corpus).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"corpus={str(corpus)!r}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"corpus={str(corpus)!r}: not a UTF-8 text file ({error.reason})") from error
    if "\0" in text:
        raise ConfigError(f"corpus={str(corpus)!r}: not a text file (it holds NUL characters)")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model.config._name_or_path)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"corpus={str(corpus)!r}: this model names no folder to take its tokenizer from; "
            "pass token ids: corpus=tokenizer(text).input_ids"
        ) from error
    tokens: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return tokens
