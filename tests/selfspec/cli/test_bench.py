"""`selfspec bench`, `inspect` and `demo`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from selfspec.benchmarking import contenders
from selfspec.benchmarking.contenders import Contender

NAMES = ["generate", "AR", "selfspec", "assistant_early_exit", "prompt_lookup"]
SMALL = ("-n", 8, "--limit", 2, "--exit-layer", 2, "--draft-length", 3)


@pytest.fixture
def bench(run: Callable[..., Any], model_folder: Path, prompts_file: Path) -> Callable[..., Any]:
    """`selfspec bench` on the tiny model, small."""
    return lambda *more: run("bench", "-m", model_folder, "-p", prompts_file, *SMALL, *more)


@pytest.fixture
def liar(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more contender, whose text is another one."""
    honest = contenders.standard_contenders
    fake = Contender("liar", "writes something else", arguments={"suppress_tokens": list(range(40, 90))})
    monkeypatch.setattr(contenders, "standard_contenders", lambda *rows: (*honest(*rows), fake))


def test_a_table_of_all_contenders_is_printed_and_saved(bench: Callable[..., Any], tmp_path: Path) -> None:
    result = bench("--output", "here")
    assert result.code == 0
    assert all(name in result.out for name in NAMES)
    assert "2 of 2" in result.out and "saved here/bench.json" in result.out
    assert (tmp_path / "here" / "bench.png").read_bytes().startswith(b"\x89PNG")
    saved = json.loads((tmp_path / "here" / "bench.json").read_text(encoding="utf-8"))
    assert [line["name"] for line in saved["lines"]] == NAMES
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == ["bench.json", "bench.png"]


def test_json_is_what_is_saved(bench: Callable[..., Any], tmp_path: Path) -> None:
    result = bench("--json")
    assert result.json == json.loads(
        (tmp_path / "selfspec-results" / "bench.json").read_text(encoding="utf-8")
    )
    assert result.json["conditions"]["prompts"] == "prompts.jsonl"
    assert result.json["n_prompts"] == 2
    assert {"hardware", "threads", "versions", "dtype", "parameters"} <= set(result.json["conditions"])


def test_another_text_is_refused_with_exit_code_1(bench: Callable[..., Any], liar: None) -> None:
    result = bench("--json")
    assert result.code == 1
    line = result.json["lines"][-1]
    assert (line["name"], line["tokens_per_second"]) == ("liar", None)
    assert "differs from that of generate" in line["refused"]


def test_sampling_and_batches(bench: Callable[..., Any]) -> None:
    result = bench("--json", "--temperature", 0.8, "--batch", 2)
    assert [line["name"] for line in result.json["lines"]] == NAMES[:3]
    assert result.json["workload"]["temperature"] == 0.8
    assert result.json["lines"][2]["checked"] == "2 of 2 (as AR)"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--prompts", "none.jsonl"], "cannot read prompts from none.jsonl: No such file"),
        (["--prompts", "."], "cannot read prompts from .: Is a directory"),
        (["--prompt-tokens", 999], "no prompt has 999 tokens"),
        (["--batch", 3], "batch=3 needs at least 3 prompts; there are 2"),
        (["--temperature", 0], "temperature=0.0: allowed is more than 0"),
        (["--exit-layer", 9], "this model has 4 layers"),
        (["--limit", 0], "--limit"),
        (["--output", "prompts.jsonl"], "prompts.jsonl: File exists"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_measured(
    bench: Callable[..., Any], arguments: list[object], complaint: str
) -> None:
    result = bench(*arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.count("\n") == 1
    assert complaint in result.err


def test_inspect_tells_sizes_and_every_exit(
    run: Callable[..., Any], model_folder: Path, prompts_file: Path, tmp_path: Path
) -> None:
    command = ("inspect", "-m", model_folder, "-p", prompts_file, "--output", "seen")
    result = run(*command)
    assert result.code == 0
    assert all(
        word in result.out for word in ("llama", "η = ", "exit layer E", "agreement", "saved seen/inspect")
    )
    data = run(*command, "--json").json
    assert (data["family"], data["layers"], data["vocabulary"]) == ("llama", 4, 97)
    assert [found["exit_layer"] for found in data["exits"]] == [1, 2, 3, 4]
    assert data["exits"][-1]["agreement"] == 1.0
    assert data["positions_read"] == sum(
        map(len, ("def f(x):\n    ", "class A:\n    def", "import os\n\nfor"))
    )
    assert data["head_cost"] == pytest.approx(data["head_seconds"] / data["layer_seconds"])
    assert (tmp_path / "seen" / "inspect.png").read_bytes().startswith(b"\x89PNG")


def test_inspect_says_what_the_self_check_found_and_what_it_cost(
    run: Callable[..., Any], model_folder: Path, prompts_file: Path
) -> None:
    command = ("inspect", "-m", model_folder, "-p", prompts_file)
    assert re.search(r"self-check +\W* *\d+\.\d\d s, off by \d\S* of a logit", run(*command).out)
    data = run(*command, "--json").json
    assert data["check_seconds"] > 0
    assert 0 <= data["check_difference"] < 1e-4


def test_the_demo_writes_and_then_compares(
    run: Callable[..., Any], model_folder: Path, prompts_file: Path
) -> None:
    small = ("-m", model_folder, "-p", prompts_file, "--prompt-tokens", 10, "-n", 6)
    result = run("demo", *small)
    assert result.code == 0
    assert "accepted" in result.out and "def f(x):" in result.out
    assert "times as fast as model.generate" in result.out
    assert "Same text: 3 of 3" in result.out
    assert [line["name"] for line in run("demo", *small, "--json").json["lines"]] == NAMES[:3]


def test_the_demo_says_how_many_prompts_there_are(
    run: Callable[..., Any], model_folder: Path, prompts_file: Path
) -> None:
    result = run("demo", "-m", model_folder, "-p", prompts_file, "--prompt-tokens", 10, "--number", 9)
    assert (result.code, result.err) == (2, "selfspec: number=9: there are 3 prompts\n")


def test_inspect_lists_the_families_and_why_others_are_refused(run: Any) -> None:
    shown = run("inspect", "--families")
    assert shown.code == 0
    assert all(
        word in shown.out for word in ("llama4_text", "the engine's", "the model's own", "recurrent state")
    )
    listed = {row["family"]: row for row in run("inspect", "--families", "--json").json}
    assert listed["gpt_oss"] == {
        "family": "gpt_oss",
        "supported": True,
        "attention": "the engine's",
        "notes": "experts; attention sinks, sliding and full layers",
    }
    assert not listed["mamba"]["supported"]
