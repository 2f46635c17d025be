"""How much of a round the GPU waits for the host: a profiler's trace of calls at the 8B shape."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from gpu_bench import Bench, NotHereError, Row, free
from gpu_models import fitting, random_model
from gpu_rows import reached
from gpu_trace import decoding, traced

import selfspec

SETTINGS: dict[str, dict[str, Any]] = {
    "AR": {"draft_length": 0},
    "early exit, E = 4, K = 3": {"draft": "early_exit", "exit_layer": 4, "draft_length": 3},
    "low bit, E = 8, K = 5": {"draft": "low_bit", "exit_layer": 8, "draft_length": 5},
    "lookup": {"draft": "lookup"},
    "auto": {},
}
TOKENS = 24
MOST_WAITING = 0.05


def run(bench: Bench) -> None:
    """One row a setting."""
    model = random_model(bench, "8b-128k")
    for name, settings in SETTINGS.items():
        bench.measure("8b-128k, batch 1", name, partial(gap, bench, model, settings))
        free(bench.device)


def gap(bench: Bench, model: Any, settings: dict[str, Any]) -> Row:
    """Rounds of one call, after others that compile and capture."""
    prompt = torch.randint(1, model.config.vocab_size, (1, bench.pick(256, 12)), device=bench.device)
    tokens = bench.pick(TOKENS, 5)
    selfspec.wrap(model, **(fitting(settings, model) or {}))

    def call() -> None:
        model.generate(prompt, max_new_tokens=tokens, do_sample=False, pad_token_id=0)

    try:
        for _ in range(3):
            call()
        stats = model.speculation.stats
        alone = stats.round_seconds / stats.rounds
        found = decoding(traced(call))
        rounds = max(1, model.speculation.stats.rounds - 1)
    finally:
        selfspec.unwrap(model)
    if found is None:
        raise NotHereError("the trace has no rounds that end with a copy to the host")
    row = {
        "ms a round": 1e3 * alone,
        "ms, traced": found.total / rounds / 1e3,
        "GPU busy": found.busy / found.total,
        "waiting for the host": found.waiting / found.total,
        "copies to the host, a round": found.copies / rounds,
        "waits of the host, a round": found.waits / rounds,
        "launches, a round": found.launches / rounds,
        "how rounds ran": getattr(stats, "launching", "from Python"),
    }
    return reached(row, "waiting for the host", MOST_WAITING)
