"""The controller in the engine: a pacer that follows it, a drafter that reads other exits on the way."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from layer_skip.span import Span
from selfspec.call import Call
from selfspec.drafting.early_exit import EarlyExit
from selfspec.round import Draft
from selfspec.rows import Rows
from selfspec.stats import Stats
from selfspec.tuning.controller import Controller, RoundCosts
from selfspec.tuning.profile import Profile
from selfspec.tuning.replay import Setting

LONGEST = 12
"""Longest draft that the controller chooses, unless the profile has a longer one."""


class WatchingExit(EarlyExit):
    """Drafts as `EarlyExit`; when asked to, reads one other exit on the same tokens.

    No layer is run that the round would not run anyway: the pass through the layers is split at the watched
    exit, within the draft steps where it lies before the drafting exit, at verification where it lies after.
    """

    watched: int | None = None
    """Exit layer to read in the next round."""
    _earlier: list[Tensor] | None = None
    _seen: _Watched | None = None

    def draft(self, call: Call, length: int, graft: Tensor | None = None) -> Draft:
        watched = self.watched
        self._earlier = [] if watched is not None and watched < self.exit_layer else None
        draft = super().draft(call, length, graft)
        if watched is None:
            return draft
        if self._earlier is not None:
            self._note(call, draft, watched, torch.cat(self._earlier, dim=1))
            return draft
        if watched > self.exit_layer:
            draft = replace(draft, hidden=self._run_on(call, draft, watched), exact_layers=watched)
        self._note(call, draft, watched, draft.hidden)
        return draft

    def outcome(self) -> tuple[int, int, int] | None:
        """(exit layer, tokens it agreed on, tokens) of the round just committed, if an exit was read."""
        seen, self._seen = self._seen, None
        return None if seen is None else seen.outcome()

    def _run_early(self, call: Call, hidden: Tensor, span: Span) -> Tensor:
        if self._earlier is None or self.watched is None:
            return super()._run_early(call, hidden, span)
        window = call.cache.window(span)
        hidden = call.decoder.run(hidden, 0, self.watched, span, window)
        self._earlier.append(hidden[:, :1])  # of a chain: one token a pass
        return call.decoder.run(hidden, self.watched, self.exit_layer, span, window)

    def _run_on(self, call: Call, draft: Draft, last: int) -> Tensor:
        """Hidden states [B, n+1, D] run on from the drafting exit to layer `last`, as verification would."""
        count = draft.hidden.shape[1]
        span = draft.span.narrow(0, call.shapes.width(len(draft.hidden), count))
        hidden = _widened(draft.hidden, span.width)
        return call.decoder.run(hidden, self.exit_layer, last, span, call.cache.window(span))[:, :count]

    def _note(self, call: Call, draft: Draft, exit_layer: int, hidden: Tensor) -> None:
        """Keep what the exit would have chosen after each token of the round."""
        count = hidden.shape[1]
        padded = _widened(hidden, call.shapes.width(len(hidden), count))
        logits = call.decoder.logits(padded)[:, :count]
        scores = call.processors(logits, call.rows, draft.tokens, draft.tree.paths)
        chosen = [call.mode.candidates(scores[:, j : j + 1], j, 1)[:, 0, 0] for j in range(count)]
        rows = call.rows
        self._seen = _Watched(
            exit_layer, torch.stack(chosen, dim=1), rows, list(rows.active), list(rows.generated)
        )


@dataclass
class _Watched:
    """What an exit chose in a round whose outcome is not known yet."""

    exit_layer: int
    chosen: Tensor
    """[B, n]"""
    rows: Rows
    active: list[int]
    generated: list[int]

    def outcome(self) -> tuple[int, int, int]:
        """Compare with what has been committed since."""
        hits = trials = 0
        for i, row in enumerate(self.active):
            first = self.rows.prompt_width + self.generated[row]
            count = min(self.rows.generated[row] - self.generated[row], self.chosen.shape[1])
            hits += int((self.chosen[i, :count] == self.rows.sequences[row, first : first + count]).sum())
            trials += count
        return self.exit_layer, hits, trials


@dataclass
class Following:
    """A pacer that does as its controller says."""

    controller: Controller
    drafter: WatchingExit
    tuned: Setting
    """What the profile found best; its stop rule holds at its own exit only."""

    def draft_length(self, remaining: int) -> int:
        plan = self.controller.plan()
        length, rule = plan.draft_length, self.tuned.rule
        if plan.exit_layer != self.tuned.exit_layer:
            rule = None
        elif rule is not None and length:
            # Where a rule ends drafts that do not pay, a longer one costs nothing.
            length = max(length, self.tuned.draft_length)
        self.drafter.exit_layer, self.drafter.rule, self.drafter.watched = plan.exit_layer, rule, plan.watched
        return min(length, remaining - 1)

    def observe(self, length: int, tokens: float, seconds: float) -> None:
        outcome = self.drafter.outcome()
        if outcome is not None:
            self.controller.tell_watched(*outcome)
        self.controller.tell_drafted(length, tokens - 1)


def follow(profile: Profile, rows: Rows, coupled: bool, stats: Stats) -> tuple[WatchingExit, Following]:
    """Drafter and pacer of a call under a profile.

    Args:
        coupled: whether other exits may be read: greedy or coupled, where choosing uses up no draws.
        stats: of the call: told what was chosen and why.
    """
    setting = profile.setting
    longest = max(LONGEST, setting.draft_length)
    context = max(rows.cached) + rows.max_new_tokens / 2
    exits = sorted(profile.acceptance)
    costs = RoundCosts.of(profile.costs, exits, longest, len(rows.active), context, setting.rule is not None)
    controller = Controller(costs, profile.acceptance, longest, setting.exit_layer, may_watch=coupled)
    drafter = WatchingExit(setting.exit_layer, rule=setting.rule)
    stats.strategy, stats.choice = "early_exit", f"profile {profile}; then as acceptance asks for"
    stats.exit_layer, stats.draft_length = setting.exit_layer, setting.draft_length
    return drafter, Following(controller, drafter, setting)


def _widened(hidden: Tensor, width: int) -> Tensor:
    """hidden [B, n, D] with its last column repeated up to `width`."""
    return torch.cat([hidden, hidden[:, -1:].expand(-1, width - hidden.shape[1], -1)], dim=1)
