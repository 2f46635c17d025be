"""What is believed of an arm: seen by itself, in others, and by the profile."""

from __future__ import annotations

import pytest

from selfspec.tuning.estimates import Estimate


def test_an_estimate_follows_what_it_sees_and_falls_back_to_its_prior() -> None:
    estimate = Estimate(0.5)
    assert estimate.chance(1.0) == pytest.approx(0.5)
    for _ in range(50):
        estimate.add(4, 4)
    assert estimate.chance(1.0) > 0.85
    estimate.fade(800)
    assert estimate.chance(1.0) == pytest.approx(0.5, abs=0.01)
    assert estimate.chance(2.0) == pytest.approx(0.0, abs=0.03)
