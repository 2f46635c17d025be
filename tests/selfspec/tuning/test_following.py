"""Calls under a profile: when it is used, and that the text stays the same."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checks import own_generate
from quick_tuning import PROMPTS, QUICK, REQUEST, where_drafts_pay
from tiny_models import random_prompts, tiny_model

import selfspec
from selfspec.round import Arm
from selfspec.tuning import controller, following, watching
from selfspec.tuning.prediction import Limits
from selfspec.tuning.profile import Profile, ProfileError
from selfspec.tuning.record import record
from selfspec.tuning.replay import Setting
from selfspec.tuning.tune import tune


@pytest.mark.parametrize("sampling", [{}, {"do_sample": True, "temperature": 0.8}])
def test_the_text_under_a_profile_is_the_same(saved: tuple[Any, Path], sampling: dict[str, Any]) -> None:
    model, path = saved
    long = {**REQUEST, "max_new_tokens": 60, **sampling}
    torch.manual_seed(1)
    plain = selfspec.wrap(model, draft_length=0).generate(**long)
    for profile in (path, where_drafts_pay(Profile.load(path), Setting(2, 3, 0.4))):
        torch.manual_seed(1)
        wrapped = selfspec.wrap(model, profile=profile)
        assert torch.equal(wrapped.generate(**long, workload="code"), plain)
        assert "profile code" in model.speculation.stats.choice
    assert model.speculation.stats.drafted > 0
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
    selfspec.wrap(model, exit_layer=2)
    with pytest.raises(ProfileError, match="cannot be used with exit_layer=2"):
        model.generate(**REQUEST, workload="code")
    selfspec.wrap(model, profile=[])
    with pytest.raises(ProfileError, match="no profile is loaded"):
        model.generate(**REQUEST, workload="code")
    selfspec.unwrap(model)


def test_a_model_that_has_changed_drops_the_profiles_that_no_longer_fit(saved: tuple[Any, Path]) -> None:
    model, path = saved
    model = selfspec.wrap(copy.deepcopy(model), profile=path)
    prompts = random_prompts(9)
    model.generate(**prompts, max_new_tokens=4)
    assert model.speculation.stats.profile
    model.bfloat16()
    with pytest.warns(UserWarning, match="workload 'code' is not used any more: dtype is 'bfloat16'"):
        model.generate(**prompts, max_new_tokens=4)
    assert not model.speculation.stats.profile
    with pytest.raises(ProfileError, match="unknown workload"):
        model.generate(**prompts, max_new_tokens=4, workload="code")


def test_tuning_keeps_a_profile_that_wrap_finds_by_itself(llama: Any) -> None:
    selfspec.wrap(llama)
    profile = llama.speculation.tune(PROMPTS, workload="code", **QUICK)
    assert llama.speculation.profiles["code"] is profile
    selfspec.unwrap(llama)
    assert selfspec.wrap(llama, draft="early_exit").speculation.profiles == {"code": profile}
    llama.generate(**REQUEST)
    assert "profile code" in llama.speculation.stats.choice
    assert copy.deepcopy(llama).speculation.profiles.keys() == {"code"}
    other = tiny_model("llama", seed=1)
    assert selfspec.wrap(other).speculation.profiles == {}
    assert selfspec.wrap(llama, profile=[]).speculation.profiles == {}


def test_auto_goes_on_measuring_where_a_profile_was_found_unless_a_call_names_it(llama: Any) -> None:
    selfspec.wrap(llama)
    llama.speculation.tune(PROMPTS, workload="code", **QUICK)
    for model in (llama, selfspec.wrap(llama)):
        model.generate(**REQUEST)
        assert "profile" not in model.speculation.stats.choice
        model.generate(**REQUEST, workload="code")
        assert "profile code" in model.speculation.stats.choice


def test_a_profile_is_not_taken_unasked_for_another_kind_of_decoding(saved: tuple[Any, Path]) -> None:
    model, path = saved
    selfspec.wrap(model, profile=path)
    model.generate(**REQUEST, do_sample=True)
    assert "profile" not in model.speculation.stats.choice
    assert model.speculation.view is None
    assert "'code' were tuned for greedy calls and this one is sampled" in model.speculation.stats.profile
    selfspec.unwrap(model)


def test_rows_of_a_batch_keep_their_text_under_a_profile(saved: tuple[Any, Path]) -> None:
    model, path = saved
    batch = {**random_prompts(5, 9, 3, 12), "max_new_tokens": 40, "pad_token_id": 0}
    end = int(own_generate(model, **batch)[1, -6])
    expected = own_generate(model, **batch, eos_token_id=end)
    profile = where_drafts_pay(Profile.load(path), Setting(3, 4))
    assert torch.equal(selfspec.wrap(model, profile=profile).generate(**batch, eos_token_id=end), expected)
    assert model.speculation.stats.drafted > 0
    selfspec.unwrap(model)


def test_a_profile_is_used_in_rejection_mode_too_without_reading_other_exits(
    saved: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: Any) -> None:
        raise AssertionError("choosing notes what a token was drawn from")

    monkeypatch.setattr(watching.Watching, "_note", forbidden)
    model, path = saved
    profile = where_drafts_pay(Profile.load(path), Setting(3, 4))
    selfspec.wrap(model, profile=profile, acceptance="rejection")
    out = model.generate(**{**REQUEST, "max_new_tokens": 60}, do_sample=True, top_k=0, workload="code")
    assert out.shape[1] == 5 + 60
    assert model.speculation.stats.drafted > 0
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
    for settings in ({"draft_length": 0}, {"profile": where_drafts_pay(profile, Setting(3, 3, 0.2))}):
        torch.manual_seed(5)
        texts.append(selfspec.wrap(model, **settings).generate(torch.tensor([prompt]), **request))
        selfspec.unwrap(model)
    assert torch.equal(*texts)


@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_other_exits_say_what_the_recording_says_and_leave_the_text_as_it_is(
    tuned: Any, monkeypatch: pytest.MonkeyPatch, threshold: float
) -> None:
    model, result = tuned
    monkeypatch.setattr(controller, "WATCH_BUDGET", 100.0)  # rounds of a tiny model afford few readings
    recording = record(model, PROMPTS, max_new_tokens=40)
    seen: list[tuple[int, int, list[int]]] = []
    outcome = watching._Watched.outcome

    def noted(self: Any) -> tuple[int, int, int, float]:
        exit_layer, hits, trials, seconds = outcome(self)
        seen.append((exit_layer, self.generated[0], self.chosen[0, :trials].tolist()))
        assert seconds > 0
        return exit_layer, hits, trials, 0.0

    monkeypatch.setattr(watching._Watched, "outcome", noted)
    selfspec.wrap(model, profile=where_drafts_pay(result.profile, Setting(2, 3, threshold)))
    exits = set()
    for p, prompt in enumerate(PROMPTS):
        out = model.generate(torch.tensor([prompt]), max_new_tokens=40, pad_token_id=0)
        assert out[0, len(prompt) :].tolist() == recording.tokens[p].tolist()
        while seen:
            exit_layer, first, chosen = seen.pop()
            recorded = recording.of(Arm(exit_layer, low_bit=False)).candidates[0, p, first:, 0]
            assert chosen == recorded[: len(chosen)].tolist()
            exits.add(exit_layer)
    assert exits == {1, 2, 3}
    selfspec.unwrap(model)


def test_statistics_say_what_ran_and_how_the_call_differs_from_what_was_timed(
    saved: tuple[Any, Path],
) -> None:
    model, path = saved
    profile = where_drafts_pay(Profile.load(path), Setting(3, 4))
    timed = replace(profile, conditions={**profile.conditions, "threads": 99})
    selfspec.wrap(model, profile=timed)
    model.generate(**random_prompts(5, 9), max_new_tokens=12, pad_token_id=0)
    stats = model.speculation.stats
    assert stats.profile == "'code', the newest for calls of this kind"
    assert "outside what was timed: batch 2, timed were 1 to 1" in stats.choice
    assert "1 threads, timed were 99" in stats.choice
    rejected = replace(profile, acceptance=dict.fromkeys(profile.acceptance, 0.0), setting=Setting(3, 0))
    selfspec.wrap(model, profile=rejected).generate(**REQUEST)
    assert model.speculation.stats.draft_length == 0
    selfspec.unwrap(model)


def test_limits_of_a_profile_hold_while_it_is_followed(saved: tuple[Any, Path]) -> None:
    model, path = saved
    profile = where_drafts_pay(Profile.load(path), Setting(3, 2))
    tight = replace(profile, limits=Limits(bytes=3 * profile.column_bytes))
    deepest = []
    for taken in (profile, tight):
        rounds: list[int] = []
        selfspec.wrap(model, profile=taken)
        long = {**REQUEST, "max_new_tokens": 60}
        model.generate(**long, on_round=lambda event, rounds=rounds: rounds.append(event.deepest))
        deepest.append(max(rounds))
    assert deepest[0] > 2
    assert deepest[1] == 2
    selfspec.unwrap(model)


def test_where_the_clock_says_that_drafts_do_not_pay_they_stop(
    saved: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = saved
    profile = where_drafts_pay(Profile.load(path), Setting(3, 2))
    observe = following.Following.observe

    def slowly(self: Any, length: int, tokens: float, seconds: float) -> None:
        observe(self, length, tokens, 1.0 if length else 0.01)

    monkeypatch.setattr(following.Following, "observe", slowly)
    rounds: list[int] = []
    selfspec.wrap(model, profile=profile)
    long = {**REQUEST, "max_new_tokens": 100}
    model.generate(**long, on_round=lambda event: rounds.append(event.deepest))
    # A first verdict after eight rounds, the next after four more each; the text is easier than expected.
    assert 8 <= sum(map(bool, rounds)) <= 16
    selfspec.unwrap(model)


def test_a_batch_counts_each_of_its_rejections(
    saved: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = saved
    told: list[tuple[int, int]] = []
    tell = following.Controller.tell_round

    def noted(self: Any, option: Any, accepted: int, rejected: int, seconds: float) -> bool:
        told.append((accepted, rejected))
        return tell(self, option, accepted, rejected, seconds)

    monkeypatch.setattr(following.Controller, "tell_round", noted)
    selfspec.wrap(model, profile=where_drafts_pay(Profile.load(path), Setting(3, 4)))
    events: list[Any] = []
    batch = {**random_prompts(5, 9, 3), "max_new_tokens": 24, "pad_token_id": 0}
    model.generate(**batch, on_round=events.append)
    rejected = sum(e.accepted < min(e.deepest, len(e.committed)) for e in events)
    assert sum(r for _, r in told) == rejected > 0
    assert sum(a for a, _ in told) == sum(e.accepted for e in events)
    selfspec.unwrap(model)
