"""Find the setting with the most predicted tokens per second: exhaustive, since replay is cheap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from selfspec.tuning.calibration import calibrate, paying_rule
from selfspec.tuning.recording import Recording
from selfspec.tuning.replay import Replay, Setting
from selfspec.tuning.replay import replay as replay_
from selfspec.tuning.round_costs import CostModel

LONGEST = 12
THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_SIMPLER = 0.995
"""A setting without a stop rule is taken if it reaches this share of the best one's speed."""
_RULED_EXITS = 4
"""Exits, from the fastest on, for which rules are derived from costs."""
_SPEED_GUESSES = (0.8, 1.0, 1.2)
_RESAMPLES = 1000


@dataclass(frozen=True)
class Limits:
    """What a setting may take at most; None is no limit."""

    seconds_per_token: float | None = None
    """Worst case: a round in which nothing is accepted."""
    bytes: int | None = None
    """Working memory of a round beyond weights and K/V: scores, noise and hidden states."""

    def __post_init__(self) -> None:
        for name in ("seconds_per_token", "bytes"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"limit {name}={value}: allowed is more than 0, or None for no limit")


@dataclass(frozen=True)
class Prediction:
    """Of one setting on one workload."""

    setting: Setting
    tokens_per_second: float
    """Of all rounds together, prefill left out."""
    interval: tuple[float, float]
    """95% of tokens_per_second, by bootstrap over prompts."""
    speedup: float
    """Over AR, the same engine with K = 0."""
    speedup_interval: tuple[float, float]
    acceptance_length: float
    acceptance_rate: tuple[float, float]
    """Least and most: equal without a stop rule."""
    round_seconds: float
    """Longest round: the worst case for one token."""


@dataclass(frozen=True)
class Found:
    """What the search saw."""

    best: Prediction
    plain: Prediction
    """AR"""
    surface: tuple[tuple[int, int, float], ...]
    """(E, K, tokens per second) without a stop rule."""
    tried: int
    """Settings that were replayed."""


