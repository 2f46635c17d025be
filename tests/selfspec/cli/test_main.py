"""The command as a whole: help, usage errors, Ctrl-C."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

COMMANDS = ["generate", "bench", "tune", "inspect", "train", "demo"]


def start(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    """The command in a process of its own, in `folder`."""
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "selfspec.cli", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A background job of a shell ignores Ctrl-C, and so would its children.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def interrupt(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Press Ctrl-C and return what else was printed."""
    process.send_signal(signal.SIGINT)
    try:
        return process.communicate(timeout=120)
    finally:
        process.kill()  # where it did not hear: it would slow every test after this one


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_an_example(run: Callable[..., Any], command: str) -> None:
    result = run(command, "--help")
    assert result.code == 0
    assert f"Example: selfspec {command}" in " ".join(result.out.replace("│", " ").split())


def test_help_lists_every_command(run: Callable[..., Any]) -> None:
    assert all(command in run("--help").out for command in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["frobnicate"], "No such command 'frobnicate' (options: selfspec --help)"),
        (["generate", "--frob"], "(options: selfspec generate --help)"),
        (["bench", "--batch", "many"], "--batch"),
    ],
)
def test_a_usage_error_is_one_line(run: Callable[..., Any], arguments: list[str], complaint: str) -> None:
    result = run(*arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.count("\n") == 1 and result.err.startswith("selfspec: ")
    assert complaint in result.err


def test_ctrl_c_ends_writing_with_one_short_line(model_folder: Path, tmp_path: Path) -> None:
    process = start(tmp_path, "generate", "x", "-m", model_folder, "-n", 100_000, "--draft-length", 0)
    assert process.stdout is not None
    process.stdout.read(20)  # it is writing
    _, err = interrupt(process)
    assert process.returncode == 130
    assert err.strip() == "selfspec: interrupted"


def test_ctrl_c_leaves_earlier_results_whole(model_folder: Path, tmp_path: Path) -> None:
    results = tmp_path / "selfspec-results"
    results.mkdir()
    (results / "bench.json").write_text('{"earlier": true}', encoding="utf-8")
    os.mkfifo(tmp_path / "prompts.jsonl")
    process = start(tmp_path, "bench", "-m", model_folder, "-p", "prompts.jsonl", "-n", 100_000, "--json")
    # Opening waits until the command has come as far as reading its prompts.
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "x"}\n', encoding="utf-8")
    time.sleep(2)
    out, err = interrupt(process)
    assert (process.returncode, out) == (130, "")
    assert err.strip() == "selfspec: interrupted"
    assert [path.name for path in results.iterdir()] == ["bench.json"]
    assert json.loads((results / "bench.json").read_text(encoding="utf-8")) == {"earlier": True}


def test_a_reader_that_goes_away_is_no_error(model_folder: Path, tmp_path: Path) -> None:
    process = start(tmp_path, "generate", "x", "-m", model_folder, "-n", 100_000, "--draft-length", 0)
    assert process.stdout is not None
    process.stdout.read(5)
    process.stdout.close()
    assert process.wait(timeout=120) == 141
    assert process.stderr is not None
    assert process.stderr.read() == ""
