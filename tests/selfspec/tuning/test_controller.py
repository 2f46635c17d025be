"""The controller, on texts that are made up: what it chooses, how soon it follows a drift, what it costs."""

from __future__ import annotations

import time
from dataclasses import replace
from statistics import mean

import pytest
from fake_texts import (
    EASY,
    FOUR,
    HARD,
    HEAD,
    LAYERS,
    LONGEST,
    TOO_HARD,
    USELESS,
    World,
    best_speed,
    expected_speed,
    independent,
    round_seconds,
)

from selfspec.round import Arm
from selfspec.tuning.controller import LOOKS_ON_CREDIT, Controller
from selfspec.tuning.cost_table import CostTable, Option


def controller(prior: dict[Arm, float], may_watch: bool = True) -> Controller:
    """One that begins with the best setting of the profile's workload."""
    costs = independent(prior)
    tuned = max((o for own in costs.options.values() for o in own), key=lambda o: o.tokens / o.seconds)
    return Controller(costs, prior, tuned, may_watch)


def test_where_the_text_is_as_expected_it_stays_near_the_best_setting() -> None:
    world = World([EASY], 1000).run(controller(EASY))
    chosen = [expected_speed(e, k, EASY[e]) for _, e, k in world.chosen]
    assert sum(chosen) / len(chosen) > 0.95 * best_speed(EASY)


@pytest.mark.parametrize(("before", "after"), [(EASY, HARD), (HARD, EASY), (EASY, USELESS), (USELESS, EASY)])
def test_a_drift_between_workloads_is_followed_within_64_tokens(
    before: dict[Arm, float], after: dict[Arm, float]
) -> None:
    worlds = [World([before, after], 600, seed=seed).run(controller(before)) for seed in range(8)]
    # 64 tokens after the change, the speed of what is chosen, over the best that there is for this text.
    later = [[w.speed_at(position, after) for position in range(664, 1200)] for w in worlds]
    assert mean(speed for speeds in later for speed in speeds) > 0.87 * best_speed(after)
    assert mean(speed for speeds in later for speed in speeds[:32]) > 0.75 * best_speed(after)


def test_a_wrong_prior_is_soon_forgotten() -> None:
    world = World([HARD], 1500).run(controller(EASY))
    assert world.at / world.seconds > 0.9 * best_speed(HARD)


@pytest.mark.parametrize("text", [USELESS, TOO_HARD])
@pytest.mark.parametrize("believed", [USELESS, EASY])
@pytest.mark.parametrize("may_watch", [True, False])
def test_where_no_exit_pays_the_cost_is_less_than_three_percent(
    text: dict[Arm, float], believed: dict[Arm, float], may_watch: bool
) -> None:
    world = World([text], 2000).run(controller(believed, may_watch))
    assert world.at / world.seconds > 0.97 / round_seconds(FOUR, 0)


def test_reading_other_exits_stays_within_its_budget() -> None:
    world = World([EASY, HARD], 1000).run(controller(EASY))
    assert 0 < world.watching < 0.0105 * world.seconds


def resting(n_options: int = LONGEST) -> Controller:
    """One that drafts nothing, as no exit pays, and believes little of them."""
    costs = independent(USELESS, n_options)
    return Controller(costs, USELESS, costs.options[FOUR][0])


def test_looks_on_credit_end_and_are_paid_back() -> None:
    deciding = resting()
    looks = seconds = 0.0
    for _ in range(400):
        plan = deciding.plan()
        deciding.tell_round(deciding.option, 0, 0, 1.0)
        seconds += 1.0
        if plan.watched is not None:
            looks += HEAD
            deciding.tell_watched(plan.watched, 1, 1, HEAD)
            deciding.option = deciding.costs.options[FOUR][0]  # whatever it has learned, it rests
            assert looks <= 0.01 * seconds + LOOKS_ON_CREDIT * HEAD + 1e-9
    assert looks


@pytest.mark.parametrize(
    ("hits", "trials", "unexpected"), [(1, 1, True), (0, 1, False), (2, 8, False), (4, 8, True)]
)
def test_in_a_batch_some_hits_are_expected(hits: int, trials: int, unexpected: bool) -> None:
    deciding = resting()
    deciding.tell_watched(FOUR, hits, trials, 0.0)
    before = deciding._saved
    plans = [deciding.plan() for _ in range(2)]
    assert any(plan.watched is not None for plan in plans) is (unexpected or before >= HEAD)


def test_a_rejected_draft_is_no_hit() -> None:
    """Rejections are counted as so many misses along the text as replay had for each."""
    costs = independent(USELESS)
    plain, first, *others = costs.options[FOUR]
    costs = CostTable({FOUR: [plain, replace(first, tokens=1.01, rejected=1.0), *others]}, HEAD)
    deciding = Controller(costs, USELESS, plain, may_watch=False)
    deciding.tell_round(costs.options[FOUR][1], 0, 1, 20.0)
    assert deciding.plan().option == plain


def test_a_read_that_takes_longer_than_thought_is_paid_for() -> None:
    dear = World([EASY], 3000, read_seconds=4 * HEAD).run(controller(EASY))
    assert 0 < dear.watching < 0.0105 * dear.seconds


def test_in_rejection_mode_nothing_is_read_and_short_drafts_find_the_way_back() -> None:
    world = World([USELESS, EASY], 1500).run(controller(USELESS, may_watch=False))
    assert world.watching == 0
    probes = [k for at, _, k in world.chosen if at < 1500]
    assert 0 < sum(map(bool, probes)) < 0.1 * len(probes)
    later = [world.speed_at(position, EASY) for position in range(1500 + 750, 3000)]
    assert sum(later) / len(later) > 0.8 * best_speed(EASY)


