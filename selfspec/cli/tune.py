"""`selfspec tune`: the best way to draft for each workload, kept where `wrap` finds it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from selfspec.cli import options
from selfspec.cli.errors import UserError
from selfspec.cli.progress import progress_bar
from selfspec.cli.tune_results import as_dict, better_branching, markdown_table, terminal_table

if TYPE_CHECKING:
    from selfspec.cli.tune_results import Results
    from selfspec.tuning.tune import Tuned
    from selfspec.tuning.validate import Comparison


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
    draft: Annotated[
        str,
        typer.Option(
            help="What to choose from: auto is early exits and, where it pays, a low-bit view; low_bit makes "
            "the view in any case; early_exit never does."
        ),
    ] = "auto",
    draft_memory: options.DraftMemory = None,
    siblings: Annotated[
        bool | None,
        typer.Option(
            help="Whether calls may draft second choices beside a chain. [default: in float32, where that "
            "cannot flip a near-tie]",
            show_default=False,
        ),
    ] = None,
    max_latency_ms: Annotated[
        float | None, typer.Option(help="Longest wait for one token, in milliseconds.")
    ] = None,
    max_memory: Annotated[
        str | None,
        typer.Option(help="Most working memory of a round beyond weights and K/V, such as 64MiB."),
    ] = None,
    output: options.Output = options.RESULTS,
    as_json: options.Json = False,
    temperature: options.Temperature = None,
    seed: options.Seed = 0,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    threads: options.Threads = None,
) -> None:
    """Record each workload once, time a few rounds, and choose how to draft: with which layers, and how far.

    Writes a profile per workload, and to the output folder tune.json, the table as tune.md and plots.

    Example: `selfspec tune --prompts code.jsonl --workload code --prompts chat.jsonl --workload chat`
    """
    from selfspec.benchmarking.prompts import bundled_prompts, read_prompts, tokenized
    from selfspec.cli.loading import load
    from selfspec.config import SpeculationConfig
    from selfspec.files import prepare_folder
    from selfspec.tuning.options import TuneOptions
    from selfspec.tuning.prediction import Limits
    from selfspec.tuning.tune import tune
    from selfspec.wrapping import wrap

    files = prompts or [bundled_prompts()]
    names = _names(files, workload, prompts is None)
    latency = None if max_latency_ms is None else max_latency_ms / 1e3
    asked = TuneOptions(
        max_new_tokens=max_new_tokens,
        batch=batch,
        limits=Limits(seconds_per_token=latency, bytes=_bytes(max_memory)),
        seed=seed,
        siblings=siblings,
        generate_arguments=_sampling(temperature),
    )
    settings: dict[str, Any] = {"draft": draft, "draft_memory": draft_memory, "profile": []}
    if SpeculationConfig.of(**settings).against_profiles not in ("", "draft='low_bit'"):
        raise UserError(
            f"draft={draft!r}: a profile drafts with layers; allowed are auto, early_exit, low_bit"
        )
    texts = [read_prompts(file) for file in files]
    prepare_folder(output)
    loaded = load(model, dtype, device, threads)
    targets = _targets(out, names, loaded.model)
    view = wrap(loaded.model, **settings).speculation.view
    results: Results = []
    with progress_bar(not as_json) as advance:
        for name, group, target in zip(names, texts, targets, strict=True):
            ids = tokenized(loaded.tokenizer, group, prompt_tokens, limit)
            tuned = tune(loaded.model, ids, workload=name, view=view, advance=advance, **vars(asked))
            results.append((tuned, _checked(tuned, check, advance)))
            _save(results, target, output)
    _present(results, output, as_json)


def _names(files: Sequence[Path], workloads: Sequence[str] | None, bundled: bool) -> list[str]:
    names = list(workloads or (["code"] if bundled else [file.stem for file in files]))
    if len(names) != len(files):
        raise UserError(f"{len(files)} --prompts but {len(names)} --workload: give one name per file")
    if len(set(names)) < len(names) or not all(name.strip() for name in names):
        raise UserError(f"--workload {', '.join(names)}: every workload needs a name of its own")
    return names


def _targets(out: Path | None, names: Sequence[str], model: Any) -> list[Path]:
    """A file for each workload, tried out."""
    from selfspec.files import prepare_file
    from selfspec.tuning.identity import Identity
    from selfspec.tuning.store import default_path, file_name

    if out is None:
        identity = Identity.of(model)
        targets = [default_path(identity, name) for name in names]
    elif len(names) == 1:
        targets = [out]
    else:
        targets = [out / file_name(name) for name in names]
    for target in targets:
        prepare_file(target)
    return targets


def _sampling(temperature: float | None) -> dict[str, Any]:
    if temperature is None:
        return {"do_sample": False}
    if temperature <= 0:
        raise UserError(f"temperature={temperature}: allowed is more than 0; leave it out for greedy")
    return {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}


def _bytes(max_memory: str | None) -> int | None:
    from selfspec.config import ConfigError, parse_bytes

    try:
        return parse_bytes(max_memory)
    except ConfigError as error:
        raise UserError(str(error).replace("draft_memory", "--max-memory")) from error


def _checked(tuned: Tuned, count: int, advance: Any) -> list[Comparison]:
    """The chosen setting, AR and a few others, predicted and measured on the first prompts."""
    from selfspec.tuning.replay import Setting
    from selfspec.tuning.validate import compare

    # Whole batches: what was predicted of prompts generated together is measured so.
    batch = tuned.options.batch
    count = min(-(-count // batch) * batch, len(tuned.prompts))
    if not count:
        return []
    ranked = sorted(tuned.found.surface, key=lambda cell: -cell[2])
    others = [Setting.by(arm, k) for arm, k, _ in ranked[:: max(len(ranked) // 4, 1)][:4]]
    # The fastest chain of each kind as well: what was chosen is seen beside what was not.
    firsts = {arm.low_bit: Setting.by(arm, k) for arm, k, _ in reversed(ranked)}
    chosen, branching = tuned.profile.setting, tuned.found.branching
    others = [*firsts.values(), *others, *([] if branching is None else [branching])]
    return compare(
        tuned.engine,
        tuned.prompts[:count],
        tuned.recording.of_prompts(range(count)),
        tuned.profile.costs,
        list(dict.fromkeys([chosen, Setting(1, 0), *others])),
        batch=batch,
        repeats=1,
        generate_arguments=tuned.options.generate_arguments,
        advance=advance,
    )


def _save(results: Results, target: Path, output: Path) -> None:
    """Keep the last result, and numbers and table of all so far: what comes next may be interrupted."""
    from selfspec.files import write_whole
    from selfspec.tuning.plots import plot
    from selfspec.tuning.store import file_name

    tuned, comparisons = results[-1]
    tuned.profile.save(target)
    picture = Path(file_name(tuned.profile.workload)).with_suffix(".png")
    write_whole(output / f"tune-{picture}", plot(tuned, comparisons))
    write_whole(output / "tune.json", json.dumps(as_dict(results), indent=1) + "\n")
    write_whole(output / "tune.md", markdown_table(results))


def _present(results: Results, output: Path, as_json: bool) -> None:
    if as_json:
        print(json.dumps(as_dict(results), indent=2))
        return
    from selfspec.cli.console import terminal

    console = terminal()
    console.print(terminal_table(results))
    for tuned, _ in results:
        if note := better_branching(tuned):
            console.print(note, highlight=False)
    for tuned, comparisons in results:
        # Branches stand at other places of the cache: in bf16 a near-tie may go the other way there.
        if not all(c.counts_equal for c in comparisons if c.setting.siblings == 1):
            console.print(
                f"{tuned.profile.workload}: a real run's rounds differ from the replay", style="red"
            )
    console.print(f"saved {output}/tune.json, tune.md and a plot per workload", style="dim", highlight=False)
