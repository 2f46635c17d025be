"""Settings of a wrapped model: frozen, and refused at once when they are impossible."""

import difflib
import functools
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from selfspec.tree import Tree, TreeOfDepth, chain, cut, with_siblings

MAX_DRAFT_LENGTH = 64
DRAFTS = ("auto", "early_exit", "low_bit", "lookup", "hybrid")

Auto = Literal["auto"]


class ConfigError(ValueError):
    """A setting that does not exist or cannot be; the message says what is allowed."""


@dataclass(frozen=True)
class SpeculationConfig:
    """How a wrapped model drafts, accepts and computes.

    Raises:
        ConfigError: a value out of its range, with the allowed ones in the message.
    """

    draft: Literal["auto", "early_exit", "low_bit", "lookup", "hybrid"] = "auto"
    """Where candidates come from. "early_exit": the first E layers as they are. "low_bit": the first E layers
    in a view of few bits. "lookup": what came after the text read like this before. "hybrid": lookup, and
    where that finds nothing the model's own layers (in low bits if a view fits). "auto": measures and
    chooses; with a number for `exit_layer` it means "early_exit"."""
    exit_layer: int | Auto = "auto"
    """E: the draft runs layers [0, E), 1 <= E < number of layers, in low bits up to all of them."""
    draft_length: int | Auto = "auto"
    """K: tokens drafted in a round, 0 for plain autoregression. A number is used as it is; "auto" also stops
    drafting where it does not pay."""
    tree: Literal["chain", "siblings"] | tuple[int, ...] = "chain"
    """How candidates follow each other: a chain, a chain with the second choice beside each token, or a tree
    of your own as the parents of its nodes 1, 2, ... (0 is the last committed token), see `selfspec.tree`.
    Trees verify more tokens in a pass, and in bf16 they may flip a near-tie: branches stand elsewhere in the
    cache, where sums round differently."""
    draft_bits: Literal[4, 8] = 4
    """Bits of the low-bit view."""
    draft_memory: int | str | None = None
    """Most memory that a low-bit view may add, in bytes or as "1GiB"; the largest view that fits is made."""
    corpus: str | None = None
    """A text file whose token sequences lookup may follow as well, read with the model's own tokenizer."""
    acceptance: Literal["coupled", "rejection"] = "coupled"
    """How sampled text is verified; greedy decoding is the same in both."""
    confidence_threshold: float = 0.0
    """Stop drafting after a token whose probability under the draft is below this (0: never)."""
    deterministic: bool = True
    """Compute at shapes whose rows do not depend on the shape, so that rounding never changes the text."""
    profile: Any = None
    """Tuned settings of drafts by early exit (`selfspec tune`): a profile, a file of one, or several of
    either. Naming one means draft="early_exit". None finds those kept for this model: draft="early_exit"
    follows the newest that was tuned for greedy or for sampled calls, as the call is; draft="auto" goes on
    measuring unless a call names its workload. An empty list takes none."""
    strict: bool = False
    """Raise where a generate option cannot be speculated, instead of using the model's own generate."""

    def __post_init__(self) -> None:
        _check_int("exit_layer", self.exit_layer, 1, None)
        _check_int("draft_length", self.draft_length, 0, MAX_DRAFT_LENGTH)
        _check_choice("draft", self.draft, DRAFTS)
        _check_choice("draft_bits", self.draft_bits, (4, 8))
        _check_choice("acceptance", self.acceptance, ("coupled", "rejection"))
        for name in ("deterministic", "strict"):
            _check_choice(name, getattr(self, name), (True, False))
        self._check_profile()
        self._check_tree()
        parse_bytes(self.draft_memory)
        threshold = self.confidence_threshold
        if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 0 <= threshold < 1:
            raise ConfigError(f"confidence_threshold={threshold!r}: a number from 0 (never stop) to below 1")
        if threshold and self.tree != "chain":
            raise ConfigError(
                f"confidence_threshold={threshold}: it stops chains; a tree={self.tree!r} has one shape"
            )
        if self.names_profiles and self.against_profiles:
            raise ConfigError(
                f"profile with {self.against_profiles}: a profile chooses exit layer, draft length and where "
                "to stop, for draft='early_exit'; leave the one or the other out"
            )

    def _check_profile(self) -> None:
        given = self.profile if isinstance(self.profile, (list, tuple)) else [self.profile]
        for profile in given:
            # A profile is known by what it has: its class needs this module.
            known = isinstance(profile, (str, Path)) or hasattr(profile, "workload")
            if not known and self.profile is not None:
                raise ConfigError(
                    f"profile={self.profile!r}: allowed are a profile, a file of one, or a list of them"
                )

    def _check_tree(self) -> None:
        if isinstance(self.tree, tuple):
            try:
                Tree.of(self.tree)
            except (ValueError, TypeError) as error:
                raise ConfigError(f"tree={self.tree!r}: {error}") from error
        else:
            _check_choice("tree", self.tree, ("chain", "siblings"))
        if self.tree != "chain" and self.acceptance == "rejection":
            raise ConfigError(
                f"tree={self.tree!r} with acceptance='rejection': the rejection rule needs candidates drawn "
                "independently from the draft, and a tree's are its likeliest tokens; use 'coupled'"
            )

    @property
    def shape(self) -> TreeOfDepth:
        """The tree to draft at a given depth."""
        if isinstance(self.tree, tuple):
            return functools.partial(cut, Tree.of(self.tree))
        return with_siblings if self.tree == "siblings" else chain

    @property
    def kind(self) -> str:
        """`draft`, with "auto" resolved where a number for E or K, or a profile, has already chosen."""
        chosen = self.exit_layer != "auto" or self.draft_length == 0 or self.names_profiles
        return "early_exit" if self.draft == "auto" and chosen else self.draft

    @property
    def names_profiles(self) -> bool:
        """Whether profiles were given, rather than found or turned off."""
        return self.profile is not None and not (isinstance(self.profile, (list, tuple)) and not self.profile)

    @property
    def against_profiles(self) -> str:
        """The setting that leaves a profile no choice, "" for none."""
        free = {
            "draft": ("auto", "early_exit"),
            "exit_layer": ("auto",),
            "draft_length": ("auto",),
            "tree": ("chain",),
            "confidence_threshold": (0,),
        }
        fixed = (name for name, allowed in free.items() if getattr(self, name) not in allowed)
        return next((f"{name}={getattr(self, name)!r}" for name in fixed), "")

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

    def check_model(self, n_layers: int, takes_trees: bool = True) -> None:
        """Raise ConfigError if the exit layer is past the last one that can draft, or trees cannot be."""
        if self.tree != "chain" and not takes_trees:
            raise ConfigError(
                f"tree={self.tree!r}: the layers of this model take one table of position biases for all "
                "rows, so that no two candidates may share a position; use 'chain'"
            )
        if self.exit_layer == "auto":
            return
        deepest = n_layers if self.kind in ("low_bit", "hybrid") else n_layers - 1
        if self.exit_layer > deepest:
            whole = f"; draft='low_bit' can draft with all {n_layers}" if self.exit_layer == n_layers else ""
            raise ConfigError(
                f"exit_layer={self.exit_layer}: this model has {n_layers} layers, "
                f"allowed are 1 to {deepest} or 'auto'{whole}"
            )


