"""The corpus that lookup may copy from, as an automaton."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfspec.drafting.suffix_automaton import SuffixAutomaton
from selfspec.values import ConfigError


def read_corpus(model: Any, corpus: str | Path | Sequence[int] | None) -> SuffixAutomaton | None:
    """The automaton of a corpus: a text file, or token ids.

    Raises:
        ConfigError: a file that is not there or not text, or a model without a tokenizer to read it with.
    """
    if corpus is None:
        return None
    if not isinstance(corpus, (str, Path)):
        return SuffixAutomaton(corpus)
    try:
        text = Path(corpus).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"corpus={str(corpus)!r}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"corpus={str(corpus)!r}: not a UTF-8 text file ({error.reason})") from error
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model.config._name_or_path)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"corpus={str(corpus)!r}: this model names no folder to take its tokenizer from; "
            "pass token ids: corpus=tokenizer(text).input_ids"
        ) from error
    return SuffixAutomaton(tokenizer(text, add_special_tokens=False).input_ids)
