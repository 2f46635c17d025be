"""A whole comparison in one call: prompts in, report out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from selfspec.benchmarking.contenders import GENERATE, Contender, bind
from selfspec.benchmarking.environment import conditions
from selfspec.benchmarking.measure import Workload, batches_of, compare, n_calls, run_once
from selfspec.benchmarking.report import Report, report

Advance = Callable[[str, int], None]
"""Told what is about to be measured, and how many calls there are in all."""


_ENOUGH = 128
"""New tokens after which "auto" has read the exits and tried some."""


def resolve_exit_layer(model: Any, settings: Mapping[str, Any], prompt: Sequence[int], pad: int) -> int:
    """The exit layer that early exit uses on this prompt, "auto" measured."""
    own = {name: value for name, value in settings.items() if name in ("exit_layer", "draft_length")}
    contender = Contender("probe", "", {**own, "draft": "early_exit"})
    batch = batches_of([prompt], 1, pad, model.device)[0]
    exit_layer = run_once(
        bind(model, contender), contender, batch, Workload(new_tokens=_ENOUGH), pad
    ).exit_layer
    return exit_layer or 1


def run_comparison(
    model: Any,
    contenders: Sequence[Contender],
    prompts: Sequence[Sequence[int]],
    workload: Workload,
    pad: int,
    described: Mapping[str, Any],
    advance: Advance = lambda name, total: None,
) -> Report:
    """Measure the contenders on the prompts and judge their texts.

    Args:
        model: the model itself; contenders get shells of it that share its weights.
        prompts: token ids; those that do not fill a last batch are left out.
        described: what the report's conditions should say beside hardware and versions.
        advance: for a progress bar.

    Raises:
        ValueError: the model's own generate, which all others are compared with, is not among the contenders;
            fewer prompts than a batch needs; a setting that the engine refuses.
    """
    if GENERATE not in {c.name for c in contenders}:
        raise ValueError(f"contenders need {GENERATE!r}: texts and speeds are compared with it")
    batches = batches_of(prompts, workload.batch, pad, model.device)
    total = n_calls(contenders, batches, workload)
    calls = compare(model, contenders, batches, workload, pad, lambda name: advance(name, total))
    return report(model, contenders, batches, calls, workload, {**conditions(model), **described})
