"""Texts that are made up, for the controller: what rounds cost, and which exits are right where."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from selfspec.round import Arm
from selfspec.tuning.controller import Controller
from selfspec.tuning.cost_table import CostTable, Option
from selfspec.tuning.estimates import accepted_tokens
from selfspec.tuning.following import Following

LAYERS, HEAD, LONGEST = 16, 2.4, 12
EXITS = [Arm(e, low_bit=False) for e in (2, 4, 8, 12)]
FOUR = EXITS[1]
EASY = dict(zip(EXITS, (0.7, 0.92, 0.95, 0.97), strict=True))
HARD = dict(zip(EXITS, (0.2, 0.3, 0.75, 0.9), strict=True))
USELESS = dict.fromkeys(EXITS, 0.02)
TOO_HARD = dict(zip(EXITS, (0.1, 0.2, 0.4, 0.6), strict=True))
"""Often right, but no exit often enough to pay."""


def round_seconds(arm: Arm, length: int) -> float:
    """The memory-bound cost model, a layer being a second, and a quarter of one in few bits."""
    layers = arm.exit_layer / 4 if arm.low_bit else arm.exit_layer
    return length * layers + LAYERS + (length + 1) * HEAD


def independent(prior: dict[Arm, float], longest: int = LONGEST) -> CostTable:
    """A text on which every token stands by chance."""
    options = {
        e: [
            Option(e, k, round_seconds(e, k), 1 + accepted_tokens(prior[e], k)[-1], 1 - prior[e] ** k)
            for k in range(longest + 1)
        ]
        for e in prior
    }
    return CostTable(options, HEAD)


def expected_speed(arm: Arm, length: int, chance: float) -> float:
    return sum(chance**i for i in range(length + 1)) / round_seconds(arm, length)


def best_speed(chances: dict[Arm, float]) -> float:
    return max(expected_speed(e, k, c) for e, c in chances.items() for k in range(LONGEST + 1))


class Obeying:
    """In place of a drafter: notes what it is told, and hands on what was seen."""

    arm: Arm
    watched: int | None = None
    seen: tuple[int, int, int, float] | None = None

    def turn_to(self, arm: Arm, *how: object) -> None:
        self.arm = arm

    def outcome(self) -> tuple[int, int, int, float] | None:
        seen, self.seen = self.seen, None
        return seen


@dataclass
class World:
    """Exits that are right by chance, one number per exit and position, as a recording has them."""

    chances: list[dict[Arm, float]]
    """Of each stretch of text."""
    stretch: int
    at: int = 0
    seconds: float = 0.0
    watching: float = 0.0
    read_seconds: float = HEAD
    seed: int = 0
    chosen: list[tuple[int, Arm, int]] = field(default_factory=list)
    """(position, arm, K) of every round."""

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        size = self.stretch * len(self.chances) + LONGEST + 1
        draws = torch.rand(size, generator=generator)
        place = torch.arange(size).div(self.stretch, rounding_mode="floor").clamp(max=len(self.chances) - 1)
        self.right = {
            e: (draws < torch.tensor([c[e] for c in self.chances])[place]).tolist() for e in self.chances[0]
        }

    def run(self, controller: Controller) -> World:
        """As the controller alone says."""
        while self.at < self.stretch * len(self.chances):
            plan = controller.plan()
            length = plan.length
            accepted, seconds, seen = self._round(plan.option.arm, length, plan.watched)
            if plan.watched is not None:
                controller.tell_watched(plan.watched, sum(seen), len(seen), self.read_seconds)
            controller.tell_round(plan.option, accepted, int(accepted < length), seconds)
        return self

    def follow(self, following: Following) -> World:
        """As a call does that follows a profile; its drafter is an `Obeying` one."""
        drafter: Any = following.drafter
        while self.at < self.stretch * len(self.chances):
            length = following.draft_length(1000)
            watched = None if drafter.watched is None else Arm(drafter.watched, low_bit=False)
            accepted, seconds, seen = self._round(drafter.arm, length, watched)
            if watched is not None:
                drafter.seen = watched.exit_layer, sum(seen), len(seen), self.read_seconds
            following.stats.count_row(length, length, accepted, accepted + 1)
            following.observe(length, accepted + 1, seconds)
        return self

    def _round(self, arm: Arm, length: int, watched: Arm | None) -> tuple[int, float, list[bool]]:
        """Play a round: tokens accepted, seconds, and where the watched exit was right on the way."""
        right = self.right[arm][self.at : self.at + length]
        accepted = right.index(False) if False in right else len(right)
        self.chosen.append((self.at, arm, length))
        seen = [] if watched is None else self.right[watched][self.at : self.at + accepted + 1]
        reading = self.read_seconds if watched is not None else 0.0
        seconds = round_seconds(arm, length) + reading
        self.watching += reading
        self.seconds += seconds
        self.at += accepted + 1
        return accepted, seconds, seen

    def speed_at(self, position: int, chances: dict[Arm, float]) -> float:
        """Expected tokens per second of what is chosen at a position."""
        _, e, k = max(choice for choice in self.chosen if choice[0] <= position)
        return expected_speed(e, k, chances[e])
