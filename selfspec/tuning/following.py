"""The controller in the engine: a pacer that follows it, a drafter that reads other exits on the way."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from selfspec.call import Call
from selfspec.drafting.early_exit import EarlyExit
from selfspec.round import Draft, Round
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
    _read: _Reading | None = None

    def draft(self, call: Call, round_: Round) -> Draft:
        watched = self.watched
        self._earlier = [] if watched is not None and watched < self.exit_layer else None
        draft = super().draft(call, round_)
        if watched is None:
            return draft
        hidden = draft.hidden
        if self._earlier is not None:
            self._note(call, watched, torch.cat(self._earlier, dim=1)[:, : hidden.shape[1]])
            return draft
        if watched > self.exit_layer:
            hidden = self._run_on(call, round_, hidden, watched)
        self._note(call, watched, hidden)
        return Draft(draft.tokens, draft.drafted, hidden, watched)

    def outcome(self) -> tuple[int, int, int] | None:
        """(exit layer, tokens it agreed on, tokens) of the round just committed, if an exit was read."""
        read, self._read = self._read, None
        return None if read is None else read.outcome()

    def _early_layers(self, call: Call, round_: Round, token: Tensor, step: int) -> Tensor:
        if self._earlier is None or self.watched is None:
            return super()._early_layers(call, round_, token, step)
        span = round_.span.narrow(step, round_.step_width)
        window = call.cache.window(span)
        hidden = call.decoder.embed(token[:, None].expand(-1, span.width), span)
        hidden = call.decoder.run(hidden, 0, self.watched, span, window)
        self._earlier.append(hidden[:, :1])
        return call.decoder.run(hidden, self.watched, self.exit_layer, span, window)

    def _run_on(self, call: Call, round_: Round, hidden: Tensor, last: int) -> Tensor:
        """Hidden states [B, n, D] run on from the drafting exit to layer `last`, at verification's shape."""
        count = hidden.shape[1]
        span = round_.span.narrow(0, call.shapes.width(len(hidden), count))
        padded = _widened(hidden, span.width)
        return call.decoder.run(padded, self.exit_layer, last, span, call.cache.window(span))[:, :count]

    def _note(self, call: Call, exit_layer: int, hidden: Tensor) -> None:
        """Keep what the exit would have chosen after each token of the round."""
        count = hidden.shape[1]
        padded = _widened(hidden, call.shapes.width(len(hidden), count))
        scores = call.processors(call.decoder.logits(padded)[:, :count], call.rows, 0)
        chosen = torch.stack([call.mode.choose(scores[:, j], j) for j in range(count)], dim=1)
        rows = call.rows
        self._read = _Reading(exit_layer, chosen, rows, list(rows.active), list(rows.generated))


@dataclass
class _Reading:
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
        self.drafter.exit_layer, self.drafter.stop, self.drafter.watched = plan.exit_layer, rule, plan.watched
        return min(length, remaining - 1)

    def observe(self, length: int, tokens: float, seconds: float) -> None:
        outcome = self.drafter.outcome()
        if outcome is not None:
            self.controller.tell_watched(*outcome)
        self.controller.tell_drafted(length, tokens - 1)


def follow(profile: Profile, rows: Rows, coupled: bool) -> tuple[WatchingExit, Following, Stats]:
    """Drafter, pacer and statistics of a call under a profile.

    Args:
        coupled: whether other exits may be read: greedy or coupled, where choosing uses up no draws.
    """
    setting = profile.setting
    longest = max(LONGEST, setting.draft_length)
    context = max(rows.cached) + rows.max_new_tokens / 2
    exits = sorted(profile.acceptance)
    costs = RoundCosts.of(profile.costs, exits, longest, len(rows.active), context, setting.rule is not None)
    controller = Controller(costs, profile.acceptance, longest, setting.exit_layer, may_watch=coupled)
    drafter = WatchingExit(setting.exit_layer, stop=setting.rule)
    stats = Stats(
        exit_layer=setting.exit_layer,
        draft_length=setting.draft_length,
        choice=f"profile {profile}; then as acceptance asks for",
    )
    return drafter, Following(controller, drafter, setting), stats


def _widened(hidden: Tensor, width: int) -> Tensor:
    """hidden [B, n, D] with its last column repeated up to `width`."""
    return torch.cat([hidden, hidden[:, -1:].expand(-1, width - hidden.shape[1], -1)], dim=1)
