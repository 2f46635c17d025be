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
from selfspec.benchmarking.identity import Referee
from selfspec.device.graphs import Graphs

pytestmark = pytest.mark.gpu


@pytest.fixture
def prompts() -> dict[str, Tensor]:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return {name: value.cuda() for name, value in with_repeats(random_prompts(9, 21, 2, seed=1)).items()}


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        ("llama", torch.float32),
        ("llama", torch.bfloat16),
        ("qwen3", torch.float32),
        ("qwen3", torch.bfloat16),
        ("gemma2", torch.float32),
        ("gpt2", torch.float32),
    ],
    ids=str,
)
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


@pytest.mark.parametrize("family", ["gemma2", "gpt2"])
def test_in_16_bits_layers_that_run_module_by_module_differ_by_near_ties_alone(
    prompts: dict[str, Tensor], family: str
) -> None:
    """Nobody promises that a library's products, or sums of a norm, have the same bits at every width."""
    model = wide_model(family).to("cuda", torch.bfloat16)
    width = prompts["input_ids"].shape[1]
    real = [tuple(ids[mask > 0].tolist()) for ids, mask in zip(*prompts.values(), strict=True)]

    def texts(**settings: Any) -> list[tuple[int, ...]]:
        selfspec.wrap(model, **settings)
        out = model.generate(**prompts, max_new_tokens=24, do_sample=False)
        selfspec.unwrap(model)
        return [tuple(row) for row in out[:, width:].tolist()]

    referee = Referee(model, real, texts(draft_length=0))
    for settings in ({"draft": "early_exit", "exit_layer": 2, "draft_length": 3}, {"draft": "lookup"}):
        assert not referee.judge(texts(**settings)).different, settings


def test_a_text_does_not_depend_on_how_many_rows_are_written_together(prompts: dict[str, Tensor]) -> None:
    """From five rows on the head is a product of its own."""
    model = wide_model("llama").to("cuda", torch.bfloat16)
    selfspec.wrap(model, draft_length=0)
    many = {name: value.repeat(3, 1) for name, value in prompts.items()}
    out = model.generate(**many, max_new_tokens=24, do_sample=False)
    assert torch.equal(out[:3], model.generate(**prompts, max_new_tokens=24, do_sample=False))


def test_a_model_that_waits_for_the_host_is_not_captured(prompts: dict[str, Tensor]) -> None:
    model = wide_model("llama").cuda()
    mlp = model.model.layers[1].mlp
    mlp.forward = lambda x: type(mlp).forward(mlp, x) * (2 if bool((x > 1e9).any()) else 1)
    expected = type(model).generate(model, **prompts, max_new_tokens=12, do_sample=False)
    selfspec.wrap(model)
    for _ in range(2):
        assert torch.equal(model.generate(**prompts, max_new_tokens=12, do_sample=False), expected)
    assert "its passes wait for the host" in model.speculation.stats.launching


def test_a_profile_that_was_tuned_is_followed(prompts: dict[str, Tensor]) -> None:
    model = selfspec.wrap(wide_model("llama").cuda())
    rows = [ids[mask > 0].tolist() for ids, mask in zip(*prompts.values(), strict=True)]
    tuned = model.speculation.tune(rows, workload="here", max_new_tokens=16, save=None)
    assert tuned.workload == "here"
    expected = type(model).generate(model, **prompts, max_new_tokens=16, do_sample=False)
    found = model.generate(**prompts, max_new_tokens=16, do_sample=False, workload="here")
    assert torch.equal(found, expected)
    assert "here" in model.speculation.stats.profile


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
