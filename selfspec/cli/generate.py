"""`selfspec generate`: continue a prompt, streaming."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from selfspec.cli import options
from selfspec.cli.errors import UserError

if TYPE_CHECKING:
    from selfspec import RoundEvent
    from selfspec.cli.loading import Loaded

_SAMPLING = "Sampling"


def command(
    prompt: Annotated[str | None, typer.Argument(help="Text to continue. [default: standard input]")] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Read the prompt from this file.")] = None,
    model: options.Model = None,
    max_new_tokens: options.NewTokens = 128,
    show_drafts: Annotated[
        bool,
        typer.Option("--show-drafts", help="Colour accepted, corrected and bonus tokens, with a legend."),
    ] = False,
    as_json: options.Json = False,
    temperature: options.Temperature = None,
    top_k: Annotated[
        int | None,
        typer.Option(min=0, help="Sample from the k likeliest tokens; 0 is all.", rich_help_panel=_SAMPLING),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help="Sample from the likeliest tokens of this mass.", rich_help_panel=_SAMPLING),
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(help="Least probability, relative to the likeliest.", rich_help_panel=_SAMPLING),
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Above 1 discourages repeating.", rich_help_panel=_SAMPLING)
    ] = None,
    seed: options.Seed = 0,
    draft: options.DraftKind = "auto",
    tree: options.TreeShape = "chain",
    draft_memory: options.DraftMemory = None,
    corpus: options.Corpus = None,
    exit_layer: options.ExitLayer = "auto",
    draft_length: options.DraftLength = "auto",
    acceptance: options.Acceptance = "coupled",
    confidence_threshold: options.ConfidenceThreshold = 0.0,
    profile: options.Profile = None,
    workload: Annotated[
        str | None,
        typer.Option(
            help="Draft by the profile of this name, kept by `selfspec tune`.", rich_help_panel="Speculation"
        ),
    ] = None,
    deterministic: options.Deterministic = True,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    threads: options.Threads = None,
) -> None:
    """Continue a prompt; text appears as it is accepted.

    Example: `selfspec generate "def fibonacci(n):" --show-drafts`
    """
    text = _read_prompt(prompt, file)
    sampling = _sampling(temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    if repetition_penalty is not None:
        sampling["repetition_penalty"] = repetition_penalty
    settings = options.speculation_settings(
        draft=draft,
        tree=tree,
        draft_memory=draft_memory,
        corpus=corpus,
        exit_layer=exit_layer,
        draft_length=draft_length,
        acceptance=acceptance,
        confidence_threshold=confidence_threshold,
        profile=profile,
        deterministic=deterministic,
    )
    if as_json and show_drafts:
        raise UserError("--show-drafts colours a terminal and --json prints data; choose one")
    import selfspec
    from selfspec.cli.loading import load

    selfspec.SpeculationConfig.of(
        **settings
    )  # an impossible setting is refused before a large model is loaded
    loaded = load(model, dtype, device, threads)
    selfspec.wrap(loaded.model, **settings)
    ids = loaded.tokenizer(text, return_tensors="pt").to(loaded.model.device)
    if ids["input_ids"].shape[1] == 0:
        raise UserError("the prompt is empty: give some text to continue")
    arguments = {
        "max_new_tokens": max_new_tokens,
        "pad_token_id": loaded.pad,
        "workload": workload,
        **sampling,
    }
    request = {"input_ids": ids["input_ids"], "attention_mask": ids["attention_mask"], **arguments}
    _seed(seed)
    if as_json:
        print(json.dumps(_as_json(loaded, text, request), indent=2))
    else:
        _stream(loaded, text, request, show_drafts)


def _read_prompt(prompt: str | None, file: Path | None) -> str:
    """The prompt from the argument, a file or standard input."""
    if prompt is not None and file is not None:
        raise UserError("give the prompt as an argument or with --file, not both")
    if prompt is not None and prompt != "-":
        text = prompt
    elif file is not None:
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{file}: not UTF-8 text; convert it, or name another file") from error
    elif sys.stdin.isatty():
        raise UserError('no prompt: give it as an argument, with --file, or on standard input (try "def f(")')
    else:
        text = sys.stdin.read()
    if not text:
        raise UserError("the prompt is empty: give some text to continue")
    return text


def _sampling(temperature: float | None, **cuts: float | int | None) -> dict[str, Any]:
    """The sampling keywords of generate; greedy unless a temperature or a cut asks for sampling."""
    if temperature is not None and temperature <= 0:
        raise UserError(f"temperature={temperature:g}: allowed is more than 0; omit it for greedy text")
    given = {name: value for name, value in cuts.items() if value is not None}
    for name in ("top_p", "min_p"):
        # transformers takes a top_p above 1 for no cut at all, without a word.
        if not 0 <= given.get(name, 0) <= 1:
            raise UserError(f"{name}={given[name]:g}: allowed is 0 to 1")
    if temperature is None and not given:
        return {"do_sample": False}
    # transformers samples from the 50 likeliest tokens unless it is told otherwise.
    return {
        "do_sample": True,
        "temperature": 1.0 if temperature is None else temperature,
        "top_k": 0,
        **given,
    }


def _seed(seed: int) -> None:
    import torch

    torch.manual_seed(seed)


def _as_json(loaded: Loaded, text: str, request: dict[str, Any]) -> dict[str, Any]:
    """The whole answer as data."""
    rounds: list[RoundEvent] = []
    output = loaded.model.generate(**request, on_round=rounds.append)
    tokens = output[0, request["input_ids"].shape[1] :].tolist()
    return {
        "model": loaded.name,
        "prompt": text,
        "prompt_tokens": request["input_ids"].shape[1],
        "text": loaded.tokenizer.decode(tokens, skip_special_tokens=True),
        "tokens": tokens,
        "rounds": [asdict(event) for event in rounds],
        "statistics": loaded.model.speculation.stats.as_dict(),
    }


def _stream(loaded: Loaded, text: str, request: dict[str, Any], show_drafts: bool) -> None:
    """Print prompt and continuation on stdout as they come, and one line of statistics on stderr."""
    from rich.console import Console

    from selfspec.cli.drafts import DraftPrinter

    # Who asks for colours gets them in a file or a pager too; NO_COLOR leaves bold and underlined.
    console = Console(force_terminal=True if show_drafts else None)
    printer = DraftPrinter(console, loaded.tokenizer, request["input_ids"][0].tolist(), show_drafts)
    if show_drafts:
        printer.legend()
    printer.prompt(text)
    try:
        loaded.model.generate(**request, on_round=printer)
    finally:
        printer.end()
    stats = loaded.model.speculation.stats
    for line in filter(None, (f"{stats}, {stats.drafts}", stats.view)):
        Console(stderr=True).print(line, style="dim", highlight=False, soft_wrap=True)
