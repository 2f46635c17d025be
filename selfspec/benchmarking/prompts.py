"""Prompts from JSON Lines files, cut to a length in tokens, and padded into a batch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import selfspec

# In a wheel the prompts lie in the package, in a checkout beside the benchmarks.
_PACKAGE = Path(selfspec.__file__).parent
_BUNDLED = (_PACKAGE / "prompts" / "code.jsonl", _PACKAGE.parent / "benchmarks" / "prompts" / "code.jsonl")


class PromptsError(ValueError):
    """The prompts cannot be used; the message names the file, the line and what is wrong."""


def bundled_prompts() -> Path:
    """The bundled file of held-out code prompts.

    Raises:
        PromptsError: it is neither in the package nor in the checkout.
    """
    for path in _BUNDLED:
        if path.is_file():
            return path
    raise PromptsError("the bundled prompts are not installed; name a file with --prompts FILE.jsonl")


def read_prompts(path: Path) -> list[str]:
    """The prompts of a JSON Lines file, in order: a line's "prompt", or the first of its "turns".

    Raises:
        PromptsError: the file cannot be read, a line is not such an object, or there is no line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is not UTF-8 text"
        raise PromptsError(f"cannot read prompts from {path}: {reason}") from error
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise PromptsError(
            f'{path} has no prompts: write one JSON object a line, like {{"prompt": "def f("}}'
        )
    return [_prompt_of(line, f"{path}, line {number}") for number, line in lines]


def _prompt_of(line: str, where: str) -> str:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise PromptsError(f"{where}: not JSON ({error.msg}); every line must be an object") from error
    prompt = None
    if isinstance(entry, dict):
        turns = entry.get("turns")
        prompt = entry.get("prompt", turns[0] if isinstance(turns, list) and turns else None)
    if not isinstance(prompt, str) or not prompt:
        raise PromptsError(f'{where}: needs "prompt" with text, or "turns" with a list of texts')
    return prompt


def tokenized(
    tokenizer: Any, prompts: Sequence[str], n_tokens: int | None, limit: int | None
) -> list[list[int]]:
    """The first `limit` prompts as token ids; with `n_tokens`, only prompts that long, cut to that length.

    Raises:
        PromptsError: none is long enough.
    """
    ids = [list(tokenizer(prompt)["input_ids"]) for prompt in prompts]
    ids = [i for i in ids if i]
    if n_tokens is not None:
        ids = [i[:n_tokens] for i in ids if len(i) >= n_tokens]
    if not ids:
        raise PromptsError(f"no prompt has {n_tokens or 1} tokens; choose a smaller --prompt-tokens")
    return ids[:limit]


def left_padded(prompts: Sequence[Sequence[int]], pad: int, device: torch.device) -> dict[str, Tensor]:
    """input_ids and attention_mask [P, T] of prompts of any lengths."""
    width = max(map(len, prompts))
    ids = [[pad] * (width - len(p)) + list(p) for p in prompts]
    mask = [[0] * (width - len(p)) + [1] * len(p) for p in prompts]
    return {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }
