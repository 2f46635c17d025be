"""How often each arm's draft tokens stand in the text at hand: from a profile, and from what was seen of it.

A text that is harder for one arm is harder for all: misses of the arms that are looked at, over the misses
expected of them, say how far the profile is off for the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from selfspec.round import Arm

MEMORY = 32.0
"""Draft tokens that an estimate is taken over (exponentially weighted)."""
UNSEEN_MEMORY = 128.0
"""The same for an arm that is only looked at now and then."""
DRIFT_WEIGHT = 2.0
"""Misses that speak for the profile being right."""
PRIOR_WEIGHT = 4.0
"""Draft tokens that the prior counts as, at any time: what an arm that was not looked at is believed by."""
HIGHEST = 0.99


@dataclass
class Estimate:
    """Chance that a draft token of one arm stands: exponentially weighted counts."""

    prior: float
    hits: float = 0.0
    trials: float = 0.0

    def add(self, hits: float, trials: float) -> None:
        """`hits` of `trials` draft tokens stood; older ones count less for it."""
        self.keep(math.exp(-trials / MEMORY))
        self.hits += hits
        self.trials += trials

    def fade(self, trials: float) -> None:
        """`trials` tokens went by unseen: what was seen before them says less of the text here."""
        self.keep(math.exp(-trials / UNSEEN_MEMORY))

    def keep(self, share: float) -> None:
        """What was seen so far counts that much."""
        self.hits *= share
        self.trials *= share

    def chance(self, drift: float) -> float:
        """What was seen, and the prior where that is little; `drift`: how much harder the text is."""
        expected = 1 - min((1 - self.prior) * drift, 1.0)
        return min((self.hits + PRIOR_WEIGHT * expected) / (self.trials + PRIOR_WEIGHT), HIGHEST)


@dataclass
class Estimates:
    """Those of all arms, and how much harder than the profile's the text is for any of them."""

    of_arms: dict[Arm, Estimate]
    misses: float = 0.0
    expected: float = 0.0
    """Misses that the profile expects of the same tokens."""

    @classmethod
    def of(cls, prior: Mapping[Arm, float]) -> Estimates:
        """As a profile has them."""
        return cls({arm: Estimate(chance) for arm, chance in prior.items()})

    def add(self, arm: Arm, hits: float, trials: float) -> None:
        """`hits` of `trials` draft tokens of an arm stood, while those of the others went by unseen."""
        kept = math.exp(-trials / MEMORY)
        self.misses = self.misses * kept + trials - hits
        self.expected = self.expected * kept + trials * (1 - self.of_arms[arm].prior)
        for other, estimate in self.of_arms.items():
            if other == arm:
                estimate.add(hits, trials)
            else:
                estimate.fade(trials)

    def halve(self) -> None:
        """What was seen so far counts half."""
        self.misses, self.expected = self.misses / 2, self.expected / 2
        for estimate in self.of_arms.values():
            estimate.keep(0.5)

    @property
    def drift(self) -> float:
        """Misses over those that the profile expected; above 1 for harder text."""
        return (self.misses + DRIFT_WEIGHT) / (self.expected + DRIFT_WEIGHT)

    def chance(self, arm: Arm, drift: float | None = None) -> float:
        """That a draft token of this arm stands, in a text `drift` times as hard (None: as this one)."""
        return self.of_arms[arm].chance(self.drift if drift is None else drift)


def accepted_tokens(chance: float, longest: int) -> list[float]:
    """Draft tokens that stand of 0, 1, … drafts, where each stands with the same chance [longest + 1]."""
    sums, power = [0.0], 1.0
    for _ in range(longest):
        power *= chance
        sums.append(sums[-1] + power)
    return sums
