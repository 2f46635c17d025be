"""Every draft strategy on a model trained for early exit and on its plain twin, as they are and inflated.

    python benchmarks/strategies.py
    python benchmarks/strategies.py --only reference --shape none --prompts 4
    python benchmarks/strategies.py --dtype float32 --output benchmarks/results/float32

An inflated model (see inflate.py) has the text and the acceptance of the small one, and passes that cost
what the large shape costs. Each of the eight cases is one interleaved run; each is saved as soon as it is
there, and --resume goes on after the last. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from inflation import exit_layer_of, inflate
from strategies_page import AR_ONE_ROW, AUTO, TREE, fastest_ar, save, table
from tiling import SHAPES

from layer_skip.decoder import LayeredDecoder
from layer_skip.low_bit import LowBitView, fastest_bits
from selfspec.benchmarking.contenders import AR, EARLY_EXIT, GENERATE, LOOKUP, Contender, bind
from selfspec.benchmarking.measure import Workload
from selfspec.benchmarking.prompts import bundled_prompts, read_prompts, tokenized
from selfspec.benchmarking.render import markdown_table
from selfspec.benchmarking.session import run_comparison
from selfspec.cli.loading import Loaded, load
from selfspec.cli.progress import progress_bar
from selfspec.tuning.costs import WIDTHS, time_passes
from selfspec.tuning.trees import find_tree

RESULTS = Path(__file__).parent / "results"
_FOR_TREE = 4
"""Prompts, after those that are measured, along which the static tree is found."""
_DEEPEST_TREE = 8
SIBLINGS = {"draft": "low_bit", "tree": "siblings"}


@dataclass(frozen=True)
class Case:
    """One run: a model, a shape to inflate it to, and how to decode."""

    model: str
    shape: str | None
    temperature: float | None

    @property
    def name(self) -> str:
        decoding = "greedy" if self.temperature is None else f"temperature {self.temperature:g}"
        size = "as it is" if self.shape is None else f"inflated to {self.shape}"
        return f"{self.model}, {size}, {decoding}"


def contenders(exit_layer: int, found: Mapping[str, Any] = SIBLINGS) -> tuple[Contender, ...]:
    """Who is measured.

    Args:
        exit_layer: where a model that was trained for it exits.
        found: settings of drafts by the static tree that was found for this case.
    """
    free = {"deterministic": False}
    return (
        Contender(GENERATE, "the model's own generate"),
        Contender(AR, "the engine without drafts, passes padded to bit-equal shapes", {"draft_length": 0}),
        Contender(AR_ONE_ROW, "the same without padding", {"draft_length": 0, **free}, baseline=AR_ONE_ROW),
        Contender("early exit", "the first layers as they are", {"draft": "early_exit"}),
        Contender("low bit", "layers and head in few bits", {"draft": "low_bit"}),
        Contender(
            "low bit, siblings",
            "a second candidate beside each token of the chain",
            SIBLINGS,
        ),
        Contender(TREE, "the best static tree, found by dynamic programming", found),
        Contender("lookup", "a suffix automaton over the text so far", {"draft": "lookup"}),
        Contender("hybrid", "lookup, then low bit", {"draft": "hybrid"}),
        Contender(AUTO, "the default: measures and chooses", {}),
        Contender(
            EARLY_EXIT,
            f"built into transformers, E = {exit_layer}",
            arguments={"assistant_early_exit": exit_layer},
            max_rows=1,
        ),
        Contender(LOOKUP, "built into transformers", arguments={"prompt_lookup_num_tokens": 10}, max_rows=1),
    )


def costs(model: Any) -> dict[str, Any]:
    """What passes cost in plain steps: verification by width, draft steps by exit layer and by width.

    Numbers are texts where they are keys, as JSON will have them.
    """
    decoder = LayeredDecoder(model)
    n_layers = decoder.n_layers
    view = LowBitView(decoder, n_layers, fastest_bits(decoder))
    exact, low = time_passes(decoder), time_passes(view.of(decoder))
    step = exact.seconds(n_layers, 1)
    return {
        "layers": n_layers,
        "step_seconds": step,
        "exit_step": {str(e): exact.seconds(e, 1) / step for e in range(1, n_layers)},
        "view_step": {str(e): low.seconds(e, 1) / step for e in range(1, n_layers + 1)},
        "verify": {str(m): exact.seconds(n_layers, m) / step for m in WIDTHS},
        "low_bit_step": {str(m): low.seconds(n_layers, m) / step for m in WIDTHS},
        "view_bytes": view.bytes,
        "view_share": view.bytes / view.viewed_bytes,
    }


def with_found_tree(
    model: Any, exit_layer: int, prompts: Sequence[Sequence[int]], workload: Workload
) -> dict[str, Any]:
    """Settings that draft by the best static tree for this model and way of decoding."""
    fixed = {"draft": "low_bit", "exit_layer": exit_layer}
    siblings = {**SIBLINGS, **fixed, "draft_length": _DEEPEST_TREE}
    bound = bind(model, Contender(TREE, "", siblings))
    ids = [torch.tensor([prompt]) for prompt in prompts]
    tree = find_tree(bound, ids, generate_arguments=workload.arguments())
    return {**fixed, "tree": tree, "draft_length": tree.depth}


def measure(case: Case, loaded: Loaded, model: Any, options: argparse.Namespace) -> dict[str, Any]:
    """One case: all contenders interleaved, and the costs of this model's passes."""
    trained_exit = 3 if case.shape is None else exit_layer_of(SHAPES[case.shape], 3)
    texts, count = read_prompts(bundled_prompts()), options.prompts
    ids = tokenized(loaded.tokenizer, texts, options.prompt_tokens, count + _FOR_TREE)
    workload = Workload(new_tokens=options.new_tokens, temperature=case.temperature, warm_up=1)
    described = {"model": case.name, "prompts": "benchmarks/prompts/code.jsonl"}
    names = options.contenders or [c.name for c in contenders(trained_exit)]
    found = SIBLINGS
    if TREE in names:
        exit_layer = trained_exit if case.model == "reference" else model.config.num_hidden_layers
        found = with_found_tree(model, exit_layer, ids[count:], workload)
    chosen = {c.name: c for c in contenders(trained_exit, found) if c.name in names}
    ids = ids[:count]
    with progress_bar(True) as advance:
        report = run_comparison(model, list(chosen.values()), ids, workload, loaded.pad, described, advance)
    print(f"\n{case.name}\n{markdown_table(report)}", flush=True)
    data = report.as_dict() | {"fastest_ar": fastest_ar(report), "costs": costs(model)}
    if AUTO in chosen:
        data["costs"]["auto_view_bytes"] = report.line(AUTO).view_bytes
    return data | {"tree": str(found["tree"]), "table": markdown_table(report)}


