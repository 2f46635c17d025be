"""Seconds of rounds, and what they give: by passes of known cost, and by rounds that turned out slower."""

from __future__ import annotations

import pytest
from fake_rounds import HALF, LAYERS, LOW_BIT, knowledge

from selfspec.shapes import FASTEST
from selfspec.tuning.knowledge import Knowledge
from selfspec.tuning.speeds import Best, RoundSpeeds

PLAIN = LAYERS + 2.0
"""Seconds of a pass of layers that take one each and a head that takes two."""
STEP = 0.2 * PLAIN


def speeds(lengths: range = range(5)) -> RoundSpeeds:
    return RoundSpeeds(knowledge(), lengths, FASTEST)


def test_a_round_takes_what_its_passes_take() -> None:
    known = speeds()
    assert known.seconds(None, 0, 1) == known.seconds(None, 4, 1) == PLAIN
    assert known.seconds(LOW_BIT, 3, 1) == pytest.approx(3 * STEP + PLAIN)
    drafting = 3 * (LAYERS / 2 + 2) + LAYERS / 2  # the last drafted token runs the first layers, too
    assert known.seconds(HALF, 3, 1) == pytest.approx(drafting + LAYERS / 2 + 2)


def test_a_round_is_predicted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    known, asked = speeds(), []
    monkeypatch.setattr(Knowledge, "_round_seconds", lambda self, *at: asked.append(at[:3]) or 1.0)
    for call in (known, known, RoundSpeeds(known.knowledge, range(5), FASTEST)):
        call.best(LOW_BIT, 1, 0.5)
    assert sorted(asked, key=str) == sorted([(None, 0, 1), *((LOW_BIT, k, 1) for k in range(1, 5))], key=str)


@pytest.mark.parametrize("chance", [0.1, 0.5, 0.8, 0.95])
def test_the_best_length_is_that_of_most_tokens_a_second(chance: float) -> None:
    rates = {k: sum(chance**i for i in range(k + 1)) / (k * STEP + PLAIN) for k in range(1, 5)}
    length = max(rates, key=lambda k: rates[k])
    assert speeds().best(LOW_BIT, 1, chance) == pytest.approx(Best(rates[length] * PLAIN, length))


def test_what_was_not_tried_is_as_slow_as_the_least_slow_that_was() -> None:
    known = speeds()
    assert not known.knows_plain
    known.note(None, 0, 1, 1.5 * PLAIN)
    known.note(LOW_BIT, 2, 1, 2 * known.seconds(LOW_BIT, 2, 1))
    assert known.knows_plain
    assert known.lasting(None, 0, 1) == pytest.approx(1.5 * PLAIN)
    assert known.lasting(LOW_BIT, 4, 1) == pytest.approx(2 * known.seconds(LOW_BIT, 4, 1))
    assert known.lasting(HALF, 4, 1) == pytest.approx(1.5 * known.seconds(HALF, 4, 1))
    expected = 2 * (2 * STEP + PLAIN) / (1.5 * PLAIN)
    assert known.plain_rounds(LOW_BIT, 2, 1) == pytest.approx(expected)
    assert known.plain_rounds_of_found(3, 1) == 1  # by passes alone


def test_one_slow_round_moves_an_estimate_little_and_many_move_it_all_the_way() -> None:
    known = speeds()
    known.note(None, 0, 1, PLAIN)
    known.note(None, 0, 1, 100 * PLAIN)
    assert known.lasting(None, 0, 1) == pytest.approx(1.2 * PLAIN)
    for _ in range(60):
        known.note(None, 0, 1, 3 * PLAIN)
    assert known.lasting(None, 0, 1) == pytest.approx(3 * PLAIN, rel=1e-3)
