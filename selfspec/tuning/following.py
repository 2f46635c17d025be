"""The controller in the engine: a pacer that follows it, a drafter that reads other exits on the way."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from layer_skip.span import Span
from selfspec.call import Call
from selfspec.drafting.early_exit import EarlyExit
from selfspec.drafting.stopping import StopRule
from selfspec.pacing import PayCheck, Rate
from selfspec.round import Draft
from selfspec.rows import Rows
from selfspec.stats import Stats
from selfspec.tuning.controller import Controller
from selfspec.tuning.cost_table import CostTable, Option
from selfspec.tuning.profile import Profile


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

    def outcome(self) -> tuple[int, int, int, float] | None:
        """(exit layer, tokens it agreed on, tokens, seconds) of the round just committed, if one was read."""
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
        began, count = _now(hidden), hidden.shape[1]
        padded = _widened(hidden, call.shapes.width(len(hidden), count))
        logits = call.decoder.logits(padded)[:, :count]
        scores = call.processors(logits, call.rows, draft.tokens, draft.tree.paths)
        chosen = [call.mode.candidates(scores[:, j : j + 1], j, 1)[:, 0, 0] for j in range(count)]
        rows = call.rows
        self._seen = _Watched(
            exit_layer, torch.stack(chosen, dim=1), rows, list(rows.active), list(rows.generated)
        )
        self._seen.seconds = _now(hidden) - began


@dataclass
class _Watched:
    """What an exit chose in a round whose outcome is not known yet."""

    exit_layer: int
    chosen: Tensor
    """[B, n]"""
    rows: Rows
    active: list[int]
    generated: list[int]
    seconds: float = 0.0

    def outcome(self) -> tuple[int, int, int, float]:
        """Compare with what has been committed since."""
        hits = trials = 0
        for i, row in enumerate(self.active):
            first = self.rows.prompt_width + self.generated[row]
            count = min(self.rows.generated[row] - self.generated[row], self.chosen.shape[1])
            hits += int((self.chosen[i, :count] == self.rows.sequences[row, first : first + count]).sum())
            trials += count
        return self.exit_layer, hits, trials, self.seconds


@dataclass
class Following:
    """A pacer that does as its controller says, as long as drafting pays by the clock as well."""

    controller: Controller
    drafter: WatchingExit
    rule: StopRule | None
    """The profile's, for the option that has one."""
    check: PayCheck
    stats: Stats
    """Of the call: counts what was accepted, told what was chosen."""
    _ran: Option | None = None
    _seen: tuple[int, int] = (0, 0)

    def draft_length(self, remaining: int) -> int:
        plan = self.controller.plan()
        option, self._ran = plan.option, plan.option
        length = option.draft_length if self.check.allows() else 0
        self.drafter.exit_layer, self.drafter.watched = option.exit_layer, plan.watched
        self.drafter.rule = self.rule if option.ruled else None
        self.stats.exit_layer, self.stats.draft_length = option.exit_layer, length
        return min(length, remaining - 1)

    def observe(self, length: int, tokens: float, seconds: float) -> None:
        self.check.observe(length > 0, tokens, seconds)
        outcome = self.drafter.outcome()
        if outcome is not None:
            self.controller.tell_watched(*outcome)
        accepted, rejected = self.stats.accepted - self._seen[0], self.stats.rejected - self._seen[1]
        self._seen = self.stats.accepted, self.stats.rejected
        if self._ran is not None:
            known = 0.0 if math.isnan(seconds) else seconds
            self.controller.tell_round(self._ran, accepted, rejected, known)


def follow(
    profile: Profile, rows: Rows, coupled: bool, stats: Stats, plain: Rate, fixed: bool = False
) -> tuple[WatchingExit, Following]:
    """Drafter and pacer of a call under a profile.

    Args:
        coupled: whether other exits may be read: greedy or coupled, where choosing leaves nothing behind.
        stats: of the call: told what was chosen and why.
        plain: speed of rounds without drafts, shared by the calls of one model.
        fixed: whether rounds run on the device alone: a draft is as long as it was decided to be, and no
            other exit is read on the way.
    """
    setting, n_rows = profile.setting, len(rows.active)
    context = max(rows.cached) + rows.max_new_tokens / 2
    costs = CostTable.of(profile, n_rows, context, max(rows.cached) + rows.max_new_tokens)
    costs = costs.without_rules() if fixed else costs
    options = costs.options[setting.exit_layer]
    tuned = (setting.draft_length, setting.rule is not None and setting.draft_length > 0)
    first = next((o for o in options if (o.draft_length, o.ruled) == tuned), None)
    # Where the limits forbid it here, the controller chooses before the first round.
    own = first or Option(setting.exit_layer, setting.draft_length, seconds=1.0, tokens=1.0, rejected=0.0)
    controller = Controller(costs, profile.acceptance, own, may_watch=coupled and not fixed)
    drafter = WatchingExit(setting.exit_layer)
    stats.strategy, stats.choice = "early_exit", f"profile {profile}; then as acceptance asks for"
    outside = _outside(profile, n_rows, context)
    if outside:
        stats.choice += f"; outside what was timed: {'; '.join(outside)}"
    check = PayCheck(warmup=1, delay=2, plain=plain)
    return drafter, Following(controller, drafter, setting.rule, check, stats)


def _outside(profile: Profile, rows: int, context: float) -> list[str]:
    """In what the call differs from those that costs were timed in."""
    found = profile.costs.outside(rows, context)
    threads = profile.conditions.get("threads")
    if profile.identity.device.startswith("cpu") and threads not in (None, torch.get_num_threads()):
        found.append(f"{torch.get_num_threads()} threads, timed were {threads}")
    return found


def _widened(hidden: Tensor, width: int) -> Tensor:
    """hidden [B, n, D] with its last column repeated up to `width`."""
    return torch.cat([hidden, hidden[:, -1:].expand(-1, width - hidden.shape[1], -1)], dim=1)


def _now(tensor: Tensor) -> float:
    """The time at which everything asked of `tensor`'s device is done: a round in a hundred waits for it."""
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
    return time.perf_counter()
