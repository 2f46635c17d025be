"""Whether kernels that take their places while the last one drains (PDL) are faster; the rest runs so."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

from gpu_bench import Bench, Row, free
from gpu_capture import captured_pass_seconds
from gpu_models import random_model

from layer_skip.decoder import LayeredDecoder
from layer_skip.low_bit import LowBitView

CONTEXT = 256
_PASS = 5e-3
"""Seconds that one takes, more or less."""


def run(bench: Bench) -> None:
    """A plain step and a draft step in 4 bits at the 8B shape, launched both ways."""
    model = random_model(bench, "8b-128k")
    decoder = LayeredDecoder(model)
    plain = bench.measure("8b-128k, one token", "plain step", partial(both_ways, bench, decoder))
    view = LowBitView(decoder, decoder.n_layers)
    bench.measure("8b-128k, one token", "draft step in 4 bits", partial(both_ways, bench, view.of(decoder)))
    if plain is not None and float(plain["overlapping, of the other"]) > 1:
        bench.use_no_overlap()
    del model, decoder, view
    free(bench.device)


def both_ways(bench: Bench, decoder: Any) -> Row:
    """Milliseconds with PDL and without."""
    milliseconds = []
    for overlapping in (True, False):
        with nullcontext() if overlapping or not bench.on_gpu else _without_pdl():
            seconds = captured_pass_seconds(decoder, decoder.n_layers, 1, 1, bench.pick(CONTEXT, 20), _PASS)
        milliseconds.append(1e3 * seconds)
    with_it, without = milliseconds
    return {"overlapping, ms": with_it, "not, ms": without, "overlapping, of the other": with_it / without}


def _without_pdl() -> Any:
    from selfspec_kernels.launching import without_pdl  # triton is not there on every system

    return without_pdl()
