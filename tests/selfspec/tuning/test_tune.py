"""Tuning from prompts to a profile, and everything that can be wrong with either."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checks import own_generate
from quick_tuning import PROMPTS, QUICK, REQUEST, where_drafts_pay
from tiny_models import tiny_model
from transformers import BatchEncoding

import selfspec
from selfspec.drafting.stopping import StopRule
from selfspec.round import Arm
from selfspec.tuning import search as search_module
from selfspec.tuning import store
from selfspec.tuning.calibration import calibrate, paying_rule
from selfspec.tuning.cost_model import Fit
from selfspec.tuning.identity import fingerprint
from selfspec.tuning.options import TuneOptions
from selfspec.tuning.prediction import Limits, predict
from selfspec.tuning.profile import Profile
from selfspec.tuning.record import record
from selfspec.tuning.replay import Setting, replay
from selfspec.tuning.search import search, worthwhile_early_exits, worthwhile_exits
from selfspec.tuning.session import token_ids
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


def test_the_best_of_the_search_is_the_best_of_its_predictions(tuned: Any) -> None:
    _, result = tuned
    costs, recording = result.profile.costs, result.recording
    everything = [Setting(e, k) for e in (1, 2, 3) for k in range(1, 5)]
    rates = [p.tokens_per_second for p in predict(recording, costs, everything)]
    assert result.found.best.tokens_per_second >= 0.995 * max(rates)


def test_the_best_with_siblings_is_told_beside_the_chain_that_is_chosen(tuned: Any) -> None:
    _, result = tuned
    costs, recording, found = result.profile.costs, result.recording, result.found
    everything = [Setting(e, k, siblings=w) for e in (1, 2, 3) for k in range(1, 5) for w in (2, 3, 4)]
    rates = [p.tokens_per_second for p in predict(recording, costs, everything)]
    assert found.best_branching.tokens_per_second == max(rates)
    assert found.branching == everything[rates.index(max(rates))]
    cheap = where_drafts_pay(result.profile, found.setting).costs  # a second choice costs nothing
    chain, forked = (search(recording, cheap, longest=4, siblings=may) for may in (False, True))
    assert chain.setting.siblings == 1 < forked.setting.siblings
    assert chain.branching == forked.branching == forked.setting
    few = search(recording, costs, longest=4, limits=Limits(bytes=100 * 4), column_bytes=100)
    assert few.branching.draft_length * few.branching.siblings <= 3
    none = search(recording, costs, longest=4, limits=Limits(bytes=100 * 2), column_bytes=100)
    assert none.branching is none.best_branching is None


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


def test_only_those_exits_of_a_view_are_recorded_that_may_be_the_fastest(tuned: Any) -> None:
    recording, costs = tuned[1].recording, tuned[1].profile.costs
    step, rest = (0.0, 1e-3, 1e-3, 0.0, 0.0), (1e-3, 0.0, 1e-3, 0.0, 0.0)

    def worthwhile(share: float, right: float) -> list[int]:
        """A view whose steps take a share of the model's, of a model whose exits are right so often."""
        fit = Fit(1, step, rest, view=tuple(share * seconds for seconds in step))
        generator = torch.Generator().manual_seed(0)
        chosen = torch.rand(recording.tokens.shape, generator=generator) < right
        candidates = torch.where(chosen, recording.tokens, -1)[None, ..., None].expand(-1, -1, -1, 4)
        choices = {arm: replace(own, candidates=candidates) for arm, own in recording.choices.items()}
        space = replace(recording, choices=choices)
        return worthwhile_exits(space, replace(costs, fits=(fit,)), 4, longest=4)

    assert worthwhile(0.1, 0.9) == [1, 4]  # the shallowest, all exits being right as often
    assert worthwhile(0.1, 0.0) == [4]
    assert worthwhile(2.0, 0.9) == [4]


