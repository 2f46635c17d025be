"""Replay: the rounds that any setting would have made, from one recording. Pure functions of tensors.

What an exit predicts at a position depends only on the tokens before it, and every drafted token before
the first rejection is the committed text. So rounds and accepted counts follow exactly from the recording,
for coupled sampling as for greedy, and for a static tree as for a chain: the branches that the text does not
follow change nothing. Only one thing does not follow: how many more tokens a stop rule lets a row
draft after its first wrong one. Those are never accepted; their count is bounded and estimated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from selfspec.config import MAX_DRAFT_LENGTH
from selfspec.drafting.stopping import StopRule
from selfspec.round import Arm
from selfspec.tree import MAX_CANDIDATES, Tree, TreeOfDepth, chain, cut, with_siblings
from selfspec.tuning.lengths import NEVER, path_lengths, sibling_hits, stop_lengths
from selfspec.tuning.recording import TOP, Recording


@dataclass(frozen=True)
class Setting:
    """One way to draft."""

    exit_layer: int
    """E: with `draft` the arm that drafts."""
    draft_length: int
    confidence_threshold: float = 0.0
    stop: StopRule | None = None
    """Instead of the threshold."""
    siblings: int = 1
    """Candidates at every depth of the chain: the draft's choice and the next best, as leaves beside it. They
    are in the engine's order where no two are equally likely."""
    draft: Literal["early_exit", "low_bit"] = "early_exit"
    """Whose layers [0, E) draft: the model's own, or those of its view in few bits."""
    tree: Tree | None = None
    """A static tree instead of a chain, of `draft_length` levels: deeper nodes are cut off. Its rounds can be
    told, but not timed: no search proposes it."""

    def __post_init__(self) -> None:
        for name in ("exit_layer", "draft_length", "siblings"):
            value = getattr(self, name)
            if not isinstance(value, int):
                raise ValueError(f"{name}={value!r}: allowed is a whole number")
        if self.draft not in ("early_exit", "low_bit"):
            raise ValueError(f"draft={self.draft!r}: allowed are 'early_exit' and 'low_bit'")
        if not 0 <= self.draft_length <= MAX_DRAFT_LENGTH:
            raise ValueError(f"draft_length={self.draft_length}: allowed is 0 to {MAX_DRAFT_LENGTH}")
        threshold = self.confidence_threshold
        if not isinstance(threshold, (int, float)) or not 0 <= threshold < 1:
            raise ValueError(
                f"confidence_threshold={threshold!r}: allowed is a number from 0 (never stop) to below 1"
            )
        if not 1 <= self.siblings <= TOP:
            raise ValueError(f"siblings={self.siblings}: allowed is 1 to {TOP}, which is what was recorded")
        if self.siblings > 1 and self.candidates > MAX_CANDIDATES:
            raise ValueError(
                f"siblings={self.siblings} with draft_length={self.draft_length}: allowed are up to "
                f"{MAX_CANDIDATES} candidates in all"
            )
        if self.siblings > 1 and self.rule is not None:
            raise ValueError(f"siblings={self.siblings} with a stop rule: it stops chains")
        self._check_tree()

    def _check_tree(self) -> None:
        tree = self.tree
        if tree is None:
            return
        if not isinstance(tree, Tree):
            raise ValueError(f"tree={tree!r}: allowed is a Tree")
        if self.siblings > 1 or self.rule is not None:
            raise ValueError("tree with siblings or a stop rule: it has one shape")
        if self.draft_length > tree.depth:
            raise ValueError(f"draft_length={self.draft_length}: the tree is {tree.depth} deep")
        if max(tree.ranks, default=0) >= TOP:
            raise ValueError(f"ranks up to {max(tree.ranks)}: the likeliest {TOP} candidates were recorded")

    def __str__(self) -> str:
        if not self.draft_length:
            return "AR (K = 0)"
        rule = f", stops below {self.confidence_threshold:g}" if self.confidence_threshold else ""
        rule = rule if self.stop is None else ", stops where it does not pay"
        width = f", {self.siblings} siblings" if self.siblings > 1 else ""
        width = width if self.tree is None else f", a tree of {self.candidates}"
        kind = "low bit, " if self.arm.low_bit else ""
        return f"{kind}E = {self.exit_layer}, K = {self.draft_length}{width}{rule}"

    @classmethod
    def by(cls, arm: Arm, draft_length: int, **more: Any) -> Setting:
        """A setting of an arm."""
        return cls(arm.exit_layer, draft_length, draft="low_bit" if arm.low_bit else "early_exit", **more)

    @property
    def arm(self) -> Arm:
        """The layers that draft."""
        return Arm(self.exit_layer, low_bit=self.draft == "low_bit")

    @property
    def candidates(self) -> int:
        """Most draft tokens of a round and row."""
        return self.candidates_at(self.draft_length)

    def candidates_at(self, length: int) -> int:
        """Draft tokens of a round that goes so deep."""
        return length * self.siblings if self.tree is None else cut(self.tree, length).size - 1

    @property
    def rule(self) -> StopRule | None:
        """When to stop drafting, None for never."""
        return StopRule.below(self.confidence_threshold) if self.stop is None else self.stop

    @property
    def shape(self) -> TreeOfDepth:
        """What is drafted at a given depth."""
        return shape_of(self.siblings) if self.tree is None else partial(cut, self.tree)


