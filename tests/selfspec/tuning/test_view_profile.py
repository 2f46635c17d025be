"""Calls under a profile that drafts by the low-bit view, or with siblings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checks import own_generate
from quick_tuning import PROMPTS, QUICK, REQUEST, where_drafts_pay
from tiny_models import LAYERS

import selfspec
from layer_skip import low_bit
from selfspec.pacing import PayCheck
from selfspec.tuning import controller
from selfspec.tuning.profile import Profile
from selfspec.tuning.replay import Setting, replay
from selfspec.tuning.validate import run_setting

LONG = {**REQUEST, "max_new_tokens": 60}
BY_VIEW = Setting(LAYERS, 4, draft="low_bit")
SETTINGS = [
    BY_VIEW,
    Setting(LAYERS // 2, 3, draft="low_bit"),
    Setting(LAYERS, 3, siblings=2, draft="low_bit"),
    Setting(LAYERS, 4, 0.5, draft="low_bit"),
    Setting(2, 4, siblings=3),
    Setting(3, 2),
]


@pytest.fixture
def tuned(tuned_with_view: Any) -> Any:
    """Model, recording, and `profile(setting)`: where drafts pay. Unwrapped afterwards."""
    model, _, result = tuned_with_view
    yield model, result, lambda setting: where_drafts_pay(result.profile, setting)
    if selfspec.is_wrapped(model):
        selfspec.unwrap(model)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_a_profiles_setting_runs_the_rounds_that_were_replayed(tuned: Any, setting: Setting) -> None:
    _, result, _ = tuned
    predicted = replay(result.recording, [setting])
    for p, prompt in enumerate(PROMPTS):
        stats = run_setting(result.engine, [prompt], setting, max_new_tokens=16, do_sample=False)
        assert (stats.row_rounds, stats.accepted) == (predicted.row_rounds[0, p], predicted.accepted[0, p])


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_a_call_that_keeps_to_its_profile_makes_the_rounds_that_were_replayed(
    tuned: Any, setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, result, profile = tuned
    monkeypatch.setattr(controller.Controller, "_choose", lambda self: None)
    monkeypatch.setattr(controller, "WATCH_BUDGET", 0.0)
    monkeypatch.setattr(PayCheck, "allows", lambda self: True)
    predicted = replay(result.recording, [setting])
    selfspec.wrap(model, profile=profile(setting))
    if setting.arm.low_bit:  # the tuned one, which multiplies in fp32
        model.speculation.view = result.engine.view
    for p, prompt in enumerate(PROMPTS):
        model.generate(torch.tensor([prompt]), max_new_tokens=16, do_sample=False, pad_token_id=0)
        stats = model.speculation.stats
        assert (stats.row_rounds, stats.accepted) == (predicted.row_rounds[0, p], predicted.accepted[0, p])
        assert (stats.strategy, stats.exit_layer) == (setting.draft, setting.exit_layer)
        assert "not as tuned" not in stats.choice


@pytest.mark.parametrize("sampling", [{}, {"do_sample": True, "temperature": 0.8}], ids=["greedy", "coupled"])
@pytest.mark.parametrize("setting", [BY_VIEW, SETTINGS[2], SETTINGS[4]], ids=str)
def test_the_text_under_a_profile_is_the_same(
    tuned: Any, setting: Setting, sampling: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller, "WATCH_BUDGET", 0.3)  # exits are read beside the view's drafts, too
    model, _, profile = tuned
    texts = []
    for settings in ({"draft_length": 0}, {"profile": profile(setting)}):
        torch.manual_seed(1)
        texts.append(selfspec.wrap(model, **settings).generate(**LONG, **sampling, workload=None))
    assert torch.equal(*texts)
    assert model.speculation.stats.drafted > 0


def test_rejection_sampling_goes_without_siblings_and_says_so(tuned: Any) -> None:
    model, _, profile = tuned
    selfspec.wrap(model, profile=profile(SETTINGS[2]), acceptance="rejection")
    drafted: list[int] = []
    model.generate(
        **LONG, do_sample=True, workload="code", on_round=lambda e: drafted.append(len(e.drafted) - e.deepest)
    )
    assert not any(drafted)
    assert "not as tuned: no 2 siblings" in model.speculation.stats.choice


@pytest.mark.parametrize(
    ("settings", "there"),
    [
        ({"draft_memory": 0}, "there is none"),
        ({"draft": "early_exit"}, "there is none"),
        ({"draft_bits": 8}, "there is one of 4 layers in 8 bits"),
    ],
    ids=str,
)
def test_without_its_view_other_layers_draft_and_that_is_said(
    tuned: Any, settings: dict[str, Any], there: str
) -> None:
    model, _, profile = tuned
    expected = own_generate(model, **LONG)
    selfspec.wrap(model, profile=profile(BY_VIEW), **settings)
    assert torch.equal(model.generate(**LONG), expected)
    stats = model.speculation.stats
    assert stats.strategy == "early_exit"
    assert f"it drafts with 4 layers of a view in 4 bits, {there}, and other layers draft" in stats.choice


def test_a_named_profile_makes_a_view_where_it_drafts_by_it_and_none_else(
    tuned: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(low_bit, "LEAST_FOR_INT8", 0)  # the fastest may be 8 bits here
    model, _, profile = tuned
    for setting, made in ((BY_VIEW, True), (SETTINGS[4], False)):
        selfspec.wrap(model, profile=profile(setting))
        assert (model.speculation.view is not None) is made
        assert not made or model.speculation.view.bits == 4  # the profile's


@pytest.mark.parametrize("bits", [4, 8])
def test_tuning_takes_the_view_that_wrap_has_made(
    llama: Any, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    selfspec.wrap(llama, draft="low_bit", draft_bits=bits)
    view = llama.speculation.view
    monkeypatch.setattr("layer_skip.low_bit.PackedLinear", lambda *_: pytest.fail("packed twice"))
    found: Profile = llama.speculation.tune(PROMPTS, workload="code", save=None, **QUICK)
    assert llama.speculation.view is view
    assert found.draft_bits == view.bits == bits
    selfspec.wrap(llama, draft="early_exit")
    assert llama.speculation.tune(PROMPTS, workload="code", save=None, **QUICK).draft_bits is None
