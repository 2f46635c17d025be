"""The formulas against values worked out by hand."""

from __future__ import annotations

import pytest

from layer_skip.training.recipe import (
    active_exits,
    dropout_rates,
    exit_scales,
    exit_weights,
    layer_scale,
    shallow_exits,
    time_scale,
)


def test_layer_scale_is_zero_at_the_first_layer_and_one_at_the_last():
    assert layer_scale(0, 12) == 0.0
    assert layer_scale(11, 12) == pytest.approx(1.0)
    assert layer_scale(2, 5) == pytest.approx(2**0.5 - 1)


def test_time_scale_grows_from_scratch_and_is_one_when_continuing():
    assert time_scale(0.0) == 0.0
    assert time_scale(0.5) == pytest.approx(2**0.5 - 1)
    assert time_scale(1.0) == pytest.approx(1.0)
    assert time_scale(0.0, from_scratch=False) == 1.0


def test_dropout_rates_end_at_the_maximum():
    assert dropout_rates(3, 1.0, 0.2) == pytest.approx([0.0, 0.2 * (2**0.5 - 1), 0.2])
    assert dropout_rates(3, 0.0, 0.2) == [0.0, 0.0, 0.0]
    assert dropout_rates(3, 0.0, 0.2, from_scratch=False) == pytest.approx([0.0, 0.2 * (2**0.5 - 1), 0.2])


def test_paper_scales_by_hand():
    # L = 4: e(l) = e_scale * (0, 1, 3) and e(3) = 3 + e_scale * 2 * 3 / 2.
    assert exit_scales(4, 0.2) == pytest.approx([0.0, 0.2, 0.6, 3.6])


def test_with_every_exit_on_the_last_layer_of_32_holds_an_eleventh_of_the_loss():
    scales = exit_scales(32, 1.0)
    assert exit_weights(scales, list(range(32)))[31] == pytest.approx(1 / 11)


def test_shallow_scales_stress_the_first_quarter_only():
    assert list(shallow_exits(16)) == [0, 1, 2, 3]
    assert exit_scales(8, 0.5, "shallow") == [0.5, 0.5, 0, 0, 0, 0, 0, 1.0]
    assert list(shallow_exits(2)) == [0]


@pytest.mark.parametrize("curriculum", ["rotational", "gradual", "none"])
@pytest.mark.parametrize("weighting", ["paper", "shallow"])
@pytest.mark.parametrize("layers", [2, 5, 16])
def test_the_last_layer_is_always_in_and_weights_add_up_to_one(curriculum, weighting, layers):
    scales = exit_scales(layers, 0.2, weighting)
    for step in range(40):
        active = active_exits(scales, step, step / 39, curriculum, rotation=3)
        weights = exit_weights(scales, active)
        assert active[-1] == layers - 1 and sorted(set(active)) == active
        assert sum(weights.values()) == pytest.approx(1.0)


def test_rotation_covers_every_weighted_exit_once_in_a_turn():
    scales = exit_scales(10, 0.2)
    seen = [exit for step in range(4) for exit in active_exits(scales, step, 0.0, "rotational", 4)[:-1]]
    assert sorted(seen) == list(range(1, 9))


def test_gradual_curriculum_starts_at_the_top_and_has_all_exits_at_half_time():
    scales = exit_scales(4, 1.0)
    assert active_exits(scales, 0, 0.0, "gradual") == [3]
    assert active_exits(scales, 0, 1 / 8, "gradual") == [2, 3]
    assert active_exits(scales, 0, 0.5, "gradual") == [1, 2, 3]
