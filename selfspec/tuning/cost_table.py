"""What every way to run a round costs and brings in one call under a profile: the controller's choices."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from selfspec.round import Arm
from selfspec.tuning.profile import Profile


@dataclass(frozen=True)
class Option:
    """One way to run a round."""

    arm: Arm
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
    siblings: int = 1
    """Candidates at every depth."""

    def __post_init__(self) -> None:
        if not self.least_seconds:
            object.__setattr__(self, "least_seconds", self.seconds)


@dataclass(frozen=True)
class CostTable:
    """The options within a profile's limits at one batch size and context."""

    options: Mapping[Arm, Sequence[Option]]
    """The first of each arm drafts nothing."""
    read_seconds: float
    """First guess of the seconds of reading one exit."""

    @classmethod
    def of(cls, profile: Profile, rows: int, context: float, longest_context: float) -> CostTable:
        """Read off the costs of a profile: at `context` to choose by, at the longest for its limits."""
        costs, arms = profile.costs, sorted(profile.acceptance)
        # Without drafts the arm makes no difference but what the fit leaves over.
        exits = torch.tensor([arm.exit_layer for arm in arms if not arm.low_bit], dtype=torch.float64)
        plain = float(costs.round_seconds(exits, 0, rows=rows, context=context).mean())
        seconds, worst = (_seconds(profile, arms, rows, at) for at in (context, longest_context))
        options = {
            arm: [Option(arm, 0, plain, 1.0, 0.0), *_chains(profile, arm, rows, seconds[arm], worst[arm])]
            for arm in arms
        }
        options[profile.setting.arm] += _own(profile, rows, context, longest_context)
        return cls(options, max(costs.step_seconds, plain / costs.n_layers))

    def of_arms(self, arms: Collection[Arm]) -> CostTable:
        """The options of some of the arms."""
        return replace(self, options={arm: own for arm, own in self.options.items() if arm in arms})

    def without(self, *, rules: bool = False, siblings: bool = False) -> CostTable:
        """The options whose drafts no rule ends on the way, or that are chains."""

        def kept(option: Option) -> bool:
            return not (rules and option.ruled) and not (siblings and option.siblings > 1)

        return replace(self, options={arm: list(filter(kept, own)) for arm, own in self.options.items()})


def _seconds(profile: Profile, arms: Sequence[Arm], rows: int, context: float) -> dict[Arm, list[float]]:
    """Of rounds of every arm by draft length: all of a kind at once, for every call asks for them."""
    lengths = torch.arange(max(map(len, profile.tokens.values())), dtype=torch.float64)
    found: dict[Arm, list[float]] = {}
    for low_bit in (False, True):
        own = [arm for arm in arms if arm.low_bit == low_bit]
        if own:
            exits = torch.tensor([[arm.exit_layer] for arm in own], dtype=torch.float64)
            seconds = profile.costs.round_seconds(exits, lengths, rows=rows, context=context, low_bit=low_bit)
            found |= zip(own, seconds.tolist(), strict=True)
    return found


def _chains(
    profile: Profile, arm: Arm, rows: int, seconds: Sequence[float], worst: Sequence[float]
) -> list[Option]:
    """The chains of an arm within the limits, from seconds by draft length."""
    tokens = profile.tokens[arm]
    return [
        Option(arm, k, seconds[k], *_outcome(tokens, k))
        for k in range(1, len(tokens))
        if profile.limits.allow(worst[k], rows * (k + 1) * profile.column_bytes)
    ]


def _outcome(tokens: Sequence[float], k: int) -> tuple[float, float]:
    """Tokens and rejections of a round: what one draft more brings is the chance that all of them stand."""
    return tokens[k], min(max(1 - (tokens[k] - tokens[k - 1]), 0.0), 1.0)


def _own(profile: Profile, rows: int, context: float, longest_context: float) -> list[Option]:
    """The profile's own setting, where it is more than a chain of some length and is within limits."""
    setting, found = profile.setting, profile.prediction
    ruled = setting.rule is not None
    if not setting.draft_length or not (ruled or setting.siblings > 1):
        return []
    cost = partial(
        profile.costs.round_seconds,
        setting.exit_layer,
        rows=rows,
        checked=ruled,
        siblings=setting.siblings,
        low_bit=setting.arm.low_bit,
    )
    worst = float(cost(setting.draft_length, context=longest_context))
    if not profile.limits.allow(worst, rows * (setting.candidates + 1) * profile.column_bytes):
        return []
    steps = min(found.steps, setting.draft_length)
    least, mean = cost(torch.tensor([0.0, steps], dtype=torch.float64), context=context).tolist()
    # Where a rule ends drafts, a round is as long as what stands of it.
    each = (mean - least) / found.acceptance_length if ruled else 0.0
    return [
        Option(
            setting.arm,
            setting.draft_length,
            mean,
            found.acceptance_length,
            found.rejected,
            ruled,
            least if ruled else mean,
            each,
            setting.siblings,
        )
    ]