def shape_of(siblings: int) -> TreeOfDepth:
    """What is drafted at a given depth with so many candidates at each."""
    return partial(with_siblings, width=siblings) if siblings > 1 else chain


@dataclass(frozen=True)
class Replay:
    """Counts for every setting [S] and prompt [P], or batch of prompts [G]."""

    accepted: Tensor
    """[S, P]"""
    rejected: Tensor
    """[S, P]: draft tokens that the target replaced, at most one a round; those after it do not count."""
    row_rounds: Tensor
    """[S, P]: rounds that the prompt's row took part in."""
    drafted_least: Tensor
    """[S, P]"""
    drafted_most: Tensor
    """[S, P]: equal to the least without a stop rule."""
    rounds: Tensor
    """[S, G]: verification passes."""
    steps: Tensor
    """[S, G] float64: draft steps run, estimated between the bounds where they differ."""
    tokens: Tensor
    """[P]: tokens generated, whatever the setting."""

    @property
    def acceptance_length(self) -> Tensor:
        """Tokens committed per round and row, over all prompts [S]; the last round counts as it was cut."""
        return self.tokens.sum() / self.row_rounds.sum(dim=1)


def replay(recording: Recording, settings: Sequence[Setting], batch: int = 1) -> Replay:
    """The rounds of every setting on every prompt, `batch` consecutive prompts generated together.

    Raises:
        ValueError: a setting's arm, or as long a draft as it may make, was not recorded.
    """
    tables = _Tables(recording, settings)
    n_prompts = len(recording.lengths)
    padding = -n_prompts % batch
    ends = torch.cat([recording.lengths, recording.lengths.new_zeros(padding)])
    shape = (len(settings), len(ends))
    longest = torch.tensor([setting.draft_length for setting in settings])[:, None]
    at = torch.zeros(shape, dtype=torch.int64)
    counts = {
        name: torch.zeros(shape, dtype=torch.int64)
        for name in ("accepted", "rejected", "rows", "least", "most")
    }
    rounds = torch.zeros(shape[0], shape[1] // batch, dtype=torch.int64)
    steps = torch.zeros(rounds.shape, dtype=torch.float64)
    while bool((active := at < ends).any()):
        # K of a round is cut by the most that any active row of the batch may still generate.
        behind = torch.where(active, at, NEVER).view(*rounds.shape, batch).min(dim=-1).values
        room = (recording.max_new_tokens - 1 - behind).clamp(min=0).repeat_interleave(batch, dim=1)
        length = torch.minimum(longest, room)
        accepted, least, most, expected = tables.round(at, length)
        rejected = (accepted < most) & (at + accepted < ends)
        drafted = (("least", tables.candidates(least)), ("most", tables.candidates(most)))
        for name, count in (("accepted", accepted), ("rejected", rejected), *drafted):
            counts[name] += torch.where(active, count, 0)
        counts["rows"] += active
        rounds += active.view(*rounds.shape, batch).any(dim=-1)
        steps += torch.where(active, expected, 0.0).view(*rounds.shape, batch).amax(dim=-1)
        at = torch.where(active, torch.minimum(at + accepted + 1, ends), at)
    kept = {name: count[:, :n_prompts] for name, count in counts.items()}
    return Replay(
        kept["accepted"],
        kept["rejected"],
        kept["rows"],
        kept["least"],
        kept["most"],
        rounds,
        steps,
        recording.lengths,
    )


class _Tables:
    """Per distinct arm, rule and shape: how far drafts from a position would stand, and where they stop."""

    def __init__(self, recording: Recording, settings: Sequence[Setting]) -> None:
        for setting in settings:
            longest = recording.longest(setting.arm)
            if longest is not None and setting.draft_length > longest:
                raise ValueError(
                    f"draft_length={setting.draft_length}: drafts of up to {longest} tokens were recorded"
                )
        inside = recording.inside
        keys = [(s.arm, s.rule, s.siblings, s.tree) for s in settings]
        distinct = list(dict.fromkeys(keys))
        shapes = {(arm, tree) for arm, _, _, tree in distinct}
        runs = {(arm, tree): path_lengths(recording, arm, tree) for arm, tree in shapes}
        stops = {
            (arm, rule): stop_lengths(recording.of(arm).confidence, inside, rule)
            for arm, rule, _, _ in distinct
        }
        self._of = torch.tensor([distinct.index(key) for key in keys])[:, None]
        self._run = torch.stack([runs[arm, tree] for arm, _, _, tree in distinct])
        self._stop = torch.stack([stops[arm, rule] for arm, rule, _, _ in distinct])
        hits = [sibling_hits(recording, arm, width) for arm, _, width, _ in distinct]
        positions = torch.arange(max((len(hit) for hit in hits), default=0))
        self._hit = torch.stack([hit[positions.clamp(max=len(hit) - 1)] for hit in hits])
        self._ruled = torch.tensor([rule is not None for _, rule, _, _ in distinct])
        first_steps = [(stops[arm, rule][:, :-1] > 1)[inside] for arm, rule, _, _ in distinct]
        self._going_on = torch.stack([goes_on.double().mean() for goes_on in first_steps])
        self._ends = recording.lengths
        longest = max((s.draft_length for s in settings), default=0)
        self._candidates = torch.tensor([[s.candidates_at(k) for k in range(longest + 1)] for s in settings])

    def candidates(self, length: Tensor) -> Tensor:
        """Draft tokens [S, P] of rounds that go so deep [S, P]."""
        return self._candidates.gather(1, length)

    def round(self, at: Tensor, length: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """accepted, least and most drafted, and their expectation, of rounds [S, P] from positions `at`."""
        columns = torch.arange(at.shape[1]).clamp(max=len(self._ends) - 1)
        run, stop = self._run[self._of, columns, at], self._stop[self._of, columns, at]
        # Confidence is known up to the first wrong token, that one included, and not past the end of a text.
        known = run + (at + run < self._ends[columns])
        stopped = self._ruled[self._of] & (stop <= known)
        most = torch.where(stopped, torch.minimum(length, stop), length)
        # A row that the rule has not stopped by then drafts at least one token more.
        least = torch.where(self._ruled[self._of] & ~stopped, torch.minimum(most, known + 1), most)
        chain = torch.minimum(run, most)
        depth = chain.clamp(max=self._hit.shape[1] - 1)
        missed = (chain < most) & self._hit[self._of, depth, columns, at + chain]
        return chain + missed, least, most, least + self._further(most - least)

    def _further(self, spare: Tensor) -> Tensor:
        """Tokens [S, P] drafted of `spare` ones, if a rule goes on as often as it does along the text."""
        share = self._going_on[self._of].clamp(max=1 - 1e-9)
        return (share - share ** (spare + 1)) / (1 - share)
