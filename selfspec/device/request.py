"""Which calls run on the device alone, and what they ask of it."""

import math
from typing import Any

import torch
from transformers.generation import logits_process

from layer_skip.decoder import LayeredDecoder
from layer_skip.lean import lean
from selfspec.cache import KVCache, allocated_cache
from selfspec.call import Call
from selfspec.device.buffers import MOST_END_TOKENS, Request
from selfspec.device.waiting import HostReadError, NoHostReads
from selfspec.device.window import DeviceWindow
from selfspec.device.workspace import hooked
from selfspec.drafting import Lookup, ModelDrafter
from selfspec.modes import Coupled, Greedy
from selfspec.outputs import KeepingCache
from selfspec.tuning.auto import Auto
from selfspec_kernels.backend import has_triton
from selfspec_kernels.noise import stream_keys
from selfspec_kernels.verify_attention_reference import DTYPES, HEAD_SIZES

_WARPERS = {
    "TemperatureLogitsWarper": "temperature",
    "TopKLogitsWarper": "top_k",
    "TopPLogitsWarper": "top_p",
    "MinPLogitsWarper": "min_p",
}
"""In the order in which the kernels apply them, which is transformers' own."""


def device_is_able(device: torch.device) -> bool:
    """Whether rounds may run on this device alone: what stands in for the kernels elsewhere asks the host."""
    return has_triton(device)


def model_reason(decoder: LayeredDecoder) -> str:
    """Why rounds of this model cannot run on the device alone; empty where they can.

    Runs the model on one token twice, to see what its layers store and whether they ask the host.
    """
    reasons = {
        decoder.needs_masks: bool(decoder.needs_masks),
        f"it computes in {decoder.dtype}": decoder.dtype not in DTYPES,
        "its experts are chosen on the host": "experts" in decoder.family.notes,
    }
    found = "; ".join(reason for reason, holds in reasons.items() if holds)
    if found:
        return found
    cache = allocated_cache(decoder, 1, 1)
    return _shape_reason(cache) or _waiting_reason(decoder, cache)


def _shape_reason(cache: KVCache) -> str:
    for key, value in zip(cache.keys, cache.values, strict=True):
        if key is None or value is None:
            return "layers share their keys and values"
        if key.shape != value.shape or key.shape[-1] not in HEAD_SIZES:
            return f"its heads are of {key.shape[-1]} and {value.shape[-1]}"
    return ""


@torch.inference_mode()
def _waiting_reason(decoder: LayeredDecoder, cache: KVCache) -> str:
    """A pass that reads something back is found before a capture, which it would break half way."""
    run = lean(decoder)[0]
    first = torch.zeros(1, dtype=torch.int64, device=decoder.device)
    try:
        with NoHostReads():
            span = run.span_on_device(first, 1)
            hidden = run.embed(first[:, None], span)
            run.logits(run.run(hidden, 0, run.n_layers, span, DeviceWindow(cache, span)))
    except HostReadError as error:
        return f"its passes wait for the host ({error})"
    return ""


def call_reason(call: Call) -> str:
    """Why this call cannot run on the device alone; empty where it can."""
    rows, drafter = call.rows, call.drafter
    reasons = {
        "hooks in the model's passes": hooked(call.decoder),
        "rejection sampling": not isinstance(call.mode, (Greedy, Coupled)),
        "logits processors that need the host": _sampling(call) is None,
        "stopping criteria that need the host": bool(rows.criteria),
        "more end tokens than a device is given": len(rows.eos_tokens) > MOST_END_TOKENS,
        "embeddings or a cache that came with the call": bool(rows.unseen or rows.known),
        "a cache or scores to give back": isinstance(call.cache, KeepingCache),
        "drafts of a shape that is decided on the way": not _is_fixed(drafter),
    }
    return "; ".join(reason for reason, holds in reasons.items() if holds)


def request_of(call: Call) -> Request:
    """How tokens are chosen in a call that runs on the device."""
    keys = None
    if isinstance(call.mode, Coupled):
        keys = stream_keys(call.mode.seed, call.mode.requests)
    return Request(keys, **(_sampling(call) or {}))


def _is_fixed(drafter: object) -> bool:
    if isinstance(drafter, Auto):
        return not drafter.branches and all(map(_is_fixed, drafter.arms.values()))
    return isinstance(drafter, Lookup) or (isinstance(drafter, ModelDrafter) and drafter.is_fixed)


def _sampling(call: Call) -> dict[str, Any] | None:
    """Temperature and filters of a call by name, None where there is anything else or another order."""
    found: dict[str, Any] = {}
    order = list(_WARPERS.values())
    for processor in call.processors.listed:
        kind = type(processor)
        name = _WARPERS.get(kind.__name__)
        if name is None or kind is not getattr(logits_process, kind.__name__):
            return None
        plain = getattr(processor, "filter_value", -math.inf) == -math.inf
        least = getattr(processor, "min_tokens_to_keep", 1)
        if not plain or least != 1 or any(other in found for other in order[order.index(name) :]):
            return None
        found[name] = getattr(processor, name)
    return found
