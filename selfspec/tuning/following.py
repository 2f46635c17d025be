"""The controller in the engine: a pacer that follows it, from what a profile says and the call allows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch

from layer_skip.low_bit import LowBitView
from selfspec.drafting import StopRule
from selfspec.pacing import PayCheck, Rate
from selfspec.round import Arm
from selfspec.rows import Rows
from selfspec.stats import Stats
from selfspec.tuning.controller import Controller, Plan
from selfspec.tuning.cost_table import CostTable, Option
from selfspec.tuning.profile import Profile
from selfspec.tuning.replay import Setting, shape_of
from selfspec.tuning.watching import Watching


@dataclass
class Following:
    """A pacer that does as its controller says, as long as drafting pays by the clock as well."""

    controller: Controller
    drafter: Watching
    rule: StopRule | None
    """The profile's, for the option that has one."""
    check: PayCheck
    stats: Stats
    """Of the call: counts what was accepted, told what was chosen."""
    _ran: Plan | None = None
    _seen: tuple[int, int] = (0, 0)

    def draft_length(self, remaining: int) -> int:
        plan = self._ran = self.controller.plan(silenced=not self.check.allows())
        option = plan.option
        self.drafter.turn_to(option.arm, shape_of(option.siblings), self.rule if option.ruled else None)
        self.drafter.watched = None if plan.watched is None else plan.watched.exit_layer
        self.stats.strategy, self.stats.exit_layer = option.arm.kind, option.arm.exit_layer
        self.stats.draft_length = plan.length
        return min(plan.length, remaining - 1)

    def observe(self, length: int, tokens: float, seconds: float) -> None:
        probing = self._ran is not None and self._ran.probing
        self.check.observe(length > 0, tokens, math.nan if probing else seconds)
        easier = False
        outcome = self.drafter.outcome()
        if outcome is not None:
            exit_layer, hits, trials, taken = outcome
            easier = self.controller.tell_watched(Arm(exit_layer, low_bit=False), hits, trials, taken)
        accepted, rejected = self.stats.accepted - self._seen[0], self.stats.rejected - self._seen[1]
        self._seen = self.stats.accepted, self.stats.rejected
        if self._ran is not None:
            known = 0.0 if math.isnan(seconds) else seconds
            easier |= self.controller.tell_round(self._ran.option, accepted, rejected, known)
        if easier:  # the verdict of the clock was about another text
            self.check.wake()


def follow(
    profile: Profile,
    rows: Rows,
    coupled: bool,
    stats: Stats,
    plain: Rate,
    *,
    view: LowBitView | None = None,
    fixed: bool = False,
) -> tuple[Watching, Following]:
    """Drafter and pacer of a call under a profile.

    Args:
        coupled: whether other exits may be read and siblings drafted: greedy or coupled, where choosing
            leaves nothing behind.
        stats: of the call: told what was chosen and why.
        plain: speed of rounds without drafts, shared by the calls of one model.
        view: the low-bit view that is there; where it is not the profile's, early exits draft in its place.
        fixed: whether rounds run on the device alone: a draft is a chain as long as it was decided to be, and
            no other exit is read on the way.
    """
    setting, n_rows = profile.setting, len(rows.active)
    context = max(rows.cached) + rows.max_new_tokens / 2
    costs = CostTable.of(profile, n_rows, context, max(rows.cached) + rows.max_new_tokens)
    costs = costs.of_arms(_possible(profile, view)).without(rules=fixed, siblings=fixed or not coupled)
    # Where its draft cannot be here, or the limits forbid it, the controller chooses before the first round.
    own = next(filter(partial(_is_tuned, setting), costs.options.get(setting.arm, ())), None)
    own = own or Option(setting.arm, setting.draft_length, seconds=1.0, tokens=1.0, rejected=0.0)
    controller = Controller(costs, profile.acceptance, own, may_watch=coupled and not fixed)
    drafter = Watching(view)
    stats.strategy, stats.choice = setting.arm.kind, f"profile {profile}; then as acceptance asks for"
    notes = {
        "not as tuned": _missing(profile, costs, view),
        "outside what was timed": "; ".join(_outside(profile, n_rows, context)),
    }
    stats.choice += "".join(f"; {what}: {note}" for what, note in notes.items() if note)
    check = PayCheck(warmup=1, delay=2, plain=plain)
    return drafter, Following(controller, drafter, setting.rule, check, stats)


def _possible(profile: Profile, view: LowBitView | None) -> list[Arm]:
    """The arms of a profile that can draft with the view that is there."""
    there = 0 if view is None or view.bits != profile.draft_bits else view.n_layers
    return [arm for arm in profile.acceptance if not arm.low_bit or arm.exit_layer <= there]


def _is_tuned(setting: Setting, option: Option) -> bool:
    ruled = setting.rule is not None and setting.draft_length > 0
    known = option.draft_length, option.siblings, option.ruled
    return known == (setting.draft_length, setting.siblings, ruled)


def _missing(profile: Profile, costs: CostTable, view: LowBitView | None) -> str:
    """What the profile chose and this call cannot do, in words."""
    setting = profile.setting
    if setting.arm not in costs.options:
        there = "none" if view is None else f"one of {view.n_layers} layers in {view.bits} bits"
        return (
            f"it drafts with {setting.exit_layer} layers of a view in {profile.draft_bits} bits, there is "
            f"{there}, and other layers draft"
        )
    if setting.siblings > 1 and all(option.siblings == 1 for option in costs.options[setting.arm]):
        return f"no {setting.siblings} siblings"
    return ""


def _outside(profile: Profile, rows: int, context: float) -> list[str]:
    """In what the call differs from those that costs were timed in."""
    found = profile.costs.outside(rows, context)
    threads = profile.conditions.get("threads")
    if profile.identity.device.startswith("cpu") and threads not in (None, torch.get_num_threads()):
        found.append(f"{torch.get_num_threads()} threads, timed were {threads}")
    return found
