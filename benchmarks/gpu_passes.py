"""What single passes cost at large shapes: verification by width, draft tokens by depth, plain steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import torch
from gpu_bench import Bench, Row, free
from gpu_capture import captured_pass_seconds
from gpu_models import random_model, shape_of
from gpu_rows import reached

import selfspec
from layer_skip.decoder import LayeredDecoder
from layer_skip.low_bit import LowBitView, view_bytes

WIDTHS = (1, 2, 4, 8, 16, 32, 64)
CONTEXT = 256


def run(bench: Bench) -> None:
    """The 8B shape first: targets are about it."""
    for shape in ("8b-128k", "1b-128k"):
        Passes(bench, shape).run()
        free(bench.device)


class Passes:
    """The passes of one model, which is made for the first row that is asked for.

    Args:
        shape: its name, in tables and targets.
    """

    def __init__(self, bench: Bench, shape: str) -> None:
        self._bench, self._shape = bench, shape
        self._large = shape.startswith("8b")
        self._context = bench.pick(CONTEXT, 20)

    def run(self) -> None:
        """Verification, draft tokens, and the engine's own plain steps."""
        step: Callable[..., Row | None] = self._bench.measure
        depth = shape_of(self._bench, self._shape).layers
        for width in WIDTHS:
            step(f"verify(m), {self._shape}", f"m = {width}", partial(self._verify, width))
        exits = sorted({1, max(1, depth // 8), depth // 4, depth // 2, depth})
        for layers in exits:
            step(f"draft token, {self._shape}", f"bf16, E = {layers}", partial(self._draft, layers))
        step(f"draft token, {self._shape}", "4-bit view, made", self._made_view)
        for layers in exits:
            step(f"draft token, {self._shape}", f"4 bits, E = {layers}", partial(self._low_bit, layers))
        step(f"plain steps, {self._shape}", "AR, in whole calls", self._plain)

    @cached_property
    def _model(self) -> Any:
        return random_model(self._bench, self._shape)

    @cached_property
    def _decoder(self) -> LayeredDecoder:
        return LayeredDecoder(self._model)

    @cached_property
    def _view(self) -> LowBitView:
        return LowBitView(self._decoder, self._decoder.n_layers)

    def _seconds(self, layers: int, width: int, floor: float) -> float:
        return captured_pass_seconds(self._decoder, layers, width, 1, self._context, floor)

    def _verify(self, width: int) -> Row:
        depth, floor = self._decoder.n_layers, self._floor(self._decoder.n_layers, width)
        seconds = self._seconds(depth, width, floor)
        alone = seconds if width == 1 else self._seconds(depth, 1, floor)
        row = {"ms": 1e3 * seconds, "over verify(1)": seconds / alone, "over floor": seconds / floor}
        return reached(row, "over verify(1)", 1.08) if self._large and width == 8 else row

    def _draft(self, layers: int) -> Row:
        floor = self._floor(layers, 1)
        seconds = self._seconds(layers, 1, floor)
        return self._of_a_step(layers, seconds, floor, low_bit=False)

    def _made_view(self) -> Row:
        return {"MB": self._view.bytes / 1e6, "share of bf16": self._view.bytes / self._view.viewed_bytes}

    def _low_bit(self, layers: int) -> Row:
        floor = (view_bytes(self._decoder, layers) + self._cached(layers)) / self._bench.speed
        decoder = self._view.of(self._decoder)
        seconds = captured_pass_seconds(decoder, layers, 1, 1, self._context, floor)
        return self._of_a_step(layers, seconds, floor, low_bit=True)

    def _of_a_step(self, layers: int, seconds: float, floor: float, low_bit: bool) -> Row:
        depth = self._decoder.n_layers
        step = self._seconds(depth, 1, self._floor(depth, 1))
        row = {
            "MB": floor * self._bench.speed / 1e6,
            "µs": 1e6 * seconds,
            "over floor": seconds / floor,
            "of a full step": seconds / step,
        }
        if self._large and low_bit and layers == depth:
            return reached(row, "of a full step", 0.35)
        if self._large and not low_bit and layers == max(1, depth // 8):
            return reached(row, "over floor", 1.25)
        return row

    def _plain(self) -> Row:
        """The engine with K = 0 as a user calls it: seconds of its rounds, by its own count."""
        tokens = self._bench.pick(192, 6)
        prompt = torch.randint(1, self._decoder.vocab_size, (1, self._context), device=self._bench.device)
        selfspec.wrap(self._model, draft="early_exit", exit_layer=1, draft_length=0)
        try:
            for _ in range(2):  # the first call compiles and captures
                self._model.generate(prompt, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
            stats = self._model.speculation.stats
        finally:
            selfspec.unwrap(self._model)
        seconds = stats.round_seconds / stats.rounds
        possible = self._floor(self._decoder.n_layers, 1)
        row = {
            "tokens/s": 1 / seconds,
            "of bytes/bandwidth": possible / seconds,
            "how rounds ran": getattr(stats, "launching", "from Python"),
        }
        return reached(row, "of bytes/bandwidth", 0.8, most=False)

    def _floor(self, layers: int, width: int) -> float:
        """Seconds that a pass takes to read weights of layers and head, keys and values at full speed."""
        layer = sum(p.nbytes for p in self._model.model.layers[0].parameters())
        weights = layers * layer + self._model.lm_head.weight.nbytes
        return (weights + self._cached(layers)) / self._bench.speed

    def _cached(self, layers: int) -> int:
        config = self._model.config
        return 2 * 2 * layers * config.num_key_value_heads * config.head_dim * self._context
