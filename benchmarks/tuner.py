"""How good the tuner is: its predictions and choices against exhaustive real runs, and its own time.

    python benchmarks/tuner.py

For each workload (code, prose, repetitive text): tune on some prompts; run every (E, K) of a grid for real on
others, interleaved; then say how far predictions are off, how far the chosen setting is from the best, what
tuning took beside the sweep, and whether settings per workload beat the best single one. Last, a model with
useless exits against AR, and the controller's own time. Writes tuner.json and tuner.md beside the other
results. Run it on a machine that does nothing else; it takes about 45 minutes there.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

import selfspec
from selfspec.benchmarking.environment import conditions
from selfspec.benchmarking.prompts import bundled_prompts, read_prompts, tokenized
from selfspec.cli.loading import Loaded, load
from selfspec.files import write_whole
from selfspec.stats import Stats
from selfspec.tuning.controller import Controller, RoundCosts
from selfspec.tuning.record import record
from selfspec.tuning.replay import Setting
from selfspec.tuning.tune import Tuned, tune
from selfspec.tuning.validate import Comparison, compare, round_speed, run_setting

HERE = Path(__file__).parent
RESULTS = HERE / "results"
GREEDY: dict[str, Any] = {"do_sample": False}
SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 0.8, "top_k": 0, "top_p": 1.0}


def workloads(loaded: Loaded, count: int) -> dict[str, tuple[list[list[int]], dict[str, Any]]]:
    """Prompts [2 * count] and sampling arguments of each workload: one half tunes, the other is run."""
    code = tokenized(loaded.tokenizer, read_prompts(bundled_prompts()), 128, 2 * count)
    prose = tokenized(loaded.tokenizer, read_prompts(HERE / "prompts" / "mt_bench.jsonl"), None, None)
    # A passage said over and over, which a model goes on with.
    repetitive = [(prompt[:16] * 6)[:96] for prompt in code]
    return {
        "code": (code, GREEDY),
        "code, temperature 0.8": (code, SAMPLED),
        "prose": ([prompt[:128] for prompt in prose[: 2 * count]], SAMPLED),
        "repetitive": (repetitive, GREEDY),
    }


def grid(n_layers: int) -> list[Setting]:
    """What is run for real: AR, and every fourth of the exits with a few lengths."""
    exits = sorted({1, 2, 3, 4, 6, 8, n_layers - 1} & set(range(1, n_layers)))
    return [Setting(1, 0), *(Setting(e, k) for e in exits for k in (1, 2, 3, 4, 6, 8, 12))]


def judge(
    loaded: Loaded, name: str, prompts: list[list[int]], arguments: dict[str, Any], options: Any
) -> tuple[Tuned, list[Comparison], dict[str, Any]]:
    """Tune on one half, run everything on the other, and compare."""
    half = len(prompts) // 2
    began = time.perf_counter()
    tuned = tune(
        loaded.model,
        prompts[:half],
        workload=name,
        max_new_tokens=options.new_tokens,
        generate_arguments=arguments,
    )
    tuning_seconds = time.perf_counter() - began
    settings = list(dict.fromkeys([tuned.profile.setting, *grid(tuned.profile.costs.n_layers)]))
    first = 0 if options.same_prompts else half
    others = prompts[first : first + options.run_prompts]
    held_out = record(loaded.model, others, max_new_tokens=options.new_tokens, generate_arguments=arguments)
    began = time.perf_counter()
    comparisons = compare(
        loaded.model,
        others,
        held_out,
        tuned.profile.costs,
        settings,
        repeats=options.repeats,
        generate_arguments=arguments,
    )
    # The sweep that tuning replaces runs each setting once on each of the tuning prompts.
    sweep_seconds = (time.perf_counter() - began) / options.repeats * half / len(others)
    best = max(comparisons, key=lambda c: c.measured)
    summary = {
        "chosen": str(tuned.profile),
        "median_error": statistics.median(abs(c.error) for c in comparisons),
        "worst_error": max(abs(c.error) for c in comparisons),
        "machine_spread": statistics.median(c.spread for c in comparisons),
        "chosen_over_best": comparisons[0].measured / best.measured,
        "best": [best.setting.exit_layer, best.setting.draft_length],
        "speedup_measured": comparisons[0].measured / _plain(comparisons),
        "counts_equal": all(c.counts_equal for c in comparisons if c.setting.rule is None),
        "tuning_seconds": tuning_seconds,
        "tuning_parts": dict(tuned.seconds),
        "sweep_seconds": sweep_seconds,
        "sweep_over_tuning": sweep_seconds / tuning_seconds,
    }
    return tuned, comparisons, summary


def _plain(comparisons: list[Comparison]) -> float:
    return next(c.measured for c in comparisons if not c.setting.draft_length)


def single_setting(judged: dict[str, list[Comparison]]) -> dict[str, Any]:
    """The best fixed setting for all workloads together, and each workload's own choice beside it."""
    speed = {
        name: {(c.setting.exit_layer, c.setting.draft_length): c.measured for c in comparisons}
        for name, comparisons in judged.items()
    }
    common = set.intersection(*(set(own) for own in speed.values()))
    # Harmonic mean of speeds over AR: as much text of each workload.
    best = max(common, key=lambda key: 1 / sum(_plain(judged[n]) / own[key] for n, own in speed.items()))
    gains = {name: comparisons[0].measured / speed[name][best] for name, comparisons in judged.items()}
    return {"single": list(best), "tuned_over_single": gains}


