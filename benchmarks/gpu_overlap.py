"""Whether kernels that take their places while the last one drains (PDL) are faster."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache, partial
from typing import Any
from unittest.mock import patch

from gpu_bench import Bench, Row
from gpu_capture import captured_pass_seconds
from gpu_models import random_model

import layer_skip.lean as lean
from layer_skip.decoder import LayeredDecoder
from layer_skip.low_bit import LowBitView
from selfspec_kernels.overlap import with_overlap

CONTEXT = 256
_PASS = 5e-3
"""Seconds that one takes, more or less."""


def run(bench: Bench) -> None:
    """A plain step and a draft step in 4 bits at the 8B shape, launched both ways."""
    made = cache(lambda: LayeredDecoder(random_model(bench, "8b-128k")))

    def viewed() -> LayeredDecoder:
        return LowBitView(made(), made().n_layers).of(made())

    bench.measure("8b-128k, one token", "plain step", partial(both_ways, bench, made))
    bench.measure("8b-128k, one token", "draft step in 4 bits", partial(both_ways, bench, viewed))


def both_ways(bench: Bench, made: Callable[[], LayeredDecoder]) -> Row:
    """Milliseconds with PDL and without."""
    decoder, milliseconds = made(), []
    for overlapping in (True, False):
        with forced(overlapping):
            seconds = captured_pass_seconds(decoder, decoder.n_layers, 1, 1, bench.pick(CONTEXT, 20), _PASS)
        milliseconds.append(1e3 * seconds)
    with_it, without = milliseconds
    return {"overlapping, ms": with_it, "not, ms": without, "overlapping, of the other": with_it / without}


def forced(overlapping: bool) -> AbstractContextManager[Any]:
    """All layers overlap in here, or none does, whatever they would do by themselves."""
    return patch.object(lean, "with_overlap", lambda wanted: with_overlap(overlapping))
