"""Captured rounds on a GPU: the same text as launched one by one, and nothing waits inside a round."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checks import text
from strategies import CHAINS, with_repeats
from tiny_models import random_prompts, wide_model
from torch import Tensor

import selfspec
from selfspec.device.graphs import Graphs

pytestmark = pytest.mark.gpu


@pytest.fixture
def prompts() -> dict[str, Tensor]:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return {name: value.cuda() for name, value in with_repeats(random_prompts(9, 21, 2, seed=1)).items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gpt2"])
def test_text_is_the_same_under_every_setting(
    prompts: dict[str, Tensor], family: str, dtype: torch.dtype
) -> None:
    model = wide_model(family).to("cuda", dtype)
    for sampling in ({"do_sample": False}, {"do_sample": True, "temperature": 0.8, "top_k": 20}):
        request = {**prompts, "max_new_tokens": 24, **sampling}
        selfspec.wrap(model, draft_length=0)
        expected = text(model, **request)
        assert model.speculation.stats.launching.startswith("CUDA graphs")
        for settings in CHAINS[:: 3 if dtype == torch.float32 else 2]:
            if settings.get("draft_bits") == 8:
                continue  # for CPUs
            selfspec.wrap(model, **settings)
            for _ in range(2):  # as it is, then captured
                assert torch.equal(text(model, **request), expected), settings
        selfspec.unwrap(model)


def test_greedy_text_in_fp32_is_the_models_own(prompts: dict[str, Tensor]) -> None:
    model = wide_model("llama").cuda()
    request = {**prompts, "max_new_tokens": 24, "do_sample": False}
    expected = model.generate(**request)
    for settings in ({"draft_length": 0}, {"draft": "early_exit", "exit_layer": 2, "draft_length": 3}):
        selfspec.wrap(model, **settings)
        for _ in range(2):
            assert torch.equal(model.generate(**request), expected)


def test_rounds_come_from_graphs(prompts: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    model = wide_model("llama").cuda()
    selfspec.wrap(model, draft="early_exit", exit_layer=2, draft_length=3)
    model.generate(**prompts, max_new_tokens=24)
    replayed: list[bool] = []
    run = Graphs.run

    def noted(self: Any, key: Any) -> None:
        run(self, key)
        replayed.append(self.replayed)

    monkeypatch.setattr(Graphs, "run", noted)
    model.generate(**prompts, max_new_tokens=24)
    assert len(replayed) > 5
    assert sum(replayed) >= len(replayed) - 2


def test_a_graph_does_not_outlive_a_weight(prompts: dict[str, Tensor]) -> None:
    model = wide_model("llama").cuda()
    selfspec.wrap(model, draft="low_bit", exit_layer=4, draft_length=3)
    request = {**prompts, "max_new_tokens": 16, "do_sample": False}
    for _ in range(2):
        model.generate(**request)
    other = wide_model("llama", seed=5).cuda()
    model.model.layers[1] = other.model.layers[1]
    expected = type(model).generate(model, **request)
    for _ in range(2):
        assert torch.equal(model.generate(**request), expected)


def test_a_capture_that_finds_no_memory_changes_nothing_but_speed(
    prompts: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = wide_model("llama").cuda()
    selfspec.wrap(model, draft="early_exit", exit_layer=2, draft_length=3)
    request = {**prompts, "max_new_tokens": 16, "do_sample": False}
    expected = model.generate(**request)
    selfspec.wrap(model, draft="early_exit", exit_layer=2, draft_length=3)

    def full(self: Any, key: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Graphs, "_graph_of", full)
    with pytest.warns(UserWarning, match="cannot be captured as CUDA graphs"):
        assert torch.equal(model.generate(**request), expected)
