"""Where the time of a round goes, what lookup takes in a long text, and what wrapping adds to memory.

    python benchmarks/round_profile.py
    python benchmarks/round_profile.py --only lookup

The model's modules (embedding, layers, norm, head) against the engine's own work: masks, logits processing,
choosing and accepting, committing. Writes round_profile.json and round_profile.md beside the other results;
--only lookup keeps the rest of them. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from targets import verdict

import selfspec
from layer_skip.decoder import LayeredDecoder
from selfspec import engine
from selfspec.benchmarking.environment import conditions, hardware
from selfspec.benchmarking.prompts import bundled_prompts, read_prompts, tokenized
from selfspec.call import Call
from selfspec.cli.loading import load
from selfspec.drafting import Lookup
from selfspec.drafting.lookup import LONGEST_FOUND, MatchRates
from selfspec.drafting.margins import MarginStop
from selfspec.files import write_whole
from selfspec.modes import Coupled, Greedy
from selfspec.processing import Processors
from selfspec.rows import Rows

RESULTS = Path(__file__).parent / "results"
MODULES = {
    (LayeredDecoder, "embed"): "embedding",
    (LayeredDecoder, "run"): "layers",
    (LayeredDecoder, "logits"): "head",
}
ENGINE = {
    (Call, "span"): "positions, rotary angles, masks",
    (Processors, "__call__"): "logits processing",
    (Lookup, "find"): "lookup",
    (MarginStop, "open"): "margins",
    (MarginStop, "going"): "margins",
    (Greedy, "candidates"): "choosing",
    (Coupled, "candidates"): "choosing",
    (Greedy, "noisy"): "choosing",
    (Coupled, "noisy"): "choosing",
    (Greedy, "accept"): "accepting",
    (Coupled, "accept"): "accepting",
    (Coupled, "open"): "noise",
    (engine, "commit"): "committing",
}
SHARE_LIMIT = 0.15
"""The engine's own work may take this share of a round."""
LONG_TEXT = 100_000
LOOKUP_TARGET = 50e-6
"""Seconds that lookup should take a round after so many tokens."""


@contextmanager
def timed(places: dict[tuple[Any, str], str], seconds: dict[str, float]) -> Iterator[None]:
    """Add up the time spent in each place, outermost call only."""
    depth = [0]

    def wrapper(original: Callable[..., Any], label: str) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            if depth[0]:
                return original(*arguments, **keywords)
            depth[0] = 1
            began = time.perf_counter()
            try:
                return original(*arguments, **keywords)
            finally:
                seconds[label] += time.perf_counter() - began
                depth[0] = 0

        return call

    originals = {place: getattr(*place) for place in places}
    try:
        for place, label in places.items():
            setattr(*place, wrapper(originals[place], label))
        yield
    finally:
        for place, original in originals.items():
            setattr(*place, original)


def profile(model: Any, prompts: list[torch.Tensor], sampled: bool, new_tokens: int) -> dict[str, Any]:
    """Seconds per round by place, over all prompts."""
    sampling = {"do_sample": True, "temperature": 0.8, "top_k": 0} if sampled else {"do_sample": False}
    seconds: dict[str, float] = defaultdict(float)
    rounds, whole = 0, 0.0
    model.generate(prompts[0], max_new_tokens=new_tokens, eos_token_id=None, **sampling)
    for prompt in prompts:
        inside: dict[str, float] = defaultdict(float)
        with timed(MODULES | ENGINE, inside):
            model.generate(prompt, max_new_tokens=new_tokens, eos_token_id=None, **sampling)
        stats = model.speculation.stats
        rounds += stats.rounds
        # Prefill runs through the same modules; a round is what is left.
        whole += stats.round_seconds
        for label, spent in inside.items():
            seconds[label] += spent - (stats.prefill_seconds if label == "layers" else 0.0)
    modules = sum(seconds[label] for label in MODULES.values())
    return {
        "round_milliseconds": 1e3 * whole / rounds,
        "milliseconds": {label: 1e3 * spent / rounds for label, spent in seconds.items()},
        "engine_share": 1 - modules / whole,
        "drafts": stats.drafts,
    }


