"""Find the setting with the most predicted tokens per second: exhaustive, since replay is cheap."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from selfspec.round import Arm
from selfspec.tree import MAX_CANDIDATES
from selfspec.tuning.calibration import calibrate, paying_rule
from selfspec.tuning.cost_model import CostModel
from selfspec.tuning.prediction import Limits, Prediction, predict, round_times, worst_round
from selfspec.tuning.recording import TOP, Recording
from selfspec.tuning.replay import Setting, replay

LONGEST = 12
THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_SIMPLER = 0.995
"""A setting without a stop rule is taken if it reaches this share of the best one's speed."""
_RULED_ARMS = 4
"""Arms, from the fastest on, for which rules are derived from costs."""
_DEARER = 1.25
"""Early exits whose rounds take at most so many times those of the whole view are recorded beside it."""
_USUAL_LENGTH = 4
_MORE_EXITS = 1
"""Exits of a view to record beside all of it: each takes a head at every draft position."""
_SPEED_GUESSES = (0.8, 1.0, 1.2)


@dataclass(frozen=True)
class Found:
    """What the search saw."""

    setting: Setting
    """What calls are to draft by."""
    best: Prediction
    plain: Prediction
    """AR"""
    surface: tuple[tuple[Arm, int, float], ...]
    """(arm, K, tokens per second) of chains without a stop rule."""
    tokens: Mapping[Arm, tuple[float, ...]]
    """Tokens per round and row by draft length, from 0, whatever the limits."""
    tried: int
    """Settings that were replayed."""
    branching: Setting | None = None
    """The best with siblings, None where such rounds were not timed."""
    best_branching: Prediction | None = None


@dataclass(frozen=True)
class _Space:
    """Where a search looks: settings within limits, on one workload."""

    recording: Recording
    costs: CostModel
    batch: int
    limits: Limits
    column_bytes: int

    def within(self, setting: Setting) -> bool:
        """Whether its longest round keeps to the limits."""
        if self.limits == Limits():
            return True
        working = self.batch * (setting.candidates + 1) * self.column_bytes
        return self.limits.allow(self.worst(setting), working)

    def worst(self, setting: Setting) -> float:
        """Seconds of its longest round."""
        return worst_round(setting, self.recording, self.costs, self.batch)

    def rates(self, settings: Sequence[Setting]) -> Tensor:
        """Predicted tokens per second [S]."""
        counts = replay(self.recording, settings, self.batch)
        return self.recording.n_tokens / round_times(self.recording, counts, settings, self.costs).sum(dim=1)


def search(
    recording: Recording,
    costs: CostModel,
    *,
    batch: int = 1,
    longest: int = LONGEST,
    limits: Limits | None = None,
    column_bytes: int = 0,
    rules: bool = True,
    siblings: bool = False,
) -> Found:
    """Try every arm, draft length and threshold, rules derived from the costs, and every width of siblings.

    Args:
        column_bytes: working memory per row and verified token, for `limits.bytes`.
        rules: whether a rule can stop drafts on the way, which rounds on a device cannot.
        siblings: whether a chain with siblings may be chosen; the best one is told in any case.

    Raises:
        ValueError: plain rounds alone break the limits.
    """
    space = _Space(recording, costs, batch, limits or Limits(), column_bytes)
    plain = Setting.by(recording.arms[0], 0)
    if not space.within(plain):
        raise ValueError(
            f"{space.limits}: out of reach, a round without drafts takes {space.worst(plain) * 1e3:.1f} ms "
            f"and {batch * column_bytes} bytes; allowed are at least those"
        )
    arms = [arm for arm in recording.arms if costs.knows_view or not arm.low_bit]
    grid = [Setting.by(arm, k) for arm in arms for k in _lengths(recording, arm, longest) if k]
    allowed, rates = _chains(space, [plain, *grid], rules)
    best = int(rates.argmax())
    simple = [i for i, s in enumerate(allowed) if s.rule is None]
    simplest = max(simple, key=lambda i: float(rates[i]))
    if rates[simplest] >= _SIMPLER * rates[best]:
        best = simplest
    chosen, speed = allowed[best], float(rates[best])
    trees = list(filter(space.within, _with_siblings(grid, costs)))
    branching = None
    if trees:
        speeds = space.rates(trees)
        branching = trees[int(speeds.argmax())]
        if siblings and _SIMPLER * float(speeds.max()) > speed:
            chosen = branching
    told = predict(recording, costs, [chosen, plain, branching or plain], batch)
    return Found(
        setting=chosen,
        best=told[0],
        plain=told[1],
        surface=tuple((allowed[i].arm, allowed[i].draft_length, float(rates[i])) for i in simple[1:]),
        tokens=tokens_by_length(recording, longest),
        tried=len(allowed) + len(trees),
        branching=branching,
        best_branching=told[2] if branching is not None else None,
    )


