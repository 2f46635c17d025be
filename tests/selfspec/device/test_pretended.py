"""What rounds ask of a GPU, on one that is not there: they read nothing back, and compile all at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
import torch
from tiny_models import LAYERS, wide_model
from transformers import LlamaConfig, LlamaForCausalLM

from layer_skip.decoder import LayeredDecoder
from layer_skip.families import FAMILIES
from layer_skip.low_bit import LowBitView
from selfspec.device.buffers import Signature
from selfspec.device.request import model_reason
from selfspec.device.static_round import Kind
from selfspec.device.workspace import Workspace
from selfspec.round import Arm
from selfspec.shapes import ShapePlan

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="triton is for Linux"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"),
]
MODULES = ["gemma2", "gemma3_text", "gpt2", "olmo2", "opt", "phi3", "smollm3", "starcoder2"]
LEAN = [name for name, family in FAMILIES.items() if family.lean]
ARMS = [None, Arm(2, low_bit=False), Arm(LAYERS, low_bit=True)]
SIGNATURES = [Signature(), Signature(True, True), Signature(True, True, True, True, True)]
REPORT = "aten.copy_.default in buffers.py:report"
WIDEST = 63


def workspace(model: Any, rows: int, capacity: int = 512) -> Workspace:
    decoder = LayeredDecoder(model)
    view = LowBitView(decoder, decoder.n_layers)
    return Workspace(decoder, view, rows, capacity, ShapePlan(), memory=1 << 30)


def kinds(lengths: Sequence[int], arm: Arm | None, signature: Signature) -> list[Kind]:
    return [Kind(arm, length, signature) for length in lengths]


@pytest.mark.parametrize("family", [*LEAN, *MODULES])
def test_a_round_copies_what_it_reports_and_nothing_else_to_or_from_the_host(family: str) -> None:
    """A value that the host reads would be an error here, and break a capture."""
    from pretended_gpu import pretended_gpu

    with pretended_gpu(wide_model(family).bfloat16()) as gpu:
        assert model_reason(LayeredDecoder(gpu.model)) == ""
        space = workspace(gpu.model, rows=2)
        assert space.buffers.keys.is_cuda and (space.note == "") == (family in LEAN)
        for arm, signature in product(ARMS, SIGNATURES):
            gpu.copies.clear()
            space.round(Kind(arm, 3, signature))
            assert gpu.copies == [REPORT]
        assert {"span_kernel", "commit_kernel"} <= {variant.kernel for variant in gpu.variants}


def test_what_would_wait_for_a_gpu_shows() -> None:
    from pretended_gpu import pretended_gpu

    with pretended_gpu(wide_model("llama")) as gpu:
        tokens = workspace(gpu.model, rows=2).buffers.keys
        gpu.copies.clear()
        with pytest.raises(Exception, match="_local_scalar_dense"):
            tokens.sum().item()
        with pytest.raises(Exception, match=r"nonzero|_local_scalar_dense|index"):
            tokens[tokens > 0].tolist()
        assert gpu.copies == []
        tokens.copy_(torch.zeros(2, dtype=torch.int64))
        assert gpu.copies == ["aten.copy_.default in test_pretended.py:test_what_would_wait_for_a_gpu_shows"]


@pytest.mark.parametrize("rows", [1, 4, 8])
def test_the_first_round_of_a_family_compiles_all_that_the_others_need(rows: int) -> None:
    """Others are captured, where nothing should be left to compile.

    As far as the vocabulary is divisible by 16; where not, logits of several tokens may happen to be.
    """
    from pretended_gpu import pretended_gpu

    with pretended_gpu(wide_model("llama", vocab=128).bfloat16()) as gpu:
        space = workspace(gpu.model, rows)
        for arm, signature, lengths in product(ARMS, SIGNATURES, ([2, 3], [4, 5, 7], [9, 8, 15])):
            first, *others = kinds(lengths, arm, signature)
            assert {kind.family for kind in others} == {first.family}
            gpu.variants.clear()
            space.round(first)
            known = set(gpu.variants)
            for kind in others:
                space.round(kind)
            assert set(gpu.variants) <= known, (arm, signature)


@pytest.mark.parametrize("capability", [80, 90])
def test_all_that_rounds_launch_compiles_and_spills_nothing(
    capability: int, request: pytest.FixtureRequest
) -> None:
    """As they are launched, with every alignment: other tests compile what is divisible by 16."""
    from ahead_of_time import check_resources, resources
    from pretended_gpu import pretended_gpu

    every = request.config.getoption("--every-combination")
    with pretended_gpu(large_model(), capability) as gpu:
        for rows, capacity in [(1, 512), (1, 16_896), (16, 512), (32, 1024)] if every else [(1, 16_896)]:
            space = workspace(gpu.model, rows, capacity)
            for arm, signature in product(ARMS, SIGNATURES if every else SIGNATURES[1:2]):
                for kind in kinds((1, 3, 8, 15, 31, WIDEST) if every else (3,), arm, signature):
                    space.round(kind)
        for variant in set(gpu.variants):
            check_resources(resources(variant.compile()), capability)


def large_model() -> Any:
    """Layers and head in the shape of Llama 3.1 8B, without numbers."""
    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_attention_heads=32,
        num_key_value_heads=8,
        num_hidden_layers=LAYERS,
        vocab_size=128_256,
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config).bfloat16()
