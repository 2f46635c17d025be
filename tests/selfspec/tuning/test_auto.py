"""The default strategy: what it takes, when it stops, and what it says."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checks import own_generate
from fake_rounds import HALF, LAYERS, LOW_BIT, World, flat, knowledge
from strategies import costs_under_which_drafts_pay
from tiny_models import random_prompts

import selfspec
from selfspec.modes import Greedy
from selfspec.pacing import PayCheck
from selfspec.round import Arm
from selfspec.shapes import FASTEST
from selfspec.tuning.knowledge import LONGEST_CHOSEN, expected_tokens
from selfspec.tuning.reading import Agreement


def most(history: list[tuple[Arm | None, int]]) -> tuple[Arm | None, int]:
    return Counter(history).most_common(1)[0][0]


def best_length(world: World, arm: Arm) -> int:
    """The K of the most tokens a second, by the world's true chances and costs."""
    return max(
        range(1, LONGEST_CHOSEN + 1),
        key=lambda k: expected_tokens(world.chances[arm], k) / world.known.round_seconds(arm, k, 1, FASTEST),
    )


@pytest.mark.parametrize(("low_bit_layer", "winner"), [(0.2, LOW_BIT), (0.9, HALF)], ids=str)
def test_the_faster_arm_is_found_and_drafts_as_far_as_pays(low_bit_layer: float, winner: Arm) -> None:
    """Both are right nearly always; which is faster depends on what few bits save on this machine."""
    world = World({LOW_BIT: 0.95, HALF: 0.95}, knowledge(low_bit_layer))
    world.known.read(Agreement({LAYERS // 2: 61}, 64))
    auto = world.auto()
    history = world.play(auto, 400)[-100:]
    assert {arm for arm, _ in history} == {winner}
    length = most(history)[1]
    assert abs(length - best_length(world, winner)) <= 2
    assert auto.stats.exit_layer == winner.exit_layer
    assert auto.stats.strategy == winner.kind


def test_drafts_are_short_where_they_are_often_wrong_and_long_where_they_are_right() -> None:
    lengths = []
    for chance in (0.5, 0.75, 0.95):
        world = World({LOW_BIT: chance})
        lengths.append(most(world.play(world.auto(), 300)[-50:])[1])
    assert lengths[0] < lengths[1] < lengths[2]


def test_no_draft_that_is_never_right_is_paid_for_long() -> None:
    """It drafts to find out, then decodes plainly; nothing is lost but the trial."""
    world = World({LOW_BIT: 0.0, HALF: 0.0})
    auto = world.auto(check=PayCheck(warmup=1))
    history = world.play(auto, 400)
    assert sum(length == 0 for _, length in history[-100:]) > 90
    plain = 400 * world.known.round_seconds(None, 0, 1, FASTEST)
    assert world.seconds < 1.25 * plain


def test_without_a_way_to_draft_nothing_is_drafted() -> None:
    world = World({})
    auto = world.auto()
    assert set(world.play(auto, 20)) == {(None, 0)}
    assert auto.stats.choice == "no way to draft"
    assert auto.stats.strategy == "plain"


def test_drafting_returns_when_it_pays_again() -> None:
    world = World({LOW_BIT: 0.0})
    auto = world.auto(check=PayCheck(warmup=1))
    world.play(auto, 60)
    assert world.play(auto, 20)[-1] == (None, 0)
    world.known.tallies.clear()  # old evidence fades; here at once
    world.chances[LOW_BIT] = 0.95
    history = world.play(auto, 200)
    assert {arm for arm, _ in history[-30:]} == {LOW_BIT}
    assert auto.stats.choice.startswith("predicted ")


def test_what_one_call_has_learned_the_next_one_starts_with() -> None:
    world = World({LOW_BIT: 0.5})
    ((_, first),) = world.play(world.auto(), 1)
    learned = most(world.play(world.auto(), 300)[-50:])[1]
    assert learned < first  # it had been taken to be right more often
    assert world.play(world.auto(), 1) == [(LOW_BIT, learned)]
    assert world.play(world.auto(sampled=True), 1) == [(LOW_BIT, first)]  # sampled text is learned apart


def test_a_machine_that_is_slower_than_its_passes_does_not_change_what_pays() -> None:
    for slowness in (1.0, 5.0):
        world = World({LOW_BIT: 0.9, HALF: 0.3}, slowness=slowness)
        assert most(world.play(world.auto(), 200)[-50:])[0] == LOW_BIT


def test_a_slight_advantage_does_not_make_it_switch_to_and_fro() -> None:
    near = Arm(LAYERS - 1, low_bit=True)
    world = World({LOW_BIT: 0.8, near: 0.79})
    arms = [arm for arm, _ in world.play(world.auto(), 400)[100:]]
    assert sum(a != b for a, b in itertools.pairwise(arms)) <= 4


def test_a_fixed_length_leaves_only_the_arm_to_choose() -> None:
    world = World({LOW_BIT: 0.9, HALF: 0.9}, knowledge(low_bit_layer=0.9))
    world.known.read(Agreement({LAYERS // 2: 60}, 64))
    history = world.play(world.auto(lengths=[3]), 200)
    assert {length for _, length in history} == {3}  # as configured, whether it pays or not
    assert most(history[-50:])[0] == HALF


def test_no_draft_reaches_past_the_end_of_the_text() -> None:
    world = World({LOW_BIT: 0.95})
    auto = world.auto()
    world.play(auto, 100)
    assert [auto.draft_length(remaining) for remaining in (1, 2, 3)] == [0, 1, 2]
    call: Any = SimpleNamespace(decoder=None, rows=SimpleNamespace(active=[0], remaining=3), mode=Greedy())
    auto.draft(call, auto.draft_length(3))
    assert world.drafted == (LOW_BIT, 2)


def test_the_choice_and_what_else_was_looked_at_are_explained() -> None:
    world = World({LOW_BIT: 0.9, HALF: 0.3})
    world.known.read(Agreement(dict.fromkeys(range(1, LAYERS), 20), 64))
    auto = world.auto()
    world.play(auto, 100)
    stats = auto.stats
    assert stats.choice.startswith("predicted ")
    assert f"x AR by low-bit draft, exit layer 8, draft length {stats.draft_length}" in stats.choice
    assert "from 64 prompt positions and " in stats.choice
    assert stats.considered.startswith("early-exit draft, exit layer 4 ")
    speed = float(stats.choice.split()[1].removesuffix("x"))
    assert speed > float(stats.considered.split()[-1].removesuffix("x")) > 0
    # The speed that it predicts is the one that there is.
    plain = world.known.round_seconds(None, 0, 1, FASTEST)
    assert speed == pytest.approx(world.tokens / world.seconds * plain, rel=0.25)


def test_a_prediction_below_the_least_gain_is_not_taken_where_plain_rounds_are_allowed() -> None:
    dear = knowledge(low_bit_layer=0.97)  # hardly faster than the layer itself
    world = World({LOW_BIT: 0.5}, dear)
    auto = world.auto()
    assert set(world.play(auto, 60)[-20:]) == {(None, 0)}
    assert auto.stats.choice.startswith("no draft pays (predicted ")


@pytest.mark.parametrize("sampling", [{}, {"do_sample": True}], ids=["greedy", "sampled"])
def test_whatever_it_chooses_the_text_is_the_same(llama: Any, sampling: dict[str, Any]) -> None:
    """With costs that are made up, so that it drafts with every arm on any machine."""
    request = {**random_prompts(9, 4), "max_new_tokens": 40, **sampling}
    selfspec.wrap(llama, draft_length=0)
    torch.manual_seed(0)
    expected = llama.generate(**request) if sampling else own_generate(llama, **request)
    strategies = set()
    for low_bit_layer in (None, 0.1, 5.0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(selfspec.views, "_WORTHWHILE", math.inf)
            patch.setattr(selfspec.views, "_may_pay", lambda *_: True)
            selfspec.wrap(llama)
        known = llama.speculation.knowledge
        known.exact = flat(1.0, 0.1)
        known.low_bit = None if low_bit_layer is None else flat(low_bit_layer, 0.01)
        if low_bit_layer is None:
            llama.speculation.view = None
        torch.manual_seed(0)
        assert torch.equal(llama.generate(**request), expected)
        strategies.add(llama.speculation.stats.strategy)
    assert len(strategies) > 1


def test_measuring_whether_it_pays_uses_rounds_that_generate() -> None:
    """Plain rounds are compared with rounds that draft; both commit tokens."""
    world = World({LOW_BIT: 0.9})
    history = world.play(world.auto(check=PayCheck(warmup=1)), 50)
    assert history[0] == (None, 0)
    assert all(arm == LOW_BIT for arm, _ in history[1:])


def test_no_draft_length_is_claimed_where_drafts_end_by_themselves(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selfspec.speculation, "time_passes", costs_under_which_drafts_pay)
    monkeypatch.setattr(selfspec.tuning.knowledge, "_PRIOR_AGREEMENT", 0.9)
    request = {**random_prompts(9), "max_new_tokens": 8}  # it chooses once
    selfspec.wrap(llama, draft="low_bit")
    llama.generate(**request)
    stats = llama.speculation.stats
    assert stats.draft_length is None
    assert 0 < stats.mean_draft_length <= 15
    assert f"E = {stats.exit_layer}, {stats.mean_draft_length:.1f} tokens drafted a round" == stats.drafts
    selfspec.wrap(llama, draft="low_bit", acceptance="rejection")
    llama.generate(**request, do_sample=True)
    assert llama.speculation.stats.draft_length is not None  # its drafts are as long as was chosen


def test_no_draft_is_said_to_be_deeper_than_its_tree(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selfspec.speculation, "time_passes", costs_under_which_drafts_pay)
    monkeypatch.setattr(selfspec.tuning.knowledge, "_PRIOR_AGREEMENT", 0.9)
    selfspec.wrap(llama, draft="low_bit", tree=(0, 0, 0))
    llama.generate(**random_prompts(9), max_new_tokens=30)
    assert llama.speculation.stats.draft_length in (0, 1)
    assert "draft length 1:" in llama.speculation.stats.choice


def test_calls_at_once_choose_and_learn_without_disturbing_each_other(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selfspec.speculation, "time_passes", costs_under_which_drafts_pay)
    requests = [{**random_prompts(n, n + 3, seed=n), "max_new_tokens": 20} for n in range(3, 9)]
    expected = [own_generate(llama, **request) for request in requests]
    selfspec.wrap(llama)
    with ThreadPoolExecutor(len(requests)) as pool:
        for _ in range(3):
            llama.speculation.knowledge.margins.clear()
            found = list(pool.map(lambda request: llama.generate(**request), requests))
            assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert llama.speculation.total.calls == 3 * len(requests)
