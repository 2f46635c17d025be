"""Run contenders in turns over the same prompts and note seconds, tokens and drafts of every call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from selfspec.benchmarking.contenders import Contender, bind
from selfspec.benchmarking.prompts import left_padded


@dataclass(frozen=True)
class Workload:
    """What every contender is asked for.

    `temperature` None is greedy decoding; otherwise tokens are drawn from the whole distribution at that
    temperature, with the seed set anew for every call. `warm_up` calls per contender are not counted.
    """

    new_tokens: int = 128
    temperature: float | None = None
    seed: int = 0
    batch: int = 1
    warm_up: int = 1

    def __post_init__(self) -> None:
        for name, least in (("new_tokens", 1), ("batch", 1), ("warm_up", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: allowed is {least} or more")
        if self.temperature is not None and self.temperature <= 0:
            raise ValueError(
                f"temperature={self.temperature}: allowed is more than 0; leave it out for greedy"
            )

    def arguments(self) -> dict[str, Any]:
        """The keywords of generate."""
        arguments: dict[str, Any] = {"max_new_tokens": self.new_tokens, "do_sample": False}
        if self.temperature is not None:
            # transformers cuts to the 50 likeliest tokens unless it is told not to.
            arguments |= {"do_sample": True, "temperature": self.temperature, "top_k": 0, "top_p": 1.0}
        return arguments


@dataclass(frozen=True)
class Call:
    """One measured call: seconds, new tokens per row, and what the engine's statistics say of it."""

    seconds: float
    texts: tuple[tuple[int, ...], ...]
    row_rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    exit_layer: int | None = None
    drafts: str = ""
    """Exit layer and draft length in words."""
    view_bytes: int = 0
    """Memory of the low-bit view that this contender's calls have."""

    @property
    def tokens(self) -> int:
        """New tokens of all rows together."""
        return sum(map(len, self.texts))


@dataclass(frozen=True)
class Batch:
    """Prompts that are generated together, left-padded: ids and mask [B, T]."""

    prompts: tuple[tuple[int, ...], ...]
    ids: Tensor
    mask: Tensor


def batches_of(prompts: Sequence[Sequence[int]], rows: int, pad: int, device: torch.device) -> list[Batch]:
    """Prompts in batches of `rows`; a last one that would not be full is left out.

    Raises:
        ValueError: there are fewer prompts than one batch needs.
    """
    groups = [prompts[i : i + rows] for i in range(0, len(prompts) - rows + 1, rows)]
    if not groups:
        raise ValueError(f"batch={rows} needs at least {rows} prompts; there are {len(prompts)}")
    return [_batch(group, pad, device) for group in groups]


def _batch(prompts: Sequence[Sequence[int]], pad: int, device: torch.device) -> Batch:
    inputs = left_padded(prompts, pad, device)
    return Batch(tuple(map(tuple, prompts)), inputs["input_ids"], inputs["attention_mask"])


def run_once(model: Any, contender: Contender, batch: Batch, workload: Workload, pad: int) -> Call:
    """One generate call of a bound contender on one batch."""
    torch.manual_seed(workload.seed)
    arguments = {**workload.arguments(), **contender.arguments, "pad_token_id": pad}
    _wait_for(batch.ids.device)
    started = time.perf_counter()
    output = model.generate(input_ids=batch.ids, attention_mask=batch.mask, **arguments)
    _wait_for(batch.ids.device)
    seconds = time.perf_counter() - started
    texts = tuple(tuple(row) for row in output[:, batch.ids.shape[1] :].tolist())
    if contender.speculation is None:
        return Call(seconds, texts)
    stats, view = model.speculation.stats, model.speculation.view
    counts = stats.row_rounds, stats.drafted, stats.accepted
    return Call(seconds, texts, *counts, stats.exit_layer, stats.drafts, 0 if view is None else view.bytes)


def compare(
    model: Any,
    contenders: Sequence[Contender],
    batches: Sequence[Batch],
    workload: Workload,
    pad: int,
    advance: Callable[[str], None] = lambda name: None,
) -> dict[str, list[Call]]:
    """Every contender's call on every batch, in the batches' order; contenders take turns on each batch.

    Who goes first moves on by one from batch to batch, so that nobody always runs on a machine that its
    neighbour has just warmed. `advance` is told the contender's name before each call.
    """
    able = [c for c in contenders if c.max_rows is None or workload.batch <= c.max_rows]
    bound = {c.name: bind(model, c) for c in able}
    calls: dict[str, list[Call]] = {c.name: [] for c in able}
    for contender in able:
        for batch in _cycle(batches, workload.warm_up):
            advance(f"{contender.name} (warm-up)")
            run_once(bound[contender.name], contender, batch, workload, pad)
    for index, batch in enumerate(batches):
        first = index % len(able)
        for contender in able[first:] + able[:first]:
            advance(contender.name)
            calls[contender.name].append(run_once(bound[contender.name], contender, batch, workload, pad))
    return calls


def n_calls(contenders: Sequence[Contender], batches: Sequence[Batch], workload: Workload) -> int:
    """How many times `compare` will call `advance`."""
    able = [c for c in contenders if c.max_rows is None or workload.batch <= c.max_rows]
    return len(able) * (workload.warm_up + len(batches))


def _cycle(batches: Sequence[Batch], count: int) -> Iterator[Batch]:
    return (batches[i % len(batches)] for i in range(count))


def _wait_for(device: torch.device) -> None:
    """Let work that was only queued finish, so that the clock sees it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
