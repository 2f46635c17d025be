"""Predictions against real runs: settings in turn on every prompt, as the clock sees them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfspec.benchmarking.statistics import percentile
from selfspec.call import Drafter
from selfspec.config import SpeculationConfig
from selfspec.drafting import EarlyExit
from selfspec.pacing import FixedLength, Pacer
from selfspec.speculation import Speculation
from selfspec.stats import Stats
from selfspec.tuning.record import left_padded, pad_token, run_engine
from selfspec.tuning.recording import Recording
from selfspec.tuning.replay import Setting, replay
from selfspec.tuning.round_costs import CostModel
from selfspec.tuning.search import predict


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
    model: Any,
    prompts: Sequence[Sequence[int]],
    recording: Recording,
    costs: CostModel,
    settings: Sequence[Setting],
    *,
    repeats: int = 3,
    deterministic: bool = True,
    generate_arguments: Mapping[str, Any] | None = None,
    advance: Callable[[str, int], None] = lambda name, total: None,
) -> list[Comparison]:
    """Run every setting on every prompt, in turn, `repeats` times, and set it beside its prediction.

    Args:
        prompts: those that `recording` was made of, in its order.
    """
    total = repeats * len(prompts) * len(settings)
    stats = [[Stats() for _ in settings] for _ in range(repeats)]
    arguments = {"do_sample": False, **(generate_arguments or {}), "max_new_tokens": recording.max_new_tokens}
    for repeat in range(repeats):
        for p, prompt in enumerate(prompts):
            # Who goes first moves on, so that nobody always runs on a machine that its neighbour has warmed.
            order = [(i + p) % len(settings) for i in range(len(settings))]
            for s in order:
                advance("comparing with real runs", total)
                found = run_setting(model, [prompt], settings[s], recording.seed, deterministic, **arguments)
                stats[repeat][s].add(found)
    predicted = predict(recording, costs, settings)
    counts = replay(recording, settings)
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
    model: Any,
    prompts: Sequence[Sequence[int]],
    setting: Setting,
    seed: int = 0,
    deterministic: bool = True,
    **arguments: Any,
) -> Stats:
    """One real call under one fixed setting; the model's own wrapping, if any, is left as it is."""
    fixed = _Fixed(setting, deterministic)
    pad = pad_token(model)
    inputs = left_padded(prompts, pad, model.device)
    run_engine(model, fixed, seed, **{"pad_token_id": pad, **arguments}, **inputs)
    return fixed.stats


class _Fixed(Speculation):
    """One setting, whatever it is."""

    def __init__(self, setting: Setting, deterministic: bool) -> None:
        super().__init__(SpeculationConfig(deterministic=deterministic))
        self._setting = setting

    def strategy(self, *_: Any) -> tuple[Drafter, Pacer, Stats, None]:
        setting = self._setting
        drafter = EarlyExit(setting.exit_layer, setting.shape, setting.rule)
        stats = Stats(strategy="early_exit", exit_layer=setting.exit_layer, draft_length=setting.draft_length)
        return drafter, FixedLength(setting.draft_length), stats, None
