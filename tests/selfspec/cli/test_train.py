"""`selfspec train` hands its settings on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import layer_skip.training
from layer_skip.training import CheckpointError, TrainingInterrupted, TrainingResult
from layer_skip.training.evaluate import ExitScore

SCORES = (ExitScore(1, 3.0, 0.5, 0.6), ExitScore(2, 2.0, 1.0, 1.0))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Training that is over at once; what it was asked for."""
    asked: list[Any] = []

    def train(config: Any, output: Path, **more: Any) -> TrainingResult:
        asked.append(SimpleNamespace(config=config, output=output, **more))
        return TrainingResult(output, 1234, 7, 700, 1.5, SCORES, SCORES)

    monkeypatch.setattr(layer_skip.training, "train", train)
    return asked


def test_settings_come_from_file_and_command_line(
    run: Callable[..., Any], calls: list[Any], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"layers": 8, "seed": 3}), encoding="utf-8")
    more = ("--set", "layers=12", "--set", "curriculum=gradual", "--steps", 5, "--threads", 1, "--resume")
    result = run("train", "--output", "out", "--config", "config.json", *more)
    assert result.code == 0
    (asked,) = calls
    config = asked.config
    assert (config.layers, config.seed, config.curriculum) == (12, 3, "gradual")
    assert (config.max_steps, config.max_seconds, config.threads) == (5, None, 1)
    assert (asked.output, asked.resume, asked.progress) == (Path("out"), True, True)
    assert "1,234 parameters, 7 steps" in result.out and "selfspec demo --model out" in result.out


def test_json_is_pure(run: Callable[..., Any], calls: list[Any]) -> None:
    data = run("train", "-o", "out", "--minutes", 2, "--json").json
    assert (data["folder"], data["parameters"], len(data["scores"])) == ("out", 1234, 2)
    assert calls[0].config.max_seconds == 120
    assert not calls[0].progress


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "Missing option '--output'"),
        (["-o", "out", "--set", "layers"], "write NAME=VALUE"),
        (["-o", "out", "--set", "colour=3"], "unknown setting 'colour'"),
        (["-o", "out", "--set", "layers=one"], "layers='one'; allowed: a whole number"),
        (["-o", "out", "--set", "layers=1"], "layers=1; allowed: 2 or more"),
        (["-o", "out", "--steps", 1, "--minutes", 1], "not both"),
        (["-o", "out", "--minutes", -1], "allowed: more than 0"),
        (["-o", "out", "--config", "none.json"], "none.json: No such file"),
    ],
)
def test_a_mistake_is_one_line(
    run: Callable[..., Any], calls: list[Any], arguments: list[object], complaint: str
) -> None:
    result = run("train", *arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.count("\n") == 1
    assert complaint in result.err
    assert not calls


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_settings_file_that_is_none_is_refused(
    run: Callable[..., Any], tmp_path: Path, content: str
) -> None:
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    result = run("train", "-o", "out", "-c", "config.json")
    assert (result.code, result.err.count("\n")) == (2, 1)


@pytest.mark.parametrize(
    ("error", "code"),
    [(TrainingInterrupted("stopped at step 3; resume"), 130), (CheckpointError("no such checkpoint"), 2)],
)
def test_what_training_says_at_its_end_is_passed_on(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    def train(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(layer_skip.training, "train", train)
    result = run("train", "-o", "out")
    assert result.code == code
    assert result.err.strip() == f"selfspec: {error}"


def test_a_defect_of_ours_keeps_its_traceback(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*_: object, **__: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(layer_skip.training, "train", train)
    with pytest.raises(RuntimeError, match="shapes"):
        run("train", "-o", "out")
