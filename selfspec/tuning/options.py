"""What tuning can be asked for: checked before anything is measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from selfspec.config import MAX_DRAFT_LENGTH
from selfspec.tuning.prediction import Limits
from selfspec.tuning.search import LONGEST

_LEAST = {"max_new_tokens": 1, "batch": 1, "longest": 1, "repeats": 1}
_OWN = ("inputs", "input_ids", "attention_mask", "max_new_tokens", "max_length", "custom_generate")
"""Arguments of generate that tuning sets itself."""
_ONE = ("num_return_sequences", "num_beams")


@dataclass(frozen=True)
class TuneOptions:
    """How to tune.

    Raises:
        ValueError: a value out of its range, with the allowed ones in the message.
    """

    max_new_tokens: int = 128
    batch: int = 1
    """Prompts generated together."""
    limits: Limits = field(default_factory=Limits)
    longest: int = LONGEST
    """Longest draft that is tried."""
    seed: int = 0
    deterministic: bool = True
    repeats: int = 5
    """Times that every kind of round is timed."""
    siblings: bool | None = None
    """Whether calls may draft second choices beside a chain. None: where that cannot flip a near-tie, in
    float32 and where `deterministic` is off anyway. Rounds on a device never do."""
    graph_memory: int | str = "2GiB"
    """As in `SpeculationConfig`: on a device rounds are timed as its calls run them."""
    generate_arguments: Mapping[str, Any] = field(default_factory=dict)
    """The workload's sampling, such as do_sample and temperature (default: greedy); a profile names them, so
    they are what JSON can hold."""

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            most = MAX_DRAFT_LENGTH if name == "longest" else None
            if (
                isinstance(value, bool)
                or not isinstance(value, int)
                or value < least
                or value > (most or value)
            ):
                allowed = f"{least} to {most}" if most else f"{least} and more"
                raise ValueError(f"{name}={value!r}: allowed is a whole number, {allowed}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ValueError(f"seed={self.seed!r}: allowed is a whole number")
        if self.siblings not in (None, True, False):
            raise ValueError(f"siblings={self.siblings!r}: allowed are True, False and None")
        if not isinstance(self.limits, Limits):
            raise ValueError(f"limits={self.limits!r}: allowed is selfspec.tuning.prediction.Limits(...)")
        self._check_arguments()
        object.__setattr__(self, "generate_arguments", {"do_sample": False, **self.generate_arguments})

    def _check_arguments(self) -> None:
        arguments = self.generate_arguments
        if not isinstance(arguments, Mapping):
            raise ValueError(f"generate_arguments={arguments!r}: allowed are keywords of generate by name")
        for name, value in arguments.items():
            if name in _OWN:
                raise ValueError(f"generate_arguments: {name} is set by tuning itself; leave it out")
            if name in _ONE and value not in (None, 1):
                raise ValueError(f"generate_arguments: {name}={value!r}, allowed is 1")
            try:
                json.dumps(value)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"generate_arguments: {name}={value!r} is no value that a profile can hold; allowed are "
                    "numbers, texts, and lists of them"
                ) from error

    def may_branch(self, dtype: torch.dtype) -> bool:
        """Whether calls of a model of this dtype may draft siblings."""
        harmless = dtype == torch.float32 or not self.deterministic
        return harmless if self.siblings is None else self.siblings
