"""The settings of a training run."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from layer_skip.training.recipe import CURRICULA, EXIT_WEIGHTINGS

OPTIMIZERS: tuple[str, ...] = ("muon", "adamw")
COMPUTE_DTYPES: tuple[str, ...] = ("bfloat16", "float32")


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides what a run computes, in plain values that fit a JSON file or CLI options.

    Model (Llama architecture, tied embeddings): `layers`, `hidden_size`, `heads`, `kv_heads`,
    `intermediate_size`, `vocab_size`, `max_positions` (tokens), `rope_theta`.
    Length: `max_steps` or `max_seconds` (exactly one is set). Only with `max_steps` does a resumed run
    compute exactly what an uninterrupted one would.
    Data: `tokens_per_step`, `sequence_length` (tokens); every `long_every`-th step (0: never) uses
    `long_sequence_length` instead, so that late positions are trained; `held_out_fraction` of the files.
    Optimisation: `optimizer` for the weight matrices (norms and embeddings always use AdamW),
    `learning_rate`, `weight_decay`, `warmup_steps`, `decay_fraction` (the share of the run
    in which the rate falls to zero), `clip_norm`.
    Recipe: `recipe` False is plain training of the same shape on the same data; `max_dropout` is p_max;
    `from_scratch` picks S(t); `e_scale`, `exit_weighting`, `curriculum`, `rotation` shape the exit loss;
    `distill` in [0, 1] moves the exits' targets towards the last layer's distribution (0: as in the paper);
    `decay_distill` replaces it while the learning rate decays (None: no change).
    House-keeping: `seed`, `threads` (0: torch's choice), `checkpoint_seconds`, `compute_dtype`.
    """

    layers: int = 16
    hidden_size: int = 256
    heads: int = 4
    kv_heads: int = 2
    intermediate_size: int = 288
    vocab_size: int = 4096
    max_positions: int = 2048
    rope_theta: float = 10000.0
    max_steps: int | None = 2400
    max_seconds: float | None = None
    tokens_per_step: int = 4096
    sequence_length: int = 256
    long_sequence_length: int = 1024
    long_every: int = 8
    held_out_fraction: float = 0.05
    optimizer: str = "muon"
    learning_rate: float = 4e-3
    weight_decay: float = 0.1
    warmup_steps: int = 50
    decay_fraction: float = 0.35
    clip_norm: float = 1.0
    recipe: bool = True
    max_dropout: float = 0.1
    from_scratch: bool = True
    e_scale: float = 1.0
    exit_weighting: str = "paper"
    curriculum: str = "rotational"
    rotation: int = 4
    distill: float = 0.0
    decay_distill: float | None = None
    seed: int = 0
    threads: int = 0
    checkpoint_seconds: float = 180.0
    compute_dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        """Refuse impossible values; ValueError names the value and what is allowed."""
        self._check_kinds()
        self._check_choices()
        self._check_ranges()
        self._check_shape()
        if (self.max_steps is None) == (self.max_seconds is None):
            raise ValueError(
                f"max_steps={self.max_steps}, max_seconds={self.max_seconds}; "
                "allowed: exactly one of them set"
            )

    def _check_kinds(self) -> None:
        kinds: dict[str, tuple[type, ...]] = {
            "int": (int,),
            "float": (int, float),
            "bool": (bool,),
            "str": (str,),
        }
        words = {"int": "a whole number", "float": "a finite number", "bool": "true or false", "str": "text"}
        for field in fields(self):
            value = getattr(self, field.name)
            kind, _, optional = str(field.type).partition(" | ")
            if value is None and optional:
                continue
            # bool is an int to isinstance: True steps would pass for one.
            right = isinstance(value, kinds[kind]) and (kind == "bool" or not isinstance(value, bool))
            if not right or (kind == "float" and not math.isfinite(value)):
                raise ValueError(
                    f"{field.name}={value!r}; allowed: {words[kind]}{' or None' if optional else ''}"
                )

    def _check_choices(self) -> None:
        allowed = {
            "optimizer": OPTIMIZERS,
            "exit_weighting": EXIT_WEIGHTINGS,
            "curriculum": CURRICULA,
            "compute_dtype": COMPUTE_DTYPES,
        }
        for name, choices in allowed.items():
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"{name}={value!r}; allowed: {', '.join(map(repr, choices))}")

    def _check_ranges(self) -> None:
        at_least = {
            "layers": 2,
            "vocab_size": 258,
            "warmup_steps": 0,
            "long_every": 0,
            "rotation": 1,
            "threads": 0,
        }
        at_least |= dict.fromkeys(("heads", "kv_heads", "intermediate_size", "sequence_length"), 1)
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}; allowed: {least} or more")
        for name in (
            "max_steps",
            "max_seconds",
            "learning_rate",
            "rope_theta",
            "clip_norm",
            "checkpoint_seconds",
        ):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name}={value}; allowed: more than 0")
        for name in ("max_dropout", "decay_fraction", "distill", "decay_distill"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise ValueError(f"{name}={value}; allowed: from 0 to 1")
        for name in ("e_scale", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}; allowed: 0 or more")

    def _check_shape(self) -> None:
        if self.hidden_size % (2 * self.heads):
            raise ValueError(
                f"hidden_size={self.hidden_size}; allowed: multiples of 2 * heads = {2 * self.heads}"
            )
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads={self.kv_heads}; allowed: divisors of heads={self.heads}")
        longest = max(self.sequence_length, self.long_sequence_length if self.long_every else 0)
        if longest > self.max_positions or longest > self.tokens_per_step:
            raise ValueError(
                f"the longest sequence, {longest} tokens; allowed: at most "
                f"max_positions={self.max_positions} and tokens_per_step={self.tokens_per_step}"
            )

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainingConfig:
        """The configuration of these fields; ValueError names an unknown one and lists those there are."""
        names = [field.name for field in fields(cls)]
        for name in values:
            if name not in names:
                raise ValueError(f"unknown setting {name!r}; allowed: {', '.join(names)}")
        return cls(**values)
