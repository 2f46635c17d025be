"""When to draft and when to stop, on timings that are made up."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import pytest

from selfspec.pacing import FixedLength, PayCheck, Rate, TrialBudget


@dataclass
class Machine:
    """Rounds cost `plain` seconds without drafts and `drafting` with them, which commit `tokens` tokens."""

    plain: float
    drafting: float
    tokens: int
    drafted: list[bool] = field(default_factory=list)

    def run(self, check: PayCheck, rounds: int) -> list[bool]:
        for _ in range(rounds):
            drafts = check.allows()
            check.observe(drafts, self.tokens if drafts else 1, self.drafting if drafts else self.plain)
            self.drafted.append(drafts)
        return self.drafted


def runs(drafted: list[bool]) -> list[tuple[bool, int]]:
    """(whether with drafts, how often in a row)."""
    return [(drafts, len(list(run))) for drafts, run in itertools.groupby(drafted)]


def test_a_fixed_length_is_cut_only_by_the_end_of_the_text() -> None:
    pacer = FixedLength(4)
    assert [pacer.draft_length(remaining) for remaining in (100, 5, 4, 3, 2, 1)] == [4, 4, 3, 2, 1, 0]
    pacer.observe(4, 1, 1.0)
    assert pacer.draft_length(100) == 4


def test_drafting_that_pays_goes_on_for_ever() -> None:
    drafted = Machine(plain=1.0, drafting=1.5, tokens=2).run(PayCheck(), 500)
    assert runs(drafted) == [(False, 3), (True, 497)]


def test_drafting_that_does_not_pay_is_stopped_after_a_trial_and_probed_ever_more_rarely() -> None:
    drafted = Machine(plain=1.0, drafting=2.5, tokens=2).run(PayCheck(), 500)
    probes = [
        (False, 24),
        (True, 4),
        (False, 48),
        (True, 4),
        (False, 96),
        (True, 4),
        (False, 192),
        (True, 4),
        (False, 113),
    ]
    assert runs(drafted) == [(False, 3), (True, 8), *probes]


def test_wrapping_costs_little_where_drafting_never_pays() -> None:
    machine = Machine(plain=1.0, drafting=2.0, tokens=1)
    drafted = machine.run(PayCheck(), 256)
    seconds = sum(2.0 if drafts else 1.0 for drafts in drafted)
    assert seconds / 256 < 1.1


def test_a_difference_within_the_noise_of_timings_does_not_stop_drafting() -> None:
    assert runs(Machine(plain=1.0, drafting=2.02, tokens=2).run(PayCheck(), 100)) == [(False, 3), (True, 97)]
    assert runs(Machine(plain=1.0, drafting=2.12, tokens=2).run(PayCheck(), 35)) == [
        (False, 3),
        (True, 8),
        (False, 24),
    ]


def test_a_probe_finds_out_that_drafting_pays_again() -> None:
    pacer, machine = PayCheck(), Machine(plain=1.0, drafting=3.0, tokens=2)
    machine.run(pacer, 30)
    machine.drafting = 1.0
    assert runs(machine.run(pacer, 200)) == [(False, 3), (True, 8), (False, 24), (True, 195)]


def test_once_drafts_have_paid_rests_are_short_again() -> None:
    pacer, machine = PayCheck(), Machine(plain=1.0, drafting=3.0, tokens=2)
    machine.run(pacer, 300)
    machine.drafting = 1.0
    machine.run(pacer, 400)
    machine.drafting = 3.0
    rests = [times for drafts, times in runs(machine.run(pacer, 200)[700:]) if not drafts]
    assert rests[:2] == [24, 48]


def test_a_reason_to_try_again_ends_a_rest_at_once_and_the_next_ones_later_and_later() -> None:
    pacer, machine = PayCheck(), Machine(plain=1.0, drafting=3.0, tokens=2)
    for rounds in (12, 6, 30, 60):
        machine.run(pacer, rounds)
        pacer.wake()
    times = [3, 8, 2, 4, 25, 4, 49, 4]
    assert runs(machine.drafted)[:-1] == [(i % 2 == 1, n) for i, n in enumerate(times)]


def test_looks_while_it_rests_decide_nothing_and_count_as_rest() -> None:
    pacer, machine = PayCheck(), Machine(plain=1.0, drafting=3.0, tokens=2)
    machine.run(pacer, 12)
    machine.drafting = 1.0
    for _ in range(22):
        pacer.observe(True, 1, math.nan)
    assert runs(machine.run(pacer, 20)[12:]) == [(False, 1), (True, 19)]


def test_drafting_that_stops_paying_half_way_is_noticed() -> None:
    pacer, machine = PayCheck(), Machine(plain=1.0, drafting=1.0, tokens=2)
    machine.run(pacer, 50)
    machine.tokens, machine.drafting = 1, 2.0
    drafted = machine.run(pacer, 40)
    assert False in drafted[50:70]


def test_one_slow_round_does_not_stop_drafting() -> None:
    pacer, machine = PayCheck(), Machine(plain=1.0, drafting=1.0, tokens=3)
    machine.run(pacer, 30)
    pacer.observe(pacer.allows(), 3, 8.0)
    assert runs(machine.run(pacer, 20)[30:]) == [(True, 20)]


def test_plain_rounds_at_the_end_of_a_text_do_not_wake_a_resting_pacer() -> None:
    pacer, machine = PayCheck(), Machine(plain=1.0, drafting=3.0, tokens=1)
    machine.run(pacer, 12)
    assert not pacer.allows()


def test_a_rate_is_that_of_the_last_rounds() -> None:
    rate = Rate()
    assert rate.tokens_per_second == 0.0
    rate.add(2, 1.0)
    rate.add(4, 1.0)
    assert rate.tokens_per_second == pytest.approx(3.0)
    for _ in range(100):
        rate.add(1, 0.5)
    assert rate.tokens_per_second == pytest.approx(2.0)
    assert rate.rounds == 102


def test_a_known_plain_speed_needs_no_warm_up() -> None:
    plain = Rate()
    first, second = (Machine(plain=1.0, drafting=1.5, tokens=2) for _ in range(2))
    assert runs(first.run(PayCheck(plain=plain), 20)) == [(False, 3), (True, 17)]
    assert runs(second.run(PayCheck(plain=plain), 20)) == [(True, 20)]


STAKES = {1: 0.2, 2: 0.4, 4: 0.8}
"""Draft length -> plain rounds that it loses at worst."""


def test_a_trial_stakes_half_of_what_is_left_and_its_last_on_the_shortest_draft() -> None:
    budget = TrialBudget(share=0.1, foreseen=16)
    tried = []
    while length := budget.longest(STAKES, remaining=16):
        tried.append(length)
        budget.lost += STAKES[length]
    assert tried == [4, 2, 1]
    assert budget.lost <= 0.1 * 16
    assert TrialBudget(share=0.1).longest({}, 16) == 0


def test_what_drafts_have_earned_can_be_staked() -> None:
    budget = TrialBudget(share=0.1, foreseen=16, lost=1.5)
    assert budget.longest(STAKES, 16) == 0
    budget.lost -= 1.7
    assert budget.longest(STAKES, 16) == 4


def test_no_more_is_staked_than_a_text_that_ends_early_may_lose() -> None:
    budget = TrialBudget(share=0.1, foreseen=16)
    assert budget.left(10_000) == budget.left(16) == pytest.approx(1.6)
    check = PayCheck(budget=budget)
    Machine(plain=1.0, drafting=1.0, tokens=2).run(check, 3)  # plain rounds, a token each
    assert budget.left(10_000) == pytest.approx(1.9)
    assert budget.left(0) == pytest.approx(0.3)
