"""`selfspec demo`: watch the bundled model write code, then see how much faster it did so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from selfspec.cli import options
from selfspec.cli.bench import present
from selfspec.cli.progress import progress_bar

if TYPE_CHECKING:
    from selfspec.benchmarking.report import Report
    from selfspec.cli.loading import Loaded

_LIVELY = 47
"""A bundled prompt whose greedy continuation is code that goes somewhere: many soon repeat themselves."""


def command(
    model: options.Model = None,
    prompts: options.Prompts = None,
    limit: options.Limit = 8,
    prompt_tokens: options.PromptTokens = 128,
    max_new_tokens: options.NewTokens = 128,
    number: Annotated[
        int | None,
        typer.Option(min=1, help="Which prompt to write on screen, from 1. [default: a lively one]"),
    ] = None,
    as_json: options.Json = False,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    threads: options.Threads = None,
) -> None:
    """Write code on screen with coloured drafts, then compare text and speed with the model's own generate.

    Example: `selfspec demo --number 3`
    """
    from selfspec.benchmarking.prompts import PromptsError, bundled_prompts, read_prompts, tokenized
    from selfspec.cli.loading import load

    texts = read_prompts(prompts or bundled_prompts())
    loaded = load(model, dtype, device, threads)
    ids = tokenized(loaded.tokenizer, texts, prompt_tokens, None)
    if number is None:
        number = 1 if prompts else min(_LIVELY, len(ids))
    if number > len(ids):
        raise PromptsError(f"number={number}: there are {len(ids)} prompts")
    chosen = [ids[number - 1], *ids[: number - 1], *ids[number:]][:limit]
    if not as_json:
        _write_on_screen(loaded, chosen[0], max_new_tokens)
    report = _compare(
        loaded, chosen, max_new_tokens, prompts.name if prompts else "bundled code prompts", as_json
    )
    present(report, None, "demo", as_json)
    if not as_json:
        _conclude(report)
    if report.refused:
        raise typer.Exit(1)


def _write_on_screen(loaded: Loaded, prompt: list[int], new_tokens: int) -> None:
    """Generate from one prompt, every token in the colour of its origin."""
    import torch

    import selfspec
    from selfspec.cli.console import terminal
    from selfspec.cli.drafts import DraftPrinter

    console = terminal()
    ids = torch.tensor([prompt], device=loaded.model.device)
    selfspec.wrap(loaded.model)
    printer = DraftPrinter(console, loaded.tokenizer, prompt, colours=True)
    printer.legend()
    printer.prompt(loaded.tokenizer.decode(prompt))
    try:
        loaded.model.generate(
            ids, max_new_tokens=new_tokens, do_sample=False, pad_token_id=loaded.pad, on_round=printer
        )
    finally:
        printer.end()
    stats = loaded.model.speculation.stats
    console.print(f"\n{stats} (printing included)", style="dim", highlight=False)
    console.print(f"{stats.choice}\n", style="dim", highlight=False)
    selfspec.unwrap(loaded.model)


def _compare(loaded: Loaded, prompts: list[list[int]], new_tokens: int, source: str, as_json: bool) -> Report:
    """The model's own generate, AR and selfspec on the same prompts, greedy."""
    from selfspec.benchmarking.contenders import AR, GENERATE, SELFSPEC, standard_contenders
    from selfspec.benchmarking.measure import Workload
    from selfspec.benchmarking.session import run_comparison

    contenders = [c for c in standard_contenders(1, {}) if c.name in (GENERATE, AR, SELFSPEC)]
    described = {"model": loaded.name, "prompts": source}
    with progress_bar(not as_json) as advance:
        return run_comparison(
            loaded.model, contenders, prompts, Workload(new_tokens), loaded.pad, described, advance
        )


def _conclude(report: Report) -> None:
    """The outcome in one sentence."""
    from selfspec.benchmarking.contenders import GENERATE, SELFSPEC
    from selfspec.cli.console import terminal

    line = report.line(SELFSPEC)
    if line.refused:
        terminal().print(f"\nNo speed to tell: {line.refused}.", style="bold red", highlight=False)
        return
    ratio = line.faster_than[GENERATE].median
    console = terminal()
    console.print(f"\n{ratio:.2f} times as fast as model.generate.", style="bold", highlight=False)
    console.print(f"Same text: {line.checked}.", style="bold", highlight=False)
    if "near-tie" in line.checked:
        console.print(
            "In a near-tie, rounding decides between two tokens that are as good as equal; "
            "in fp32 there are none: selfspec demo --dtype float32",
            style="dim",
            highlight=False,
        )
