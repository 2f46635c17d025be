"""Tuning from prompts to a profile in use, and everything that can be wrong with either."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checks import own_generate
from tiny_models import random_prompts, tiny_model

import selfspec
from selfspec.drafting.stopping import StopRule
from selfspec.tuning import following, store
from selfspec.tuning.calibration import calibrate, paying_rule
from selfspec.tuning.profile import Profile, ProfileError, fingerprint
from selfspec.tuning.record import record
from selfspec.tuning.replay import Setting, replay
from selfspec.tuning.search import Limits, predict, search
from selfspec.tuning.tune import tune

PROMPTS = [[5, 6, 7], [9, 8], [1, 2, 3, 4], [40, 41]]
QUICK: dict[str, Any] = {"max_new_tokens": 16, "repeats": 1, "longest": 4}
REQUEST: dict[str, Any] = {**random_prompts(5), "max_new_tokens": 12, "pad_token_id": 0}


@pytest.fixture(scope="module")
def tuned() -> Any:
    """A quickly tuned llama, as (model, Tuned)."""
    model = tiny_model("llama")
    return model, tune(model, PROMPTS, workload="code", **QUICK)


@pytest.fixture
def saved(tuned: Any, tmp_path: Path) -> tuple[Any, Path]:
    return tuned[0], tuned[1].profile.save(tmp_path / "code.json")


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


def test_a_profile_survives_its_file(tuned: Any, tmp_path: Path) -> None:
    profile = replace(
        tuned[1].profile, setting=Setting(2, 3, stop=StopRule((0.5, 0.25), ((0.1, 0.9), (0.2, 0.8))))
    )
    assert Profile.load(profile.save(tmp_path / "deep" / "p.json")) == profile


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


@pytest.mark.parametrize("source", ["path", "text", "profile", "list"])
def test_wrap_takes_profiles_in_every_form(saved: tuple[Any, Path], source: str) -> None:
    model, path = saved
    profile = Profile.load(path)
    forms = {"path": path, "text": str(path), "profile": profile, "list": [path]}
    selfspec.wrap(model, profile=forms[source])
    assert model.speculation.profiles == {"code": profile}
    selfspec.unwrap(model)


@pytest.mark.parametrize("sampling", [{}, {"do_sample": True, "temperature": 0.8}])
def test_the_text_under_a_profile_is_the_same(saved: tuple[Any, Path], sampling: dict[str, Any]) -> None:
    model, path = saved
    long = {**REQUEST, "max_new_tokens": 60, **sampling}
    torch.manual_seed(1)
    plain = selfspec.wrap(model, draft_length=0).generate(**long)
    for profile in (path, replace(Profile.load(path), setting=Setting(2, 3, 0.4))):
        torch.manual_seed(1)
        wrapped = selfspec.wrap(model, profile=profile)
        assert torch.equal(wrapped.generate(**long, workload="code"), plain)
        assert "profile code" in model.speculation.stats.choice
    if not sampling:
        assert torch.equal(plain, own_generate(model, **long))
    selfspec.unwrap(model)


def test_a_workload_is_chosen_per_call(tuned: Any) -> None:
    model, result = tuned
    prose = replace(result.profile, workload="prose", setting=Setting(1, 2))
    selfspec.wrap(model, profile=[result.profile, prose])
    model.generate(**REQUEST, workload="prose")
    assert model.speculation.stats.choice.startswith("profile prose")
    model.generate(**REQUEST, workload="code")
    assert model.speculation.stats.choice.startswith("profile code")
    selfspec.unwrap(model)


def test_a_workload_that_does_not_exist_is_refused_with_the_nearest(saved: tuple[Any, Path]) -> None:
    model, path = saved
    selfspec.wrap(model, profile=path)
    with pytest.raises(ProfileError, match=r"unknown workload 'cod': did you mean 'code'\? known are code"):
        model.generate(**REQUEST, workload="cod")
    selfspec.wrap(model, profile=path, exit_layer=2, draft_length=2)
    with pytest.raises(ProfileError, match="cannot be used with a fixed"):
        model.generate(**REQUEST, workload="code")
    selfspec.wrap(model, profile=[])
    with pytest.raises(ProfileError, match="no profile is loaded"):
        model.generate(**REQUEST, workload="code")
    selfspec.unwrap(model)


def test_tuning_keeps_a_profile_that_wrap_finds_by_itself(llama: Any) -> None:
    selfspec.wrap(llama)
    profile = llama.speculation.tune(PROMPTS, workload="code", **QUICK)
    assert llama.speculation.profiles["code"] is profile
    selfspec.unwrap(llama)
    assert selfspec.wrap(llama).speculation.profiles == {"code": profile}
    llama.generate(**REQUEST)
    assert "profile code" in llama.speculation.stats.choice
    assert copy.deepcopy(llama).speculation.profiles.keys() == {"code"}
    other = tiny_model("llama", seed=1)
    assert selfspec.wrap(other).speculation.profiles == {}
    assert selfspec.wrap(llama, profile=[]).speculation.profiles == {}


def test_a_damaged_profile_in_the_cache_is_left_out_with_a_warning(llama: Any, tuned: Any) -> None:
    path = store.default_path(replace(tuned[1].profile))
    path.parent.mkdir(parents=True)
    path.write_text("{", encoding="utf-8")
    with pytest.warns(UserWarning, match="left out"):
        assert selfspec.wrap(llama).speculation.profiles == {}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "damaged or cut off"),
        ('{"schema": 1, "workload": "co', "damaged or cut off"),
        ('{"schema": 1}', "is damaged"),
        ('{"schema": 0}', "has schema 0, this version reads 1: tune again"),
        ('{"schema": 99}', "has schema 99, this version reads 1: update selfspec"),
        ("[1, 2]", "not a profile"),
        (None, "cannot read profile"),
    ],
)
def test_a_file_that_is_no_profile_of_this_version_is_refused(
    llama: Any, tmp_path: Path, content: str | None, complaint: str
) -> None:
    path = tmp_path / "p.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(ProfileError, match=complaint):
        selfspec.wrap(llama, profile=path)
    assert not selfspec.is_wrapped(llama)


def test_a_truncated_profile_is_refused_wherever_it_is_cut(saved: tuple[Any, Path]) -> None:
    model, path = saved
    whole = path.read_text(encoding="utf-8")
    for end in range(0, len(whole) - 2, len(whole) // 20):
        path.write_text(whole[:end], encoding="utf-8")
        with pytest.raises(ProfileError):
            selfspec.wrap(model, profile=path)


def test_a_profile_with_wrong_values_is_refused(saved: tuple[Any, Path]) -> None:
    model, path = saved
    data = json.loads(path.read_text(encoding="utf-8"))
    data["setting"]["draft_length"] = 1000
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(ProfileError, match="draft_length=1000"):
        selfspec.wrap(model, profile=path)


def test_a_profile_of_another_model_or_dtype_is_refused_naming_what_differs(saved: tuple[Any, Path]) -> None:
    _, path = saved
    with pytest.raises(ProfileError, match="fingerprint is"):
        selfspec.wrap(tiny_model("llama", seed=1), profile=path)
    with pytest.raises(ProfileError, match="dtype is 'bfloat16', not 'float32'") as caught:
        selfspec.wrap(tiny_model("llama").bfloat16(), profile=path)
    assert "device" not in str(caught.value)


def test_a_fingerprint_tells_weights_apart_but_not_devices_or_copies() -> None:
    model = tiny_model("llama")
    assert fingerprint(model) == fingerprint(tiny_model("llama"))
    assert fingerprint(model) != fingerprint(tiny_model("llama", seed=1))
    assert len({fingerprint(tiny_model(family)) for family in ("llama", "qwen2", "gpt2")}) == 3


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


def test_rows_of_a_batch_keep_their_text_under_a_profile(saved: tuple[Any, Path]) -> None:
    model, path = saved
    batch = {**random_prompts(5, 9, 3, 12), "max_new_tokens": 40, "pad_token_id": 0}
    end = int(own_generate(model, **batch)[1, -6])
    expected = own_generate(model, **batch, eos_token_id=end)
    profile = replace(Profile.load(path), setting=Setting(3, 4))
    assert torch.equal(selfspec.wrap(model, profile=profile).generate(**batch, eos_token_id=end), expected)
    assert model.speculation.stats.drafted > 0
    selfspec.unwrap(model)


def test_a_profile_is_used_in_rejection_mode_too_without_reading_other_exits(
    saved: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: Any) -> None:
        raise AssertionError("choosing would use up draws")

    monkeypatch.setattr(following.WatchingExit, "_note", forbidden)
    model, path = saved
    selfspec.wrap(model, profile=path, acceptance="rejection")
    out = model.generate(**{**REQUEST, "max_new_tokens": 60}, do_sample=True, top_k=0, workload="code")
    assert out.shape[1] == 5 + 60
    selfspec.unwrap(model)


def test_in_bf16_the_controller_leaves_sampled_text_as_it_is(
    reference_model_bf16: Any, held_out_prompts: list[list[int]]
) -> None:
    model, prompt = reference_model_bf16, held_out_prompts[40]
    sampling = {"do_sample": True, "temperature": 0.8, "top_k": 0}
    quick = {"max_new_tokens": 12, "repeats": 1, "longest": 3, "generate_arguments": sampling}
    profile = tune(model, [prompt[:40], prompt[5:45]], workload="code", **quick).profile
    request = {"max_new_tokens": 40, "pad_token_id": 0, **sampling}
    texts = []
    for settings in ({"draft_length": 0}, {"profile": replace(profile, setting=Setting(3, 4, 0.2))}):
        torch.manual_seed(5)
        texts.append(selfspec.wrap(model, **settings).generate(torch.tensor([prompt]), **request))
        selfspec.unwrap(model)
    assert torch.equal(*texts)


def test_other_exits_are_read_without_changing_text_or_counts_of_the_recording(llama: Any) -> None:
    recording = record(llama, PROMPTS, max_new_tokens=40)
    setting = Setting(2, 3)
    profile = replace(tune(llama, PROMPTS, **QUICK).profile, setting=setting)
    selfspec.wrap(llama, profile=profile)
    for p, prompt in enumerate(PROMPTS):
        out = llama.generate(torch.tensor([prompt]), max_new_tokens=40, pad_token_id=0)
        assert out[0, len(prompt) :].tolist() == recording.tokens[p].tolist()