def test_it_begins_with_the_tuned_setting_and_keeps_to_what_replay_found() -> None:
    # Right and wrong tokens come in runs: long drafts bring more than independent chances tell, and are
    # rejected less often for each token that they try.
    table = independent(HARD)
    best = Option(FOUR, 6, round_seconds(FOUR, 6), 4.5, 0.6)
    table = CostTable(
        {**table.options, FOUR: [*table.options[FOUR][:6], best, *table.options[FOUR][7:]]}, HEAD
    )
    deciding = Controller(table, HARD, best)
    assert deciding.plan().option == best
    for _ in range(100):  # as many stand and fail as were replayed
        deciding.tell_round(best, best.tokens - 1, best.rejected, 10.0)
        assert deciding.plan().option == best
    assert deciding.drift == pytest.approx(1.0)
    assert deciding.chance(FOUR) == pytest.approx(HARD[FOUR])


def test_a_stop_rule_is_an_option_like_any_other() -> None:
    table = independent(EASY)
    ruled = Option(FOUR, 12, 30.0, 6.0, 0.5, ruled=True)
    table = CostTable({**table.options, FOUR: [*table.options[FOUR], ruled]}, HEAD)
    deciding = Controller(table, EASY, ruled)
    assert deciding.plan().option.ruled
    for _ in range(40):
        deciding.tell_round(deciding.plan().option, 0, 1, 30.0)
    assert not deciding.plan().option.draft_length


def test_a_stop_rule_makes_rounds_shorter_where_the_text_is_harder() -> None:
    table = independent(EASY)
    plain = table.options[FOUR][0].seconds
    mean = round_seconds(FOUR, 6)
    fixed = Option(FOUR, 12, mean, 6.0, 0.5, ruled=True)
    stopping = replace(fixed, least_seconds=plain, seconds_per_token=(mean - plain) / 6.0)
    given_up_at = []
    for ruled in (fixed, stopping):
        deciding = Controller(
            CostTable({FOUR: [table.options[FOUR][0], ruled]}, HEAD), {FOUR: EASY[FOUR]}, ruled
        )
        while deciding.plan().option.draft_length:
            deciding.tell_round(ruled, 0, 1, mean)
        given_up_at.append(deciding.chance(FOUR))
    assert given_up_at[1] < given_up_at[0]


def test_what_is_not_on_the_table_is_not_chosen() -> None:
    short = independent(EASY, longest=2)
    deciding = Controller(short, EASY, Option(FOUR, 12, round_seconds(FOUR, 12), 8.0, 0.5))
    world = World([EASY], 300).run(deciding)
    assert max(k for _, _, k in world.chosen) == 2


def test_a_decision_takes_less_than_a_hundredth_of_a_short_round() -> None:
    deciding = controller(EASY)
    began = time.process_time()
    for i in range(200):
        option = deciding.plan().option
        deciding.tell_round(option, min(i % 5, option.draft_length), 1, 1e-2)
    assert (time.process_time() - began) / 200 < 1e-4  # a round of the bundled model takes 10 ms and more


VIEW = Arm(LAYERS, low_bit=True)
VIEW_EASY = {**USELESS, VIEW: 0.93}
VIEW_HARD = {**USELESS, VIEW: 0.05}


def test_a_view_drafts_where_exits_are_useless_and_is_not_read() -> None:
    world = World([VIEW_EASY], 1000).run(controller(VIEW_EASY))
    assert {arm for _, arm, _ in world.chosen} == {VIEW}
    assert world.at / world.seconds > 0.95 * best_speed(VIEW_EASY)


@pytest.mark.parametrize("may_watch", [True, False])
def test_a_view_that_rests_is_probed_within_the_budget_and_comes_back(may_watch: bool) -> None:
    world = World([VIEW_HARD, VIEW_EASY], 1500).run(controller(VIEW_EASY, may_watch))
    expected_hard = World([VIEW_HARD, VIEW_EASY], 1500).run(controller(VIEW_HARD))
    assert any(arm == VIEW for _, arm, _ in expected_hard.chosen)  # probed, though nothing speaks for it
    resting = [k for at, _, k in world.chosen if 200 < at < 1500]
    assert 0 < sum(map(bool, resting)) < 0.1 * len(resting)
    later = [world.speed_at(position, VIEW_EASY) for position in range(1500 + 750, 3000)]
    assert sum(later) / len(later) > 0.8 * best_speed(VIEW_EASY)


def test_an_exit_is_read_beside_a_chain_where_siblings_are_drafted() -> None:
    table = independent(EASY)
    forked = Option(FOUR, 5, round_seconds(FOUR, 5), 5.9, 0.3, siblings=2)
    table = CostTable({**table.options, FOUR: [*table.options[FOUR], forked]}, HEAD)
    deciding = Controller(table, EASY, forked)
    plans = []
    for _ in range(60):
        plans.append(deciding.plan())
        deciding.tell_round(plans[-1].option, 4.9, 0.3, 100.0)
    assert {plan.option.siblings for plan in plans if plan.watched is None} == {2}
    watching = [plan.option for plan in plans if plan.watched is not None]
    assert watching and all((o.siblings, o.draft_length) == (1, 5) for o in watching)
