"""Whether the text on the GPU is the same under every setting, and the model's own, and the CPU's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from gpu_bench import Bench, Row, free
from gpu_models import prompts_of

from layer_skip import REFERENCE_MODEL
from selfspec.benchmarking.contenders import AR, GENERATE, Contender, bind
from selfspec.benchmarking.identity import (
    Coupling,
    Text,
    compare_exactly,
    full_pass,
    gap_noise,
    stepwise_pass,
)
from selfspec.benchmarking.measure import Workload, batches_of, run_once
from selfspec.cli.loading import Loaded, load

SETTINGS: dict[str, dict[str, Any]] = {
    "early exit, E = 3, K = 4": {"draft": "early_exit", "exit_layer": 3, "draft_length": 4},
    "low bit, K = 4": {"draft": "low_bit", "draft_length": 4},
    "lookup": {"draft": "lookup"},
    "auto": {},
    "early exit, E = 5, K = 1": {"draft": "early_exit", "exit_layer": 5, "draft_length": 1},
    "low bit, E = 8, K = 8": {"draft": "low_bit", "exit_layer": 8, "draft_length": 8},
    "hybrid": {"draft": "hybrid"},
    "early exit, auto": {"draft": "early_exit"},
    "AR, launched from Python": {"draft_length": 0, "graph_memory": 0},
}
CASES = (
    # dtype, batch, temperature: the promises that are easiest to break first
    ("bfloat16", 1, None),
    ("bfloat16", 4, 0.8),
    ("float32", 4, None),
    ("float32", 1, 0.8),
    ("bfloat16", 4, None),
    ("bfloat16", 1, 0.8),
)
TEMPERATURE_SEED = 7


@dataclass
class Case:
    """One dtype, batch and way of decoding, with the texts that others are held against."""

    bench: Bench
    loaded: Loaded
    on_cpu: Loaded
    workload: Workload
    prompts: list[list[int]]
    ar: list[Text]

    def texts(self, contender: Contender, on_cpu: bool = False) -> tuple[list[Text], float | None]:
        """What a contender writes after every prompt, and its acceptance length; all at once on the CPU."""
        loaded = self.on_cpu if on_cpu else self.loaded
        workload = replace(self.workload, batch=len(self.prompts)) if on_cpu else self.workload
        batches = batches_of(self.prompts, workload.batch, loaded.pad, loaded.model.device)
        bound = bind(loaded.model, contender)
        calls = [run_once(bound, contender, batch, workload, loaded.pad) for batch in batches]
        rounds, drafted = sum(call.row_rounds for call in calls), sum(call.drafted for call in calls)
        length = 1 + sum(call.accepted for call in calls) / rounds if drafted else None
        return [text for call in calls for text in call.texts], length


def run(bench: Bench) -> None:
    """All cases; a model is loaded once for each dtype."""
    loaded: dict[tuple[str, str], Loaded] = {}
    for dtype, batch, temperature in bench.pick(CASES, CASES[:2]):
        for device in (str(bench.device), "cpu"):
            if (dtype, device) not in loaded:
                loaded[dtype, device] = load(str(REFERENCE_MODEL), dtype, device)
        on = loaded[dtype, str(bench.device)]
        workload = Workload(bench.pick(64, 6), temperature, TEMPERATURE_SEED, batch, 0)
        prompts = prompts_of(on, bench.pick(128, 12), bench.pick(8, max(2, batch)))
        case = Case(bench, on, loaded[dtype, "cpu"], workload, prompts, [])
        how = "greedy" if temperature is None else f"temperature {temperature:g}"
        check_case(case, f"{dtype}, batch {batch}, {how}")
        free(bench.device)


def check_case(case: Case, title: str) -> None:
    """AR first: it is held against generate and the CPU, every other setting against it."""
    measure = case.bench.measure
    measure(title, AR, partial(plain, case))
    for name, settings in case.bench.pick(list(SETTINGS.items()), list(SETTINGS.items())[:3]):
        measure(title, name, partial(speculated, case, Contender(name, "", settings)))


def plain(case: Case) -> Row:
    """AR's text beside the model's own, and beside what the CPU writes under the same seed."""
    contender = Contender(AR, "", {"draft_length": 0})
    case.ar[:], _ = case.texts(contender)
    there, _ = case.texts(contender, on_cpu=True)
    row: Row = {"as AR": None, "as the CPU": agreement(case, there)}
    if case.workload.temperature is None:
        own, _ = case.texts(Contender(GENERATE, ""))
        row["as generate"] = agreement(case, own)
    bad = [column for column, said in row.items() if said and "different" in said]
    return {**row, "verdict": "MISSED" if bad else "reached"}


def speculated(case: Case, contender: Contender) -> Row:
    """A setting's text, which must be AR's."""
    if not case.ar:
        plain(case)
    texts, length = case.texts(contender)
    verdict = compare_exactly(texts, case.ar)
    same = not verdict.different
    row: Row = {"as AR": str(verdict), "acceptance length": length}
    if not same:
        row["as AR"] += f", margin {margin(case, case.ar, texts):.3f}"
    return {**row, "verdict": "reached" if same else "MISSED"}


def agreement(case: Case, others: Sequence[Text]) -> str:
    """How many texts are AR's; of those that are not, how near a tie they parted at."""
    verdict = compare_exactly(case.ar, others)
    if not verdict.different:
        return str(verdict)
    apart, noise = margin(case, others, case.ar), rounding(case)
    kind = "near-ties" if apart <= noise else "different"
    same = f"{verdict.identical} of {len(case.ar)}"
    return f"{same}, others {kind}: margin {apart:.4f}, rounding {noise:.4f} logits"


def margin(case: Case, references: Sequence[Text], texts: Sequence[Text]) -> float:
    """The most by which a token of a text that differs lies below the model's best, in logits."""
    apart = [0.0]
    for prompt, reference, text in zip(case.prompts, references, texts, strict=False):
        if text != reference:
            logits = full_pass(case.loaded.model, tuple(prompt), text)
            logits = logits + noise_of(case, prompt, text, logits)
            chosen = logits.gather(-1, torch.tensor(text, device=logits.device)[:, None])[:, 0]
            apart.append(float((logits.max(dim=-1).values - chosen).max()))
    return max(apart)


def noise_of(case: Case, prompt: Sequence[int], text: Text, logits: torch.Tensor) -> torch.Tensor | float:
    """What decided beside the logits: nothing in greedy text."""
    workload = case.workload
    if workload.temperature is None:
        return 0.0
    coupling = Coupling(workload.seed, workload.temperature)
    return coupling.noise(tuple(prompt), len(text), logits.shape[-1]).to(logits.device)


def rounding(case: Case) -> float:
    """How far rounding moves the gap of two logits: between devices, and between one token and many."""
    model, other = case.loaded.model, case.on_cpu.model
    moved = [0.0]
    for prompt, text in zip(case.prompts[:4], case.ar[:4], strict=False):
        given = tuple(prompt)
        here = full_pass(model, given, text)
        moved.append(gap_noise(here, full_pass(other, given, text).to(here.device)))
        moved.append(gap_noise(here, stepwise_pass(model, given, text)))
    return max(moved)
