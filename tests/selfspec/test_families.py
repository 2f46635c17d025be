"""Greedy text in fp32 is the model's own in every family of the table, and a wrong row would be noticed."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from checks import own_generate
from tiny_models import LAYERS, VARIANTS, random_prompts, tiny_model
from torch import Tensor
from transformers import DynamicCache

import selfspec
from layer_skip import alibi, attention, layout, recognition
from layer_skip.families import FAMILIES, UnsupportedModelError

# Windows and chunks are 10 to 16 tokens: prompts are shorter and longer, rows of a batch unequal.
SHORT, LONG, BATCH = (7,), (21,), (24, 3, 9, 30)
COVERING = [(BATCH, 1, 4), (BATCH, 2, 7), (LONG, LAYERS - 1, 1), (SHORT, 2, 4)]
EVERY = [
    (lengths, exit_layer, draft_length)
    for lengths in (SHORT, LONG, BATCH, (5, 4, 6, 5))
    for exit_layer in (1, LAYERS // 2, LAYERS - 1)
    for draft_length in (1, 4, 7)
]


def differing(model: Any, combinations: list[tuple[tuple[int, ...], int, int]]) -> list[tuple[Any, ...]]:
    """The combinations of prompt lengths, exit layer and draft length whose text is not the model's own."""
    expected, found = {}, []
    for lengths, exit_layer, draft_length in combinations:
        request = {**random_prompts(*lengths), "max_new_tokens": 14}
        if lengths not in expected:
            expected[lengths] = own_generate(model, **request)
        selfspec.wrap(model, exit_layer=exit_layer, draft_length=draft_length, strict=True)
        if not torch.equal(model.generate(**request), expected[lengths]):
            found.append((lengths, exit_layer, draft_length))
        selfspec.unwrap(model)
    return found


@pytest.mark.parametrize("name", [*FAMILIES, *VARIANTS])
def test_greedy_text_is_the_models_own_in_every_family(name: str, request: pytest.FixtureRequest) -> None:
    combinations = EVERY if request.config.getoption("--every-combination") else COVERING
    assert differing(tiny_model(name), combinations) == []


def second_turn(model: Any, generate: Any, lengths: tuple[int, ...]) -> Tensor:
    """What follows a first turn, its text and five tokens more, over the cache of the first."""
    cache, first = DynamicCache(config=model.config), random_prompts(*lengths)
    out = generate(**first, past_key_values=cache, max_new_tokens=6)
    more = random_prompts(*[5] * len(lengths), seed=1)["input_ids"]
    ids = torch.cat([out, more], dim=1)
    mask = torch.nn.functional.pad(first["attention_mask"], (0, 11), value=1)
    text: Tensor = generate(input_ids=ids, attention_mask=mask, past_key_values=cache, max_new_tokens=10)
    return text


@pytest.mark.parametrize("name", [*FAMILIES, *VARIANTS])
def test_greedy_text_over_a_prior_cache_is_the_models_own_in_every_family(
    name: str, request: pytest.FixtureRequest
) -> None:
    combinations = [(BATCH, 2, 4), ((5,), LAYERS - 1, 7)]
    if request.config.getoption("--every-combination"):
        combinations = EVERY
    model = tiny_model(name)
    own = {lengths: second_turn(model, model.generate, lengths) for lengths, *_ in combinations}
    for lengths, exit_layer, draft_length in combinations:
        selfspec.wrap(model, exit_layer=exit_layer, draft_length=draft_length, strict=True)
        text = second_turn(model, model.generate, lengths)
        assert torch.equal(text, own[lengths]), (lengths, exit_layer, draft_length)
        assert model.speculation.total.calls == 2
        selfspec.unwrap(model)


# What a row says -> a family that needs it. Without it the model must be refused, not generate another text.
NEEDED = {
    "embed_norm": "bloom",
    "embed_multiplier_field": "granite",
    "input_divisor_field": "minicpm3",
    "logit_multiplier_field": "cohere",
    "logit_divisor_field": "granite",
    "logit_softcap_field": "gemma2",
    "rotary": "llama",
    "rotary_by_layer_type": "gemma3_text",
    "position_embedding": "gpt_bigcode",
    "position_offset": "opt",
    "position_argument": "gptj",
    "alibi": "bloom",
}


@pytest.mark.parametrize("field", NEEDED)
def test_a_row_without_what_its_family_needs_is_refused(monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    row = FAMILIES[NEEDED[field]]
    empty = {"rotary_by_layer_type": False, "position_offset": 0}.get(field)
    monkeypatch.setitem(recognition.FAMILIES, row.model_type, dataclasses.replace(row, **{field: empty}))
    with pytest.raises(UnsupportedModelError):
        selfspec.wrap(tiny_model(row.model_type))


def test_sinks_that_are_ignored_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    attend = attention.attend

    def without(*arguments: Any, s_aux: Any = None, **keywords: Any) -> Any:
        return attend(*arguments, **keywords)

    monkeypatch.setitem(attention.AttentionInterface._global_mapping, attention.ATTENTION, without)
    with pytest.raises(UnsupportedModelError, match="gives other logits"):
        selfspec.wrap(tiny_model("gpt_oss"))


def test_alibi_in_another_rounding_or_form_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    biases = alibi.biases
    monkeypatch.setattr(alibi, "biases", lambda *arguments: 0.9 * biases(*arguments))
    for name in ("bloom", "mpt", "falcon with ALiBi"):
        with pytest.raises(UnsupportedModelError, match="gives other logits"):
            selfspec.wrap(tiny_model(name))


@pytest.mark.parametrize("name", ["mistral", "gemma3_text", "cohere2", "gpt_oss", "llama4_text"])
def test_a_window_or_chunk_that_is_ignored_is_noticed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The windows are longer than the wrap-time check, so only the text can tell."""
    causal_mask = layout.causal_mask
    monkeypatch.setattr(layout, "causal_mask", lambda p, n, reach, dtype: causal_mask(p, n, None, dtype))
    assert differing(tiny_model(name), [(BATCH, 2, 4)]) == [(BATCH, 2, 4)]


def test_a_chunk_that_is_taken_for_a_window_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    causal_mask = layout.causal_mask

    def as_window(positions: Any, n: int, reach: Any, dtype: Any) -> Any:
        return causal_mask(positions, n, getattr(reach, "size", None), dtype)

    monkeypatch.setattr(layout, "causal_mask", as_window)
    assert differing(tiny_model("llama4_text"), [(BATCH, 2, 4)]) == [(BATCH, 2, 4)]


def test_a_scale_that_depends_on_the_batch_is_left_to_the_model_itself() -> None:
    model = tiny_model("llama4_text", floor_scale=128, attn_temperature_tuning=True)
    short, long = ({**random_prompts(20), "max_new_tokens": n} for n in (10, 115))
    expected = [own_generate(model, **request) for request in (short, long)]
    selfspec.wrap(model, exit_layer=2, draft_length=4)
    assert torch.equal(model.generate(**short), expected[0])
    with pytest.warns(UserWarning, match="changes past 127 tokens"):
        assert torch.equal(model.generate(**long), expected[1])
