"""What is known of a model, and what is concluded from it."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from fake_rounds import HALF, LAYERS, LOW_BIT, flat, knowledge

from selfspec.round import Arm
from selfspec.shapes import FASTEST, ShapePlan
from selfspec.tuning.costs import PassCosts
from selfspec.tuning.knowledge import Knowledge, Tally, expected_tokens
from selfspec.tuning.reading import SAMPLES, Agreement


@pytest.mark.parametrize(
    ("chance", "length", "tokens"),
    [(0.0, 5, 1.0), (1.0, 5, 6.0), (0.5, 2, 1.75), (0.8, 3, 2.952), (0.3, 0, 1.0)],
)
def test_a_round_commits_what_the_formula_says(chance: float, length: int, tokens: float) -> None:
    assert expected_tokens(chance, length) == pytest.approx(tokens)


def test_a_round_costs_its_passes() -> None:
    """Layers of 1 s, a head of 2 s; in low bits 0.2 s and 0.4 s."""
    known = knowledge()
    assert known.round_seconds(None, 0, 1, FASTEST) == LAYERS + 2
    assert known.round_seconds(HALF, 0, 1, FASTEST) == LAYERS + 2
    # K steps of half the layers and the head, the last token's half, the other half and the head.
    assert known.round_seconds(HALF, 3, 1, FASTEST) == 3 * (4 + 2) + 4 + 4 + 2
    # K steps of the view, and all layers once over K + 1 tokens.
    assert known.round_seconds(LOW_BIT, 3, 1, FASTEST) == pytest.approx(3 * (8 * 0.2 + 0.4) + 10)
    assert known.round_seconds(None, 15, 1, FASTEST) == LAYERS + 2


def test_passes_of_more_tokens_cost_what_was_timed_for_them() -> None:
    growing = PassCosts((1.0, 2.0, 4.0, 8.0, 16.0, 32.0), (0.0,) * 6)
    known = Knowledge(LAYERS, lambda: growing, None, bits=4)
    assert known.round_seconds(None, 0, 3, FASTEST) == 8 * 3  # three rows of one token
    assert known.round_seconds(None, 3, 2, FASTEST) == 8 * 8  # two rows of four
    padded = ShapePlan(bad_widths=frozenset({1, 2, 3}))
    assert known.round_seconds(None, 0, 1, padded) == 8 * 4  # as the engine runs it


def test_without_a_view_low_bit_costs_are_those_of_the_model_itself() -> None:
    known = knowledge(low_bit_layer=None)
    assert known.round_seconds(Arm(4, True), 2, 1, FASTEST) == known.round_seconds(HALF, 2, 1, FASTEST)


def test_what_prompts_say_decides_before_anything_was_drafted() -> None:
    known = knowledge()
    arms = [Arm(e, False) for e in (2, 4, 6)]
    before = known.chances(arms, False)
    assert len(set(before.values())) == 1  # nothing known: all alike, and not good
    assert all(chance < 0.5 for chance in before.values())
    known.read(Agreement({2: 8, 4: 32, 6: 60}, 64))
    chances = known.chances(arms, False)
    assert chances[arms[0]] < chances[arms[1]] < chances[arms[2]]
    assert chances[arms[1]] == pytest.approx(0.5, abs=0.05)
    low = known.chances([Arm(4, True)], False)[Arm(4, True)]
    assert low == pytest.approx(0.9 * chances[arms[1]], rel=0.02)  # and the rounding misses some


def test_all_layers_in_few_bits_miss_by_rounding_alone() -> None:
    for bits, expected in ((4, 0.9), (8, 0.96)):
        known = Knowledge(LAYERS, partial(flat, 1, 1), partial(flat, 0.2, 0.2), bits)
        assert known.chances([LOW_BIT], False)[LOW_BIT] == pytest.approx(expected, abs=0.001)


def test_what_drafting_has_shown_outweighs_what_prompts_promised() -> None:
    known = knowledge()
    known.read(Agreement({4: 64}, 64))
    assert known.chances([HALF], False)[HALF] > 0.9
    for _ in range(200):
        known.tally(HALF, False).note(1, 5)
    assert known.chances([HALF], False)[HALF] == pytest.approx(0.2, abs=0.05)
    assert known.chances([HALF], True)[HALF] > 0.9  # sampled text is known apart


def test_text_that_is_harder_for_one_arm_is_taken_to_be_harder_for_the_others() -> None:
    known = knowledge()
    other = Arm(6, False)
    known.read(Agreement({4: 48, 6: 56}, 64))
    before = known.chances([HALF, other], False)
    for _ in range(100):
        known.tally(HALF, False).note(1, 4)
    after = known.chances([HALF, other], False)
    assert after[other] < before[other] - 0.05
    assert after[other] > after[HALF]


def test_a_chance_stays_between_never_and_nearly_always() -> None:
    known = knowledge()
    for arm, (accepted, tested) in {LOW_BIT: (20, 20), HALF: (0, 20)}.items():
        for _ in range(300):
            known.tally(arm, False).note(accepted, tested)
    chances = known.chances([LOW_BIT, HALF], False)
    assert chances[LOW_BIT] == 0.98
    assert 0 <= chances[HALF] < 0.02
    assert known.chances([], False) == {}


def test_old_rounds_fade() -> None:
    tally = Tally()
    for _ in range(1000):
        tally.note(0, 4)
    assert tally.tested == pytest.approx(400, rel=0.01)
    for _ in range(300):
        tally.note(4, 4)
    assert tally.accepted / tally.tested > 0.9


def test_prompts_are_read_until_enough_is_known() -> None:
    known = knowledge()
    assert known.wants_reading
    known.read(Agreement({4: 10}, SAMPLES))
    assert known.wants_reading
    known.read(Agreement({4: 10}, SAMPLES))
    assert not known.wants_reading
    assert (known.agreement[4], known.samples) == (20, 2 * SAMPLES)


def test_arms_may_be_added_by_several_calls_at_once() -> None:
    known, threads = knowledge(), 6
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(threads) as pool:
            arms = [[Arm(100 * i + j, False) for j in range(100)] for i in range(threads)]
            list(pool.map(lambda own: [known.margin_rates(arm, False) for arm in own], arms))
    finally:
        sys.setswitchinterval(before)
    assert len(known.margins) == 100 * threads
