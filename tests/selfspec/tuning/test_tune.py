"""Tuning from prompts to a profile, and everything that can be wrong with either."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checks import own_generate
from quick_tuning import PROMPTS, QUICK, REQUEST

import selfspec
from selfspec.tuning import store
from selfspec.tuning.calibration import calibrate, paying_rule
from selfspec.tuning.profile import fingerprint
from selfspec.tuning.replay import Setting, replay
from selfspec.tuning.search import Limits, predict, search
from selfspec.tuning.tune import tune


def test_a_profile_says_what_was_chosen_and_for_what(tuned: Any) -> None:
    model, result = tuned
    profile = result.profile
    assert profile.identity.fingerprint == fingerprint(model)
    assert profile.prediction["speedup"] >= 1
    low, high = profile.prediction["interval"]
    assert low <= profile.prediction["tokens_per_second"] <= high
    assert profile.conditions["versions"]["torch"] == torch.__version__
    assert sorted(profile.acceptance) == [1, 2, 3]
    assert {(e, k) for e, k, _ in result.found.surface} == {(e, k) for e in (1, 2, 3) for k in range(1, 5)}


def test_the_best_of_the_search_is_the_best_of_its_predictions(tuned: Any) -> None:
    _, result = tuned
    costs, recording = result.profile.costs, result.recording
    everything = [Setting(e, k) for e in (1, 2, 3) for k in range(1, 5)]
    rates = [p.tokens_per_second for p in predict(recording, costs, everything)]
    assert result.found.best.tokens_per_second >= 0.995 * max(rates)


def test_limits_are_kept(tuned: Any) -> None:
    _, result = tuned
    costs, recording = result.profile.costs, result.recording
    tight = Limits(bytes=100 * 3)
    found = search(recording, costs, longest=4, limits=tight, bytes_per_column=100)
    assert found.best.setting.draft_length <= 2
    plain = found.plain.round_seconds
    found = search(recording, costs, longest=4, limits=Limits(seconds_per_token=plain * 1e-3))
    assert found.best.setting.draft_length == 0
    with pytest.raises(ValueError, match="bytes=0"):
        Limits(bytes=0)


def test_a_rule_from_costs_drafts_on_only_where_it_pays(tuned: Any) -> None:
    calibration = calibrate(tuned[1].recording, 3)
    generous, strict = (paying_rule(calibration, [1e-3] * 4, speed) for speed in (1.0, 900.0))
    assert max(generous.thresholds) < 0.05
    assert min(strict.thresholds) > 0.5
    counts = replay(tuned[1].recording, [Setting(3, 4, stop=rule) for rule in (generous, strict)])
    assert counts.drafted_most[1].sum() <= counts.drafted_most[0].sum()


def test_calibration_brings_stated_and_true_chances_together(tuned: Any) -> None:
    for exit_layer in (1, 2, 3):
        calibration = calibrate(tuned[1].recording, exit_layer)
        assert calibration.error <= calibration.raw_error + 1e-9


def test_no_prompts_are_refused(llama: Any) -> None:
    selfspec.wrap(llama)
    with pytest.raises(ValueError, match="no prompts"):
        llama.speculation.tune([], workload="code")
    with pytest.raises(ValueError, match="one text"):
        llama.speculation.tune("def f(", workload="code")
    with pytest.raises(ValueError, match="tokenizer="):
        llama.speculation.tune(["def f("], workload="code")
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        llama.speculation.tune([[1], []], workload="code")
    with pytest.raises(ValueError, match="a name is needed"):
        llama.speculation.tune([[1]], workload=" ")


def test_one_prompt_is_enough(llama: Any) -> None:
    profile = tune(llama, [[5, 6, 7]], **QUICK).profile
    assert profile.prediction["interval"] == pytest.approx([profile.prediction["tokens_per_second"]] * 2)


def test_prompts_that_are_longer_than_the_model_are_left_out_or_refused(llama: Any) -> None:
    long = [1] * 250
    with pytest.warns(UserWarning, match="1 of 3 prompts are longer than 240 tokens"):
        assert tune(llama, [[5, 6], long, [7]], **QUICK).profile.conditions["prompts"] == 2
    with pytest.raises(ValueError, match="all 2 prompts are too long: the model has 256 positions"):
        tune(llama, [long, long], **QUICK)


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(llama: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    selfspec.wrap(llama)
    with pytest.raises(OSError):
        llama.speculation.tune(PROMPTS, save=tmp_path / "file" / "p.json", advance=None)


def test_a_cache_that_cannot_be_written_costs_a_warning_only(
    llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setattr(store, "profiles_folder", lambda: tmp_path / "file")
    selfspec.wrap(llama)
    with pytest.warns(UserWarning, match="could not be kept"):
        llama.speculation.tune(PROMPTS, workload="code", **QUICK)
    assert "code" in llama.speculation.profiles


@pytest.mark.parametrize("step", [1, 2, 5])
def test_tuning_interrupted_leaves_nothing_behind(llama: Any, tmp_path: Path, step: int) -> None:
    calls = []

    def interrupt(name: str, total: int) -> None:
        calls.append(name)
        if len(calls) == step:
            raise KeyboardInterrupt

    selfspec.wrap(llama)
    out = tmp_path / "out" / "code.json"
    with pytest.raises(KeyboardInterrupt):
        llama.speculation.tune(PROMPTS, workload="code", save=out, advance=interrupt, **QUICK)
    assert list(out.parent.iterdir()) == []
    assert llama.speculation.profiles == {}
    assert torch.equal(llama.generate(**REQUEST), own_generate(llama, **REQUEST))
