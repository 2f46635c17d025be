"""What `selfspec tune` kept or wrote, used by the other commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def tuned(run: Callable[..., Any], model_folder: Path, tmp_path: Path) -> Path:
    """A profile of workload "prose": the file, and kept where `wrap` finds it."""
    prompts = tmp_path / "prose.jsonl"
    prompts.write_text(json.dumps({"prompt": "once upon"}) + "\n", encoding="utf-8")
    asked = ("tune", "-m", model_folder, "--prompts", prompts, "--workload", "prose", "-n", 8, "--check", 0)
    for more in ((), ("--out", tmp_path / "prose.json")):
        result = run(*asked, *more)
        assert result.code == 0, result.err
    return tmp_path / "prose.json"


def test_generate_follows_a_profile_by_file_and_by_name(
    run: Callable[..., Any], model_folder: Path, tuned: Path
) -> None:
    asked = ("generate", "it was a", "-m", model_folder, "-n", 12, "--json")
    plain = run(*asked).json
    assert not plain["statistics"]["profile"]
    for how in (("--profile", tuned), ("--workload", "prose")):
        followed = run(*asked, *how).json
        assert "prose" in followed["statistics"]["profile"]
        assert followed["text"] == plain["text"]
    unknown = run(*asked, "--workload", "prosa")
    assert unknown.code == 2 and "did you mean 'prose'?" in unknown.err


def test_bench_measures_a_profile_and_leaves_ar_without(
    run: Callable[..., Any], model_folder: Path, tuned: Path
) -> None:
    prompts = ("--prompts", tuned.with_name("prose.jsonl"))
    result = run("bench", "-m", model_folder, *prompts, "-n", 8, "--profile", tuned, "--json")
    assert result.code == 0, result.err
    lines = {line["name"]: line for line in result.json["lines"]}
    assert lines["AR"]["acceptance_rate"] is None and not lines["AR"]["refused"]
