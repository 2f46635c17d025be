"""What README.md tells a reader to type works.

Python blocks run in order in one namespace, as a reader would paste them. Shell blocks are checked word by
word against the Makefile, the command line and the tree; one with `<!-- run -->` in front of it is run.
`<!-- not run: why -->` before a Python block leaves it out.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from pages import Block, read_blocks

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
SHELLS = {"console", "bash", "sh", "shell"}


def commands(block: Block) -> list[str]:
    """The commands of a shell block; in `console` blocks only lines after a prompt are commands."""
    lines = block.code.replace("\\\n", " ").splitlines()
    if block.language == "console":
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


BLOCKS = read_blocks(README.read_text(encoding="utf-8")) if README.exists() else []
PYTHON_BLOCKS = [b for b in BLOCKS if b.language == "python" and not b.mark.startswith("not run")]
COMMANDS = [(c, b.mark == "run") for b in BLOCKS if b.language in SHELLS for c in commands(b)]


def known_options(subcommand: list[str]) -> set[str]:
    """Every option that `selfspec <subcommand>` has."""
    from typer.main import get_command

    from selfspec.cli import app

    command = get_command(app)
    for word in subcommand:
        command = command.commands[word]  # type: ignore[attr-defined]  # KeyError: there is no such command
    return {name for p in command.params for name in (*p.opts, *p.secondary_opts)} | {"--help"}


def check(words: list[str]) -> str:
    """The complaint about a command, or nothing when it can be typed as it stands."""
    program, rest = words[0], words[1:]
    if program == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        missing = [w for w in rest if "=" not in w and not re.search(rf"^{re.escape(w)}:", makefile, re.M)]
        return f"no target {missing} in the Makefile" if missing else ""
    if program == "selfspec":
        subcommand = [w for w in rest[:1] if not w.startswith("-")]
        unknown = {w.split("=")[0] for w in rest if w.startswith("--")} - known_options(subcommand)
        return f"unknown options {sorted(unknown)}" if unknown else ""
    if program in {"python", "python3"}:
        scripts = [w for w in rest if w.endswith(".py")]
        missing = [s for s in scripts if not (ROOT / s).exists()]
        return f"no file {missing}" if missing else ""
    return "" if program in {"pip", "git", "cd", "source"} else f"what is {program!r}?"


@pytest.mark.skipif(not PYTHON_BLOCKS, reason="README.md has no Python blocks")
def test_python_blocks_run_in_order() -> None:
    namespace: dict[str, object] = {"__name__": "readme"}
    for block in PYTHON_BLOCKS:
        # Leading line breaks make tracebacks show the README's own line numbers.
        exec(compile("\n" * (block.line - 1) + block.code, str(README), "exec"), namespace)


@pytest.mark.parametrize(("command", "runs"), COMMANDS)
def test_shell_commands_exist(command: str, runs: bool) -> None:
    words = shlex.split(command.split("|")[0], comments=True)
    assert check(words) == ""
    if runs:
        done = subprocess.run(
            command,
            shell=True,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=240,
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        )
        assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("make nonsense", "no target"),
        ("make PYTHON=python3.12 test", ""),
        ("selfspec generate --nonsense 1", "unknown options"),
        ("python benchmarks/nonsense.py", "no file"),
        ("frobnicate", "what is"),
    ],
)
def test_a_command_that_cannot_be_typed_is_found(command: str, complaint: str) -> None:
    found = check(shlex.split(command))
    assert complaint in found if complaint else not found
