"""Reading the exits along a prompt: right, and within its budget."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import LAYERS, random_prompts, tiny_model

import selfspec
from layer_skip.decoder import LayeredDecoder
from layer_skip.exits import exit_choices
from selfspec.tuning.costs import PassCosts
from selfspec.tuning.knowledge import Knowledge
from selfspec.tuning.reading import SAMPLES, Reading, affordable_samples


@pytest.mark.parametrize(
    ("seconds", "head", "samples"),
    [
        (1.0, 0.01, 20),  # five layers: 100 heads in all
        (100.0, 0.01, SAMPLES),
        (0.4, 0.01, 8),
        (0.39, 0.01, 0),  # too few to say anything
        (0.0, 0.01, 0),
        (0.0, 0.0, SAMPLES),  # heads that cost nothing
    ],
)
def test_as_many_positions_are_read_as_the_budget_allows(seconds: float, head: float, samples: int) -> None:
    assert affordable_samples(seconds, head, n_layers=5) == samples
    assert samples * head * 5 <= seconds + 1e-9


@pytest.mark.parametrize("samples", [8, 20, 64])
def test_agreements_are_those_of_the_exits_at_the_last_positions(family: str, samples: int) -> None:
    model = tiny_model(family)
    decoder = LayeredDecoder(model)
    text = random_prompts(31)["input_ids"][0]
    reading = Reading(samples)
    span = decoder.span(torch.arange(31)[None], 31, 0)
    with torch.no_grad():
        cache = selfspec.cache.KVCache(1, LAYERS, 31).window(span)
        decoder.run(decoder.embed(text[None], span), 0, LAYERS, span, cache, reading.watch)
    agreement = reading.agreement(decoder)
    choices = exit_choices(decoder, text, last=samples)
    expected = {e: int((choices.tokens[e - 1] == choices.tokens[-1]).sum()) for e in range(1, LAYERS)}
    assert agreement is not None
    assert (agreement.counts, agreement.samples) == (expected, min(samples, 31))
    assert reading.agreement(decoder) is None  # read once, then forgotten


def test_nothing_was_watched_without_a_prefill() -> None:
    assert Reading(8).agreement(LayeredDecoder(tiny_model("llama"))) is None


def read_positions(model: Any, new_tokens: int, calls: int = 1, prompt: int = 200) -> list[int]:
    """How many positions were known after each of several calls."""
    known = []
    for seed in range(calls):
        model.generate(**random_prompts(prompt, seed=seed), max_new_tokens=new_tokens)
        known.append(model.speculation.knowledge.samples)
    return known


def costs_of_layers_alone() -> PassCosts:
    return PassCosts((1.0,) * 6, (1e-9,) * 6)


@pytest.fixture
def costed(llama: Any) -> Any:
    """Wrapped, with costs that are made up: a step of 1 s, of which a head of one token is a tenth."""
    selfspec.wrap(llama, draft_memory=0)
    one = PassCosts((0.225,) * 6, (0.1,) * 5 + (3.2,))
    llama.speculation._knowledge = Knowledge(LAYERS, lambda: one, None, 4)
    return llama


def test_a_long_call_reads_and_a_short_one_does_not(costed: Any) -> None:
    """At most 2% of the call's expected time, which is a third of plain decoding."""
    costed.speculation._knowledge.exact = PassCosts((0.225,) * 6, (0.1,) * 5 + (0.096,))  # 3 ms a position
    assert read_positions(costed, new_tokens=12) == [0]
    assert read_positions(costed, new_tokens=40) == [22]  # 4 heads x 22 x 3 ms, of 40 s / 3


def test_what_is_read_costs_at_most_its_share_and_ends_when_enough_is_known(costed: Any) -> None:
    costed.speculation._knowledge.exact = PassCosts((0.225,) * 6, (0.1,) * 5 + (0.0032,))
    known = read_positions(costed, new_tokens=40, calls=5)
    assert known == [SAMPLES, 2 * SAMPLES] + [2 * SAMPLES] * 3


def test_no_more_is_read_than_the_prompt_has(costed: Any) -> None:
    costed.speculation._knowledge.exact = PassCosts((0.225,) * 6, (0.1,) * 5 + (0.0032,))
    assert read_positions(costed, new_tokens=40, prompt=21) == [20]  # the last token opens the first round


def test_one_exit_needs_no_reading(llama: Any) -> None:
    selfspec.wrap(llama, exit_layer=2)
    llama.speculation._knowledge = Knowledge(LAYERS, costs_of_layers_alone, None, 4)
    assert read_positions(llama, new_tokens=40) == [0]


def test_reading_does_not_change_the_text(family: str) -> None:
    model = tiny_model(family)
    prompts = random_prompts(30, 12)
    selfspec.wrap(model, draft_memory=0)
    model.speculation._knowledge = Knowledge(LAYERS, costs_of_layers_alone, None, 4)
    out = model.generate(**prompts, max_new_tokens=16)
    assert model.speculation.knowledge.samples > 0
    assert torch.equal(out, type(model).generate(model, **prompts, max_new_tokens=16))


def test_positions_are_read_across_chunks_of_the_prefill(llama: Any) -> None:
    decoder = LayeredDecoder(llama)
    text = random_prompts(9 + 2 * 11)["input_ids"][0]
    whole, parts = Reading(16), Reading(16)
    states = torch.randn(1, len(text), llama.config.hidden_size)
    for layer in range(1, LAYERS + 1):
        whole.watch(layer, states + layer)
    for first, last in ((0, 20), (20, 30), (30, 31)):  # the last chunk has one token
        for layer in range(1, LAYERS + 1):
            parts.watch(layer, states[:, first:last] + layer)
    kept = parts._hidden.values()
    assert all(hidden.untyped_storage().nbytes() <= 2 * 16 * hidden[0, 0].nbytes for hidden in kept)
    expected, found = whole.agreement(decoder), parts.agreement(decoder)
    assert found == expected
    assert found is not None and found.samples == 16


def test_a_prompt_that_ends_just_after_a_chunk_is_read_as_far_as_any_other(costed: Any) -> None:
    costed.speculation._knowledge.exact = PassCosts((0.225,) * 6, (0.1,) * 5 + (0.0032,))
    costed.config.max_position_embeddings = 1024
    assert read_positions(costed, new_tokens=40, prompt=514) == [SAMPLES]
