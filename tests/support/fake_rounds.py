"""A machine and a model made of numbers: rounds whose cost and acceptance are known beforehand."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from selfspec.modes import Greedy
from selfspec.pacing import PayCheck
from selfspec.round import Arm
from selfspec.shapes import FASTEST
from selfspec.stats import Stats
from selfspec.tuning.auto import Auto
from selfspec.tuning.costs import WIDTHS, PassCosts
from selfspec.tuning.knowledge import LONGEST_CHOSEN, Knowledge
from selfspec.tuning.speeds import RoundSpeeds

LAYERS = 8
LOW_BIT, HALF = Arm(LAYERS, low_bit=True), Arm(LAYERS // 2, low_bit=False)


def flat(layer: float, head: float) -> PassCosts:
    """A pass costs the same however many tokens it has: bound by memory."""
    return PassCosts((layer,) * len(WIDTHS), (head,) * len(WIDTHS))


def knowledge(low_bit_layer: float | None = 0.2) -> Knowledge:
    """Of a model whose layer takes a second and whose head takes two."""
    known = Knowledge(LAYERS, lambda: flat(1.0, 2.0), None, bits=4)
    if low_bit_layer is not None:
        known.time_low_bit = partial(flat, low_bit_layer, 2 * low_bit_layer)
    return known


class Model:
    """Drafts nothing; notes who drafted how far, for the world to play the round."""

    stop = None

    def __init__(self, arm: Arm | None, world: World) -> None:
        self._arm = arm
        self._world = world

    def draft(self, call: Any, length: int, graft: Tensor | None = None) -> Any:
        self._world.drafted = self._arm if length else None, length
        return None


@dataclass
class World:
    """Plays rounds with the choices of an `Auto`.

    Args:
        chances: how often a draft token of each arm is right, given that those before it were.
        slowness: rounds take so many times what their passes cost.
    """

    chances: dict[Arm, float]
    known: Knowledge = field(default_factory=knowledge)
    slowness: float = 1.0
    seed: int = 0
    drafted: tuple[Arm | None, int] = (None, 0)
    history: list[tuple[Arm | None, int]] = field(default_factory=list)
    seconds: float = 0.0
    tokens: int = 0

    def auto(
        self, lengths: Sequence[int] = range(LONGEST_CHOSEN + 1), check: PayCheck | None = None, **more: Any
    ) -> Auto:
        defaults: dict[str, Any] = {"lookup": None, "sampled": False, "stats": Stats()}
        self._random = random.Random(self.seed)
        return Auto(
            knowledge=self.known,
            arms={arm: Model(arm, self) for arm in self.chances},
            plain=Model(None, self),
            speeds=RoundSpeeds(self.known, lengths, FASTEST),
            check=check,
            rows=1,
            **{**defaults, **more},
        )

    def play(self, auto: Auto, rounds: int) -> list[tuple[Arm | None, int]]:
        """Play rounds; returns who drafted how far in each of them."""
        for _ in range(rounds):
            self._round(auto, 1000)
        return self.history[-rounds:]

    def call(self, auto: Auto, tokens: int) -> float:
        """Play a call of so many new tokens; returns how many times the seconds of plain rounds it takes."""
        began, seconds = self.tokens, self.seconds
        while (said := self.tokens - began) < tokens:
            self._round(auto, tokens - said)
        plain = self.slowness * self.known.round_seconds(None, 0, 1, FASTEST)
        return (self.seconds - seconds) / (tokens * plain)

    def _round(self, auto: Auto, remaining: int) -> None:
        call: Any = SimpleNamespace(
            decoder=None, rows=SimpleNamespace(active=[0], remaining=remaining), mode=Greedy()
        )
        auto.draft(call, auto.draft_length(remaining))
        arm, length = self.drafted
        right = 0
        while arm is not None and right < length and self._random.random() < self.chances[arm]:
            right += 1
        seconds = self.slowness * self.known.round_seconds(arm, length, 1, FASTEST)
        auto.stats.count_row(length, length, right, right + 1)
        auto.observe(length, right + 1, seconds)
        self.seconds += seconds
        self.tokens += right + 1
        self.history.append((arm, length))
