"""`model.speculation.tune`: prompts as a user has them, and a profile where `wrap` finds it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from layer_skip.low_bit import LowBitView
from selfspec.config import SpeculationConfig
from selfspec.files import prepare_file
from selfspec.tuning import store
from selfspec.tuning.tune import Tuned, tune

KEEP = object()
"""Save a profile where `wrap` finds it by itself."""


def tune_model(
    model: Any,
    prompts: Any,
    *,
    workload: str,
    config: SpeculationConfig,
    view: LowBitView | None = None,
    tokenizer: Any = None,
    save: Any = KEEP,
    **options: Any,
) -> Tuned:
    """Tune, and write the profile once it is whole.

    Args:
        config: what calls run with.
        view: the low-bit view that calls have, None where they have none.
        save: a file; None to keep the profile in memory only.

    Raises:
        ValueError: a workload without a name, no prompts, prompts as text without a tokenizer.
        OSError: the file named by `save` cannot be written; nothing has been measured yet.
    """
    if not isinstance(workload, str) or not workload.strip():
        raise ValueError(f"workload={workload!r}: a name is needed, such as 'code'")
    ids = token_ids(prompts, tokenizer)
    if save is not None and save is not KEEP:
        prepare_file(Path(save))
    same = {"deterministic": config.deterministic, "graph_memory": config.graph_memory}
    tuned = tune(model, ids, workload=workload, view=view, **{**same, **options})
    if save is None:
        return tuned
    profile = tuned.profile
    try:
        profile.save(store.default_path(profile.identity, workload) if save is KEEP else save)
    except OSError as error:
        if save is not KEEP:
            raise
        # The profile is in use all the same; only the next process will not find it.
        warnings.warn(f"the profile could not be kept ({error}): name a file with save=", stacklevel=3)
    return tuned


def token_ids(prompts: Any, tokenizer: Any = None) -> list[list[int]]:
    """Token ids of prompts given as ids, tensors, texts, or a tokenizer's output (its padding left out).

    Raises:
        ValueError: one text in place of a list, texts without a tokenizer, an empty prompt, another mapping,
            several prompts in one place.
    """
    if isinstance(prompts, str):
        raise ValueError("prompts is one text: pass a list of prompts")
    if isinstance(prompts, Mapping):
        found = _unpadded(prompts)
    else:
        found = [_ids(i, prompt, tokenizer) for i, prompt in enumerate(prompts)]
    empty = [i for i, prompt in enumerate(found) if not prompt]
    if empty:
        raise ValueError(f"prompt {empty[0]} is empty: pass at least one token")
    return found


def _unpadded(encoded: Mapping[str, Any]) -> list[list[int]]:
    if "input_ids" not in encoded:
        raise ValueError(f"prompts have {', '.join(encoded)}: pass a list, or what a tokenizer returns")
    ids = [_ids(i, row, None) for i, row in enumerate(encoded["input_ids"])]
    if "attention_mask" not in encoded:
        return ids
    masks = [_ids(i, row, None) for i, row in enumerate(encoded["attention_mask"])]
    return [
        [token for token, kept in zip(row, mask, strict=True) if kept]
        for row, mask in zip(ids, masks, strict=True)
    ]


def _ids(place: int, prompt: Any, tokenizer: Any) -> list[int]:
    if isinstance(prompt, str):
        if tokenizer is None:
            raise ValueError("prompts are texts: pass tokenizer= as well, or token ids")
        return list(tokenizer(prompt)["input_ids"])
    if isinstance(prompt, Mapping):
        raise ValueError(f"prompt {place} is a {type(prompt).__name__}: pass its token ids")
    if getattr(prompt, "ndim", 1) == 2 and len(prompt) == 1:
        prompt = prompt[0]  # as a tokenizer returns a single text
    try:
        return [int(token) for token in prompt]
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"prompt {place} is not one prompt: pass a list of token ids, or a tensor of one row, for each"
        ) from error