def parse_bytes(memory: int | str | None) -> int | None:
    """Bytes of "1GiB", "300 MB" or a number; None for no limit.

    Raises:
        ConfigError: it is neither.
    """
    if memory is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?i?B?)\s*", str(memory), re.IGNORECASE)
    if isinstance(memory, (bool, float)) or match is None:
        raise ConfigError(f'draft_memory={memory!r}: allowed are bytes, or a text such as "512MiB" or "1GB"')
    unit = match[2].upper().rstrip("B")
    step = 1024 if unit.endswith("I") else 1000
    return int(float(match[1]) * step ** ("KMGT".index(unit[0]) + 1 if unit else 0))


def _check_choice(name: str, value: object, allowed: tuple[object, ...]) -> None:
    # By type as well: True == 1, and a flag is no number.
    if not any(value == choice and type(value) is type(choice) for choice in allowed):
        near = difflib.get_close_matches(str(value), map(str, allowed), n=1)
        hint = f" (nearest: {near[0]!r})" if near else ""
        raise ConfigError(f"{name}={value!r}: allowed are {', '.join(map(repr, allowed))}{hint}")


def _check_int(name: str, value: object, least: int, most: int | None) -> None:
    if value == "auto":
        return
    allowed = f"a whole number from {least} to {most if most is not None else 'layers - 1'}, or 'auto'"
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name}={value!r}: allowed is {allowed}")
    if value < least or (most is not None and value > most):
        nearest = least if value < least else most
        raise ConfigError(f"{name}={value}: allowed is {allowed} (nearest: {nearest})")
