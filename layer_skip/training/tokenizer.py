"""A byte-level BPE tokenizer for source code: indentation is one token, digits stand alone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|pad|>"

# What a merge may not cross. A line break takes its indentation along ("\n        " is the commonest unit of
# Python), a word takes the one space before it, digits stand alone, punctuation keeps together.
CODE_PATTERN = r"\r?\n[\t ]*(?=[^\s]|$)|\s*\n+|\p{N}| ?\p{L}+| ?_+| ?[^\s\p{L}\p{N}_]+|[\t ]+(?=[^\s])|\s+"


def train_tokenizer(texts: Iterable[str], vocab_size: int = 4096) -> Any:
    """Train and return a `PreTrainedTokenizerFast` of exactly `vocab_size` entries or fewer.

    Any text round-trips: decode(encode(text)) == text. The end-of-text token doubles as beginning; padding is
    a token of its own, so that a mask can be told from a document's end.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if vocab_size < 258:
        raise ValueError(f"vocab_size={vocab_size}; allowed: at least 258 (256 bytes and two special tokens)")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CODE_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, PADDING],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PADDING,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer saved in `folder`."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(str(folder))
