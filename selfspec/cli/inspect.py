"""`selfspec inspect`: what a model is made of and how well its exits speak for it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from selfspec.cli import options
from selfspec.cli.progress import progress_bar

if TYPE_CHECKING:
    from rich.table import Table

    from selfspec.benchmarking.anatomy import Anatomy


def command(
    model: options.Model = None,
    prompts: options.Prompts = None,
    limit: options.Limit = 20,
    prompt_tokens: options.PromptTokens = None,
    output: options.Output = options.RESULTS,
    as_json: options.Json = False,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    threads: options.Threads = None,
    families: Annotated[
        bool, typer.Option("--families", help="List the model families instead: supported, or why not.")
    ] = False,
) -> None:
    """Show family, layers, sizes, the cost of the head, and every exit's agreement with the full model.

    Agreement is read along the prompts' own text, token by token. The predicted speed takes it for the chance
    that a draft token is accepted.

    Example: `selfspec inspect --model ./my-model --prompts prompts.jsonl`
    """
    if families:
        _print_families(as_json)
        return
    from selfspec.benchmarking.anatomy import dissect, plot_exits
    from selfspec.benchmarking.prompts import bundled_prompts, read_prompts, tokenized
    from selfspec.cli.loading import load
    from selfspec.files import prepare_folder, write_whole

    prepare_folder(output)
    texts = read_prompts(prompts or bundled_prompts())
    loaded = load(model, dtype, device, threads)
    ids = tokenized(loaded.tokenizer, texts, prompt_tokens, limit)
    with progress_bar(not as_json) as advance:
        anatomy = dissect(loaded.model, ids, advance)
    source = prompts.name if prompts else "bundled code prompts"
    text = json.dumps({"model": loaded.name, "prompts": source, **anatomy.as_dict()}, indent=2)
    write_whole(output / "inspect.json", text + "\n")
    write_whole(output / "inspect.png", plot_exits(anatomy))
    if as_json:
        print(text)
        return
    _print(anatomy, loaded.name, source)
    print(f"saved {output / 'inspect'}.json and .png")


def _print_families(as_json: bool) -> None:
    from rich.table import Table

    from layer_skip.support_matrix import support_matrix
    from selfspec.cli.console import terminal

    matrix = support_matrix()
    if as_json:
        print(json.dumps([asdict(row) for row in matrix], indent=2))
        return
    table = Table("family", "supported", "attention", "notes")
    for row in matrix:
        table.add_row(row.family, "yes" if row.supported else "no", row.attention, row.notes)
    terminal().print(table)
    print("A family without a row is tried by its structure, and accepted if the wrap-time check passes.")


def _print(anatomy: Anatomy, name: str, source: str) -> None:
    from selfspec.cli.console import terminal

    console = terminal()
    console.print(_sizes(anatomy, name))
    console.print(_exits(anatomy, source))


def _sizes(anatomy: Anatomy, name: str) -> Table:
    from rich.table import Table

    table = Table(title=name, title_justify="left", show_header=False)
    rows = {
        "family": anatomy.family,
        "layers": f"{anatomy.layers}, of {anatomy.layer_parameters:,} parameters each",
        "hidden size": f"{anatomy.hidden_size}, {anatomy.heads} heads, {anatomy.key_value_heads} for K/V",
        "vocabulary": f"{anatomy.vocabulary:,}",
        "positions": "no limit" if anatomy.positions is None else f"{anatomy.positions:,}",
        "parameters": f"{anatomy.parameters:,} ({anatomy.weight_bytes / 1e6:,.1f} MB in {anatomy.dtype})",
        "self-check": f"{anatomy.check_seconds:.2f} s, off by {anatomy.check_difference:.1g} of a logit",
        "KV cache": f"{anatomy.cache_bytes_per_token:,} bytes a token",
        "one layer, one token": f"{anatomy.layer_seconds * 1e3:.3f} ms",
        "head, one token": f"{anatomy.head_seconds * 1e3:.3f} ms: η = {anatomy.head_cost:.2f} layers",
    }
    for label, value in rows.items():
        table.add_row(label, value)
    return table


def _exits(anatomy: Anatomy, source: str) -> Table:
    from rich.table import Table

    table = Table(
        title=f"exits, on {anatomy.positions_read:,} positions of {source}",
        title_justify="left",
        caption="best K and speed: predicted by the cost model, in times AR",
        caption_justify="left",
    )
    for title in ("exit layer E", "agreement", "best K", "predicted speed"):
        table.add_column(title, justify="right")
    fastest = max(anatomy.exits, key=lambda e: e.speedup)
    for exit_ in anatomy.exits[:-1]:
        table.add_row(
            str(exit_.exit_layer),
            f"{exit_.agreement:.3f}",
            str(exit_.draft_length),
            f"{exit_.speedup:.2f}",
            style="bold" if exit_ is fastest and exit_.speedup > 1 else None,
        )
    return table
