"""What a setting is predicted to do on a workload, and the limits that it keeps to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from selfspec.tuning.cost_model import CostModel
from selfspec.tuning.recording import Recording
from selfspec.tuning.replay import Replay, Setting
from selfspec.tuning.replay import replay as replay_

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
            if value is not None and not value > 0:
                raise ValueError(f"limit {name}={value}: allowed is more than 0, or None for no limit")

    def allow(self, seconds: float, working_bytes: int) -> bool:
        """Whether a round may take so long and so much memory."""
        slow = self.seconds_per_token is not None and seconds > self.seconds_per_token
        return not slow and (self.bytes is None or working_bytes <= self.bytes)


@dataclass(frozen=True)
class Prediction:
    """Of one setting on one workload."""

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
    rejected: float
    """Draft tokens replaced per round and row."""
    steps: float
    """Draft steps per round: a stop rule makes them fewer than K."""
    round_seconds: float
    """Longest round: the worst case for one token."""

    def __post_init__(self) -> None:
        numbers = [self.tokens_per_second, self.speedup, self.acceptance_length, self.round_seconds]
        ends = [*self.interval, *self.speedup_interval, *self.acceptance_rate]
        if (
            not all(value > 0 for value in numbers)
            or len(ends) != 6
            or not min(*ends, self.steps, self.rejected) >= 0
        ):
            raise ValueError(f"{self}: speeds, lengths and seconds are above 0, intervals two ends")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Prediction:
        """The inverse of `dataclasses.asdict`, after JSON."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return asdict(self)


def predict(
    recording: Recording, costs: CostModel, settings: Sequence[Setting], batch: int = 1
) -> list[Prediction]:
    """Speed and acceptance of each setting, with intervals by bootstrap over prompts (batches of them).

    Raises:
        ValueError: a setting drafts a static tree: `replay` tells its rounds, but they were not timed.
    """
    if any(setting.tree is not None for setting in settings):
        raise ValueError("rounds of static trees were not timed: use replay")
    plain = Setting.by(recording.arms[0], 0)
    counts = replay_(recording, [plain, *settings], batch)
    seconds = round_times(recording, counts, [plain, *settings], costs)
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
                tokens_per_second=float(rates[s]),
                interval=_middle(resampled[s]),
                speedup=float(rates[s] / rates[0]),
                speedup_interval=_middle(ratios[s]),
                acceptance_length=float(counts.acceptance_length[s]),
                acceptance_rate=(accepted / max(most, 1.0), accepted / max(least, 1.0)),
                rejected=float(counts.rejected[s].sum() / counts.row_rounds[s].sum()),
                steps=float(counts.steps[s].sum() / counts.rounds[s].sum()),
                round_seconds=worst_round(setting, recording, costs, batch),
            )
        )
    return found


def round_times(
    recording: Recording, counts: Replay, settings: Sequence[Setting], costs: CostModel
) -> Tensor:
    """Seconds [S, G] that the rounds of every setting and batch of prompts take."""
    rounds = counts.rounds.double()
    groups = rounds.shape[1]
    batch = -(-len(recording.lengths) // groups)
    rows = float(counts.row_rounds.sum() / counts.rounds.sum())
    context = (recording.prompt_lengths + recording.lengths / 2).double()
    padded = torch.nn.functional.pad(context, (0, groups * batch - len(context)))
    exits = torch.tensor([s.exit_layer for s in settings], dtype=torch.float64)[:, None]
    checked = torch.tensor([s.rule is not None for s in settings], dtype=torch.float64)[:, None]
    siblings = torch.tensor([s.siblings for s in settings], dtype=torch.float64)[:, None]
    low_bit = torch.tensor([s.arm.low_bit for s in settings])[:, None]
    each = costs.round_seconds(
        exits,
        counts.steps / rounds.clamp(min=1),
        rows=rows,
        context=padded.view(groups, batch).amax(dim=1)[None],
        checked=checked,
        siblings=siblings,
        low_bit=low_bit,
    )
    return rounds * each


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
            siblings=setting.siblings,
            low_bit=setting.arm.low_bit,
        )
    )


def _middle(values: Tensor) -> tuple[float, float]:
    low, high = torch.quantile(values, torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high
