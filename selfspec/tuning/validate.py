"""Predictions against real runs: settings in turn on every prompt, as the clock sees them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfspec.benchmarking.statistics import percentile
from selfspec.drafting import Switching
from selfspec.pacing import FixedLength
from selfspec.stats import Stats
from selfspec.tuning.cost_model import CostModel
from selfspec.tuning.prediction import predict
from selfspec.tuning.recording import Recording
from selfspec.tuning.replay import Setting, replay
from selfspec.tuning.running import Engine


@dataclass(frozen=True)
class Comparison:
    """One setting, predicted and measured on the same prompts."""

    setting: Setting
    predicted: float
    """Tokens per second, prefill left out."""
    measured: float
    """The same, from the median of the repeats."""
    spread: float
    """(largest - smallest) / median of the repeats' speeds: the machine's own."""
    counts_equal: bool
    """Whether rounds and accepted tokens were exactly those that replay told."""

    @property
    def error(self) -> float:
        """(predicted - measured) / measured."""
        return self.predicted / self.measured - 1


def compare(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    recording: Recording,
    costs: CostModel,
    settings: Sequence[Setting],
    *,
    batch: int = 1,
    repeats: int = 3,
    generate_arguments: Mapping[str, Any] | None = None,
    advance: Callable[[str, int], None] = lambda name, total: None,
) -> list[Comparison]:
    """Run every setting on every prompt, in turn, `repeats` times, and set it beside its prediction.

    On a device each setting first runs once for its graphs to be captured.

    Args:
        prompts: those that `recording` was made of, in its order.
        batch: prompts generated together, as predicted.
    """
    groups = [prompts[i : i + batch] for i in range(0, len(prompts), batch)]
    total = repeats * len(groups) * len(settings)
    stats = [[Stats() for _ in settings] for _ in range(repeats)]
    arguments = {"do_sample": False, **(generate_arguments or {}), "max_new_tokens": recording.max_new_tokens}
    for setting in settings if engine.fixed else ():
        run_setting(engine, groups[0], setting, recording.seed, **arguments)
    for repeat in range(repeats):
        for p, group in enumerate(groups):
            # Who goes first moves on, so that nobody always runs on a machine that its neighbour has warmed.
            order = [(i + p) % len(settings) for i in range(len(settings))]
            for s in order:
                advance("comparing with real runs", total)
                found = run_setting(engine, group, settings[s], recording.seed, **arguments)
                stats[repeat][s].add(found)
    predicted = predict(recording, costs, settings, batch)
    counts = replay(recording, settings, batch)
    results = []
    for s, setting in enumerate(settings):
        speeds = [round_speed(stats[r][s]) for r in range(repeats)]
        middle = percentile(speeds, 0.5)
        results.append(
            Comparison(
                setting,
                predicted[s].tokens_per_second,
                middle,
                (max(speeds) - min(speeds)) / middle,
                stats[0][s].row_rounds == int(counts.row_rounds[s].sum())
                and stats[0][s].accepted == int(counts.accepted[s].sum()),
            )
        )
    return results


def round_speed(stats: Stats) -> float:
    """Tokens per second of the rounds, prefill left out."""
    return stats.tokens / stats.round_seconds


def run_setting(
    engine: Engine, prompts: Sequence[Sequence[int]], setting: Setting, seed: int = 0, **arguments: Any
) -> Stats:
    """One real call under one fixed setting.

    Raises:
        ValueError: it drafts by a low-bit view, and the engine has none.
    """
    drafter = Switching(engine.view)
    drafter.turn_to(setting.arm, setting.shape, setting.rule)
    return engine.run(prompts, drafter, FixedLength(setting.draft_length), seed=seed, **arguments)
