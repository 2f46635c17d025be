"""How good the tuner is: its predictions and choices against exhaustive real runs, and its own time.

    python benchmarks/tuner.py
    python benchmarks/tuner.py --only prose
    python benchmarks/tuner.py --dtype float32 --output DIR

Parts, each saved as soon as it is there: one per workload (code, prose and repetitive text, all greedy, and
code sampled), where every early exit, the recorded exits of the low-bit view, and every draft length run for
real; then settings per workload against the best single one; a model with useless exits; and the controller's
own time. --only runs the parts whose names hold a text and keeps the others; --resume goes on after the last;
both refuse to go on with results in another dtype. Writes tuner.json and tuner.md beside the other results.
Run it on a machine that does nothing else; it takes about 25 minutes on two cores.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tuner_bench import GREEDY, SAMPLING, Bench
from tuner_page import TEXTS, WORKLOADS, outcome, page, reached, row
from tuner_races import deciding, over_ar, random_twin, single_setting

import selfspec
from selfspec.benchmarking.statistics import distinct_ngrams, spread
from selfspec.tuning.recording import Recording
from selfspec.tuning.replay import Setting
from selfspec.tuning.search import search
from selfspec.tuning.tune import tune
from selfspec.tuning.validate import compare

RESULTS = Path(__file__).parent / "results"
OTHERS = ("single setting", "useless exits", "controller")
LENGTHS = (1, 2, 3, 4, 5, 6, 8, 12)
CALL = 128
"""New tokens of the calls that are measured whole."""
FINALISTS = 12
"""Settings of the sweep that run again, on more prompts and more than once."""


def grid(recording: Recording) -> list[Setting]:
    """What is run for real: AR, and every arm with draft lengths up to the longest that is searched."""
    ways = ((arm, k) for arm in recording.arms for k in LENGTHS if k <= (recording.longest(arm) or k))
    return [Setting(1, 0), *(Setting.by(arm, k) for arm, k in ways)]


def judge(bench: Bench, workload: str) -> dict[str, Any]:
    """Tune; run every setting on a few other prompts, and the fastest again on more; compare."""
    began = time.perf_counter()
    tuned = bench.tune(workload)
    tuning_seconds = time.perf_counter() - began
    prompts, costs = bench.prompts(workload)[1], tuned.profile.costs
    common: dict[str, Any] = {"generate_arguments": SAMPLING[workload]}
    recording = bench.record(prompts, tuned.recording.arms, **common)
    # What the tuner chooses for these very prompts: the sweep's best is the best for them.
    own = search(recording, costs, siblings=tuned.options.may_branch(bench.model.dtype)).setting
    few = bench.options.sweep_prompts
    began = time.perf_counter()
    swept = compare(
        bench.engine,
        prompts[:few],
        recording.of_prompts(range(few)),
        costs,
        grid(recording),
        repeats=1,
        **common,
    )
    sweep_seconds = (
        (time.perf_counter() - began) * tuned.recording.n_tokens / (few * bench.options.new_tokens)
    )
    fastest = sorted(swept, key=lambda c: -c.measured)[:FINALISTS]
    finalists = list(
        dict.fromkeys([own, tuned.profile.setting, Setting(1, 0), *(c.setting for c in fastest)])
    )
    finals = compare(
        bench.engine, prompts, recording, costs, finalists, repeats=bench.options.repeats, **common
    )
    return {
        "profile": tuned.profile.as_dict(),
        "chosen": str(tuned.profile),
        "draft": tuned.profile.setting.draft,
        **outcome(tuned.profile.setting, own, swept, finals),
        "distinct_3grams": distinct_3grams(recording),
        "tuning_seconds": tuning_seconds,
        "tuning_parts": dict(tuned.seconds),
        "sweep_seconds": sweep_seconds,
        "sweep_over_tuning": sweep_seconds / tuning_seconds,
        "sweep": [row(c) for c in swept],
        "finals": [row(c) for c in finals],
    }


def distinct_3grams(recording: Recording) -> float:
    """Share of distinct 3-grams in a text, on average: whatever drafts, runs write the texts recorded."""
    texts = zip(recording.tokens.tolist(), recording.lengths.tolist(), strict=True)
    return statistics.fmean(distinct_ngrams(tokens[:length]) for tokens, length in texts)


def single(bench: Bench) -> dict[str, Any]:
    """Settings per workload against one for all; needs what the sweeps of the workloads found."""
    missing = [name for name in TEXTS if name not in bench.results]
    if missing:
        raise SystemExit(f"{OTHERS[0]}: run the workloads {', '.join(missing)} first")
    return single_setting(
        bench.engine,
        {
            name: {
                Setting(e, k, draft=draft): speed
                for draft, e, k, _, _, speed, _ in bench.results[name]["sweep"]
            }
            for name in TEXTS
        },
        {name: bench.profile(name) for name in TEXTS},
        {name: bench.prompts(name)[1] for name in TEXTS},
        bench.options.repeats,
        **GREEDY,
        max_new_tokens=bench.options.new_tokens,
    )


def useless(bench: Bench) -> dict[str, Any]:
    """A model with useless exits against AR, with everything on."""
    twin = random_twin(bench.model)
    tuning, others = bench.prompts("code")
    view = selfspec.wrap(twin, profile=[]).speculation.view
    selfspec.unwrap(twin)
    profile = tune(twin, tuning[:8], workload="useless", view=view).profile
    ways: dict[str, dict[str, Any]] = {
        "profile": {"profile": profile},
        "early exit": {"draft": "early_exit", "profile": []},
        "auto": {"profile": []},
    }
    found = over_ar(twin, ways, others, bench.options.repeats, **GREEDY, max_new_tokens=CALL)
    return {
        "chosen": str(profile),
        "over_ar": {name: spread(own).as_dict() for name, own in found.items()},
    }


def controller(bench: Bench) -> dict[str, Any]:
    """The controller's own time."""
    return {
        "workloads": {
            name: deciding(
                bench.model, bench.profile(name), bench.prompts(name)[1], **GREEDY, max_new_tokens=CALL
            )
            for name in TEXTS
        }
    }


def arguments() -> argparse.Namespace:
    """The command line; the defaults are what the page shows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="only parts whose name has this; the others are kept")
    parser.add_argument("--resume", action="store_true", help="keep the parts that are there already")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=32, help="to tune on")
    parser.add_argument("--sweep-prompts", type=int, default=2, help="others, for the sweep of all settings")
    parser.add_argument("--run-prompts", type=int, default=8, help="others, for its finalists")
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args()


def main() -> int:
    """Measure, save, print; 1 when a target is missed or a replay was not exact."""
    options = arguments()
    bench = Bench(options)
    parts: dict[str, Callable[[Bench], dict[str, Any]]] = {
        **{name: partial(judge, workload=name) for name in WORKLOADS},
        **dict(zip(OTHERS, (single, useless, controller), strict=True)),
    }
    for name, part in parts.items():
        if options.only not in name or (options.resume and name in bench.results):
            continue
        began = time.perf_counter()
        bench.save(name, part(bench))
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
    print(page(bench.results))
    return int(not reached(bench.results))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    sys.exit(main())