def cases(options: argparse.Namespace) -> Iterator[tuple[Case, Loaded, Any]]:
    """Every case with its model; an inflated model is made once for both ways of decoding."""
    folders = {"reference": None, "plain twin": options.twin}
    for name, folder in folders.items():
        if options.only not in (None, name):
            continue
        loaded = load(folder, options.dtype, "cpu", options.threads)
        shapes = [None] * (not options.skip_small) + [options.shape] * (options.shape != "none")
        for shape in shapes:
            model = loaded.model if shape is None else inflate(loaded.model, SHAPES[shape])
            for temperature in (None, 0.8):
                yield Case(name, shape, temperature), loaded, model
            del model
            gc.collect()


def arguments() -> argparse.Namespace:
    """The command line; the defaults are what the README shows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    twin = Path(__file__).parent / "plain_twin"
    parser.add_argument("--twin", default=str(twin), help="folder of the plain twin")
    parser.add_argument("--only", choices=("reference", "plain twin"), help="one of the two models")
    parser.add_argument("--shape", default="1b", choices=(*SHAPES, "none"), help="large shape, or none")
    names = [contender.name for contender in contenders(1)]
    needed = {GENERATE, AR, AR_ONE_ROW}
    parser.add_argument(
        "--contenders", nargs="*", choices=names, metavar="NAME", help=f"some of: {', '.join(names)}"
    )
    parser.add_argument("--skip-small", action="store_true", help="inflated models only")
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--resume", action="store_true", help="keep the cases that are there already")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.contenders and not needed <= {*options.contenders}:
        parser.error(f"--contenders needs {', '.join(sorted(needed))}: the others are compared with them")
    return options


def main() -> int:
    """Measure every case, save, print."""
    options = arguments()
    stored = options.output / "strategies.json"
    results: dict[str, dict[str, Any]] = (
        json.loads(stored.read_text()) if options.resume and stored.exists() else {}
    )
    for case, loaded, model in cases(options):
        if case.name not in results:
            results[case.name] = {"case": asdict(case), **measure(case, loaded, model, options)}
            save(results, options.output)
    print(table(results))
    return 0


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    sys.exit(main())
