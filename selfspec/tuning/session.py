"""`model.speculation.tune`: prompts as a user has them, and a profile where `wrap` finds it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfspec.config import SpeculationConfig
from selfspec.files import prepare_folder
from selfspec.tuning import store
from selfspec.tuning.tune import Tuned, tune

_KEPT = "kept"


def tune_model(
    model: Any,
    prompts: Any,
    *,
    workload: str,
    config: SpeculationConfig,
    tokenizer: Any = None,
    save: str | Path | None = _KEPT,
    **options: Any,
) -> Tuned:
    """Tune, and write the profile once it is whole.

    Raises:
        ValueError: a workload without a name, no prompts, prompts as text without a tokenizer.
        OSError: the file named by `save` cannot be written; nothing has been measured yet.
    """
    if not isinstance(workload, str) or not workload.strip():
        raise ValueError(f"workload={workload!r}: a name is needed, such as 'code'")
    ids = token_ids(prompts, tokenizer)
    if save is not None and save != _KEPT:
        prepare_folder(Path(save).parent)
    tuned = tune(model, ids, workload=workload, deterministic=config.deterministic, **options)
    if save is None:
        return tuned
    try:
        tuned.profile.save(store.default_path(tuned.profile) if save == _KEPT else save)
    except OSError as error:
        if save != _KEPT:
            raise
        # The profile is in use all the same; only the next process will not find it.
        warnings.warn(f"the profile could not be kept ({error}): name a file with save=", stacklevel=3)
    return tuned


def token_ids(prompts: Any, tokenizer: Any = None) -> list[list[int]]:
    """Token ids of prompts given as ids, tensors, or texts.

    Raises:
        ValueError: one text in place of a list, texts without a tokenizer, an empty prompt.
    """
    if isinstance(prompts, str):
        raise ValueError("prompts is one text: pass a list of prompts")
    found = [_ids(prompt, tokenizer) for prompt in prompts]
    empty = [i for i, prompt in enumerate(found) if not prompt]
    if empty:
        raise ValueError(f"prompt {empty[0]} is empty: pass at least one token")
    return found


def _ids(prompt: Any, tokenizer: Any) -> list[int]:
    if isinstance(prompt, str):
        if tokenizer is None:
            raise ValueError("prompts are texts: pass tokenizer= as well, or token ids")
        return list(tokenizer(prompt)["input_ids"])
    tokens: Sequence[Any] = prompt.flatten().tolist() if hasattr(prompt, "flatten") else prompt
    return [int(token) for token in tokens]
