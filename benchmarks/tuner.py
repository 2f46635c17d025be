"""How good the tuner is: its predictions and choices against exhaustive real runs, and its own time.

    python benchmarks/tuner.py
    python benchmarks/tuner.py --only prose

Parts, each saved as soon as it is there: one per workload (code, prose and repetitive text, all greedy, and
code sampled), where every early exit, the recorded exits of the low-bit view, and every draft length run for
real; then settings per workload against the best
single one; a model with useless exits; and the controller's own time. --only runs the parts whose names hold
a text and keeps the others; --resume goes on after the last. Writes tuner.json and tuner.md beside the other
results. Run it on a machine that does nothing else; it takes about 25 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tuner_page import outcome, page, reached, row
from tuner_races import deciding, over_ar, random_twin, single_setting

import selfspec
from selfspec.benchmarking.environment import conditions
from selfspec.benchmarking.prompts import bundled_prompts, read_prompts, tokenized
from selfspec.benchmarking.statistics import spread
from selfspec.cli.loading import Loaded, load
from selfspec.files import write_whole
from selfspec.round import Arm
from selfspec.tuning.profile import Profile
from selfspec.tuning.record import record
from selfspec.tuning.recording import Recording
from selfspec.tuning.replay import Setting
from selfspec.tuning.running import Engine
from selfspec.tuning.search import search
from selfspec.tuning.tune import VIEW_LONGEST, Tuned, tune
from selfspec.tuning.validate import compare
from selfspec.tuning.view_record import record_view

HERE = Path(__file__).parent
RESULTS = HERE / "results"
GREEDY: dict[str, Any] = {"do_sample": False}
SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 0.8, "top_k": 0, "top_p": 1.0}
WORKLOADS = {"code": GREEDY, "prose": GREEDY, "repetitive": GREEDY, "code, temperature 0.8": SAMPLED}
TEXTS = ("code", "prose", "repetitive")
"""Workloads that differ in their text alone."""
OTHERS = ("single setting", "useless exits", "controller")
LENGTHS = (1, 2, 3, 4, 5, 6, 8, 12)
CALL = 128
"""New tokens of the calls that are measured whole."""
FINALISTS = 12
"""Settings of the sweep that run again, on more prompts and more than once."""


class Bench:
    """The model, its prompts, and the results so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.loaded: Loaded = load(None, "bfloat16", "cpu", options.threads)
        self.model: Any = self.loaded.model
        self.model.generation_config.eos_token_id = None
        # As calls have it: none where it does not pay on this machine.
        self.view = selfspec.wrap(self.model, profile=[]).speculation.view
        selfspec.unwrap(self.model)
        self.engine = Engine(self.model, view=self.view)
        self.stored: Path = options.output / "tuner.json"
        kept = (options.only or options.resume) and self.stored.exists()
        self.results: dict[str, Any] = json.loads(self.stored.read_text()) if kept else {}

    def prompts(self, workload: str) -> tuple[list[list[int]], list[list[int]]]:
        """Prompts to tune on, and others to run."""
        count = self.options.prompts + self.options.run_prompts
        if workload.startswith("prose"):
            files = [HERE / "prompts" / f"{name}.jsonl" for name in ("mt_bench", "math_reasoning")]
            texts = [text for both in zip(*map(read_prompts, files), strict=True) for text in both]
            found = [ids[:128] for ids in tokenized(self.loaded.tokenizer, texts, None, count)]
        else:
            texts = read_prompts(bundled_prompts())
            found = tokenized(self.loaded.tokenizer, texts, 128, count)
        if workload == "repetitive":  # a passage said over and over, which a model goes on with
            found = [(prompt[:16] * 6)[:96] for prompt in found]
        return found[: self.options.prompts], found[self.options.prompts :]

    def tune(self, workload: str) -> Tuned:
        """Tune as a user would."""
        return tune(
            self.model,
            self.prompts(workload)[0],
            workload=workload,
            view=self.view,
            generate_arguments=WORKLOADS[workload],
        )

    def record(self, prompts: list[list[int]], arms: list[Arm], **arguments: Any) -> Recording:
        """Other prompts, read as the tuner reads its own: early exits, and those of a view in `arms`."""
        recording = record(self.model, prompts, max_new_tokens=self.options.new_tokens, **arguments)
        exits = [arm.exit_layer for arm in arms if arm.low_bit]
        if self.view is None or not exits:
            return recording
        return recording.beside(
            record_view(
                self.model, self.view, prompts, recording, longest=VIEW_LONGEST, exits=exits, **arguments
            )
        )

    def profile(self, workload: str) -> Profile:
        """The profile of a workload: of an earlier part, or tuned now."""
        if workload in self.results:
            return Profile.from_dict(self.results[workload]["profile"])
        return self.tune(workload).profile

    def save(self, part: str, found: dict[str, Any]) -> None:
        """Keep a part, and the page of all parts so far."""
        self.results[part] = {
            "conditions": conditions(self.model) | {"new_tokens": self.options.new_tokens},
            **found,
        }
        write_whole(self.stored, json.dumps(self.results, indent=1) + "\n")
        write_whole(self.stored.with_suffix(".md"), page(self.results, WORKLOADS, TEXTS))


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
    common: dict[str, Any] = {"generate_arguments": WORKLOADS[workload]}
    recording = bench.record(prompts, tuned.recording.arms, **common)
    # What the tuner chooses for these very prompts: the sweep's best is the best for them.
    own = search(recording, costs).setting
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
        "tuning_seconds": tuning_seconds,
        "tuning_parts": dict(tuned.seconds),
        "sweep_seconds": sweep_seconds,
        "sweep_over_tuning": sweep_seconds / tuning_seconds,
        "sweep": [row(c) for c in swept],
        "finals": [row(c) for c in finals],
    }


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
    print(page(bench.results, WORKLOADS, TEXTS))
    return int(not reached(bench.results, WORKLOADS))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    sys.exit(main())