def speeds(recording: Recording, counts: Replay, settings: Sequence[Setting], costs: CostModel) -> Tensor:
    """Seconds [S, G] that the rounds of every setting and batch of prompts take."""
    rounds = counts.rounds.double()
    groups = rounds.shape[1]
    batch = -(-len(recording.lengths) // groups)
    rows = float(counts.row_rounds.sum() / counts.rounds.sum())
    context = (recording.prompt_lengths + recording.lengths / 2).double()
    padded = torch.nn.functional.pad(context, (0, groups * batch - len(context)))
    exits = torch.tensor([s.exit_layer for s in settings], dtype=torch.float64)[:, None]
    checked = torch.tensor([s.rule is not None for s in settings], dtype=torch.float64)[:, None]
    each = costs.round_seconds(
        exits,
        counts.steps / rounds.clamp(min=1),
        rows=rows,
        context=padded.view(groups, batch).amax(dim=1)[None],
        checked=checked,
    )
    return rounds * each


def search(
    recording: Recording,
    costs: CostModel,
    *,
    batch: int = 1,
    longest: int = LONGEST,
    limits: Limits | None = None,
    bytes_per_column: int = 0,
) -> Found:
    """Try every exit, draft length and threshold, and rules derived from the costs.

    Args:
        bytes_per_column: working memory per row and verified token, for `limits.bytes`.
    """
    limits = limits or Limits()
    grid = [Setting(e, k) for e in recording.exits for k in range(1, longest + 1)]
    plain = Setting(recording.exits[0], 0)
    settings = [plain, *grid, *(replace(s, confidence_threshold=t) for s in grid for t in THRESHOLDS[1:])]
    allowed = [plain] + [
        s for s in settings[1:] if _within(s, recording, costs, batch, limits, bytes_per_column)
    ]
    rates = _rates(recording, allowed, costs, batch)
    ruled = _ruled_settings(recording, costs, allowed, rates, batch)
    if ruled:
        allowed, rates = allowed + ruled, torch.cat([rates, _rates(recording, ruled, costs, batch)])
    best = int(rates.argmax())
    simple = [i for i, s in enumerate(allowed) if s.rule is None]
    simplest = max(simple, key=lambda i: float(rates[i]))
    if rates[simplest] >= _SIMPLER * rates[best]:
        best = simplest
    surface = tuple((allowed[i].exit_layer, allowed[i].draft_length, float(rates[i])) for i in simple[1:])
    chosen, ar = predict(recording, costs, [allowed[best], plain], batch)
    return Found(chosen, ar, surface, len(allowed))


def predict(
    recording: Recording, costs: CostModel, settings: Sequence[Setting], batch: int = 1
) -> list[Prediction]:
    """Speed and acceptance of each setting, with intervals by bootstrap over prompts (batches of them)."""
    plain = Setting(recording.exits[0], 0)
    counts = replay_(recording, [plain, *settings], batch)
    seconds = speeds(recording, counts, [plain, *settings], costs)
    groups = seconds.shape[1]
    padding = -len(recording.lengths) % batch
    tokens = torch.nn.functional.pad(recording.lengths, (0, padding)).view(groups, batch).sum(dim=1).double()
    picks = torch.randint(groups, (_RESAMPLES, groups), generator=torch.Generator().manual_seed(0))
    resampled = tokens[picks].sum(dim=1) / seconds[:, picks].sum(dim=2)
    ratios = resampled / resampled[:1]
    rates = tokens.sum() / seconds.sum(dim=1)
    found = []
    for s, setting in enumerate(settings, 1):
        accepted = float(counts.accepted[s].sum())
        most, least = float(counts.drafted_most[s].sum()), float(counts.drafted_least[s].sum())
        found.append(
            Prediction(
                setting,
                float(rates[s]),
                _middle(resampled[s]),
                float(rates[s] / rates[0]),
                _middle(ratios[s]),
                float(counts.acceptance_length[s]),
                (accepted / max(most, 1.0), accepted / max(least, 1.0)),
                worst_round(setting, recording, costs, batch),
            )
        )
    return found


def worst_round(setting: Setting, recording: Recording, costs: CostModel, batch: int) -> float:
    """Seconds of the longest round: all K drafted, at the longest context."""
    context = float((recording.prompt_lengths + recording.max_new_tokens).max())
    return float(
        costs.round_seconds(
            setting.exit_layer,
            setting.draft_length,
            rows=batch,
            context=context,
            checked=setting.rule is not None,
        )
    )


def _within(
    setting: Setting,
    recording: Recording,
    costs: CostModel,
    batch: int,
    limits: Limits,
    bytes_per_column: int,
) -> bool:
    if limits.bytes is not None and batch * (setting.draft_length + 1) * bytes_per_column > limits.bytes:
        return False
    limit = limits.seconds_per_token
    return limit is None or worst_round(setting, recording, costs, batch) <= limit


def _rates(recording: Recording, settings: Sequence[Setting], costs: CostModel, batch: int) -> Tensor:
    """Predicted tokens per second [S]."""
    counts = replay_(recording, settings, batch)
    return recording.n_tokens / speeds(recording, counts, settings, costs).sum(dim=1)


def _ruled_settings(
    recording: Recording, costs: CostModel, settings: Sequence[Setting], rates: Tensor, batch: int
) -> list[Setting]:
    """Settings whose stop rule follows from the costs, for the exits that are fastest without one."""
    best: dict[int, float] = {}
    longest: dict[int, int] = {}
    for setting, rate in zip(settings[1:], rates[1:].tolist(), strict=True):
        e = setting.exit_layer
        best[e] = max(best.get(e, 0.0), rate)
        longest[e] = max(longest.get(e, 0), setting.draft_length)
    context = float((recording.prompt_lengths + recording.lengths / 2).mean())
    found = []
    for e in sorted(best, key=lambda e: -best[e])[:_RULED_EXITS]:
        calibration = calibrate(recording, e)
        steps = torch.arange(1, longest[e] + 1, dtype=torch.float64)
        seconds = costs.round_seconds(e, steps, rows=batch, context=context, checked=True).diff().tolist()
        for guess in _SPEED_GUESSES:
            rule = paying_rule(calibration, seconds, batch_rate(best[e] * guess, batch))
            lengths = {longest[e], max(longest[e] // 2, 1), max(longest[e] * 3 // 4, 1)}
            found += [Setting(e, k, stop=rule) for k in sorted(lengths)]
    return found


def batch_rate(tokens_per_second: float, batch: int) -> float:
    """Tokens per second of one row: a round's extra time delays all of them."""
    return tokens_per_second / batch


def _middle(values: Tensor) -> tuple[float, float]:
    low, high = torch.quantile(values, torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high
