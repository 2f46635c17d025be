"""The loop where rounds run on the device alone: the host plans a round, launches it, and reads what came."""

import math
import time
from typing import cast

import torch

from selfspec.call import Call, Planner
from selfspec.device.buffers import MOST_FOUND, Outcome, Signature
from selfspec.device.request import request_of
from selfspec.device.static_round import Kind, bucket
from selfspec.device.workspace import Workspace
from selfspec.engine import append, prefill
from selfspec.modes import not_a_number
from selfspec.round import NOTHING, Step
from selfspec.rows import RoundEvent


@torch.inference_mode()
def speculate_on_device(call: Call, space: Workspace) -> None:
    """Generate until every row is finished, as `selfspec.engine.speculate` does."""
    planner = cast(Planner, call.drafter)
    prefill(call)
    signature = begin(call, space)
    while call.rows.active:
        began = time.perf_counter()
        rows = len(call.rows.active)
        step = planner.plan(call, call.pacer.draft_length(call.rows.remaining))
        outcomes = space.run(launchable(call, space, step, signature))
        tokens = commit(call, step, outcomes)
        seconds = time.perf_counter() - began
        call.stats.round_seconds += seconds
        # A round that was captured took as long as that did, which tells nothing of those to come.
        call.pacer.observe(step.length, tokens / rows, seconds if space.steady else math.nan)
    call.rows.sequences = call.rows.sequences.to(call.decoder.device)


def begin(call: Call, space: Workspace) -> Signature:
    """Hand the rows over to the device; the host keeps a copy of their texts."""
    rows, request = call.rows, request_of(call)
    texts = rows.prompts()
    limits = [len(text) + rows.max_new_tokens for text in texts]
    space.buffers.begin(texts, limits, rows.eos_tokens, request)
    rows.sequences = rows.sequences.cpu()
    return request.signature


def launchable(call: Call, space: Workspace, step: Step, signature: Signature) -> Kind:
    """The kind of round that a step asks for; found tokens are on their way to the device."""
    if not step.length:
        return Kind(None, 0, signature)
    if step.arm is not None:
        kind = Kind(step.arm, min(step.length, MOST_FOUND), signature)
        return space.ready_for(kind) if step.length + 1 >= call.rows.remaining else kind
    # Few lengths, so that graphs are found again: 1, 3, 7, 15, ...
    length = min(bucket(step.length + 1) - 1, MOST_FOUND)
    found: list[list[int]] = [[] for _ in range(space.rows)]
    for row, tokens in zip(call.rows.active, step.found, strict=True):
        found[row] = list(tokens[:length])
    space.buffers.give(found, length)
    return Kind(None, length, signature)


def commit(call: Call, step: Step, outcomes: list[Outcome]) -> int:
    """Note on the host what the device has committed; return the number of tokens."""
    rows, kept, total = call.rows, [], 0
    for row in rows.active:
        outcome = outcomes[row]
        if outcome.bad:
            raise not_a_number()
        candidates = [token for token in outcome.drafted[: step.length] if token != NOTHING]
        depth = len(candidates)
        new, accepted, finished = append(call, row, outcome.tokens[: step.length + 1], depth, depth)
        total += len(new)
        if call.on_round is not None:
            call.on_round(RoundEvent(row, candidates, depth, (0,) * accepted, new))
        if not finished:
            kept.append(row)
    call.stats.rounds += 1
    rows.active = kept
    if call.on_commit is not None:
        call.on_commit(rows)
    return total
