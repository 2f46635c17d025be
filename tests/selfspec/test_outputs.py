"""Scores and logits are the model's own, step by step and row by row, whatever was drafted."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from checks import EVERYTHING, own_generate, text
from strategies import KINDS
from tiny_models import random_prompts, tiny_model
from torch import Tensor

import selfspec
from selfspec.outputs import KeepingCache

ONE, BATCH = random_prompts(9), random_prompts(6, 11, 3)


def frequent(model: Any, prompts: dict[str, Tensor], count: int) -> list[int]:
    out = own_generate(model, **prompts, max_new_tokens=24)[:, -24:]
    values, counts = out.unique(return_counts=True)
    return values[counts.argsort(descending=True)][:count].tolist()


def assert_same(actual: Any, expected: Any) -> None:
    assert torch.equal(actual.sequences, expected.sequences)
    for name in ("scores", "logits"):
        mine, own = getattr(actual, name), getattr(expected, name)
        assert (mine is None) == (own is None)
        if own is not None:
            assert len(mine) == len(own)
            for one, other in zip(mine, own, strict=True):
                assert one.dtype == torch.float32
                assert not one.is_inference()
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("setting", KINDS, ids=str)
@pytest.mark.parametrize("prompts", [ONE, BATCH], ids=["one row", "batch"])
def test_scores_and_logits_are_the_models_own(
    llama: Any, setting: dict[str, Any], prompts: dict[str, Tensor]
) -> None:
    options = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "suppress_tokens": [3, 4]}
    request = {**prompts, "max_new_tokens": 20, **options, **EVERYTHING}
    expected = own_generate(llama, **request)
    selfspec.wrap(llama, **setting, strict=True)
    assert_same(llama.generate(**request), expected)


@pytest.mark.parametrize("setting", KINDS[1:4], ids=str)
def test_rows_that_ended_have_the_scores_of_the_pad_tokens_that_follow(
    family: str, setting: dict[str, Any]
) -> None:
    """As in the model's own loop, which runs them on until all rows have ended."""
    model = tiny_model(family)
    request = {**BATCH, "max_new_tokens": 24, "eos_token_id": frequent(model, BATCH, 2), **EVERYTHING}
    expected = own_generate(model, **request)
    assert len({int((row == 0).sum()) for row in expected.sequences[:, 11:]}) > 1
    selfspec.wrap(model, **setting, strict=True)
    assert_same(model.generate(**request), expected)
    request["repetition_penalty"] = 1.2
    assert_same(model.generate(**request), own_generate(model, **request))


def test_only_what_was_asked_for_comes_back(llama: Any) -> None:
    selfspec.wrap(llama, **KINDS[1], strict=True)
    for asked in ({}, {"output_scores": True}, {"output_logits": True}):
        request = {**ONE, "max_new_tokens": 5, "return_dict_in_generate": True, **asked}
        assert_same(llama.generate(**request), own_generate(llama, **request))
    assert isinstance(llama.generate(**ONE, max_new_tokens=5, output_scores=True), Tensor)


@pytest.mark.parametrize("acceptance", ["coupled", "rejection"])
def test_sampled_scores_lead_to_the_text(llama: Any, acceptance: str) -> None:
    """compute_transition_scores reads log-probabilities from them: a finite one for every token."""
    selfspec.wrap(llama, **KINDS[1], acceptance=acceptance, strict=True)
    request = {**BATCH, "max_new_tokens": 16, "do_sample": True, "top_k": 5, "temperature": 0.7, **EVERYTHING}
    torch.manual_seed(0)
    out = llama.generate(**request)
    chosen = llama.compute_transition_scores(out.sequences, out.scores, normalize_logits=True)
    assert chosen.shape == (3, 16)
    assert bool(chosen.isfinite().all())
    for step, (scores, logits) in enumerate(zip(out.scores, out.logits, strict=True)):
        kept = (scores > -float("inf")).sum(dim=1)
        assert kept.tolist() == [5] * 3, step
        torch.testing.assert_close(logits.topk(5).values / 0.7, scores.topk(5).values)


def test_nothing_is_recorded_where_it_is_not_asked_for(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfspec.generation.Record", None)
    selfspec.wrap(llama, **KINDS[1])
    expected = own_generate(llama, **BATCH, max_new_tokens=8)
    assert torch.equal(text(llama, **BATCH, max_new_tokens=8), expected)


# --- the cache that sets rows aside


def test_a_keeping_cache_brings_back_the_rows_that_finished() -> None:
    def filled(cache: Any) -> Any:
        for index in range(2):
            keys, values = cache.layer(index, torch.zeros(4, 3, 1, 5), torch.zeros(4, 3, 1, 6))
            generator = torch.Generator().manual_seed(index)
            keys.copy_(torch.randn(keys.shape, generator=generator))
            values.copy_(torch.randn(values.shape, generator=generator))
        return cache

    whole = filled(KeepingCache(4, 2, 8))
    cache = copy.deepcopy(whole)
    cache.restore()
    assert cache.rows == 4
    cache.keep(torch.tensor([0, 2, 3]))
    cache.reserve(20)
    cache.keep(torch.tensor([0, 2]))
    assert cache.rows == 2
    cache.restore()
    assert cache.rows == 4
    for index in range(2):
        assert torch.equal(cache.keys[index][:, :, :8], whole.keys[index])
        assert torch.equal(cache.values[index][:, :, :8], whole.values[index])
