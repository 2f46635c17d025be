"""Settings of a wrapped model: frozen, and refused at once when they are impossible."""

import difflib
from dataclasses import dataclass, fields
from typing import Any, Literal

MAX_DRAFT_LENGTH = 64

Auto = Literal["auto"]


class ConfigError(ValueError):
    """A setting that does not exist or cannot be; the message says what is allowed."""


@dataclass(frozen=True)
class SpeculationConfig:
    """How a wrapped model drafts, accepts and computes.

    Raises:
        ConfigError: a value out of its range, with the allowed ones in the message.
    """

    exit_layer: int | Auto = "auto"
    """E: the draft runs layers [0, E), 1 <= E < number of layers; "auto" measures on the first prompt."""
    draft_length: int | Auto = "auto"
    """K: tokens drafted in a round, 0 for plain autoregression. A number is used as it is; "auto" also stops
    drafting where it does not pay."""
    acceptance: Literal["coupled", "rejection"] = "coupled"
    """How sampled text is verified; greedy decoding is the same in both."""
    confidence_threshold: float = 0.0
    """Stop drafting after a token whose probability under the draft is below this (0: never)."""
    deterministic: bool = True
    """Compute at shapes whose rows do not depend on the shape, so that rounding never changes the text."""
    profile: Any = None
    """One profile, a file of one, or several of either (`selfspec tune`); None takes those kept for this
    model, an empty list none. Used where exit layer and draft length are "auto"."""
    strict: bool = False
    """Raise where a generate option cannot be speculated, instead of using the model's own generate."""

    def __post_init__(self) -> None:
        _check_int("exit_layer", self.exit_layer, 1, None)
        _check_int("draft_length", self.draft_length, 0, MAX_DRAFT_LENGTH)
        if self.acceptance not in ("coupled", "rejection"):
            raise ConfigError(f"acceptance={self.acceptance!r}: allowed are 'coupled' and 'rejection'")
        threshold = self.confidence_threshold
        if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 0 <= threshold < 1:
            raise ConfigError(f"confidence_threshold={threshold!r}: a number from 0 (never stop) to below 1")
        for name in ("deterministic", "strict"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name}={getattr(self, name)!r}: allowed are True and False")

    @classmethod
    def of(cls, **settings: Any) -> "SpeculationConfig":
        """The settings by keyword; an unknown one is refused with the nearest known name."""
        known = [field.name for field in fields(cls)]
        for name in settings:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise ConfigError(f"unknown setting {name!r}: {hint}known are {', '.join(known)}")
        return cls(**settings)

    def check_model(self, n_layers: int) -> None:
        """Raise ConfigError if the exit layer is not below the model's last layer."""
        if self.exit_layer != "auto" and self.exit_layer >= n_layers:
            raise ConfigError(
                f"exit_layer={self.exit_layer}: this model has {n_layers} layers, "
                f"allowed are 1 to {n_layers - 1} or 'auto'"
            )


def _check_int(name: str, value: object, least: int, most: int | None) -> None:
    if value == "auto":
        return
    allowed = f"a whole number from {least} to {most if most is not None else 'layers - 1'}, or 'auto'"
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name}={value!r}: allowed is {allowed}")
    if value < least or (most is not None and value > most):
        nearest = least if value < least else most
        raise ConfigError(f"{name}={value}: allowed is {allowed} (nearest: {nearest})")
