"""Calls under a profile through texts that change, the clock of the pay check in the loop."""

from __future__ import annotations

from typing import Any

import pytest
from fake_texts import (
    EASY,
    FOUR,
    LAYERS,
    TOO_HARD,
    USELESS,
    Obeying,
    World,
    best_speed,
    independent,
    round_seconds,
)

from selfspec.pacing import PayCheck
from selfspec.round import Arm
from selfspec.stats import Stats
from selfspec.tuning.controller import Controller
from selfspec.tuning.following import Following


def followed(texts: list[dict[Arm, float]], arm: Arm, seed: int) -> World:
    """Stretches of 400 tokens each in a call whose profile is of the last one."""
    costs = independent(texts[-1])
    deciding = Controller(costs, texts[-1], costs.options[arm][4])
    drafter: Any = Obeying()
    check = PayCheck(warmup=1, delay=2)
    return World(texts, 400, seed=seed).follow(Following(deciding, drafter, None, check, Stats()))


VIEW = Arm(LAYERS, low_bit=True)


@pytest.mark.parametrize(
    ("hard", "easy", "arm", "within"),
    [
        (USELESS, EASY, FOUR, 64),
        (TOO_HARD, EASY, FOUR, 64),
        # A view is not read on the way, only probed, and a probe takes more of the budget.
        ({**USELESS, VIEW: 0.05}, {**USELESS, VIEW: 0.93}, VIEW, 112),
    ],
    ids=["useless exits", "exits that are too dear", "a useless view"],
)
def test_easy_text_is_followed_soon_however_often_drafts_have_failed(
    hard: dict[Arm, float], easy: dict[Arm, float], arm: Arm, within: int
) -> None:
    """The clock's verdicts make drafts rest longer and longer; a text that has become easier ends that."""
    places = [400 * stretch + within + at for stretch in (3, 5, 7) for at in range(32)]
    worlds = [followed([hard, easy] * 4, arm, seed) for seed in range(8)]
    speeds = [world.speed_at(place, easy) for world in worlds for place in places]
    assert sum(speeds) / len(speeds) > 0.75 * best_speed(easy)


@pytest.mark.parametrize("hard", [USELESS, TOO_HARD], ids=["useless exits", "exits that are too dear"])
def test_a_hard_text_costs_less_than_three_percent_with_the_clock_as_well(hard: dict[Arm, float]) -> None:
    worlds = [followed([hard] * 5 + [EASY], FOUR, seed) for seed in range(4)]
    for world in worlds:
        seconds = sum(round_seconds(arm, length) for at, arm, length in world.chosen if at < 2000)
        assert seconds < 1.03 * 2000 * round_seconds(FOUR, 0)
