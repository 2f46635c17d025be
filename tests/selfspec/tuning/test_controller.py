"""The controller, on texts that are made up: what it chooses, how soon it follows a drift, what it costs."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import pytest
import torch

from selfspec.tuning.controller import Controller, Estimate, RoundCosts, expected_failures

LAYERS, HEAD, LONGEST = 16, 0.5, 12
EXITS = (2, 4, 8, 12)
EASY = {2: 0.7, 4: 0.92, 8: 0.95, 12: 0.97}
HARD = {2: 0.05, 4: 0.1, 8: 0.45, 12: 0.9}
USELESS = dict.fromkeys(EXITS, 0.02)


def round_seconds(exit_layer: int, length: int) -> float:
    """The memory-bound cost model, a layer being a second."""
    return length * exit_layer + LAYERS + (length + 1) * HEAD


def costs() -> RoundCosts:
    return RoundCosts({e: [round_seconds(e, k) for k in range(LONGEST + 1)] for e in EXITS}, HEAD)


def expected_speed(exit_layer: int, length: int, chance: float) -> float:
    return sum(chance**i for i in range(length + 1)) / round_seconds(exit_layer, length)


def best_speed(chances: dict[int, float]) -> float:
    return max(expected_speed(e, k, c) for e, c in chances.items() for k in range(LONGEST + 1))


@dataclass
class World:
    """Exits that are right by chance, one number per exit and position, as a recording has them."""

    chances: list[dict[int, float]]
    """Of each stretch of text."""
    stretch: int
    at: int = 0
    seconds: float = 0.0
    watching: float = 0.0
    chosen: list[tuple[int, int, int]] = field(default_factory=list)
    """(position, E, K) of every round."""

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        size = self.stretch * len(self.chances) + LONGEST + 1
        draws = torch.rand(size, generator=generator)
        place = torch.arange(size).div(self.stretch, rounding_mode="floor").clamp(max=len(self.chances) - 1)
        self.right = {e: (draws < torch.tensor([c[e] for c in self.chances])[place]).tolist() for e in EXITS}

    def run(self, controller: Controller) -> World:
        while self.at < self.stretch * len(self.chances):
            plan = controller.plan()
            right = self.right[plan.exit_layer][self.at : self.at + plan.draft_length]
            accepted = right.index(False) if False in right else len(right)
            self.chosen.append((self.at, plan.exit_layer, plan.draft_length))
            self.seconds += round_seconds(plan.exit_layer, plan.draft_length)
            if plan.watched is not None:
                seen = self.right[plan.watched][self.at : self.at + accepted + 1]
                self.seconds += HEAD
                self.watching += HEAD
                controller.tell_watched(plan.watched, sum(seen), len(seen))
            controller.tell_drafted(plan.draft_length, accepted)
            self.at += accepted + 1
        return self

    def speed_at(self, position: int, chances: dict[int, float]) -> float:
        """Expected tokens per second of what is chosen at a position."""
        _, e, k = max(choice for choice in self.chosen if choice[0] <= position)
        return expected_speed(e, k, chances[e])


def controller(prior: dict[int, float]) -> Controller:
    return Controller(costs(), prior, LONGEST, 4)


def test_where_the_text_is_as_expected_it_stays_near_the_best_setting() -> None:
    world = World([EASY], 1000).run(controller(EASY))
    chosen = [expected_speed(e, k, EASY[e]) for _, e, k in world.chosen]
    assert sum(chosen) / len(chosen) > 0.95 * best_speed(EASY)


@pytest.mark.parametrize(("before", "after"), [(EASY, HARD), (HARD, EASY), (EASY, USELESS), (USELESS, EASY)])
def test_a_drift_between_workloads_is_followed_within_64_tokens(
    before: dict[int, float], after: dict[int, float]
) -> None:
    world = World([before, after], 600).run(controller(before))
    later = [world.speed_at(position, after) for position in range(600 + 64, 1200)]
    assert sum(later) / len(later) > 0.87 * best_speed(after)
    first = [world.speed_at(position, after) for position in range(600 + 64, 600 + 96)]
    # A resting model reads one exit every few tokens, so waking up takes the longest.
    assert sum(first) / len(first) > (0.75 if before is USELESS else 0.8) * best_speed(after)


def test_a_wrong_prior_is_soon_forgotten() -> None:
    world = World([HARD], 1500).run(controller(EASY))
    assert world.at / world.seconds > 0.9 * best_speed(HARD)


def test_useless_exits_cost_less_than_three_percent() -> None:
    world = World([USELESS], 2000).run(controller(USELESS))
    assert world.at / world.seconds > 0.97 / round_seconds(1, 0)
    assert {k for _, _, k in world.chosen} == {0}


def test_useless_exits_that_were_believed_in_cost_less_than_three_percent() -> None:
    world = World([USELESS], 2000).run(controller(EASY))
    assert world.at / world.seconds > 0.97 / round_seconds(1, 0)


def test_reading_other_exits_stays_within_its_budget() -> None:
    world = World([EASY, HARD], 1000).run(controller(EASY))
    assert 0 < world.watching < 0.012 * world.seconds


def test_nothing_is_read_where_draws_would_be_used_up() -> None:
    rejecting = Controller(costs(), EASY, LONGEST, 4, may_watch=False)
    assert World([EASY], 300).run(rejecting).watching == 0


def test_a_decision_takes_less_than_a_hundredth_of_the_shortest_round() -> None:
    deciding = controller(EASY)
    began = time.process_time()
    for i in range(200):
        deciding.plan()
        deciding.tell_drafted(4, i % 5)
    assert (time.process_time() - began) / 200 < 2e-4  # a round of the bundled model takes 10 ms and more


def test_an_estimate_follows_what_it_sees_and_falls_back_to_its_prior() -> None:
    estimate = Estimate(0.5)
    assert estimate.chance(1.0) == pytest.approx(0.5)
    for _ in range(50):
        estimate.add(4, 4)
    assert estimate.chance(1.0) > 0.85
    estimate.fade(800)
    assert estimate.chance(1.0) == pytest.approx(0.5, abs=0.01)
    assert estimate.chance(2.0) == pytest.approx(0.0, abs=0.03)


def test_rejections_of_a_batch_are_worked_out_from_its_mean() -> None:
    assert expected_failures(0.0, 3) == pytest.approx(1.0, abs=1e-3)
    assert expected_failures(3.0, 3) == pytest.approx(0.0, abs=1e-3)
    assert expected_failures(0.7 + 0.49 + 0.343, 3) == pytest.approx(1 - 0.343, abs=1e-3)
