"""When to draft and when to stop, on timings that are made up."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from selfspec.pacing import FixedLength, PayCheck, Rate


@dataclass
class Machine:
    """Rounds cost `plain` seconds without drafts and `drafting` with them, which commit `tokens` tokens."""

    plain: float
    drafting: float
    tokens: int
    lengths: list[int] = field(default_factory=list)

    def run(self, pacer: PayCheck, rounds: int) -> list[int]:
        for _ in range(rounds):
            length = pacer.draft_length(1000)
            pacer.observe(length, self.tokens if length else 1, self.drafting if length else self.plain)
            self.lengths.append(length)
        return self.lengths


def runs(lengths: list[int]) -> list[tuple[int, int]]:
    """(K, how often in a row)."""
    found: list[tuple[int, int]] = []
    for length in lengths:
        if found and found[-1][0] == length:
            found[-1] = length, found[-1][1] + 1
        else:
            found.append((length, 1))
    return found


def test_a_fixed_length_is_cut_only_by_the_end_of_the_text() -> None:
    pacer = FixedLength(4)
    assert [pacer.draft_length(remaining) for remaining in (100, 5, 4, 3, 2, 1)] == [4, 4, 3, 2, 1, 0]
    pacer.observe(4, 1, 1.0)
    assert pacer.draft_length(100) == 4


def test_drafting_that_pays_goes_on_for_ever() -> None:
    lengths = Machine(plain=1.0, drafting=1.5, tokens=2).run(PayCheck(3), 500)
    assert runs(lengths) == [(0, 3), (3, 497)]


def test_drafting_that_does_not_pay_is_stopped_after_a_trial_and_probed_ever_more_rarely() -> None:
    lengths = Machine(plain=1.0, drafting=2.5, tokens=2).run(PayCheck(3), 500)
    probes = [(0, 24), (3, 4), (0, 48), (3, 4), (0, 96), (3, 4), (0, 192), (3, 4), (0, 113)]
    assert runs(lengths) == [(0, 3), (3, 8), *probes]


def test_wrapping_costs_little_where_drafting_never_pays() -> None:
    machine = Machine(plain=1.0, drafting=2.0, tokens=1)
    lengths = machine.run(PayCheck(3), 256)
    seconds = sum(2.0 if length else 1.0 for length in lengths)
    assert seconds / 256 < 1.1


def test_a_difference_within_the_noise_of_timings_does_not_stop_drafting() -> None:
    assert runs(Machine(plain=1.0, drafting=2.02, tokens=2).run(PayCheck(3), 100)) == [(0, 3), (3, 97)]
    assert runs(Machine(plain=1.0, drafting=2.12, tokens=2).run(PayCheck(3), 35)) == [(0, 3), (3, 8), (0, 24)]


def test_a_probe_finds_out_that_drafting_pays_again() -> None:
    pacer, machine = PayCheck(3), Machine(plain=1.0, drafting=3.0, tokens=2)
    machine.run(pacer, 30)
    machine.drafting = 1.0
    assert runs(machine.run(pacer, 200)) == [(0, 3), (3, 8), (0, 24), (3, 195)]


def test_drafting_that_stops_paying_half_way_is_noticed() -> None:
    pacer, machine = PayCheck(3), Machine(plain=1.0, drafting=1.0, tokens=2)
    machine.run(pacer, 50)
    machine.tokens, machine.drafting = 1, 2.0
    lengths = machine.run(pacer, 40)
    assert 0 in lengths[50:70]


def test_one_slow_round_does_not_stop_drafting() -> None:
    pacer, machine = PayCheck(3), Machine(plain=1.0, drafting=1.0, tokens=3)
    machine.run(pacer, 30)
    pacer.observe(pacer.draft_length(1000), 3, 8.0)
    assert runs(machine.run(pacer, 20)[30:]) == [(3, 20)]


def test_the_length_never_reaches_past_the_end() -> None:
    pacer = PayCheck(6, warmup=0)
    assert [pacer.draft_length(remaining) for remaining in (100, 7, 3, 1)] == [6, 6, 2, 0]


def test_plain_rounds_at_the_end_of_a_text_do_not_wake_a_resting_pacer() -> None:
    pacer, machine = PayCheck(3), Machine(plain=1.0, drafting=3.0, tokens=1)
    machine.run(pacer, 12)
    assert pacer.draft_length(1000) == 0


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
    assert runs(first.run(PayCheck(3, plain=plain), 20)) == [(0, 3), (3, 17)]
    assert runs(second.run(PayCheck(3, plain=plain), 20)) == [(3, 20)]