def _chains(space: _Space, grid: Sequence[Setting], rules: bool) -> tuple[list[Setting], Tensor]:
    """The chains within limits, and their speed [S]: plain, of every length, and with rules of every kind."""
    ruled = [replace(s, confidence_threshold=t) for s in grid[1:] for t in THRESHOLDS[1:] if rules]
    allowed = [grid[0], *filter(space.within, [*grid[1:], *ruled])]
    rates = space.rates(allowed)
    derived = list(filter(space.within, _ruled_settings(space, allowed, rates))) if rules else []
    if derived:
        allowed, rates = allowed + derived, torch.cat([rates, space.rates(derived)])
    return allowed, rates


def _lengths(recording: Recording, arm: Arm, longest: int) -> range:
    """Draft lengths of an arm that can be told, from 0."""
    return range(min(longest, recording.longest(arm) or longest) + 1)


def _with_siblings(chains: Sequence[Setting], costs: CostModel) -> Iterator[Setting]:
    """The chains with 2 and more candidates at every depth, as far as such rounds were timed."""
    if not costs.knows_siblings:
        return
    most = min(MAX_CANDIDATES, costs.most_columns - 1)
    for width in range(2, TOP + 1):
        yield from (replace(s, siblings=width) for s in chains if width * s.draft_length <= most)


def worthwhile_early_exits(costs: CostModel, viewed: int, batch: int = 1) -> list[int]:
    """The early exits that are worth recording beside a view of `viewed` layers, 0 for none.

    All of them but where the view holds the whole model: that chooses better than nearly every exit, so exits
    whose rounds cost clearly more than its own are not drafted by.
    """
    every = range(1, costs.n_layers)
    if viewed < costs.n_layers or not costs.knows_view:
        return list(every)
    most = _DEARER * float(costs.round_seconds(viewed, _USUAL_LENGTH, rows=batch, low_bit=True))
    return [e for e in every if e == 1 or float(costs.round_seconds(e, _USUAL_LENGTH, rows=batch)) <= most]


def worthwhile_exits(
    recording: Recording, costs: CostModel, n_layers: int, batch: int = 1, longest: int = LONGEST
) -> list[int]:
    """The exits of a view of `n_layers` layers that are worth recording: all of it, and at most one below.

    An exit in few bits hardly chooses better than the same exit of the model itself. So what that one's
    drafts would bring, at the price of the view's steps, is the most that it can: the fastest is
    recorded, if that is faster than every early exit, and than drafting nothing.
    """
    early = [Setting.by(arm, k) for arm in recording.arms if not arm.low_bit for k in range(longest + 1)]
    by_view = [replace(setting, draft="low_bit") for setting in early]
    counts = replay(recording, early, batch)
    own, bound = (1 / round_times(recording, counts, ways, costs).sum(dim=1) for ways in (early, by_view))
    best: dict[int, float] = {}
    for setting, rate in zip(early, bound.tolist(), strict=True):
        if setting.draft_length and setting.exit_layer < n_layers and rate > float(own.max()):
            best[setting.exit_layer] = max(best.get(setting.exit_layer, 0.0), rate)
    return sorted([*sorted(best, key=lambda e: -best[e])[:_MORE_EXITS], n_layers])


def tokens_by_length(recording: Recording, longest: int) -> dict[Arm, tuple[float, ...]]:
    """Arm -> tokens per round and row by draft length, from 0."""
    settings = [Setting.by(arm, k) for arm in recording.arms for k in _lengths(recording, arm, longest)]
    found: dict[Arm, tuple[float, ...]] = {}
    for setting, tokens in zip(settings, replay(recording, settings).acceptance_length.tolist(), strict=True):
        found[setting.arm] = (*found.get(setting.arm, ()), tokens)
    return found


def _ruled_settings(space: _Space, settings: Sequence[Setting], rates: Tensor) -> list[Setting]:
    """Settings whose stop rule follows from the costs, for the arms that are fastest without one."""
    best: dict[Arm, float] = {}
    longest: dict[Arm, int] = {}
    for setting, rate in zip(settings[1:], rates[1:].tolist(), strict=True):
        best[setting.arm] = max(best.get(setting.arm, 0.0), rate)
        longest[setting.arm] = max(longest.get(setting.arm, 0), setting.draft_length)
    recording, batch = space.recording, space.batch
    context = float((recording.prompt_lengths + recording.lengths / 2).mean())
    found = []
    for arm in sorted(best, key=lambda arm: -best[arm])[:_RULED_ARMS]:
        calibration = calibrate(recording, arm)
        steps, low_bit = torch.arange(1, longest[arm] + 1, dtype=torch.float64), arm.low_bit
        seconds = space.costs.round_seconds(
            arm.exit_layer, steps, rows=batch, context=context, checked=True, low_bit=low_bit
        )
        for guess in _SPEED_GUESSES:
            # Per row: a round's extra time delays all of them.
            rule = paying_rule(calibration, seconds.diff().tolist(), best[arm] * guess / batch)
            lengths = {longest[arm], max(longest[arm] // 2, 1), max(longest[arm] * 3 // 4, 1)}
            found += [Setting.by(arm, k, stop=rule) for k in sorted(lengths)]
    return found
