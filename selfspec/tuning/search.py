"""Find the setting with the most predicted tokens per second: exhaustive, since replay is cheap."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

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
_RULED_EXITS = 4
"""Exits, from the fastest on, for which rules are derived from costs."""
_SPEED_GUESSES = (0.8, 1.0, 1.2)


@dataclass(frozen=True)
class Found:
    """What the search saw."""

    setting: Setting
    """The best chain: calls under a profile draft chains."""
    best: Prediction
    plain: Prediction
    """AR"""
    surface: tuple[tuple[int, int, float], ...]
    """(E, K, tokens per second) without a stop rule."""
    tokens: Mapping[int, tuple[float, ...]]
    """Exit layer -> tokens per round and row by draft length, from 0, whatever the limits."""
    tried: int
    """Settings that were replayed."""
    branching: Setting | None = None
    """The best with siblings, None where such rounds were not timed. With two at every depth it is
    `wrap(model, exit_layer=E, draft_length=K, tree="siblings")`, with more `tree=branching.shape(K).parents`.
    """
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
) -> Found:
    """Try every exit, draft length and threshold, rules derived from the costs, and every width of siblings.

    Args:
        column_bytes: working memory per row and verified token, for `limits.bytes`.

    Raises:
        ValueError: plain rounds alone break the limits.
    """
    space = _Space(recording, costs, batch, limits or Limits(), column_bytes)
    plain = Setting(recording.exits[0], 0)
    if not space.within(plain):
        raise ValueError(
            f"{space.limits}: out of reach, a round without drafts takes {space.worst(plain) * 1e3:.1f} ms "
            f"and {batch * column_bytes} bytes; allowed are at least those"
        )
    grid = [Setting(e, k) for e in recording.exits for k in range(1, longest + 1)]
    every = [*grid, *(replace(s, confidence_threshold=t) for s in grid for t in THRESHOLDS[1:])]
    allowed = [plain, *filter(space.within, every)]
    rates = space.rates(allowed)
    ruled = [setting for setting in _ruled_settings(space, allowed, rates) if space.within(setting)]
    if ruled:
        allowed, rates = allowed + ruled, torch.cat([rates, space.rates(ruled)])
    best = int(rates.argmax())
    simple = [i for i, s in enumerate(allowed) if s.rule is None]
    simplest = max(simple, key=lambda i: float(rates[i]))
    if rates[simplest] >= _SIMPLER * rates[best]:
        best = simplest
    surface = tuple((allowed[i].exit_layer, allowed[i].draft_length, float(rates[i])) for i in simple[1:])
    trees = list(filter(space.within, _with_siblings(grid, costs)))
    branching = [trees[int(space.rates(trees).argmax())]] if trees else []
    chosen, ar, *forked = predict(recording, costs, [allowed[best], plain, *branching], batch)
    return Found(
        setting=allowed[best],
        best=chosen,
        plain=ar,
        surface=surface,
        tokens=tokens_by_length(recording, longest),
        tried=len(allowed) + len(trees),
        branching=next(iter(branching), None),
        best_branching=next(iter(forked), None),
    )


def _with_siblings(chains: Sequence[Setting], costs: CostModel) -> Iterator[Setting]:
    """The chains with 2 and more candidates at every depth, as far as such rounds were timed."""
    if not costs.knows_siblings:
        return
    most = min(MAX_CANDIDATES, costs.most_columns - 1)
    for width in range(2, TOP + 1):
        yield from (replace(s, siblings=width) for s in chains if width * s.draft_length <= most)


def tokens_by_length(recording: Recording, longest: int) -> dict[int, tuple[float, ...]]:
    """Exit layer -> tokens per round and row by draft length, from 0."""
    lengths = range(longest + 1)
    counts = replay(recording, [Setting(e, k) for e in recording.exits for k in lengths])
    table = counts.acceptance_length.view(len(recording.exits), len(lengths)).tolist()
    return {e: tuple(row) for e, row in zip(recording.exits, table, strict=True)}


def _ruled_settings(space: _Space, settings: Sequence[Setting], rates: Tensor) -> list[Setting]:
    """Settings whose stop rule follows from the costs, for the exits that are fastest without one."""
    best: dict[int, float] = {}
    longest: dict[int, int] = {}
    for setting, rate in zip(settings[1:], rates[1:].tolist(), strict=True):
        e = setting.exit_layer
        best[e] = max(best.get(e, 0.0), rate)
        longest[e] = max(longest.get(e, 0), setting.draft_length)
    recording, batch = space.recording, space.batch
    context = float((recording.prompt_lengths + recording.lengths / 2).mean())
    found = []
    for e in sorted(best, key=lambda e: -best[e])[:_RULED_EXITS]:
        calibration = calibrate(recording, e)
        steps = torch.arange(1, longest[e] + 1, dtype=torch.float64)
        each = space.costs.round_seconds(e, steps, rows=batch, context=context, checked=True).diff().tolist()
        for guess in _SPEED_GUESSES:
            # Per row: a round's extra time delays all of them.
            rule = paying_rule(calibration, each, best[e] * guess / batch)
            lengths = {longest[e], max(longest[e] // 2, 1), max(longest[e] * 3 // 4, 1)}
            found += [Setting(e, k, stop=rule) for k in sorted(lengths)]
    return found