def memory(model: Any, prompt: torch.Tensor, new_tokens: int) -> dict[str, int]:
    """Bytes of parameters and buffers before and after wrap, of the view, and of one call's K/V cache."""

    def held() -> int:
        tensors = {t.data_ptr(): t.nbytes for t in (*model.parameters(), *model.buffers())}
        return sum(tensors.values())

    before = held()
    selfspec.wrap(model)
    after = held()
    output = model.generate(prompt, max_new_tokens=new_tokens, return_dict_in_generate=True)
    layers = output.past_key_values.layers
    return {
        "weights_before_wrap": before,
        "weights_after_wrap": after,
        "low_bit_view": model.speculation.view.bytes if model.speculation.view else 0,
        "cache_of_one_call": sum(layer.keys.nbytes + layer.values.nbytes for layer in layers),
    }


def lookup_time(ids: list[list[int]], rounds: int = 512, tokens: int = 4) -> dict[str, Any]:
    """Seconds that lookup takes to read a long text, and a round after it in which `tokens` tokens came.

    Args:
        ids: prompts, which come again and again in the text.
    """
    dice = random.Random(0)
    text: list[int] = []
    new = (rounds + 1) * tokens
    while len(text) < LONG_TEXT + new:
        text += dice.choice(ids)
    prompt = torch.tensor([text[:LONG_TEXT]])
    rows = Rows.of_prompts(prompt, torch.ones_like(prompt), new, 0, eos_tokens=frozenset(), pad_token=0)
    call: Any = SimpleNamespace(rows=rows)
    lookup = Lookup(MatchRates())
    seconds = []
    for step in range(rounds + 1):
        began = time.perf_counter()
        lookup.find(call, LONGEST_FOUND)
        seconds.append(time.perf_counter() - began)
        rows.append(0, text[LONG_TEXT + step * tokens :][:tokens])
    on = hardware(torch.device("cpu"))
    return {"reading": seconds[0], "round": statistics.median(seconds[1:]), "hardware": on}


def table(results: dict[str, Any]) -> str:
    """The page of results."""
    lines = ["# Where a round's time goes", "", "Conditions: " + json.dumps(results["conditions"]), ""]
    for name in ("greedy", "temperature 0.8"):
        found = results[name]
        lines += [
            f"## {name}: {found['drafts']}, batch 1",
            "",
            "| part | ms a round |",
            "|---|---|",
            *(
                f"| {label} | {ms:.3f} |"
                for label, ms in sorted(found["milliseconds"].items(), key=lambda x: -x[1])
            ),
            f"| **round** | {found['round_milliseconds']:.3f} |",
            "",
            f"Outside the model's modules: {found['engine_share']:.1%} (limit {SHARE_LIMIT:.0%}).",
            "",
        ]
    reading, round_ = results["lookup"]["reading"], results["lookup"]["round"]
    outcome = verdict(1e6 * LOOKUP_TARGET, 1e6 * round_, most=True)
    lines += [
        f"## Lookup after {LONG_TEXT:,} tokens",
        "",
        f"- a round: {1e6 * round_:.0f} microseconds on {results['lookup']['hardware']}, {outcome}",
        f"- reading the text, once: {reading:.2f} s",
        "",
        "## Memory",
        "",
        *(f"- {name.replace('_', ' ')}: {size:,} bytes" for name, size in results["memory"].items()),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure, save, print; 1 when the engine's share is over its limit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=["lookup"], help="measure this alone; the rest is kept")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--exit-layer", type=int, default=None)
    parser.add_argument("--draft-length", type=int, default=None)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    loaded = load(None, "bfloat16", "cpu", options.threads)
    ids = tokenized(loaded.tokenizer, read_prompts(bundled_prompts()), 128, options.prompts)
    prompts = [torch.tensor([row]) for row in ids]
    saved = options.output / "round_profile.json"
    results: dict[str, Any] = json.loads(saved.read_text()) if options.only else {}
    if not options.only:
        results["memory"] = memory(loaded.model, prompts[0], options.new_tokens)
        settings = {"exit_layer": options.exit_layer, "draft_length": options.draft_length}
        given = {name: value for name, value in settings.items() if value is not None}
        selfspec.wrap(loaded.model, **given)
        for name, sampled in (("greedy", False), ("temperature 0.8", True)):
            results[name] = profile(loaded.model, prompts, sampled, options.new_tokens)
        results["conditions"] = conditions(loaded.model)
    results["lookup"] = lookup_time(ids)
    write_whole(saved, json.dumps(results, indent=1) + "\n")
    write_whole(options.output / "round_profile.md", table(results))
    print(table(results))
    shares = [results[name]["engine_share"] for name in ("greedy", "temperature 0.8")]
    return int(statistics.fmean(shares) > SHARE_LIMIT)


if __name__ == "__main__":
    sys.exit(main())
