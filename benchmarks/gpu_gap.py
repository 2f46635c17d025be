"""How much of a round the GPU waits for the host: a profiler's trace of calls at the 8B shape."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from gpu_bench import Bench, NotHereError, Row, free
from gpu_models import fitting, random_model
from gpu_rows import all_reached
from gpu_trace import Decoding, decoding, traced

import selfspec
from selfspec.stats import Stats

SETTINGS: dict[str, dict[str, Any]] = {
    "AR": {"draft_length": 0},
    "early exit, E = 4, K = 3": {"draft": "early_exit", "exit_layer": 4, "draft_length": 3},
    "low bit, E = 8, K = 5": {"draft": "low_bit", "exit_layer": 8, "draft_length": 5},
    "lookup": {"draft": "lookup"},
    "auto": {},
}
TOKENS = 24
TARGETS = {"waiting for the host": 0.05, "copies to the host, a round": 1, "waits of the host, a round": 1}
"""The most of each. The wait for what a round reports is its only one."""
_TRACES = 3


def run(bench: Bench) -> None:
    """One row a setting."""
    model = cache(partial(random_model, bench, "8b-128k"))
    for name, settings in SETTINGS.items():
        bench.measure("8b-128k, batch 1", name, partial(gap, bench, model, settings))
        free(bench.device)


def gap(bench: Bench, made: Callable[[], Any], settings: dict[str, Any]) -> Row:
    """Rounds of one call, after others that compile and capture."""
    model = made()
    prompt = torch.randint(1, model.config.vocab_size, (1, bench.pick(256, 12)), device=bench.device)
    tokens = bench.pick(TOKENS, 5)
    selfspec.wrap(model, **(fitting(settings, model) or {}))

    def call() -> None:
        model.generate(prompt, max_new_tokens=tokens, do_sample=False, pad_token_id=0)

    try:
        for _ in range(3):
            call()
        stats = model.speculation.stats
        for _ in range(_TRACES):
            found = decoding(traced(call))
            if found is None or not found.captures:
                break
        rounds = model.speculation.stats.rounds - 1
    finally:
        selfspec.unwrap(model)
    return gap_row(found, rounds, stats)


def gap_row(found: Decoding | None, rounds: int, stats: Stats) -> Row:
    """What a trace says of `rounds` rounds, beside the `stats` of a call that was not traced."""
    how = stats.launching or "from Python"
    if found is None or found.rounds != rounds:
        seen = 0 if found is None else found.rounds
        raise NotHereError(f"{seen} of {rounds} rounds were launched as graphs (how rounds ran: {how})")
    row = {
        "ms a round": 1e3 * stats.round_seconds / stats.rounds,
        "ms, traced": found.total / rounds / 1e3,
        "GPU busy": found.busy / found.total,
        "waiting for the host": found.waiting / found.total,
        "copies to the host, a round": found.copies / rounds,
        "waits of the host, a round": found.waits / rounds,
        "launches, a round": found.launches / rounds,
        "how rounds ran": how,
    }
    return all_reached(row, TARGETS)
