"""Tuning from prompts to a profile: what a profile says, and which prompts it can be made of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from quick_tuning import PROMPTS, QUICK
from tiny_models import tiny_model

from selfspec.round import Arm
from selfspec.tuning.identity import fingerprint
from selfspec.tuning.prediction import Limits, predict
from selfspec.tuning.replay import Setting
from selfspec.tuning.tune import tune

EARLY = [Arm(e, low_bit=False) for e in (1, 2, 3)]


def test_a_profile_says_what_was_chosen_and_for_what(tuned: Any) -> None:
    model, result = tuned
    profile = result.profile
    assert profile.identity.fingerprint == fingerprint(model)
    assert profile.prediction.speedup >= 1
    low, high = profile.prediction.interval
    assert low <= profile.prediction.tokens_per_second <= high
    assert profile.conditions["versions"]["torch"] == torch.__version__
    assert sorted(profile.acceptance) == EARLY
    assert profile.draft_bits is None
    assert {(arm, k) for arm, k, _ in result.found.surface} == {
        (arm, k) for arm in EARLY for k in range(1, 5)
    }


def test_what_a_view_drafts_is_tuned_beside_the_early_exits(tuned_with_view: Any) -> None:
    _, view, result = tuned_with_view
    whole = Arm(4, low_bit=True)
    profile, recording = result.profile, result.recording
    assert profile.draft_bits == view.bits == 4
    assert whole in profile.acceptance and set(EARLY) < set(profile.acceptance)
    assert len(recording.of(whole).confidence) == recording.longest(whole) == 4
    assert profile.costs.knows_view
    everything = [Setting.by(arm, k) for arm in recording.arms for k in range(1, 5)]
    rates = [p.tokens_per_second for p in predict(recording, profile.costs, everything)]
    assert result.found.best.tokens_per_second >= 0.995 * max(rates)
    assert {arm for arm, _, _ in result.found.surface} == set(recording.arms)
    assert result.seconds.keys() == {"recording", "timing", "recording the view", "searching"}


def test_texts_too_short_to_time_a_view_are_tuned_without_it(tuned_with_view: Any) -> None:
    model, view, _ = tuned_with_view
    profile = tune(model, PROMPTS, view=view, max_new_tokens=1, repeats=1).profile
    assert profile.draft_bits is None
    assert not any(arm.low_bit for arm in profile.acceptance)


def test_a_model_that_takes_no_trees_is_tuned_without_siblings() -> None:
    result = tune(tiny_model("mpt"), PROMPTS, **QUICK)
    assert result.found.branching is None
    assert not result.profile.costs.knows_siblings


def test_what_was_asked_for_is_in_the_profile(llama: Any) -> None:
    limits = Limits(bytes=10**9)
    profile = tune(llama, PROMPTS, limits=limits, batch=2, **QUICK).profile
    assert profile.limits == limits
    assert profile.conditions["batch"] == 2
    assert [fit.rows for fit in profile.costs.fits] == [1, 2]
    assert profile.tokens[EARLY[1]][0] == 1
    assert {len(row) for row in profile.tokens.values()} == {5}


def test_one_prompt_is_enough(llama: Any) -> None:
    profile = tune(llama, [[5, 6, 7]], **QUICK).profile
    assert profile.prediction.interval == pytest.approx((profile.prediction.tokens_per_second,) * 2)


def test_prompts_that_are_longer_than_the_model_are_left_out_or_refused(llama: Any) -> None:
    long = [1] * 250
    with pytest.warns(UserWarning, match="1 of 3 prompts are longer than 240 tokens"):
        assert tune(llama, [[5, 6], long, [7]], **QUICK).profile.conditions["prompts"] == 2
    with pytest.raises(ValueError, match="all 2 prompts are too long: the model has 256 positions"):
        tune(llama, [long, long], **QUICK)
