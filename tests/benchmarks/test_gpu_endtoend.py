"""Whole calls of the GPU benchmark: what is compared with what, what is called, and what is left out."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gpu_endtoend
import gpu_models
import pytest
import torch
from gpu_bench import Bench
from gpu_cases import AUTO, BASE, BUILT_IN, CASES, OURS, Case, Line, peer
from gpu_models import Inflated, prompts_of
from transformers import AutoTokenizer

from layer_skip import REFERENCE_MODEL
from selfspec.benchmarking.contenders import AR, GENERATE
from selfspec.benchmarking.measure import Call

COMPILED = peer("compiled", cache_implementation="static")
CASE = replace(CASES[0], contenders=(*BASE, AUTO))
TITLE = f"{CASE.source}, {CASE.shape}, {CASE.title}"


class Calls:
    """Stands in for models: notes every call, which takes as long as it is told and writes the same text."""

    def __init__(self) -> None:
        self.seconds = {GENERATE: 8.0, AR: 2.0, "auto": 0.5}
        self.made: list[tuple[str, tuple[int, ...], int]] = []
        self.broken = ""

    def bind(self, model: Any, contender: Any) -> Any:
        return SimpleNamespace(speculation=SimpleNamespace(stats=SimpleNamespace(round_seconds=0.0)))

    def run_once(self, bound: Any, contender: Any, batch: Any, workload: Any, pad: int) -> Call:
        if contender.name == self.broken:
            raise RuntimeError("out of memory")
        self.made.append((contender.name, batch.prompts[0][:1], workload.new_tokens))
        seconds = self.seconds.get(contender.name, 1.0)
        bound.speculation.stats.round_seconds = seconds / 4
        return Call(seconds, ((1,) * workload.new_tokens,) * workload.batch, 2, 4, 2)

    def of(self, name: str) -> list[tuple[tuple[int, ...], int]]:
        """First token of the prompts, and new tokens, of a contender's calls."""
        return [call[1:] for call in self.made if call[0] == name]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    made = Calls()
    for name in ("bind", "run_once"):
        monkeypatch.setattr(gpu_endtoend, name, getattr(made, name))
    monkeypatch.setattr(
        gpu_endtoend,
        "prompts_of",
        lambda loaded, tokens, count, after=0: [[number] * tokens for number in range(after, after + count)],
    )
    monkeypatch.setattr(Inflated, "of", lambda *_: (SimpleNamespace(pad=0), None))
    monkeypatch.setattr(gpu_endtoend, "fitting", lambda settings, model: settings)
    monkeypatch.setattr(gpu_endtoend, "free", lambda device: None)
    return made


