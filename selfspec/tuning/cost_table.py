"""What every way to run a round costs and brings in one call under a profile: the controller's choices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from selfspec.tuning.profile import Profile


@dataclass(frozen=True)
class Option:
    """One way to run a round."""

    exit_layer: int
    draft_length: int
    seconds: float
    tokens: float
    """Per round and row, as the profile's workload was replayed."""
    rejected: float
    """Draft tokens replaced per round and row, likewise."""
    ruled: bool = False
    """Whether the profile's stop rule ends drafts; `seconds` are those of a mean round then."""
    least_seconds: float = 0.0
    """What a round takes besides `seconds_per_token` committed; 0: `seconds`, whatever it commits."""
    seconds_per_token: float = 0.0

    def __post_init__(self) -> None:
        if not self.least_seconds:
            object.__setattr__(self, "least_seconds", self.seconds)


@dataclass(frozen=True)
class CostTable:
    """The options within a profile's limits at one batch size and context."""

    options: Mapping[int, Sequence[Option]]
    """By exit layer; the first of each drafts nothing."""
    read_seconds: float
    """First guess of the seconds of reading one exit."""

    @classmethod
    def of(cls, profile: Profile, rows: int, context: float, longest_context: float) -> CostTable:
        """Read off the costs of a profile: at `context` to choose by, at the longest for its limits."""
        exits, costs = sorted(profile.acceptance), profile.costs
        lengths = torch.arange(profile.longest + 1, dtype=torch.float64)
        at = torch.tensor(exits, dtype=torch.float64)[:, None]
        seconds = costs.round_seconds(at, lengths, rows=rows, context=context).tolist()
        worst = costs.round_seconds(at, lengths, rows=rows, context=longest_context).tolist()
        # Without drafts the exit layer makes no difference but what the fit leaves over.
        plain = sum(row[0] for row in seconds) / len(seconds)
        options = {
            e: [Option(e, 0, plain, 1.0, 0.0)]
            + [
                Option(e, k, seconds[i][k], *_outcome(profile.tokens[e], k))
                for k in range(1, profile.longest + 1)
                if profile.limits.allow(worst[i][k], rows * (k + 1) * profile.column_bytes)
            ]
            for i, e in enumerate(exits)
        }
        ruled = _ruled(profile, rows, context, longest_context)
        options[profile.setting.exit_layer] += ruled
        return cls(options, max(costs.step_seconds, plain / costs.n_layers))

    def without_rules(self) -> CostTable:
        """The options whose drafts are as long as they were decided to be."""
        options = {e: [o for o in own if not o.ruled] for e, own in self.options.items()}
        return replace(self, options=options)


def _outcome(tokens: Sequence[float], k: int) -> tuple[float, float]:
    """Tokens and rejections of a round: what one draft more brings is the chance that all of them stand."""
    return tokens[k], min(max(1 - (tokens[k] - tokens[k - 1]), 0.0), 1.0)


def _ruled(profile: Profile, rows: int, context: float, longest_context: float) -> list[Option]:
    """The profile's own setting, where it has a stop rule and is within limits."""
    setting = profile.setting
    if setting.rule is None or not setting.draft_length:
        return []
    e, k = setting.exit_layer, setting.draft_length
    worst = float(profile.costs.round_seconds(e, k, rows=rows, context=longest_context, checked=True))
    if not profile.limits.allow(worst, rows * (k + 1) * profile.column_bytes):
        return []
    steps = min(profile.prediction.steps, k)
    at = torch.tensor([0.0, steps], dtype=torch.float64)
    least, mean = profile.costs.round_seconds(e, at, rows=rows, context=context, checked=True).tolist()
    found = profile.prediction
    each = (mean - least) / found.acceptance_length
    return [Option(e, k, mean, found.acceptance_length, found.rejected, True, least, each)]
