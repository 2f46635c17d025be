"""Who is measured: one row per way of generating with the same weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import selfspec

GENERATE = "generate"
AR = "AR"
SELFSPEC = "selfspec"
EARLY_EXIT = "assistant_early_exit"
LOOKUP = "prompt_lookup"


@dataclass(frozen=True)
class Contender:
    """One way of generating.

    `speculation` are settings of `selfspec.wrap`, None for the model's own generate. `arguments` are added to
    every generate call, `defaults` are written to the contender's own copy of the generation config (the
    built-in assisted decoding reads some settings only there). `max_rows` is the largest batch it can do.
    `baseline` names the AR contender of the same settings, whose sampled text this one must reproduce.
    """

    name: str
    about: str
    speculation: Mapping[str, Any] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    max_rows: int | None = None
    baseline: str = AR


def standard_contenders(exit_layer: int, settings: Mapping[str, Any]) -> tuple[Contender, ...]:
    """The contenders of `selfspec bench`.

    Args:
        exit_layer: E of the built-in early exit, the same as selfspec's own.
        settings: settings of selfspec, as given to `selfspec.wrap`.
    """
    return (
        Contender(GENERATE, "the model's own generate"),
        Contender(AR, "the engine with draft length 0", {**settings, "draft_length": 0, "profile": None}),
        Contender(SELFSPEC, "drafts of its own, one verification pass", settings),
        Contender(
            EARLY_EXIT,
            f"the built-in early exit of transformers, E = {exit_layer}",
            arguments={"assistant_early_exit": exit_layer},
            max_rows=1,
        ),
        Contender(
            LOOKUP,
            "the built-in prompt lookup of transformers",
            arguments={"prompt_lookup_num_tokens": 10},
            max_rows=1,
        ),
    )


def bind(model: Any, contender: Contender) -> Any:
    """A shell of the model that generates in this contender's way; every weight is shared.

    The shell has its own generation config with an end token that no text has, so that all contenders write
    the same number of tokens, and its own wrapping, so that contenders can take turns without being wrapped
    again. Falling back to the model's own generate would measure something else, so it is an error here.
    """
    shell = copy.copy(model)
    for attribute in ("generate", "speculation"):
        shell.__dict__.pop(attribute, None)
    shell.generation_config = copy.deepcopy(model.generation_config)
    # Not None: looking for an end costs every contender what it costs in earnest, and some releases of
    # transformers cannot do assisted decoding without one.
    shell.generation_config.eos_token_id = -1
    for name, value in contender.defaults.items():
        setattr(shell.generation_config, name, value)
    if contender.speculation is None:
        return shell
    return selfspec.wrap(shell, **{**contender.speculation, "strict": True})