def measured(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    *cases: Case,
    document: dict[str, Any] | None = None,
    seconds: float = 1e6,
    resume: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """The section after a run over `cases`."""
    bench = Bench(torch.device("cpu"), folder, {} if document is None else document, **settings)
    monkeypatch.setattr(gpu_endtoend, "CASES", cases)
    bench.begin("endtoend", seconds, resume)
    gpu_endtoend.run(bench)
    found: dict[str, Any] = bench.document["sections"]["endtoend"]
    return found


# What a speed is compared with


def test_speeds_of_calls_and_of_their_rounds(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = measured(monkeypatch, tmp_path, CASE)["tables"][TITLE]
    auto = rows["auto"]
    assert (auto["over AR"], auto["over generate"], auto["verdict"]) == (4.0, 16.0, "reached")
    assert (auto["tokens/s"], auto["tokens/s in rounds"], auto["rounds over AR"]) == (256, 1024, 4.0)
    assert "tokens/s in rounds" not in rows[GENERATE]


@pytest.mark.parametrize(("seconds", "verdict"), [(0.5, "not compared"), (1.5, "MISSED")])
def test_without_a_base_no_target_is_missed_for_it(
    seconds: float, verdict: str, calls: Calls, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls.broken, calls.seconds["auto"] = GENERATE, seconds
    section = measured(monkeypatch, tmp_path, CASE)
    assert section["tables"][TITLE]["auto"]["verdict"] == verdict
    alone = measured(monkeypatch, tmp_path, CASE, only=["auto"])
    assert alone["tables"][TITLE]["auto"]["verdict"] == verdict


@pytest.mark.parametrize("again", [{"only": ["auto"]}, {"resume": True}])
def test_a_later_run_has_the_bases_of_the_one_before(
    again: dict[str, Any], calls: Calls, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    document: dict[str, Any] = {}
    measured(monkeypatch, tmp_path, replace(CASE, contenders=BASE), document=document)
    calls.made.clear()
    row = measured(monkeypatch, tmp_path, CASE, document=document, **again)["tables"][TITLE]["auto"]
    assert (row["over generate"], row["verdict"], row["text"]) == (16.0, "reached", "3 of 3 as AR")
    assert not calls.of(GENERATE)


def test_a_wrong_text_has_no_speed_and_misses(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu_endtoend.Measured, "_judge", lambda self, contender: ("1 different", True))
    row = measured(monkeypatch, tmp_path, CASE)["tables"][TITLE]["auto"]
    assert row["verdict"] == "MISSED" and row["tokens/s"] is row["rounds over AR"] is None


# What is called


def test_calls_before_those_that_count_have_other_prompts(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measured(monkeypatch, tmp_path, CASE)
    prompts = [prompt for prompt, _ in calls.of("auto")]
    assert len(prompts) == 6 and not set(prompts[:3]) & set(prompts[3:])


@pytest.mark.parametrize(("count", "tokens"), [(3, 256), (16, 256), (1, 4000)])
def test_prompts_that_are_passed_over_share_no_text(count: int, tokens: int) -> None:
    loaded: Any = SimpleNamespace(tokenizer=AutoTokenizer.from_pretrained(str(REFERENCE_MODEL)))
    first, other = (prompts_of(loaded, tokens, count, after) for after in (0, count + 1))
    assert {len(prompt) for prompt in (*first, *other)} == {tokens}
    seen, warm = (
        {tuple(text[i : i + 60]) for text in texts for i in range(tokens - 60)} for texts in (first, other)
    )
    assert not seen & warm


def test_where_prompts_are_long_one_call_counts(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measured(monkeypatch, tmp_path, replace(CASE, context=16_000, new_tokens=256))
    assert [tokens for _, tokens in calls.of("auto")] == [256, 256]


def test_a_compiled_cache_is_as_long_before_the_call_that_counts(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measured(monkeypatch, tmp_path, replace(CASE, contenders=(BUILT_IN, COMPILED)), compiled=True)
    assert [tokens for _, tokens in calls.of("compiled")] == [128, 128, 128]
    assert [tokens for _, tokens in calls.of(BUILT_IN.name)] == [8, 128]


def test_what_compiles_the_whole_model_is_named_where_it_was_not_asked_for(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    section = measured(monkeypatch, tmp_path, replace(CASE, contenders=(COMPILED,)))
    assert "--compiled" in section["left_out"][f"{TITLE}: compiled"]
    assert not calls.made


def test_a_row_that_would_take_the_time_of_others_is_left_out(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls.seconds |= {GENERATE: 1.0, AR: 100.0}
    last = replace(CASES[1], contenders=(peer(GENERATE),))
    section = measured(monkeypatch, tmp_path, CASE, last, seconds=90)
    for name in (AR, "auto"):  # which is compared with AR
        assert "about 100 seconds" in section["left_out"][f"{TITLE}: {name}"]
    assert len(calls.of(AR)) == 2 and not calls.of("auto")  # one call each, which tells it
    assert all(rows[GENERATE] for rows in section["tables"].values())


def test_a_row_is_left_out_before_its_first_call_where_the_one_before_tells(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls.seconds[AR] = 30.0
    section = measured(monkeypatch, tmp_path, CASE, seconds=160)
    assert f"{TITLE}: {AR}" not in section["left_out"] and not calls.of("auto")
    assert "about 180 seconds" in section["left_out"][f"{TITLE}: auto"]


# Models


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Weak references to stand-ins for inflated models, by source."""
    made: dict[str, Any] = {}

    class Model:
        pass

    def inflated(bench: Bench, loaded: Any, shape: str) -> Any:
        model = Model()
        made[loaded.name] = weakref.ref(model)
        return model

    monkeypatch.setattr(gpu_models, "inflated", inflated)
    for name in gpu_models.SOURCES:
        source = SimpleNamespace(load=lambda bench, name=name: SimpleNamespace(name=name))
        monkeypatch.setitem(gpu_models.SOURCES, name, source)
    return made


def test_a_case_alone_finds_no_other_model(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    others: list[Any] = []

    def row(self: gpu_endtoend.Measured, line: Line) -> dict[str, Any]:
        self.models.of(self.case.source, self.case.shape)
        gc.collect()
        others.append({source for source, model in models.items() if model() is not None})
        return {}

    monkeypatch.setattr(gpu_endtoend.Measured, "row", row)
    first, second = (Case(name, "8b-128k", (OURS,), alone=True) for name in ("reference", "plain twin"))
    measured(monkeypatch, tmp_path, replace(first, alone=False), replace(second, alone=False), first, second)
    assert others == [{"reference"}, {"reference", "plain twin"}]  # titles are those of before: no rows
    others.clear()
    cases = [replace(case, batch=batch) for batch, case in ((2, first), (3, first), (4, second))]
    measured(monkeypatch, tmp_path, *cases)
    assert others == [{"reference"}, {"reference"}, {"plain twin"}]


def test_a_model_without_room_costs_the_rows_of_its_own_cases(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def of(self: Inflated, source: str, shape: str) -> Any:
        if source == "reference":
            raise torch.cuda.OutOfMemoryError("out of memory")
        return SimpleNamespace(pad=0), None

    monkeypatch.setattr(Inflated, "of", of)
    section = measured(monkeypatch, tmp_path, CASE, CASES[1])
    assert set(section["failed"]) == {f"{TITLE}: {line.name}" for line in CASE.contenders}
    assert list(section["tables"][f"plain twin, 8b-128k, {CASES[1].title}"])


# Cases


def test_every_size_that_was_promised_has_a_case_and_targets_come_first() -> None:
    reference = [case for case in CASES if case.source == "reference" and case.temperature is None]
    greedy = {(case.shape, case.batch, case.context) for case in reference}
    for shape in ("1b-128k", "8b-128k"):
        assert greedy >= {(shape, batch, 256) for batch in (1, 4, 16, 32)}
        assert greedy >= {(shape, 1, context) for context in (4000, 16_000)}
    assert greedy >= {("8b-128k", batch, 4000) for batch in (4, 16, 32)}
    keys = [(case.source, case.shape, case.title) for case in CASES]
    assert set(keys[:2]) == set(gpu_endtoend.TARGETS)


def test_cases_of_one_table_generate_as_much() -> None:
    tokens: dict[Any, set[int]] = {}
    for case in CASES:
        tokens.setdefault((case.source, case.shape, case.title), set()).add(case.new_tokens)
    assert all(len(counts) == 1 for counts in tokens.values())
