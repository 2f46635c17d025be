"""Prompts for benchmarks, cut from files that training never saw."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from itertools import islice
from typing import Any

from layer_skip.training.data import STANDARD_LIBRARY, Corpus

# One prompt of each of these lengths, in tokens, beside the many of one length.
SPREAD_LENGTHS: tuple[int, ...] = (
    *(8, 12, 16, 24, 32, 48, 64, 80, 96, 112, 160, 192),
    *(224, 256, 320, 384, 448, 512, 600, 700, 800, 850, 900, 1000),
)


def _pieces(text: str, tokenizer: Any, length: int) -> list[str]:
    """Pieces of `text` of `length` tokens that do not overlap and start with a line that is not blank."""
    lines = text.splitlines(keepends=True)
    pieces = []
    at = 0
    while at < len(lines):
        if not lines[at].strip():
            at += 1
            continue
        ids = tokenizer("".join(lines[at : at + length]), add_special_tokens=False)["input_ids"][:length]
        piece = tokenizer.decode(ids)
        # A cut inside a character or a word can change how the piece itself is tokenized: leave it out.
        if len(ids) == length and tokenizer(piece, add_special_tokens=False)["input_ids"] == ids:
            pieces.append(piece)
        at += 1 + piece.count("\n")
    return pieces


def _take_turns(pools: list[list[tuple[str, str]]], number: int, trained_on: str) -> list[tuple[str, str]]:
    """The first of every pool, then the second, and so on until there are `number`; none trained on."""
    longest = max(map(len, pools), default=0)
    turns = (pool[depth] for depth in range(longest) for pool in pools if depth < len(pool))
    return list(islice((turn for turn in turns if turn[1] not in trained_on), number))


def held_out_prompts(
    corpus: Corpus, tokenizer: Any, count: int = 120, length: int = 128, seed: int = 0
) -> list[dict[str, str]]:
    """Rows {"id", "workload", "prompt"}: `count` prompts of `length` tokens, then one of each spread length.

    They come from the held-out files of the standard library, which take turns, so that no long one
    dominates. Pieces that a training file repeats word for word are left out. An id ends with the file's name
    and the length in tokens. Raises ValueError when the files do not hold enough text.
    """
    draw = random.Random(seed)
    files = [file for file in corpus.held_out if file.source == STANDARD_LIBRARY]
    trained_on = "\0".join(file.text for file in corpus.train)
    chosen: list[tuple[str, str, int]] = []
    for size, number in [(length, count), *((n, 1) for n in SPREAD_LENGTHS)]:
        pools = []
        for file in draw.sample(files, len(files)):
            pieces = _pieces(file.text, tokenizer, size)
            pools.append([(file.name, piece) for piece in draw.sample(pieces, len(pieces))])
        taken = _take_turns(pools, number, trained_on)
        if len(taken) < number:
            raise ValueError(f"{len(taken)} prompts of {size} tokens in the held-out files; needed: {number}")
        chosen += [(name, piece, size) for name, piece in taken]
    return [
        {"id": f"code-{place:03d}:{name}:{size}", "workload": "code", "prompt": piece}
        for place, (name, piece, size) in enumerate(chosen)
    ]


def as_jsonl(rows: Sequence[dict[str, str]]) -> str:
    """The rows as JSON Lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
