"""Profiles as files and as settings: what is taken, and what is refused with the reason."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_models import tiny_model

import selfspec
from selfspec.drafting.stopping import StopRule
from selfspec.tuning import store
from selfspec.tuning.identity import Identity, fingerprint
from selfspec.tuning.profile import Profile, ProfileError
from selfspec.tuning.replay import Setting


def test_a_profile_survives_its_file(tuned: Any, tmp_path: Path) -> None:
    profile = replace(
        tuned[1].profile, setting=Setting(2, 3, stop=StopRule((0.5, 0.25), ((0.1, 0.9), (0.2, 0.8))))
    )
    assert Profile.load(profile.save(tmp_path / "deep" / "p.json")) == profile


def test_a_profile_of_a_view_survives_its_file(tuned_with_view: Any, tmp_path: Path) -> None:
    profile = replace(tuned_with_view[2].profile, setting=Setting(4, 3, siblings=2, draft="low_bit"))
    assert Profile.load(profile.save(tmp_path / "p.json")) == profile
    assert "low bit, E = 4, K = 3, 2 siblings" in str(profile)


def test_a_profile_of_what_was_not_timed_is_refused(tuned_with_view: Any) -> None:
    profile = tuned_with_view[2].profile
    without = [replace(fit, view=()) for fit in profile.costs.fits]
    with pytest.raises(ValueError, match="rounds by the low-bit view were not timed"):
        replace(profile, costs=replace(profile.costs, fits=tuple(without)))
    chains = [replace(fit, siblings=()) for fit in profile.costs.fits]
    with pytest.raises(ValueError, match="siblings=2: rounds with siblings were not timed"):
        costs = replace(profile.costs, fits=tuple(chains))
        replace(profile, setting=Setting(2, 3, siblings=2), costs=costs)


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
        {"draft": "hybrid"},
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


@pytest.mark.parametrize("content", ["{", "[" * 100_000, None], ids=["cut off", "nested", "wrong value"])
def test_a_damaged_profile_in_the_cache_is_left_out_with_a_warning(
    llama: Any, tuned: Any, content: str | None
) -> None:
    path = store.default_path(tuned[1].profile.identity, "code")
    path.parent.mkdir(parents=True)
    wrong = tuned[1].profile.as_dict() | {"column_bytes": math.inf}
    path.write_text(json.dumps(wrong) if content is None else content, encoding="utf-8")
    with pytest.warns(UserWarning, match="left out"):
        assert selfspec.wrap(llama).speculation.profiles == {}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "damaged or cut off"),
        ('{"schema": 3, "workload": "co', "damaged or cut off"),
        ('{"schema": 3}', "is damaged"),
        ('{"schema": 2}', "has schema 2, this version reads 3: tune again"),
        ('{"schema": 99}', "has schema 99, this version reads 3: update selfspec"),
        pytest.param("[" * 100_000, "damaged or cut off", id="nested"),
        pytest.param('{"schema": ' + "3" * 5_000 + "}", "damaged or cut off", id="many digits"),
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


@pytest.mark.parametrize(
    ("place", "value", "complaint"),
    [
        (["setting", "draft_length"], 1000, "draft_length=1000"),
        (["setting", "draft_length"], 60, "tokens are known to 4"),
        (["setting", "stop"], {"thresholds": [0.5], "chances": [[0.1, 1.5]]}, "chances: allowed are numbers"),
        (["setting", "stop"], {"thresholds": [0.5], "chances": [["a"]]}, "is damaged"),
        (["setting", "exit_layer"], 99, "acceptance is known of early_exit 1, early_exit 2"),
        (["setting", "draft"], "lookup", "allowed are 'early_exit' and 'low_bit'"),
        (["setting", "siblings"], 9, "siblings=9"),
        (["setting", "exit_layer"], 1.0, "exit_layer=1.0: allowed is a whole number"),
        (["setting", "draft_length"], 0.0, "draft_length=0.0: allowed is a whole number"),
        (["setting", "confidence_threshold"], 5, "confidence_threshold=5: allowed is a number from 0"),
        (["setting", "confidence_threshold"], "a", "confidence_threshold='a': allowed is a number"),
        (["setting", "confidence_threshold"], math.nan, "confidence_threshold=nan: allowed is a number"),
        (["acceptance"], {}, "at least one of 1 to 3"),
        (["acceptance", "early_exit 1"], "high", "chances are 0 to 1"),
        (["acceptance", "early_exit 2"], 1.5, "chances are 0 to 1"),
        (["acceptance", "lookup 2"], 0.5, "allowed are 'early_exit' or 'low_bit'"),
        (["acceptance", "low_bit 5"], 0.5, "in low bits: allowed are 1 to 4"),
        (["acceptance", "low_bit 4"], 0.5, "draft_bits=None: 4 or 8 where a view was recorded"),
        (["draft_bits"], 4, "draft_bits=4: 4 or 8 where a view was recorded, else None"),
        (["tokens", "early_exit 1"], [1.0], "one draft length at least"),
        (["tokens", "early_exit 1", 2], 9.0, "commits 1 to K"),
        (["costs", "fits"], [], "at least one is needed"),
        (["costs", "fits", 0, "rest"], [1.0], "allowed are seconds of 0 or more"),
        (["costs", "fits", 0, "draft", 1], -1.0, "allowed are seconds of 0 or more"),
        (["costs", "widths", 0, 1], [1, 2, 3], "widths"),
        (["costs", "widths", 0, 1, 2], "a", "widths: allowed are whole numbers of 1 or more"),
        (["costs", "widths", 0, 1, 2], 0, "widths: allowed are whole numbers of 1 or more"),
        (["costs", "key_quantum"], math.nan, "key_quantum and widths: allowed are whole numbers"),
        (["costs", "contexts"], [], r"contexts=\(\): allowed are fewest and most"),
        (["costs", "contexts"], [9.0, 1.0], r"contexts=\(9\.0, 1\.0\): allowed are fewest and most"),
        (["costs", "contexts", 1], "a", "contexts=.*: allowed are fewest and most"),
        (["prediction", "speedup_interval"], None, "is damaged"),
        (["prediction", "speedup_interval"], [1.0], "intervals two ends"),
        (["identity", "dtype"], 3, "are texts"),
        (["workload"], "", "a name is needed"),
        (["sampled"], "no", "True and False"),
        (["context"], "long", "0 and more"),
        (["column_bytes"], math.inf, "column_bytes=inf: allowed is 0 and more"),
        (["column_bytes"], "many", "column_bytes='many': allowed is 0 and more"),
        (["limits", "bytes"], -1, "bytes=-1"),
    ],
)
def test_a_profile_with_wrong_values_is_refused(
    saved: tuple[Any, Path], place: list[Any], value: Any, complaint: str
) -> None:
    model, path = saved
    data = inner = json.loads(path.read_text(encoding="utf-8"))
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(ProfileError, match=complaint):
        selfspec.wrap(model, profile=path)
    assert not selfspec.is_wrapped(model)


def test_a_profile_without_one_of_its_parts_is_refused(saved: tuple[Any, Path]) -> None:
    _, path = saved
    data = json.loads(path.read_text(encoding="utf-8"))
    for part in ("prediction", "setting", "costs"):
        for name in data[part]:
            less = {**data, part: {key: value for key, value in data[part].items() if key != name}}
            path.write_text(json.dumps(less), encoding="utf-8")
            if part == "setting" and name in ("confidence_threshold", "siblings", "draft", "tree"):
                continue  # what a setting without them means is clear
            with pytest.raises(ProfileError, match="is damaged"):
                Profile.load(path)


@pytest.mark.parametrize("profile", [5, {"code": "code.json"}, [3], True])
def test_wrap_refuses_what_is_no_profile(llama: Any, profile: Any) -> None:
    with pytest.raises(selfspec.ConfigError, match="allowed are a profile, a file of one, or a list"):
        selfspec.wrap(llama, profile=profile)


def test_a_profile_of_another_device_is_refused_and_one_that_is_kept_is_told_of(tuned: Any) -> None:
    model, result = tuned
    elsewhere = replace(result.profile.identity, device="cuda: another")
    other = replace(result.profile, identity=elsewhere)
    with pytest.raises(ProfileError, match=r"device is 'cpu: .*', not 'cuda: another'\. Tune again: model\."):
        selfspec.wrap(model, profile=other)
    other.save(store.default_path(elsewhere, "code"))
    assert selfspec.wrap(model).speculation.profiles == {}
    with pytest.raises(ProfileError, match="kept of workload 'code' does not fit: device is"):
        model.generate(torch.tensor([[5, 6]]), max_new_tokens=4, workload="code")
    with pytest.raises(ProfileError, match="workload=3: allowed is the name"):
        model.generate(torch.tensor([[5, 6]]), max_new_tokens=4, workload=3)
    selfspec.unwrap(model)


def test_a_kept_profile_of_other_hardware_of_this_kind_is_left_out_and_said(
    tuned: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model, result = tuned
    own = result.profile.identity
    for device, dtype in (
        ("cuda: another", own.dtype),
        (own.device, "bfloat16"),
        ("cpu: another", own.dtype),
    ):
        identity = replace(own, device=device, dtype=dtype)
        replace(result.profile, identity=identity).save(store.default_path(identity, "code"))
    assert store.kept_profiles(model) == {}
    [told] = caplog.messages  # the others have files of their own, beside which this machine's may lie
    assert "workload 'code' is not used: device is 'cpu: " in told
    assert "not 'cpu: another'. Tune again" in told


def test_workloads_of_like_names_are_kept_apart_and_inside_the_folder(tuned: Any) -> None:
    identity = tuned[1].profile.identity
    paths = [store.default_path(identity, name) for name in ("a b", "a_b", "../a b", "a/b", "ä")]
    assert len(set(paths)) == len(paths)
    assert {path.parent for path in paths} == {store.profiles_folder() / identity.fingerprint}


def test_a_cache_that_may_not_be_looked_into_holds_no_profiles(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(self: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_dir", forbidden)
    assert store.kept_profiles(llama) == {}


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


def test_a_fingerprint_of_a_large_tensor_stays_within_it() -> None:
    class Large(torch.nn.Module):
        config = SimpleNamespace(model_type="large", vocab_size=2)

        def __init__(self, count: int) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1).expand(count), requires_grad=False)
            self.nothing = torch.nn.Parameter(torch.empty(0))

    # 4096 x 11008: the last index is no float32.
    assert fingerprint(Large(45_088_768)) != fingerprint(Large(45_088_767))


def test_an_identity_names_what_differs() -> None:
    one = Identity("a", "cpu: b", "float32")
    assert one.differences(replace(one, dtype="bfloat16")) == ["dtype is 'float32', not 'bfloat16'"]
