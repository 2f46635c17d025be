"""Counters, and the rates that follow from them."""

from __future__ import annotations

import json

import pytest

from selfspec.stats import Stats


def test_rates_follow_from_counters() -> None:
    stats = Stats(rounds=3, row_rounds=4, drafted=10, accepted=6, tokens=10, seconds=2.0)
    assert stats.acceptance_rate == 0.6
    assert stats.acceptance_length == 1 + 6 / 4
    assert stats.tokens_per_second == 5.0


def test_rates_of_nothing_are_zero() -> None:
    assert (Stats().acceptance_rate, Stats().acceptance_length, Stats().tokens_per_second) == (0.0, 0.0, 0.0)


def test_sums_add_counters_and_take_over_descriptions() -> None:
    total = Stats()
    total.add(
        Stats(rounds=2, drafted=4, tokens=5, seconds=1.0, calls=1, exit_layer=3, draft_length=2, choice="a")
    )
    total.add(
        Stats(rounds=1, drafted=1, tokens=2, seconds=0.5, calls=1, exit_layer=2, draft_length=0, choice="b")
    )
    assert (total.rounds, total.drafted, total.tokens, total.seconds, total.calls) == (3, 5, 7, 1.5, 2)
    assert (total.exit_layer, total.draft_length, total.choice) == (2, 0, "b")


def test_a_row_of_a_round_counts_once() -> None:
    stats = Stats()
    stats.count_row(drafted=3, deepest=3, accepted=2, committed=3)
    stats.count_row(drafted=3, deepest=3, accepted=0, committed=1)
    assert (stats.row_rounds, stats.drafted, stats.accepted, stats.tokens) == (2, 6, 2, 4)
    stats.count_row(drafted=3, deepest=3, accepted=0, committed=1, times=-1)
    stats.count_row(drafted=3, deepest=3, accepted=2, committed=3, times=-1)
    assert stats == Stats()


@pytest.mark.parametrize(
    ("drafted", "deepest", "accepted", "committed", "rejected"),
    [
        (3, 3, 3, 4, 0),  # all stand, and a bonus token
        (3, 3, 1, 2, 1),  # one stands, the second is replaced, the third was not looked at
        (3, 3, 0, 1, 1),
        (0, 0, 0, 1, 0),  # a plain round
        (3, 3, 2, 2, 0),  # the second was the end of the text: nothing was replaced
        (3, 3, 3, 3, 0),  # all stand, but the bonus token is past the end
        (6, 3, 3, 4, 0),  # the deepest branch of a tree stands: nothing was replaced
        (6, 3, 2, 3, 1),
        (6, 2, 2, 3, 0),
    ],
)
def test_a_rejected_token_is_one_that_was_replaced(
    drafted: int, deepest: int, accepted: int, committed: int, rejected: int
) -> None:
    stats = Stats()
    stats.count_row(drafted, deepest, accepted, committed)
    assert stats.rejected == rejected


def test_statistics_go_to_json_and_read_as_a_line() -> None:
    stats = Stats(rounds=3, row_rounds=3, drafted=9, accepted=6, tokens=9, seconds=1.5)
    values = json.loads(json.dumps(stats.as_dict()))
    assert values["acceptance_length"] == pytest.approx(3.0)
    assert values["tokens"] == 9
    assert str(stats) == (
        "9 tokens in 1.50 s (6.0 tokens/s), 3 rounds, acceptance rate 0.67, acceptance length 3.00"
    )


@pytest.mark.parametrize(
    ("stats", "words"),
    [
        (Stats(), "no drafts"),
        (Stats(exit_layer=4, draft_length=0), "no drafts"),
        (Stats(drafted=6, row_rounds=2, exit_layer=4, draft_length=3), "E = 4, K = 3"),
        (Stats(drafted=6, draft_depths=5, row_rounds=2, exit_layer=4), "E = 4, 2.5 tokens drafted a round"),
        (Stats(drafted=6, draft_depths=6, row_rounds=4), "1.5 tokens drafted a round"),
    ],
)
def test_drafts_are_told_by_their_length_or_by_the_mean_one(stats: Stats, words: str) -> None:
    assert stats.drafts == words
