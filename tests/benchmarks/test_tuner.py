"""The tuner's benchmark, on a tiny model: every part runs, is saved, and is kept when another runs alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import tuner
import tuner_bench
from tiny_models import tiny_model

from selfspec.tuning.profile import SCHEMA

PROMPTS = [[5, 6, 7], [9, 8], [1, 2, 3, 4], [40, 41], [11, 12, 13]]
QUICK = ["--sweep-prompts", "1", "--run-prompts", "2", "--new-tokens", "8", "--repeats", "1"]
QUICK += ["--dtype", "float32"]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """`small(*options)` runs the benchmark and returns what it saved."""
    quickly = tuner.tune
    monkeypatch.setattr(tuner, "LENGTHS", (1, 3))
    monkeypatch.setattr(tuner, "CALL", 16)

    def loaded(_: None, dtype: str, *__: Any) -> Any:
        return SimpleNamespace(model=tiny_model("llama").to(getattr(torch, dtype)))

    monkeypatch.setattr(tuner_bench, "load", loaded)
    monkeypatch.setattr(tuner_bench.Bench, "prompts", lambda *_: (PROMPTS[:3], PROMPTS[3:]))
    for room in (tuner, tuner_bench):
        monkeypatch.setattr(
            room,
            "tune",
            lambda *given, **more: quickly(*given, **more, max_new_tokens=16, repeats=1, longest=4),
        )

    def run(*options: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["tuner.py", *QUICK, "--output", str(tmp_path), *options])
        tuner.main()
        found: dict[str, Any] = json.loads((tmp_path / "tuner.json").read_text())
        return found

    return run


def test_every_part_runs_is_exact_and_is_saved(small: Any, tmp_path: Path) -> None:
    found = small()
    assert list(found) == [*tuner.WORKLOADS, *tuner.OTHERS]
    for name in tuner.WORKLOADS:
        assert found[name]["counts_equal"]
        assert found[name]["settings"] == 1 + 3 * len(tuner.LENGTHS)
        assert 0 < found[name]["distinct_3grams"] <= 1
    assert {part["conditions"]["dtype"] for part in found.values()} == {"float32"}
    text = (tmp_path / "tuner.md").read_text()
    assert "own profile, followed, over the single one" in text
    assert "whole calls over AR" in text


def test_a_part_alone_keeps_the_others_and_resuming_repeats_none(small: Any) -> None:
    first = small("--only", "useless")
    assert list(first) == ["useless exits"]
    both = small("--only", "controller")
    assert both["useless exits"] == first["useless exits"]
    assert small("--only", "controller", "--resume") == both
    with pytest.raises(SystemExit, match="run the workloads code, prose, repetitive first"):
        small("--only", "single")


@pytest.mark.parametrize("going_on", [["--only", "controller"], ["--resume"]], ids=" ".join)
def test_results_in_another_dtype_are_not_gone_on_with(
    small: Any, tmp_path: Path, going_on: list[str]
) -> None:
    first = small("--only", "controller")
    with pytest.raises(SystemExit, match=r"results in float32, not bfloat16: go on with --dtype float32"):
        small("--dtype", "bfloat16", *going_on)
    assert json.loads((tmp_path / "tuner.json").read_text()) == first


def test_results_of_another_version_are_not_gone_on_with(tmp_path: Path) -> None:
    on = {"conditions": {"dtype": "float32"}}
    stored: dict[str, Any] = {"code": {**on, "profile": {"schema": SCHEMA - 1}}, "controller": on}
    (tmp_path / "tuner.json").write_text(json.dumps(stored))
    with pytest.raises(SystemExit, match="results of another version: measure all parts anew"):
        tuner_bench.stored_results(tmp_path, "float32")
    stored["code"]["profile"]["schema"] = SCHEMA
    (tmp_path / "tuner.json").write_text(json.dumps(stored))
    assert tuner_bench.stored_results(tmp_path, "float32") == stored