def test_early_exits_that_cost_clearly_more_than_the_whole_view_are_not_recorded(tuned: Any) -> None:
    costs = tuned[1].profile.costs
    step, rest = (0.0, 1e-3, 1e-3, 0.0, 0.0), (0.0, 0.0, 1e-3, 0.0, 0.0)

    def worthwhile(share: float | None, viewed: int = 4) -> list[int]:
        view = () if share is None else tuple(share * seconds for seconds in step)
        return worthwhile_early_exits(replace(costs, fits=(Fit(1, step, rest, view=view),)), viewed)

    assert worthwhile(0.1) == [1]  # 6 ms by the view; 12, 16, 20 ms by the exits
    assert worthwhile(0.5) == [1, 2]  # 14 ms
    assert worthwhile(2.0) == worthwhile(0.1, viewed=3) == worthwhile(None) == [1, 2, 3]


def test_siblings_are_chosen_only_where_they_cannot_flip_a_near_tie_or_are_asked_for() -> None:
    def may(dtype: torch.dtype, **options: Any) -> bool:
        return TuneOptions(**options).may_branch(dtype)

    assert may(torch.float32) and may(torch.bfloat16, deterministic=False)
    assert not may(torch.bfloat16)
    assert may(torch.bfloat16, siblings=True)
    assert not may(torch.float32, siblings=False)


def test_a_model_that_takes_no_trees_is_tuned_without_siblings() -> None:
    result = tune(tiny_model("mpt"), PROMPTS, **QUICK)
    assert result.found.branching is None
    assert not result.profile.costs.knows_siblings


def test_limits_are_kept(tuned: Any) -> None:
    _, result = tuned
    costs, recording = result.profile.costs, result.recording
    found = search(recording, costs, longest=4, limits=Limits(bytes=100 * 3), column_bytes=100)
    assert found.setting.draft_length <= 2
    slowest = found.plain.round_seconds * 1.2
    found = search(recording, costs, longest=4, limits=Limits(seconds_per_token=slowest))
    assert found.best.round_seconds <= slowest
    with pytest.raises(
        ValueError, match=r"seconds_per_token=1e-06.* out of reach, a round without drafts takes"
    ):
        search(recording, costs, longest=4, limits=Limits(seconds_per_token=1e-6))
    with pytest.raises(ValueError, match=r"out of reach.* and 100 bytes"):
        search(recording, costs, longest=4, limits=Limits(bytes=99), column_bytes=100)
    with pytest.raises(ValueError, match="bytes=0"):
        Limits(bytes=0)


