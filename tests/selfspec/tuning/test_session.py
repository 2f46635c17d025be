"""`model.speculation.tune`: prompts in every form that users have, and where the profile is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checks import own_generate
from quick_tuning import PROMPTS, QUICK, REQUEST
from transformers import BatchEncoding

import selfspec
from selfspec.tuning import store
from selfspec.tuning.profile import Profile
from selfspec.tuning.session import token_ids


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
