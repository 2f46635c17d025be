"""`selfspec tune`: profiles, one comparison table, plots; and prompts or names that cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from selfspec.cli.tune_results import better_branching
from selfspec.tuning import store
from selfspec.tuning.profile import Profile
from selfspec.tuning.replay import Setting


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prose.jsonl"
    lines = [json.dumps({"prompt": text}) for text in ("once upon", "it was a", "in the end")]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def quick(model: Path, prompts: Path, *more: object) -> list[object]:
    return ["tune", "--model", model, "--prompts", prompts, "-n", 12, "--check", 1, *more]


def test_tune_writes_a_profile_a_plot_and_says_what_it_chose(
    run: Callable[..., Any], model_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    result = run(*quick(model_folder, prompts, "--workload", "prose", "--out", "here/prose.json"))
    assert result.code == 0, result.err
    assert "prose" in result.out
    assert Profile.load(tmp_path / "here" / "prose.json").workload == "prose"
    assert (tmp_path / "selfspec-results" / "tune-prose.png").stat().st_size > 10_000


def test_siblings_are_named_where_they_promise_more_than_the_chosen_chain() -> None:
    profile = SimpleNamespace(workload="prose", identity=SimpleNamespace(dtype="bfloat16"))
    chain, forked = Setting(3, 5), Setting(3, 5, siblings=2)

    def said(*speeds: float, setting: Setting = chain) -> str:
        best, branching = (SimpleNamespace(tokens_per_second=s, speedup=s) for s in speeds)
        found = SimpleNamespace(setting=setting, best=best, branching=forked, best_branching=branching)
        return better_branching(SimpleNamespace(profile=profile, found=found))  # type: ignore[arg-type]

    assert said(2.0, 2.0) == ""
    assert said(2.0, 2.1).startswith("prose: E = 3, K = 5, 2 siblings promise 2.10x AR; in bfloat16 they may")
    assert said(2.0, 2.1, setting=forked) == ""


def test_a_view_is_tuned_where_it_is_asked_for_and_the_chosen_draft_is_told(
    run: Callable[..., Any], model_folder: Path, prompts: Path
) -> None:
    result = run(*quick(model_folder, prompts, "--draft", "low_bit", "--no-siblings", "--json"))
    assert result.code == 0, result.err
    [found] = result.json.values()
    assert {draft for draft, *_ in found["surface"]} == {"early_exit", "low_bit"}
    assert found["profile"]["setting"]["siblings"] == 1
    measured = [c["setting"] for c in found["measured"]]
    assert {s["draft"] for s in measured} == {"early_exit", "low_bit"}
    alone = run(*quick(model_folder, prompts, "--draft", "early_exit"))
    assert "early_exit" in alone.out or "nothing" in alone.out
    assert "draft='lookup'" in run(*quick(model_folder, prompts, "--draft", "lookup")).err


def test_tune_for_several_workloads_prints_one_json_and_keeps_each_profile(
    run: Callable[..., Any], model_folder: Path, prompts: Path
) -> None:
    both = ("--workload", "a", "--prompts", prompts, "--workload", "b", "--json")
    result = run(*quick(model_folder, prompts, *both))
    assert result.code == 0, result.err
    assert list(result.json) == ["a", "b"]
    assert result.json["a"]["siblings"]["setting"]["siblings"] > 1
    assert all(c["counts_equal"] for entry in result.json.values() for c in entry["measured"])
    assert len(list(store.profiles_folder().rglob("*.json"))) == 2


def test_the_table_of_several_workloads_is_kept_as_markdown(
    run: Callable[..., Any], model_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    both = ("--workload", "prose", "--prompts", prompts, "--workload", "a|b", "--output", "here")
    result = run(*quick(model_folder, prompts, *both))
    assert result.code == 0, result.err
    assert "saved here/tune.json, tune.md and a plot per workload" in result.out
    page = (tmp_path / "here" / "tune.md").read_text(encoding="utf-8")
    titles, under, *rows = [line[2:-2].split(" | ") for line in page.splitlines() if line.startswith("|")]
    assert [row[0] for row in rows] == ["prose", r"a\|b"]
    assert {len(titles)} == {len(under), *map(len, rows)}
    assert "bootstrap over prompts" in page
    saved = json.loads((tmp_path / "here" / "tune.json").read_text(encoding="utf-8"))
    speeds = [entry["profile"]["prediction"]["tokens_per_second"] for entry in saved.values()]
    assert [row[titles.index("tokens/s")] for row in rows] == [f"{speed:.1f}" for speed in speeds]


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (("--workload", "a", "--workload", "b"), "give one name per file"),
        (("--workload", " "), "a name of its own"),
        (("--draft", "layers"), "draft='layers'"),
        (("--temperature", "0"), "temperature=0.0: allowed is more than 0"),
        (("--max-latency-ms", "0"), "allowed is more than 0"),
        (("--max-latency-ms", "0.0001"), "out of reach, a round without drafts takes"),
        (("--max-memory", "1"), "out of reach"),
        (("--max-memory", "much"), "--max-memory='much': allowed are bytes"),
        (("--out", "."), "is a folder"),
        (("--batch", "9"), "batch=9: allowed is 1 to 3"),
        (("-n", "300"), "all 3 prompts are too long"),
    ],
)
def test_tune_says_in_one_line_what_cannot_be(
    run: Callable[..., Any], model_folder: Path, prompts: Path, more: tuple[str, ...], complaint: str
) -> None:
    result = run(*quick(model_folder, prompts, *more))
    assert result.code == 2
    assert complaint in result.err
    assert len(result.err.strip().splitlines()) == 1


def test_tune_refuses_a_file_without_prompts_and_a_place_that_cannot_be_written(
    run: Callable[..., Any], model_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("", encoding="utf-8")
    assert "has no prompts" in run("tune", "--model", model_folder, "--prompts", empty).err
    result = run(*quick(model_folder, prompts, "--out", empty / "p.json"))
    assert result.code == 2
    assert "empty.jsonl" in result.err


def test_a_cache_that_cannot_be_written_is_refused_before_the_work(
    run: Callable[..., Any],
    model_folder: Path,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setattr(store, "profiles_folder", lambda: tmp_path / "file")
    monkeypatch.setattr("selfspec.tuning.tune.record", lambda *_, **__: pytest.fail("it has begun"))
    result = run(*quick(model_folder, prompts))
    assert result.code == 2
    assert "file" in result.err


def test_an_interruption_leaves_the_workloads_that_are_done(
    run: Callable[..., Any],
    model_folder: Path,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from selfspec.tuning import tune as room

    whole = room.tune

    def interrupted(*given: Any, workload: str, **more: Any) -> Any:
        if workload == "b":
            raise KeyboardInterrupt
        return whole(*given, workload=workload, **more)

    monkeypatch.setattr(room, "tune", interrupted)
    both = ("--workload", "../a", "--prompts", prompts, "--workload", "b", "--out", "kept")
    assert run(*quick(model_folder, prompts, *both)).code == 130
    [kept] = (tmp_path / "kept").iterdir()
    assert Profile.load(kept).workload == "../a"
    assert list(json.loads((tmp_path / "selfspec-results" / "tune.json").read_text())) == ["../a"]
    table = (tmp_path / "selfspec-results" / "tune.md").read_text(encoding="utf-8")
    assert "| ../a |" in table and "| b |" not in table


def test_what_is_compared_is_what_was_tuned(
    run: Callable[..., Any], model_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "long.jsonl"
    texts = ["once upon", "a time " * 300, "it was a", "in the end"]
    path.write_text("\n".join(json.dumps({"prompt": text}) for text in texts), encoding="utf-8")
    with pytest.warns(UserWarning, match="1 of 4 prompts"):
        result = run(*quick(model_folder, path, "--workload", "a", "--batch", 2, "--json"))
    measured = result.json["a"]["measured"]
    assert measured and all(c["counts_equal"] for c in measured)
    assert result.json["a"]["profile"]["conditions"]["batch"] == 2
