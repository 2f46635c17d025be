"""What the parts of the tuner's benchmark share: the model, its prompts, and the results so far."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tuner_page import TEXTS, WORKLOADS, save

import selfspec
from selfspec.benchmarking.environment import conditions
from selfspec.benchmarking.prompts import bundled_prompts, read_prompts, tokenized
from selfspec.cli.loading import Loaded, load
from selfspec.round import Arm
from selfspec.tuning.profile import SCHEMA, Profile
from selfspec.tuning.record import record
from selfspec.tuning.recording import Recording
from selfspec.tuning.running import Engine
from selfspec.tuning.tune import VIEW_LONGEST, Tuned, tune
from selfspec.tuning.view_record import record_view

PROMPTS = Path(__file__).parent / "prompts"
GREEDY: dict[str, Any] = {"do_sample": False}
SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 0.8, "top_k": 0, "top_p": 1.0}
SAMPLING = {**dict.fromkeys(TEXTS, GREEDY), WORKLOADS[-1]: SAMPLED}


class Bench:
    """The model, its prompts, and the results so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        kept = options.only or options.resume
        self.results = stored_results(options.output, options.dtype) if kept else {}
        self.loaded: Loaded = load(None, options.dtype, "cpu", options.threads)
        self.model: Any = self.loaded.model
        self.model.generation_config.eos_token_id = None
        # As calls have it: none where it does not pay on this machine.
        self.view = selfspec.wrap(self.model, profile=[]).speculation.view
        selfspec.unwrap(self.model)
        self.engine = Engine(self.model, view=self.view)

    def prompts(self, workload: str) -> tuple[list[list[int]], list[list[int]]]:
        """Prompts to tune on, and others to run."""
        count = self.options.prompts + self.options.run_prompts
        if workload.startswith("prose"):
            files = [PROMPTS / f"{name}.jsonl" for name in ("mt_bench", "math_reasoning")]
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
            generate_arguments=SAMPLING[workload],
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
        save(self.results, self.options.output)


def stored_results(folder: Path, dtype: str) -> dict[str, Any]:
    """What earlier runs left in a folder.

    Raises:
        SystemExit: they computed in another dtype, and a page speaks of one; or by another version.
    """
    stored = folder / "tuner.json"
    results: dict[str, Any] = json.loads(stored.read_text()) if stored.exists() else {}
    others = {part["conditions"]["dtype"] for part in results.values()} - {dtype}
    if others:
        other = ", ".join(sorted(others))
        raise SystemExit(
            f"{stored} holds results in {other}, not {dtype}: go on with --dtype {other}, name another "
            "folder with --output, or measure all parts anew, without --only and --resume"
        )
    if any(part.get("profile", {}).get("schema", SCHEMA) != SCHEMA for part in results.values()):
        raise SystemExit(
            f"{stored} holds results of another version: measure all parts anew, without --only and --resume"
        )
    return results
