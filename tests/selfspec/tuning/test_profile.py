"""Profiles as files and as settings: what is taken, and what is refused with the reason."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_model

import selfspec
from selfspec.drafting.stopping import StopRule
from selfspec.tuning import store
from selfspec.tuning.profile import Profile, ProfileError, fingerprint
from selfspec.tuning.replay import Setting


def test_a_profile_survives_its_file(tuned: Any, tmp_path: Path) -> None:
    profile = replace(
        tuned[1].profile, setting=Setting(2, 3, stop=StopRule((0.5, 0.25), ((0.1, 0.9), (0.2, 0.8))))
    )
    assert Profile.load(profile.save(tmp_path / "deep" / "p.json")) == profile


@pytest.mark.parametrize("source", ["path", "text", "profile", "list"])
def test_wrap_takes_profiles_in_every_form(saved: tuple[Any, Path], source: str) -> None:
    model, path = saved
    profile = Profile.load(path)
    forms = {"path": path, "text": str(path), "profile": profile, "list": [path]}
    selfspec.wrap(model, profile=forms[source])
    assert model.speculation.profiles == {"code": profile}
    selfspec.unwrap(model)


@pytest.mark.parametrize(
    "setting",
    [
        {"draft": "low_bit"},
        {"exit_layer": 2},
        {"draft_length": 3},
        {"tree": "siblings"},
        {"confidence_threshold": 0.5},
    ],
)
def test_a_profile_beside_what_it_would_choose_is_refused(
    saved: tuple[Any, Path], setting: dict[str, Any]
) -> None:
    model, path = saved
    [(name, value)] = setting.items()
    with pytest.raises(selfspec.ConfigError, match=f"profile with {name}={value!r}"):
        selfspec.wrap(model, profile=path, **setting)
    assert not selfspec.is_wrapped(model)


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
