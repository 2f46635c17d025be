"""A target is reached or MISSED, on every page in the same words."""

from __future__ import annotations

import math

from targets import verdict


def test_a_target_is_the_least_or_the_most_that_every_number_may_be() -> None:
    assert verdict(2.5, 2.5) == "target 2.5: reached"
    assert verdict(2.5, 3.0, 2.4) == "target 2.5: MISSED"
    assert verdict(0.05, 0.05, 0.01, most=True, form=".0%") == "target 5%: reached"
    assert verdict(30, 29.0, 31.0, most=True) == "target 30: MISSED"


def test_what_has_no_number_misses_its_target() -> None:
    assert verdict(1.0, math.nan) == verdict(1.0, math.nan, most=True) == "target 1: MISSED"
