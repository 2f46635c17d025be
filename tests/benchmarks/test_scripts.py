"""Every benchmark script runs from its command line, on a few tokens; its figures are for other days."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiling
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SHORT = ["--new-tokens", "6", "--threads", "1"]
CONTENDERS = ["--contenders", "generate", "AR", "AR, one row", "low bit, tree", "lookup", "auto"]

FIGURES = {
    "round_profile": ["Lookup after 100,000 tokens", " microseconds on ", ", target 50: "],
    "never_slower": [
        r"\| random weights, chat, greedy \| \d\.\d\d \(\d\.\d\d-",
        r"\| \*\*random weights, 8 calls\*\* \| \d\.\d\d \(",
        r"target 0\.97: ",
    ],
    "strategies": [
        r"^\| low bit, tree \| \d\.\d\d \| \d+\.\d \| ",  # draft cost, width of a verification
        "draft cost c",
        "MiB added",
    ],
    "view_agreement": [
        r"\| plain twin: 4 bits, scale and offset refitted \| 0\.",
        "2 texts of 128 tokens of ",
    ],
    "wrap_time": [
        "the rest, most seconds: ",
        "; target 1: ",
        "low-bit view, most seconds: ",
        "; target 20: ",
    ],
}
"""What a page of results must not lack, as patterns."""


def load(script: str) -> Any:
    """The script as a module, by its path: others may have its name."""
    spec = importlib.util.spec_from_file_location(f"benchmarks_{script}", BENCHMARKS / f"{script}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("script", "options", "written"),
    [
        ("round_profile", ["--prompts", "1", *SHORT], "round_profile"),
        (
            "strategies",
            ["--only", "reference", "--shape", "none", "--prompts", "1", *SHORT, *CONTENDERS],
            "strategies",
        ),
        ("edits", ["--shape", "1b", "--prompts", "1", *SHORT], "edits"),
        ("cpu_latency", ["--prompts", "1", "--only", "Temperature", *SHORT], "cpu_latency"),
        ("never_slower", ["--only", "random weights", "--prompts", "1", *SHORT], "never_slower"),
        ("wrap_time", ["--shape", "1b", "--repeats", "1", "--threads", "1"], "wrap_time"),
        ("gpu_prediction", ["--prompts", "1"], "gpu_prediction"),
        ("view_agreement", ["--prompts", "2", "--threads", "1"], "view_agreement"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_script_measures_and_writes_its_results(
    script: str, options: Sequence[str], written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load(script)
    if "1b" in options:  # the real shape is a gigabyte of weights
        monkeypatch.setitem(tiling.SHAPES, "1b", tiling.Shape(16, 256, 8, 4, 576))
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *options, "--output", str(tmp_path)])
    with torch.no_grad():
        status = module.main()
    assert status in (0, 1)  # 1: a target is missed, as it may be on so few tokens
    page = (tmp_path / f"{written}.md").read_text()
    assert "|" in page
    assert all(re.search(figure, page, re.M) for figure in FIGURES.get(script, ()))
    stored = tmp_path / f"{written}.json"
    assert script == "gpu_prediction" or json.loads(stored.read_text())


def test_lookup_may_be_timed_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = tmp_path / "round_profile.json"
    stored.write_text((BENCHMARKS / "results" / "round_profile.json").read_text())
    before = json.loads(stored.read_text())
    options = ["--only", "lookup", "--prompts", "2", *SHORT, "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["round_profile.py", *options])
    module = load("round_profile")
    monkeypatch.setattr(module, "LONG_TEXT", 500)
    module.main()
    after = json.loads(stored.read_text())
    assert after.pop("lookup")["round"] > 0
    assert after == {name: part for name, part in before.items() if name != "lookup"}


def test_a_strategy_may_be_checked_again_beside_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("strategies", "strategies_page"):  # the tests' support has one of the first name
        monkeypatch.setitem(sys.modules, name, load(name))
    same_text = load("same_text")
    on = {"hardware": "one", "threads": 1, "versions": {}}
    asked = {"workload": {"new_tokens": 4, "batch": 1}, "n_prompts": 2, "prompt_tokens": [3, 3]}
    lines = [{"name": name, "checked": "2 of 2"} for name in ("generate", "AR", "low bit, tree")]
    old = {**asked, "lines": lines, "conditions": on}
    for name, rows in (
        ("low bit, tree", ["AR", "low bit, tree"]),
        ("lookup", ["AR", "low bit, tree", "lookup"]),
    ):
        new = [{"name": "AR", "checked": "0 of 2"}, {"name": name, "checked": "1 of 2"}]
        later = {**asked, "lines": new, "conditions": on | {"hardware": "two"}}
        found = same_text.merged(old, later, name)
        page = same_text.page({"a case": found})
        assert "| AR | 2 of 2 |" in page
        assert f"| {name} | 1 of 2 |" in page
        assert f"\n{name}: two, threads: 1." in page
        assert [line["name"] for line in found["lines"][1:]] == rows


def test_an_edit_is_written_as_it_was_given() -> None:
    edits = load("edits")
    given = edits.GivenText([([1, 2, 3], [7, 8])])
    scores = torch.zeros(1, 10)
    assert given(torch.tensor([[1, 2, 3]]), scores).argmax() == 7
    assert given(torch.tensor([[1, 2, 3, 7]]), scores).argmax() == 8
    assert not scores.any()
