"""Prompts and options with which tuning a tiny model takes part of a second."""

from __future__ import annotations

from typing import Any

from tiny_models import random_prompts

PROMPTS = [[5, 6, 7], [9, 8], [1, 2, 3, 4], [40, 41]]
QUICK: dict[str, Any] = {"max_new_tokens": 16, "repeats": 1, "longest": 4}
REQUEST: dict[str, Any] = {**random_prompts(5), "max_new_tokens": 12, "pad_token_id": 0}