def useless_exits(loaded: Loaded, prompts: list[list[int]], new_tokens: int, repeats: int) -> float:
    """Speed over AR, everything on, of the bundled shape with random weights: median of paired runs."""
    config = copy.deepcopy(loaded.model.config)
    config.tie_word_embeddings = False
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model: Any = type(loaded.model)(config)
        # As it is initialised, a model repeats one token and all its exits agree on it: draw larger weights.
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.normal_(std=2 * module.in_features**-0.5)
            elif isinstance(module, torch.nn.Embedding):
                module.weight.normal_()
        model = model.to(loaded.model.dtype).eval()
    tuned = tune(model, prompts, workload="useless", max_new_tokens=new_tokens)
    selfspec.wrap(model, profile=tuned.profile)
    ratios = []
    for _ in range(repeats):
        for prompt in prompts:
            plain = run_setting(model, [prompt], Setting(1, 0), max_new_tokens=new_tokens, eos_token_id=None)
            ids = torch.tensor([prompt])
            model.generate(ids, max_new_tokens=new_tokens, do_sample=False, eos_token_id=None, pad_token_id=0)
            stats: Stats = model.speculation.stats
            ratios.append(round_speed(stats) / round_speed(plain))
    return statistics.median(ratios)


def controller_share(tuned: Tuned) -> float:
    """The controller's decisions, as a share of the chosen setting's round."""
    profile = tuned.profile
    costs = RoundCosts.of(profile.costs, sorted(profile.acceptance), 12, 1, profile.context, False)
    deciding = Controller(costs, profile.acceptance, 12, profile.setting.exit_layer)
    began = time.perf_counter()
    for i in range(1000):
        plan = deciding.plan()
        deciding.tell_drafted(plan.draft_length, min(i % 5, plan.draft_length))
    seconds = (time.perf_counter() - began) / 1000
    setting = profile.setting
    round_seconds = profile.costs.round_seconds(
        setting.exit_layer, setting.draft_length, context=profile.context
    )
    return seconds / float(round_seconds)


def page(results: dict[str, Any]) -> str:
    """The page of results."""
    rows = [
        ("median error of predicted tokens/s (target 5%)", "median_error", ".1%"),
        ("worst error", "worst_error", ".1%"),
        ("the machine's own spread between repeats", "machine_spread", ".1%"),
        ("chosen setting over the best of the sweep (target 0.97)", "chosen_over_best", ".3f"),
        ("measured speed over AR", "speedup_measured", ".2f"),
        ("tuning, seconds (target 30)", "tuning_seconds", ".1f"),
        ("sweep / tuning (target 20)", "sweep_over_tuning", ".1f"),
    ]
    names = list(results["workloads"])
    lines = ["# The tuner, against real runs", "", "Conditions: " + json.dumps(results["conditions"]), ""]
    lines += ["| | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for title, key, form in rows:
        cells = [format(results["workloads"][name][key], form) for name in names]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    gains = results["single"]["tuned_over_single"]
    lines.append(
        f"| tuned over the best single setting {results['single']['single']} | "
        + " | ".join(f"{gains[name]:.3f}" for name in names)
        + " |"
    )
    lines += ["", *(f"- {results['workloads'][name]['chosen']}" for name in names), ""]
    equal = all(results["workloads"][name]["counts_equal"] for name in names)
    lines += [
        f"- rounds and accepted counts equal to the replay's in every run: {equal}",
        f"- a model with useless exits, everything on, over AR (target 0.97): {results['useless']:.3f}",
        f"- the controller's decisions, share of a round (target 1%): {results['controller_share']:.2%}",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure, save, print; 1 when a replay was not exact."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=32, help="to tune on")
    parser.add_argument("--run-prompts", type=int, default=8, help="other ones, for the sweep")
    parser.add_argument("--same-prompts", action="store_true", help="sweep over prompts that were tuned on")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    loaded = load(None, "bfloat16", "cpu", options.threads)
    loaded.model.generation_config.eos_token_id = None
    results: dict[str, Any] = {"conditions": conditions(loaded.model) | vars(options), "workloads": {}}
    results["conditions"]["output"] = str(options.output.name)
    judged, tuned = {}, None
    for name, (prompts, arguments) in workloads(loaded, options.prompts).items():
        tuned, judged[name], results["workloads"][name] = judge(loaded, name, prompts, arguments, options)
        print(name, json.dumps(results["workloads"][name], indent=1), flush=True)
    if tuned is None:
        return 1
    results["single"] = single_setting(judged)
    few = workloads(loaded, 4)["code"][0]
    results["useless"] = useless_exits(loaded, few, options.new_tokens, options.repeats)
    results["controller_share"] = controller_share(tuned)
    results["runs"] = {
        name: [
            [c.setting.exit_layer, c.setting.draft_length, c.predicted, c.measured, c.spread] for c in found
        ]
        for name, found in judged.items()
    }
    write_whole(options.output / "tuner.json", json.dumps(results, indent=1) + "\n")
    write_whole(options.output / "tuner.md", page(results))
    print(page(results))
    return int(not all(found["counts_equal"] for found in results["workloads"].values()))


if __name__ == "__main__":
    sys.exit(main())
