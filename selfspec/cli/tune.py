"""`selfspec tune`: the best exit layer and draft length for each workload, kept where `wrap` finds them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from selfspec.cli import options
from selfspec.cli.errors import UserError
from selfspec.cli.progress import progress_bar

if TYPE_CHECKING:
    from rich.table import Table

    from selfspec.tuning.tune import Tuned
    from selfspec.tuning.validate import Comparison

    Results = list[tuple[Tuned, list[Comparison]]]


def command(
    model: options.Model = None,
    prompts: Annotated[
        list[Path] | None,
        typer.Option(
            "--prompts",
            "-p",
            help="JSON Lines file of prompts; once per workload. [default: bundled code prompts]",
        ),
    ] = None,
    workload: Annotated[
        list[str] | None, typer.Option("--workload", "-w", help="Name of the workload; once per file.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Profile to write; for several workloads a folder. [default: the cache that wrap looks in]"
        ),
    ] = None,
    limit: options.Limit = 32,
    prompt_tokens: options.PromptTokens = None,
    max_new_tokens: options.NewTokens = 128,
    batch: Annotated[int, typer.Option(min=1, help="Prompts generated together.")] = 1,
    check: Annotated[
        int, typer.Option(min=0, help="Prompts on which the prediction is compared with real runs.")
    ] = 4,
    max_latency_ms: Annotated[
        float | None, typer.Option(help="Longest wait for one token, in milliseconds.")
    ] = None,
    output: options.Output = options.RESULTS,
    as_json: options.Json = False,
    temperature: options.Temperature = None,
    seed: options.Seed = 0,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    threads: options.Threads = None,
) -> None:
    """Record each workload once, time a few rounds, and choose the fastest setting.

    Example: `selfspec tune --prompts code.jsonl --workload code --prompts chat.jsonl --workload chat`
    """
    from selfspec.benchmarking.prompts import bundled_prompts, read_prompts, tokenized
    from selfspec.cli.loading import load
    from selfspec.files import prepare_folder
    from selfspec.tuning.search import Limits
    from selfspec.tuning.tune import tune

    files = prompts or [bundled_prompts()]
    names = _names(files, workload, prompts is None)
    latency = None if max_latency_ms is None else max_latency_ms / 1e3
    limits = Limits(seconds_per_token=latency)
    texts = [read_prompts(file) for file in files]
    targets = _targets(out, names)
    for folder in {output, *(target.parent for target in targets if target)}:
        prepare_folder(folder)
    loaded = load(model, dtype, device, threads)
    sampling = _sampling(temperature)
    results: Results = []
    with progress_bar(not as_json) as advance:
        for name, group in zip(names, texts, strict=True):
            ids = tokenized(loaded.tokenizer, group, prompt_tokens, limit)
            tuned = tune(
                loaded.model,
                ids,
                workload=name,
                max_new_tokens=max_new_tokens,
                batch=batch,
                limits=limits,
                seed=seed,
                generate_arguments=sampling,
                advance=advance,
            )
            results.append((tuned, _checked(loaded.model, ids, tuned, check, sampling, advance)))
    _save(results, targets, output)
    _present(results, output, as_json)


def _names(files: Sequence[Path], workloads: Sequence[str] | None, bundled: bool) -> list[str]:
    names = list(workloads or (["code"] if bundled else [file.stem for file in files]))
    if len(names) != len(files):
        raise UserError(f"{len(files)} --prompts but {len(names)} --workload: give one name per file")
    if len(set(names)) < len(names) or not all(name.strip() for name in names):
        raise UserError(f"--workload {', '.join(names)}: every workload needs a name of its own")
    return names


def _targets(out: Path | None, names: Sequence[str]) -> list[Path | None]:
    if out is None:
        return [None] * len(names)
    return [out] if len(names) == 1 else [out / f"{name}.json" for name in names]


def _sampling(temperature: float | None) -> dict[str, Any]:
    if temperature is None:
        return {"do_sample": False}
    if temperature <= 0:
        raise UserError(f"temperature={temperature}: allowed is more than 0; leave it out for greedy")
    return {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}


def _checked(
    model: Any, ids: Sequence[Sequence[int]], tuned: Tuned, count: int, sampling: dict[str, Any], advance: Any
) -> list[Comparison]:
    """The chosen setting, AR and a few others, predicted and measured on the first prompts."""
    from selfspec.tuning.replay import Setting
    from selfspec.tuning.validate import compare

    count = min(count, len(tuned.recording.lengths))
    if not count or len(ids) != len(tuned.recording.lengths):
        return []
    chosen = tuned.profile.setting
    ranked = sorted(tuned.found.surface, key=lambda cell: -cell[2])
    others = [Setting(e, k) for e, k, _ in ranked[:: max(len(ranked) // 4, 1)][:4]]
    settings = list(dict.fromkeys([chosen, Setting(chosen.exit_layer, 0), *others]))
    part = tuned.recording.of_prompts(range(count))
    return compare(
        model,
        ids[:count],
        part,
        tuned.profile.costs,
        settings,
        repeats=1,
        generate_arguments=sampling,
        advance=advance,
    )


def _save(results: Results, targets: Sequence[Path | None], output: Path) -> None:
    from selfspec.files import write_whole
    from selfspec.tuning.plots import plot
    from selfspec.tuning.store import default_path

    for (tuned, comparisons), target in zip(results, targets, strict=True):
        tuned.profile.save(target or default_path(tuned.profile))
        write_whole(output / f"tune-{tuned.profile.workload}.png", plot(tuned, comparisons))
    write_whole(output / "tune.json", json.dumps(_as_dict(results), indent=1) + "\n")


def _as_dict(results: Results) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        tuned.profile.workload: {
            "profile": tuned.profile.as_dict(),
            "seconds": dict(tuned.seconds),
            "surface": tuned.found.surface,
            "agreement": dict(zip(tuned.recording.exits, tuned.recording.agreement, strict=True)),
            "acceptance_by_position": tuned.by_position,
            "calibration": [asdict(calibration) for calibration in tuned.calibrations],
            "measured": [asdict(c) | {"error": c.error} for c in comparisons],
        }
        for tuned, comparisons in results
    }


def _present(results: Results, output: Path, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_as_dict(results), indent=2))
        return
    from selfspec.cli.console import terminal

    console = terminal()
    console.print(_table(results))
    for tuned, comparisons in results:
        if not all(c.counts_equal for c in comparisons):
            console.print(
                f"{tuned.profile.workload}: a real run's rounds differ from the replay", style="red"
            )
    console.print(f"saved {output}/tune.json and a plot per workload", style="dim", highlight=False)


def _table(results: Results) -> Table:
    from rich.table import Table

    from selfspec.tuning.plots import described

    table = Table(title="chosen settings", title_justify="left", caption_justify="left")
    table.caption = (
        "tokens/s without prefill; interval: bootstrap over prompts; measured: beside its prediction"
    )
    for title in ("workload", "setting", "tokens/s", "over AR", "acceptance length", "measured", "seconds"):
        table.add_column(title, justify="left" if title in ("workload", "setting") else "right")
    for tuned, comparisons in results:
        prediction = tuned.profile.prediction
        low, high = prediction["speedup_interval"]
        first = comparisons[0] if comparisons else None
        table.add_row(
            tuned.profile.workload,
            described(tuned.profile.setting),
            f"{prediction['tokens_per_second']:.1f}",
            f"{prediction['speedup']:.2f} ({low:.2f}-{high:.2f})",
            f"{prediction['acceptance_length']:.2f}",
            "" if first is None else f"{first.measured:.1f} / {first.predicted:.1f}",
            f"{sum(tuned.seconds.values()):.1f}",
        )
    return table
