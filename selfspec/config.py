"""Settings of a wrapped model: frozen, and refused at once when they are impossible."""

import difflib
import functools
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from selfspec.drafting.lookup import LONGEST_FOUND
from selfspec.tree import MAX_CANDIDATES, Tree, TreeOfDepth, chain, checked_tree, cut, with_siblings
from selfspec.values import ConfigError, check_choice, checked_corpus, checked_int, parse_bytes

MAX_DRAFT_LENGTH = 64
DRAFTS = ("auto", "early_exit", "low_bit", "lookup", "hybrid")

Auto = Literal["auto"]

_WITHOUT_USE: dict[str, tuple[str, ...]] = {
    "auto": (),
    "early_exit": ("draft_bits", "draft_memory", "corpus"),
    "low_bit": ("corpus",),
    "lookup": ("exit_layer", "tree", "draft_bits", "draft_memory", "confidence_threshold"),
    "hybrid": (),
}
"""The settings that mean nothing to each kind of draft."""


@dataclass(frozen=True)
class SpeculationConfig:
    """How a wrapped model drafts, accepts and computes.

    Raises:
        ConfigError: a value out of its range, with the allowed ones in the message; a setting that means
            nothing to the draft that was chosen.
    """

    draft: Literal["auto", "early_exit", "low_bit", "lookup", "hybrid"] = "auto"
    """Where candidates come from. "early_exit": the first E layers as they are. "low_bit": the first E layers
    in a view of few bits. "lookup": what came after the text read like this before. "hybrid": lookup, and
    where that finds nothing the model's own layers (in low bits if a view fits). "auto": measures and
    chooses; with a number for `exit_layer` it means "early_exit"."""
    exit_layer: int | Auto = "auto"
    """E: the draft runs layers [0, E), 1 <= E < number of layers, in low bits up to all of them."""
    draft_length: int | Auto = "auto"
    """K: most tokens drafted in a round, one after the other; 0 for plain autoregression. Layers draft so
    many in every round, lookup as many as it finds. "auto" also stops drafting where it does not pay."""
    tree: Literal["chain", "siblings"] | Tree | Sequence[int] = "chain"
    """How candidates follow each other: a chain, a chain with the second choice beside each token, or a tree
    of your own: a `selfspec.tree.Tree`, such as `selfspec.tuning.trees.find_tree` returns, or the parents of
    its nodes 1, 2, ... (0 is the last committed token), whose children are the draft's likeliest in order.
    Trees verify more tokens in a pass, and in bf16 they may flip a near-tie: branches stand elsewhere in the
    cache, where sums round differently."""
    draft_bits: Literal[4, 8] | Auto = "auto"
    """Bits of the low-bit view. "auto": those of a profile that is named, else 4, but 8 for models of large
    matrices on a CPU with AVX2 and no AVX512, which is faster in those."""
    draft_memory: int | str | None = None
    """Most memory that a low-bit view may add, in bytes or as "1GiB"; the largest view that fits is made, and
    none for 0."""
    corpus: str | Path | Sequence[int] | None = None
    """What lookup may copy from beside the text itself: a text file, read with the model's own tokenizer, or
    token ids."""
    acceptance: Literal["coupled", "rejection"] = "coupled"
    """How sampled text is verified; greedy decoding is the same in both."""
    confidence_threshold: float = 0.0
    """Stop drafting after a token whose probability under the draft is below this (0: never)."""
    deterministic: bool = True
    """Compute at shapes whose rows do not depend on the shape, so that rounding never changes the text."""
    graph_memory: int | str = "2GiB"
    """On a CUDA device whole rounds are captured as CUDA graphs, which may hold this much memory beside their
    cache; the least recently used ones are dropped for others. 0 launches everything from Python."""
    profile: Any = None
    """Tuned settings of drafts by early exit or by the low-bit view (`selfspec tune`): a profile, a file of
    one, or several of either. Calls follow the newest that was tuned for greedy or for sampled calls, as the
    call is, and others measure. A view is then made if one of them drafts by it, and draft="early_exit" or
    draft_memory=0 keep it away. None finds those kept for this model: draft="early_exit" follows them, and
    draft="auto" where a call names its workload: else it measures, since it may copy from the text as well,
    of which profiles know nothing. An empty list takes none."""
    strict: bool = False
    """Raise where a generate option cannot be speculated, instead of using the model's own generate."""

    def __post_init__(self) -> None:
        for name, least, most in (("exit_layer", 1, None), ("draft_length", 0, MAX_DRAFT_LENGTH)):
            object.__setattr__(self, name, checked_int(name, getattr(self, name), least, most))
        check_choice("draft", self.draft, DRAFTS)
        check_choice("draft_bits", self.draft_bits, (4, 8, "auto"))
        check_choice("acceptance", self.acceptance, ("coupled", "rejection"))
        for name in ("deterministic", "strict"):
            check_choice(name, getattr(self, name), (True, False))
        self._check_profile()
        parse_bytes(self.draft_memory)
        if parse_bytes(self.graph_memory, "graph_memory") is None:
            raise ConfigError(
                "graph_memory=None: allowed are bytes, a text such as '512MiB', or 0 for no graphs"
            )
        object.__setattr__(self, "corpus", checked_corpus(self.corpus))
        threshold = self.confidence_threshold
        if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 0 <= threshold < 1:
            raise ConfigError(f"confidence_threshold={threshold!r}: a number from 0 (never stop) to below 1")
        self._check_tree()
        if self.names_profiles and self.against_profiles:
            raise ConfigError(
                f"profile with {self.against_profiles}: a profile chooses exit layer, draft length, tree and "
                "where to stop, for draft='auto' or 'early_exit'; leave the one or the other out"
            )
        self._check_use()

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
        object.__setattr__(self, "tree", checked_tree(self.tree))
        if self.own_tree is not None:
            depth = self.own_tree.depth
            if self.draft_length != "auto" and self.draft_length > depth:
                raise ConfigError(
                    f"draft_length={self.draft_length}: tree={self.tree!r} is {depth} deep, allowed are 0 to "
                    f"{depth}, or 'auto'"
                )
        if self.tree == "chain":
            return
        if self.acceptance == "rejection":
            raise ConfigError(
                f"tree={self.tree!r} with acceptance='rejection': the rejection rule needs candidates drawn "
                "independently from the draft, and a tree's are its likeliest tokens; use 'coupled'"
            )
        if self.confidence_threshold:
            raise ConfigError(
                f"confidence_threshold={self.confidence_threshold}: it stops chains; a "
                f"tree={self.tree!r} has one shape"
            )
        self._check_candidates()

    def _check_candidates(self) -> None:
        """Refuse a tree that, with a branch of found tokens, may hold more candidates than a round takes."""
        if self.draft_length == "auto" and self.own_tree is None:
            return  # drafts that end by themselves are short enough
        depth = MAX_DRAFT_LENGTH if self.draft_length == "auto" else self.draft_length
        found = self.longest_found if self.looks_up else 0
        own = 2 * depth if self.tree == "siblings" else self.shape(depth).size - 1
        if own + found > MAX_CANDIDATES:
            branch = f" and {found} found ones" if found else ""
            raise ConfigError(
                f"tree={self.tree!r} with draft_length={self.draft_length!r}: {own} candidates{branch} in a "
                f"round, allowed are up to {MAX_CANDIDATES}; draft less deep, or a tree of fewer nodes"
            )

    def _check_use(self) -> None:
        """Refuse settings that mean nothing to the draft. With a draft length of 0 none needs to."""
        if self.draft_length == 0:
            return
        defaults = {field.name: field.default for field in fields(self)}
        for name in _WITHOUT_USE[self.kind]:
            if getattr(self, name) != defaults[name]:
                users = [kind for kind, without in _WITHOUT_USE.items() if name not in without]
                how = "" if self.draft == self.kind else ", which a number for exit_layer chooses"
                raise ConfigError(
                    f"{name}={getattr(self, name)!r} means nothing to draft={self.kind!r}{how}: leave "
                    f"it out, or choose one of {', '.join(map(repr, users))}"
                )

    @property
    def own_tree(self) -> Tree | None:
        """The tree that was given, None for a kind of tree by name."""
        if isinstance(self.tree, str):
            return None
        return self.tree if isinstance(self.tree, Tree) else Tree.of(self.tree)

    @property
    def shape(self) -> TreeOfDepth:
        """The tree to draft at a given depth."""
        if self.own_tree is not None:
            return functools.partial(cut, self.own_tree)
        return with_siblings if self.tree == "siblings" else chain

    @property
    def kind(self) -> str:
        """`draft`, with "auto" resolved where a number for E or K has already chosen."""
        chosen = self.exit_layer != "auto" or self.draft_length == 0
        return "early_exit" if self.draft == "auto" and chosen else self.draft

    @property
    def looks_up(self) -> bool:
        """Whether found tokens are drafted, among others."""
        return self.kind in ("auto", "lookup", "hybrid")

    @property
    def longest_found(self) -> int:
        """Most tokens of a draft that was looked up."""
        return LONGEST_FOUND if self.draft_length == "auto" else self.draft_length

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