def test_rules_derived_from_costs_keep_to_the_limits(tuned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, result = tuned
    long = Setting(2, 4, stop=StopRule((0.0,)))
    monkeypatch.setattr(search_module, "_ruled_settings", lambda *_: [long])
    monkeypatch.setattr(search_module, "_SIMPLER", 2.0)  # a rule that is as good would be taken
    limits = Limits(bytes=100 * 3)
    found = search(result.recording, result.profile.costs, longest=4, limits=limits, column_bytes=100)
    assert found.setting.draft_length <= 2


def test_what_was_asked_for_is_in_the_profile(llama: Any) -> None:
    limits = Limits(bytes=10**9)
    profile = tune(llama, PROMPTS, limits=limits, batch=2, **QUICK).profile
    assert profile.limits == limits
    assert profile.conditions["batch"] == 2
    assert [fit.rows for fit in profile.costs.fits] == [1, 2]
    assert profile.tokens[EARLY[1]][0] == 1
    assert {len(row) for row in profile.tokens.values()} == {5}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"longest": 100}, "longest=100: allowed is a whole number, 1 to 64"),
        ({"repeats": 0}, "repeats=0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"batch": True}, "batch=True"),
        ({"seed": "a"}, "seed='a'"),
        ({"limits": 3}, "limits=3"),
        ({"siblings": "yes"}, "siblings='yes': allowed are True, False and None"),
        ({"generate_arguments": [1]}, "keywords of generate"),
        ({"generate_arguments": {"logits_processor": [object()]}}, "no value that a profile can hold"),
        ({"generate_arguments": {"num_return_sequences": 2}}, "num_return_sequences=2, allowed is 1"),
        ({"generate_arguments": {"max_new_tokens": 2}}, "is set by tuning itself"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_measured(
    llama: Any, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        tune(llama, PROMPTS, advance=lambda *_: pytest.fail("it has begun"), **options)


def test_options_are_greedy_unless_they_say_otherwise() -> None:
    assert TuneOptions().generate_arguments == {"do_sample": False}
    assert TuneOptions(generate_arguments={"do_sample": True}).generate_arguments == {"do_sample": True}


def test_a_rule_from_costs_drafts_on_only_where_it_pays(tuned: Any) -> None:
    calibration = calibrate(tuned[1].recording, EARLY[2])
    generous, strict = (paying_rule(calibration, [1e-3] * 4, speed) for speed in (1.0, 900.0))
    assert max(generous.thresholds) < 0.05
    assert min(strict.thresholds) > 0.5
    counts = replay(tuned[1].recording, [Setting(3, 4, stop=rule) for rule in (generous, strict)])
    assert counts.drafted_most[1].sum() <= counts.drafted_most[0].sum()


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


def test_a_tokenizers_output_is_taken_without_its_padding() -> None:
    encoded = {"input_ids": torch.tensor([[0, 5, 6], [7, 8, 9]]), "attention_mask": [[0, 1, 1], [1, 1, 1]]}
    assert token_ids(BatchEncoding(encoded)) == [[5, 6], [7, 8, 9]]
    assert token_ids({"input_ids": [[5, 6], [7]]}) == [[5, 6], [7]]
    assert token_ids([torch.tensor([[5, 6]]), torch.tensor([7])]) == [[5, 6], [7]]
    assert token_ids(torch.tensor([[5, 6], [7, 8]])) == [[5, 6], [7, 8]]


@pytest.mark.parametrize(
    ("prompts", "complaint"),
    [
        ({"a": [[5]]}, "prompts have a"),
        ([{"input_ids": [5]}], "prompt 0 is a dict"),
        ([[5], torch.tensor([[5, 6], [7, 8]])], "prompt 1 is not one prompt"),
        ([[[5, 6], [7]]], "prompt 0 is not one prompt"),
        ([5, 6], "prompt 0 is not one prompt"),
    ],
)
def test_prompts_in_a_form_that_could_be_misread_are_refused(prompts: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        token_ids(prompts)


def test_other_generators_are_left_alone(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda *_: pytest.fail("the GPU's generator"))
    torch.default_generator.manual_seed(5)
    before = torch.default_generator.get_state()
    record(llama, [[5, 6]], max_new_tokens=4, generate_arguments={"do_sample": True})
    assert torch.equal(torch.default_generator.get_state(), before)


def test_one_prompt_is_enough(llama: Any) -> None:
    profile = tune(llama, [[5, 6, 7]], **QUICK).profile
    assert profile.prediction.interval == pytest.approx((profile.prediction.tokens_per_second,) * 2)


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


def test_any_name_of_a_file_is_one(llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    selfspec.wrap(llama)
    profile = llama.speculation.tune(PROMPTS, workload="code", save="kept", **QUICK)
    assert Profile.load(tmp_path / "kept") == profile
    llama.speculation.tune(PROMPTS, workload="code", save=None, **QUICK)
    assert not store.profiles_folder().exists()


def test_a_folder_in_place_of_a_file_is_refused_before_the_work(llama: Any, tmp_path: Path) -> None:
    selfspec.wrap(llama)
    with pytest.raises(IsADirectoryError, match="name a file in it"):
        llama.speculation.tune(PROMPTS, save=tmp_path, advance=None)


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
