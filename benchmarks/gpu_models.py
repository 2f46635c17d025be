"""The models of the GPU benchmark, made where they are measured: random ones, and inflated small ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_bench import Bench, free
from inflation import inflate
from tiling import SHAPES, Shape

from selfspec.benchmarking.prompts import bundled_prompts, read_prompts, tokenized
from selfspec.cli.loading import Loaded, load

TWIN = Path(__file__).parent / "plain_twin"
TINY = Shape(4, 128, 2, 1, 64, 500)
"""Stands for every shape of random weights where sizes are tiny."""
LEAST = Shape(16, 256, 8, 4, 576)
"""And for every one that a small model is inflated to."""


def shape_of(bench: Bench, name: str) -> Shape:
    """What a random model of that name has."""
    return bench.pick(SHAPES[name], TINY)


def random_model(bench: Bench, name: str) -> Any:
    """A Llama of that shape with random weights, bf16, without a copy on the host."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = shape_of(bench, name)
    config = LlamaConfig(
        vocab_size=shape.vocabulary or 4096,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=64,
        max_position_embeddings=32_768,
        dtype="bfloat16",
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with bench.device:
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    model.generation_config.eos_token_id = None
    return model.eval()


@dataclass(frozen=True)
class Source:
    """A small model, inflated on demand."""

    name: str
    folder: str | None

    def load(self, bench: Bench, dtype: str = "bfloat16") -> Loaded:
        """As it is, on the device."""
        return load(self.folder, dtype, str(bench.device))


SOURCES = {"reference": Source("reference", None), "plain twin": Source("plain twin", str(TWIN))}


def inflated(bench: Bench, loaded: Loaded, shape: str) -> Any:
    """The loaded model at a large shape, with its text."""
    model = inflate(loaded.model, bench.pick(SHAPES[shape], LEAST))
    model.config.max_position_embeddings = 32_768  # RoPE has angles for all of them
    return model


class Inflated:
    """Inflated models, each made when it is first needed, and kept while there is room."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._made: dict[tuple[str, str], tuple[Loaded, Any]] = {}

    def of(self, source: str, shape: str) -> tuple[Loaded, Any]:
        """The small model as it was loaded, and the large one."""
        if (source, shape) not in self._made:
            loaded = SOURCES[source].load(self._bench)
            self._made[source, shape] = loaded, inflated(self._bench, loaded, shape)
        return self._made[source, shape]

    def keep_only(self, source: str, shape: str) -> None:
        """Make room for a case that needs most of it."""
        self._made = {key: made for key, made in self._made.items() if key == (source, shape)}
        free(self._bench.device)


def fitting(settings: Mapping[str, Any] | None, model: Any) -> Mapping[str, Any] | None:
    """Settings of an 8B shape for a model that may have fewer layers."""
    if settings is None or "exit_layer" not in settings:
        return settings
    deepest = model.config.num_hidden_layers - (settings.get("draft") != "low_bit")
    return {**settings, "exit_layer": min(settings["exit_layer"], deepest)}


def prompts_of(loaded: Loaded, tokens: int, count: int, after: int = 0) -> list[list[int]]:
    """Held-out code, `count` prompts of so many tokens; long ones are several put together, each in turn.

    Args:
        after: prompts that are passed over. There are 23,000 tokens: after those, texts come again, in
            prompts that begin elsewhere.
    """
    texts = read_prompts(bundled_prompts())
    ids = tokenized(loaded.tokenizer, texts, None, None)
    ids = [text for text in ids if len(text) >= min(64, tokens)]
    together = math.ceil(tokens / 128)
    return [joined(ids, number * together, tokens) for number in range(after, after + count)]


def joined(ids: Sequence[Sequence[int]], start: int, tokens: int) -> list[int]:
    """Texts from the one at `start` on, put together up to so many tokens."""
    text: list[int] = []
    for number in range(len(ids) + tokens):
        if len(text) >= tokens:
            break
        text += ids[(start + number) % len(ids)]
    return text[:tokens]
