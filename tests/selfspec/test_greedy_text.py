"""Greedy text in fp32 is the model's own, token for token, whatever the setting."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from checks import own_generate, texts_of
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import LAYERS, PAD, VOCAB, padded, random_prompts, tiny_model
from torch import Tensor

import selfspec

EVERY = [{"exit_layer": e, "draft_length": k} for e in range(1, LAYERS) for k in range(9)]
SOME = [{"exit_layer": e, "draft_length": k} for e, k in ((1, 0), (1, 4), (2, 3), (3, 8))]
# Shorter and longer than the windows of Mistral (16) and Gemma 2 (12).
LENGTHS = {1: (14,), 3: (3, 21, 8), 5: (24, 1, 9, 30, 17)}


def frequent_tokens(out: Tensor, count: int) -> list[int]:
    return [token for token, _ in Counter(out.flatten().tolist()).most_common(count)]


@selfspec.rowwise
def custom_processor(ids: Tensor, scores: Tensor) -> Tensor:
    """Reads the whole prefix: forbids a token that depends on its sum, and the last token."""
    scores = scores.clone()
    for row, prefix in enumerate(ids.tolist()):
        scores[row, sum(prefix) % VOCAB] = -float("inf")
        scores[row, prefix[-1]] -= 3.0
        scores[row, len(prefix) % VOCAB] += 2.0
    return scores


OPTIONS: dict[str, dict[str, Any]] = {
    "repetition penalty": {"repetition_penalty": 1.4},
    "no repeated n-gram": {"no_repeat_ngram_size": 2},
    "custom processor": {"logits_processor": [custom_processor]},
    "max_length": {"max_length": 42, "max_new_tokens": None},
    "several end tokens": {"eos_token_id": "frequent"},
    "end tokens, not too early": {"eos_token_id": "frequent", "min_new_tokens": 6},
    "end tokens and a growing urge": {
        "eos_token_id": "frequent",
        "exponential_decay_length_penalty": (4, 1.5),
        "forced_eos_token_id": 5,
    },
    "suppressed and biased tokens": {
        "suppress_tokens": [3, 4, 5],
        "begin_suppress_tokens": [6, 7],
        "bad_words_ids": [[8, 9], [10]],
        "sequence_bias": [[[11], 1.5], [[12, 13], 2.0]],
    },
    "all at once": {
        "eos_token_id": "frequent",
        "min_new_tokens": 3,
        "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 3,
        "renormalize_logits": True,
        "logits_processor": [custom_processor],
    },
}


@pytest.mark.parametrize("rows", LENGTHS)
def test_greedy_text_is_the_models_own_for_every_exit_and_length(family: str, rows: int) -> None:
    model = tiny_model(family)
    request = {**random_prompts(*LENGTHS[rows]), "max_new_tokens": 12}
    expected = own_generate(model, **request)
    for setting, out in texts_of(model, EVERY, **request):
        assert torch.equal(out, expected), setting


@pytest.mark.parametrize("option", OPTIONS)
def test_greedy_text_is_the_models_own_under_every_option(family: str, option: str) -> None:
    model = tiny_model(family)
    request: dict[str, Any] = {**random_prompts(*LENGTHS[5]), "max_new_tokens": 16, **OPTIONS[option]}
    if request.get("eos_token_id"):
        plain = own_generate(model, **random_prompts(*LENGTHS[5]), max_new_tokens=16)
        request["eos_token_id"] = frequent_tokens(plain[:, -14:], 3)
    expected = own_generate(model, **request)
    for setting, out in texts_of(model, SOME, **request):
        assert torch.equal(out, expected), setting


def test_greedy_text_is_the_models_own_without_care_for_shapes(family: str) -> None:
    """Rounding may differ then, but in fp32 no tie here is that near."""
    model = tiny_model(family)
    request = {**random_prompts(*LENGTHS[5]), "max_new_tokens": 16}
    expected = own_generate(model, **request)
    for setting, out in texts_of(model, [{**s, "deterministic": False} for s in SOME], **request):
        assert torch.equal(out, expected), setting


def test_rows_end_at_different_end_tokens_and_are_filled_up(llama: Any) -> None:
    """The test above would pass if no row ever ended."""
    request = {**random_prompts(*LENGTHS[5]), "max_new_tokens": 16}
    plain = own_generate(llama, **request)
    ends = frequent_tokens(plain[:, -14:], 3)
    selfspec.wrap(llama, exit_layer=2, draft_length=4)
    out = llama.generate(**request, eos_token_id=ends)[:, -16:]
    counts = [next((i + 1 for i, token in enumerate(row) if token in ends), 16) for row in out.tolist()]
    assert len(set(counts)) >= 3
    for row, count in zip(out.tolist(), counts, strict=True):
        assert row[count:] == [PAD] * (len(row) - count)


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_text_reaches_the_last_learned_position(family: str) -> None:
    size = "n_positions" if family == "gpt2" else "max_position_embeddings"
    model = tiny_model(family, **{size: 32})
    for lengths in ((10,), (10, 3)):
        request = {**random_prompts(*lengths), "max_length": 33}
        expected = own_generate(model, **request)
        for setting, out in texts_of(model, SOME, **request):
            assert torch.equal(out, expected), setting
    selfspec.wrap(model)
    with pytest.raises(ValueError, match="max_length=34 exceeds the model's 32 learned positions"):
        model.generate(**random_prompts(10), max_length=34)


def test_text_outgrows_the_cache_it_began_with(llama: Any) -> None:
    request = {**random_prompts(5, 9), "max_new_tokens": 150}
    expected = own_generate(llama, **request)
    for setting, out in texts_of(llama, SOME, **request):
        assert torch.equal(out, expected), setting


@pytest.mark.parametrize("mode", ["fixed", "auto"])
def test_scaling_that_changes_with_the_length_is_left_to_the_model_itself(mode: str) -> None:
    scaling = {"rope_type": "dynamic", "factor": 2.0}
    model = tiny_model("llama", rope_scaling=scaling, max_position_embeddings=120)
    short, long = ({**random_prompts(12), "max_new_tokens": n} for n in (20, 115))
    expected = [own_generate(model, **request) for request in (short, long)]
    selfspec.wrap(model, **({} if mode == "auto" else SOME[2]))
    assert torch.equal(model.generate(**short), expected[0])
    with pytest.warns(UserWarning, match="rotary scaling that changes past 120 tokens"):
        assert torch.equal(model.generate(**long), expected[1])


@pytest.mark.parametrize("eager", [True, False])
def test_the_models_own_attention_setting_neither_matters_nor_changes(eager: bool) -> None:
    model = tiny_model("qwen2")
    model.set_attn_implementation("eager" if eager else "sdpa")
    request = {**random_prompts(*LENGTHS[3]), "max_new_tokens": 16}
    expected = own_generate(model, **request)
    for setting, out in texts_of(model, SOME, **request):
        assert torch.equal(out, expected), setting
    assert model.config._attn_implementation == ("eager" if eager else "sdpa")


_MODELS = {name: tiny_model(name) for name in ("llama", "gemma2", "gpt2")}


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(sorted(_MODELS)),
    prompts=st.lists(st.lists(st.integers(1, VOCAB - 1), min_size=1, max_size=26), min_size=1, max_size=4),
    exit_layer=st.integers(1, LAYERS - 1),
    draft_length=st.integers(0, 9),
    new_tokens=st.integers(1, 20),
    ends=st.integers(0, 4),
    threshold=st.sampled_from([0.0, 0.2, 0.6]),
    deterministic=st.booleans(),
    penalty=st.sampled_from([None, 1.3]),
)
def test_any_request_gives_the_models_own_text(
    name: str,
    prompts: list[list[int]],
    exit_layer: int,
    draft_length: int,
    new_tokens: int,
    ends: int,
    threshold: float,
    deterministic: bool,
    penalty: float | None,
) -> None:
    model = _MODELS[name]
    request: dict[str, Any] = {**padded(prompts), "max_new_tokens": new_tokens, "repetition_penalty": penalty}
    if ends:
        request["eos_token_id"] = frequent_tokens(own_generate(model, **request)[:, -new_tokens:], ends)
    expected = own_generate(model, **request)
    setting = {
        "exit_layer": exit_layer,
        "draft_length": draft_length,
        "confidence_threshold": threshold,
        "deterministic": deterministic,
    }
    for _, out in texts_of(model, [setting], **request):
        assert torch.equal(out, expected)
