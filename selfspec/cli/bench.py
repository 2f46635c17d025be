"""`selfspec bench`: contenders side by side, with their texts compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from selfspec.cli import options
from selfspec.cli.progress import progress_bar

if TYPE_CHECKING:
    from selfspec.benchmarking.report import Report


def command(
    model: options.Model = None,
    prompts: options.Prompts = None,
    limit: options.Limit = 20,
    prompt_tokens: options.PromptTokens = None,
    max_new_tokens: options.NewTokens = 128,
    batch: Annotated[int, typer.Option(min=1, help="Prompts generated together.")] = 1,
    warm_up: Annotated[int, typer.Option(min=0, help="Calls of each contender that do not count.")] = 1,
    output: options.Output = options.RESULTS,
    as_json: options.Json = False,
    temperature: options.Temperature = None,
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
    deterministic: options.Deterministic = True,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    threads: options.Threads = None,
) -> None:
    """Measure selfspec beside the model's own generate, AR, and what transformers has built in.

    All take turns on every prompt in one run. A contender whose greedy text differs gets no speed, and the
    exit code is 1. Every text runs to the full number of tokens.

    Example: `selfspec bench --limit 10 --threads 2`
    """
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
    from selfspec import SpeculationConfig
    from selfspec.benchmarking.contenders import standard_contenders
    from selfspec.benchmarking.measure import Workload
    from selfspec.benchmarking.prompts import bundled_prompts, read_prompts, tokenized
    from selfspec.benchmarking.session import resolve_exit_layer, run_comparison
    from selfspec.cli.loading import load
    from selfspec.files import prepare_folder

    SpeculationConfig.of(**settings)
    prepare_folder(output)
    workload = Workload(max_new_tokens, temperature, seed, batch, warm_up)
    texts = read_prompts(prompts or bundled_prompts())
    loaded = load(model, dtype, device, threads)
    ids = tokenized(loaded.tokenizer, texts, prompt_tokens, limit)
    exit_of_peer = resolve_exit_layer(loaded.model, settings, ids[0], loaded.pad)
    described = {"model": loaded.name, "prompts": prompts.name if prompts else "bundled code prompts"}
    contenders = standard_contenders(exit_of_peer, settings)
    with progress_bar(not as_json) as advance:
        report = run_comparison(loaded.model, contenders, ids, workload, loaded.pad, described, advance)
    present(report, output, "bench", as_json)
    if report.refused:
        raise typer.Exit(1)


def present(report: Report, output: Path | None, stem: str, as_json: bool) -> None:
    """Print the report as a table or as JSON; save it as JSON and as a plot where a folder is named."""
    from selfspec.benchmarking.render import legend, plot, terminal_table
    from selfspec.cli.console import terminal
    from selfspec.files import write_whole

    data: dict[str, Any] = report.as_dict()
    text = json.dumps(data, indent=2)
    if output is not None:
        write_whole(output / f"{stem}.json", text + "\n")
        write_whole(output / f"{stem}.png", plot(report))
    if as_json:
        print(text)
        return
    console = terminal()
    console.print(terminal_table(report))
    for entry in legend(report):
        console.print(entry, style="dim", highlight=False)
    if output is not None:
        console.print(f"saved {output / stem}.json and .png", style="dim", highlight=False)
