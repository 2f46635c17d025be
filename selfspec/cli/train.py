"""`selfspec train`: train a small early-exit model with the LayerSkip recipe."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from selfspec.cli import options
from selfspec.cli.errors import UserError

if TYPE_CHECKING:
    from layer_skip.training import TrainingResult


def command(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the model, its card and its plots.")
    ],
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help='JSON file with settings, such as {"layers": 12}.')
    ] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="One setting as NAME=VALUE; may be given several times.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Train for this many steps.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Train for this long instead.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint in the output folder.")
    ] = False,
    as_json: options.Json = False,
    threads: options.Threads = None,
) -> None:
    """Train with layer dropout and early-exit losses on the Python source that is installed here.

    Writes weights, tokenizer, model card and plots. Ctrl-C saves a checkpoint that --resume goes on from.

    Example: `selfspec train --output my-model --steps 200 --set layers=8`
    """
    values = {**_from_file(config), **dict(map(_parsed, change or []))}
    if steps is not None and minutes is not None:
        raise UserError("give --steps or --minutes, not both")
    if steps is not None:
        values |= {"max_steps": steps, "max_seconds": None}
    if minutes is not None:
        values |= {"max_steps": None, "max_seconds": 60 * minutes}
    if threads is not None:
        values["threads"] = threads
    from layer_skip.training import TrainingConfig, train

    result = train(TrainingConfig.from_dict(values), output, resume=resume, progress=not as_json)
    if as_json:
        print(json.dumps({**asdict(result), "folder": str(result.folder)}, indent=2))
    else:
        _print(result)


def _from_file(path: Path | None) -> dict[str, Any]:
    """The settings in a JSON file."""
    if path is None:
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: needs one JSON object of settings")
    return values


def _parsed(setting: str) -> tuple[str, Any]:
    """NAME=VALUE as name and value: numbers, true, false and null as in JSON, anything else as text."""
    name, equals, text = setting.partition("=")
    if not equals or not name:
        raise UserError(f"--set {setting}: write NAME=VALUE, such as --set layers=12")
    try:
        return name, json.loads(text)
    except json.JSONDecodeError:
        return name, text


def _print(result: TrainingResult) -> None:
    from rich.table import Table

    from selfspec.cli.console import terminal

    table = Table(
        title=f"{result.parameters:,} parameters, {result.steps:,} steps, {result.tokens:,} tokens, "
        f"{result.seconds / 60:.1f} minutes",
        title_justify="left",
    )
    for title in ("exit layer E", "held-out loss", "agreement", "1 - total variation"):
        table.add_column(title, justify="right")
    for score in result.scores:
        cells = (score.loss, score.agreement, score.overlap)
        table.add_row(str(score.exit_layer), *(f"{cell:.3f}" for cell in cells))
    console = terminal()
    console.print(table)
    console.print(f"saved in {result.folder}; try: selfspec demo --model {result.folder}", highlight=False)
