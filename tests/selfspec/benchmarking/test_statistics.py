"""Statistics of a benchmark."""

from __future__ import annotations

import random

import pytest

from selfspec.benchmarking.statistics import (
    Spread,
    distinct_ngrams,
    median_interval,
    paired_ratios,
    percentile,
    spread,
)


def test_percentiles_are_interpolated_between_neighbours() -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5
    assert percentile([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 0.2) == 2.0
    assert percentile([7.0], 0.8) == 7.0
    assert percentile([1.0, 2.0], 0.0) == 1.0
    assert percentile([1.0, 2.0], 1.0) == 2.0


@pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1.0], -0.1), ([1.0], 1.1)])
def test_a_percentile_that_does_not_exist_is_refused(values: list[float], share: float) -> None:
    with pytest.raises(ValueError):
        percentile(values, share)


def test_a_spread_is_a_median_between_two_percentiles() -> None:
    found = spread([5.0, 1.0, 2.0, 3.0, 4.0, 6.0])
    assert found == Spread(median=3.5, p20=2.0, p80=5.0)
    assert f"{found:.1f}" == "3.5 (2.0-5.0)"
    assert found.as_dict() == {"median": 3.5, "p20": 2.0, "p80": 5.0}


@pytest.mark.parametrize(("n", "chance"), [(3, 0.75), (8, 0.92), (16, 0.94), (100, 0.95)])
def test_the_interval_of_a_median_holds_it_as_often_as_it_says(n: int, chance: float) -> None:
    draw = random.Random(0)
    samples = [[draw.expovariate(1.0) for _ in range(n)] for _ in range(2000)]
    found = [median_interval(sample) for sample in samples]
    hits = sum(low <= 0.6931 <= high for low, high in found)
    assert hits / len(found) == pytest.approx(chance, abs=0.02)


def test_the_interval_of_few_values_is_all_of_them() -> None:
    assert median_interval([3.0, 1.0]) == (1.0, 3.0)


def test_paired_ratios_do_not_see_a_machine_that_slows_down_for_all() -> None:
    base, other = [2.0, 4.0, 20.0], [1.0, 2.0, 10.0]
    assert paired_ratios(base, other) == [2.0, 2.0, 2.0]


def test_pairs_need_a_partner_each() -> None:
    with pytest.raises(ValueError):
        paired_ratios([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("tokens", "share"),
    [([1, 2, 3, 4, 5], 1.0), ([7] * 12, 0.1), ([1, 2, 1, 2, 1, 2], 0.5), ([1, 2], 1.0), ([], 1.0)],
)
def test_a_text_that_loops_has_few_distinct_ngrams(tokens: list[int], share: float) -> None:
    assert distinct_ngrams(tokens) == share
