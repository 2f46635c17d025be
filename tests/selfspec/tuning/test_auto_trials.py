"""What the default strategy spends on finding out whether drafts pay: drafts, and choices between rounds."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
from fake_rounds import HALF, LAYERS, LOW_BIT, World, flat, knowledge

from selfspec.pacing import PayCheck
from selfspec.round import Arm
from selfspec.tuning.auto import Auto
from selfspec.tuning.reading import Agreement

FIRST, SECOND = Arm(1, low_bit=False), Arm(2, low_bit=False)
USELESS = {
    "a view": ((LOW_BIT, HALF), 0.2, 2.0),
    "a cheap view": ((LOW_BIT, HALF), 0.05, 2.0),
    "a dear view": ((LOW_BIT, HALF), 0.5, 2.0),
    "exits": ((FIRST, SECOND), None, 0.1),
}
"""Arms, seconds of the view's layer and of the head: in all of them drafts are expected to pay."""


@pytest.mark.parametrize("tokens", [16, 64, 256])
@pytest.mark.parametrize("chance", [0.0, 0.1])
@pytest.mark.parametrize("name", USELESS)
def test_no_call_loses_more_than_3_percent_by_finding_out(name: str, chance: float, tokens: int) -> None:
    arms, low_bit_layer, head = USELESS[name]
    known = knowledge(low_bit_layer)
    known.exact = flat(1.0, head)
    world = World(dict.fromkeys(arms, chance), known)
    calls = [world.call(paid(world), tokens) for _ in range(8)]
    assert max(calls) <= 1.03 + 1e-9
    assert any(length for _, length in world.history) or tokens == 16  # it does find out


def paid(world: World) -> Auto:
    """As calls are set up: drafts have to pay."""
    return world.auto(check=PayCheck(warmup=1, delay=2, plain=world.known.plain_rate(1)))


def choices(auto: Auto) -> Any:
    return mock.patch.object(auto, "_choose", wraps=auto._choose)


def test_while_nothing_is_drafted_a_choice_is_made_seldom() -> None:
    """Choosing weighs all arms and lengths: made every few plain rounds it would cost them percents."""
    world = World({LOW_BIT: 0.0, HALF: 0.0})
    auto = paid(world)
    world.play(auto, 200)
    with choices(auto) as choose:
        history = world.play(auto, 320)
    drafting = sum(length > 0 for _, length in history)
    assert 10 <= choose.call_count <= 10 + drafting < 20  # a choice in 32 rounds, and one after each draft


def test_plain_rounds_that_are_timed_first_after_a_choice_lead_to_another() -> None:
    world = World({LOW_BIT: 0.0})
    auto = paid(world)
    auto.speeds.note(LOW_BIT, 4, 1, 1.0)
    with choices(auto) as choose, mock.patch.object(auto, "_longest", lambda length: 0):
        world.play(auto, 9)
        assert choose.call_count == 2  # the first, and one that knows plain rounds
        world.play(auto, 16)
        assert choose.call_count == 2


@pytest.mark.parametrize(("tokens", "most"), [(16, 0.75), (64, 0.55), (256, 0.5)])
def test_drafts_that_pay_are_found_in_the_first_call_all_the_same(tokens: int, most: float) -> None:
    """Of a call whose drafts were as long as it liked from the first round on, 0.43 would be left."""
    first, second = [], []
    for seed in range(20):
        world = World({LOW_BIT: 0.9, HALF: 0.3}, seed=seed)
        first.append(world.call(paid(world), tokens))
        second.append(world.call(paid(world), tokens))
    assert sum(first) / 20 < most
    assert sum(second) / 20 < 0.5


def test_what_the_prompt_has_shown_to_pay_needs_no_trial() -> None:
    world = World({HALF: 0.95})
    world.known.read(Agreement({LAYERS // 2: 61}, 64))
    world.play(paid(world), 3)
    assert min(length for _, length in world.history[:2]) >= 3
    unread = World({HALF: 0.95})
    unread.known.read(Agreement({LAYERS // 2: 8}, 8))  # as good, but seen too seldom
    unread.play(paid(unread), 1)
    assert unread.history == [(HALF, 1)]
