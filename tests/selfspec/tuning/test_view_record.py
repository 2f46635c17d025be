"""Replay of low-bit drafts is exact with a recording for every draft position, and not with one."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from tiny_models import random_prompts, tiny_model

import selfspec
from layer_skip import low_bit
from layer_skip.decoder import LayeredDecoder
from layer_skip.low_bit import LowBitView
from selfspec.drafting import StopRule
from selfspec.stats import Stats
from selfspec.tree import Tree
from selfspec.tuning.record import record
from selfspec.tuning.recording import Choices, Recording
from selfspec.tuning.replay import Replay, Setting, replay
from selfspec.tuning.running import Engine
from selfspec.tuning.validate import run_setting
from selfspec.tuning.view_record import record_view

GREEDY = {"do_sample": False}
SAMPLED = {"do_sample": True, "temperature": 0.9, "top_k": 0}
SEED, TOKENS = 3, 24
RULE = StopRule((0.4, 0.3), chances=((0.1, 0.5, 0.9), (0.2, 0.4, 0.8)))


def viewed(model: Any, bits: int = 4) -> Engine:
    """All real runs of a model, with a view of all its layers: checked and packed once.

    Its products are in fp32: in bf16, where a view is fast, one number in a few thousand rounds otherwise in
    a wide pass than in a narrow one, and a near-tie falls the other way now and then.
    """
    decoder = LayeredDecoder(model)
    with mock.patch.object(low_bit, "LEAST_FOR_INT8", 0):
        return Engine(model, view=LowBitView(decoder, decoder.n_layers, bits, dtype=torch.float32))


@functools.cache
def tiny(family: str, bits: int = 4) -> Engine:
    """The same of a tiny model: no test changes it."""
    return viewed(tiny_model(family), bits)


@pytest.fixture(scope="module")
def reference(reference_model: Any) -> Engine:
    """The same of the bundled model."""
    return viewed(reference_model)


def recorded(
    engine: Engine, prompts: Sequence[Sequence[int]], longest: int, exits: Sequence[int], **arguments: Any
) -> Recording:
    """What the engine's view drafts along the model's own texts."""
    how: dict[str, Any] = {"generate_arguments": arguments}
    texts = record(engine.model, prompts, max_new_tokens=TOKENS, exits=(1,), seed=SEED, **how)
    return record_view(engine.model, engine.view, prompts, texts, longest=longest, exits=exits, **how)


def real(engine: Engine, prompts: Sequence[Sequence[int]], setting: Setting, **arguments: Any) -> Stats:
    """A real call that drafts so with the view."""
    return run_setting(engine, prompts, setting, SEED, max_new_tokens=TOKENS, **arguments)


def as_replayed(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    settings: Sequence[Setting],
    predicted: Replay,
    **arguments: Any,
) -> Iterator[tuple[int, int, Stats]]:
    """Real runs of every setting on every prompt, whose rounds and accepted tokens are the replayed ones."""
    for s, setting in enumerate(settings):
        for p, prompt in enumerate(prompts):
            stats = real(engine, [prompt], setting, **arguments)
            assert int(predicted.row_rounds[s, p]) == stats.row_rounds, setting
            assert int(predicted.accepted[s, p]) == stats.accepted, setting
            yield s, p, stats


def settings_of(n_layers: int) -> list[Setting]:
    """Chains, thresholds, rules by position and siblings, from the middle and from all layers."""
    chains = [(1, 0.0, 1), (3, 0.0, 1), (6, 0.0, 1), (8, 0.3, 1), (4, 0.6, 1), (3, 0.0, 2), (5, 0.0, 3)]
    exits = (n_layers // 2, n_layers)
    found = [by_view(e, k, threshold, siblings=w) for e in exits for k, threshold, w in chains]
    return [*found, *(by_view(e, 6, stop=RULE) for e in exits)]


def by_view(exit_layer: int, length: int, *how: Any, **more: Any) -> Setting:
    """A setting that drafts by the view."""
    return Setting(exit_layer, length, *how, draft="low_bit", **more)


@pytest.mark.parametrize("arguments", [GREEDY, SAMPLED], ids=["greedy", "coupled"])
@pytest.mark.parametrize(("family", "bits"), [("llama", 4), ("llama", 8), ("gpt2", 4), ("gemma2", 4)])
def test_replay_equals_real_runs_of_random_models(family: str, bits: int, arguments: dict[str, Any]) -> None:
    engine = tiny(family, bits)
    prompts = [p[p.index(next(filter(None, p))) :] for p in random_prompts(5, 9)["input_ids"].tolist()]
    settings = settings_of(4)
    depths = recorded(engine, prompts, 8, (2, 4), **arguments)
    predicted = replay(depths, settings)
    for s, p, stats in as_replayed(engine, prompts, settings, predicted, **arguments):
        least, most = int(predicted.drafted_least[s, p]), int(predicted.drafted_most[s, p])
        assert least <= stats.drafted <= most, settings[s]


TREES = (
    Tree((0, 0, 0, 0)),
    Tree((0, 0, 1, 1), (2, 0, 3, 1)),
    Tree((0, 1, 2, 0, 1, 1, 2, 3, 3, 3)),
    Tree.of((0, 0, 0, 1, 1, 2, 4, 4, 6, 7)),
)


@pytest.mark.parametrize("arguments", [GREEDY, SAMPLED], ids=["greedy", "coupled"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_static_trees_are_replayed_as_they_run(family: str, arguments: dict[str, Any]) -> None:
    engine, prompts = tiny(family), [[5, 6, 7, 11], [9, 8]]
    settings = [by_view(e, t.depth, tree=t) for e, t in zip((4, 2, 4, 4), TREES, strict=True)]
    settings += [by_view(4, 2, tree=TREES[-1])]  # deeper nodes are cut off
    depths = recorded(engine, prompts, 5, (2, 4), **arguments)
    predicted = replay(depths, settings)
    for s, p, stats in as_replayed(engine, prompts, settings, predicted, **arguments):
        assert int(predicted.drafted_least[s, p]) == stats.drafted == int(predicted.drafted_most[s, p])


def test_one_recording_for_all_depths_is_not_exact() -> None:
    settings, engine = settings_of(4), tiny("gpt2")

    def is_exact(lengths: tuple[int, ...]) -> bool:
        prompts = random_prompts(*lengths)["input_ids"].tolist()
        depths = recorded(engine, prompts, 8, (2, 4), **SAMPLED)
        first = {
            arm: Choices(own.candidates[:1].expand_as(own.candidates), own.confidence)
            for arm, own in depths.choices.items()
        }
        one = replace(depths, choices=first)
        return torch.equal(replay(depths, settings).accepted, replay(one, settings).accepted)

    assert not all(map(is_exact, ((5, 9, 14), (6, 11, 19), (3, 8, 23), (7, 12, 30))))


@pytest.mark.parametrize("arguments", [GREEDY, SAMPLED], ids=["greedy", "coupled"])
def test_replay_equals_real_runs_of_the_reference_model(
    arguments: dict[str, Any], reference: Engine, held_out_prompts: list[list[int]]
) -> None:
    prompts = [held_out_prompts[3], held_out_prompts[30]]
    settings = [by_view(16, 3), by_view(16, 8), by_view(8, 6, 0.3), by_view(16, 4, siblings=2)]
    depths = recorded(reference, prompts, 8, (8, 16), **arguments)
    predicted = replay(depths, settings)
    runs = list(as_replayed(reference, prompts, settings, predicted, **arguments))
    assert len(runs) == len(settings) * len(prompts)


def test_rows_of_a_batch_that_end_by_themselves_are_replayed() -> None:
    engine, prompts = tiny("llama"), [[5, 6, 7], [9, 8], [1, 2, 3, 4]]
    end = int(record(engine.model, prompts, max_new_tokens=TOKENS, exits=(1,)).tokens[0, 11])
    arguments = {**GREEDY, "eos_token_id": end}
    depths = recorded(engine, prompts, 6, (4,), **arguments)
    predicted = replay(depths, [by_view(4, 6), by_view(4, 2)], batch=3)
    for s, setting in enumerate((by_view(4, 6), by_view(4, 2))):
        stats = real(engine, prompts, setting, **arguments)
        assert int(predicted.row_rounds[s].sum()) == stats.row_rounds
        assert int(predicted.accepted[s].sum()) == stats.accepted
        assert int(predicted.rounds[s]) == stats.rounds


def test_a_penalty_that_reads_the_prefix_is_recorded_as_the_draft_sees_it() -> None:
    engine, arguments = tiny("llama"), {**GREEDY, "repetition_penalty": 1.4}
    depths = recorded(engine, [[5, 6, 7]], 4, (4,), **arguments)
    stats = real(engine, [[5, 6, 7]], by_view(4, 4), **arguments)
    assert int(replay(depths, [by_view(4, 4)]).accepted) == stats.accepted


def test_the_view_of_a_wrapped_model_is_recorded_as_its_calls_draft(llama: Any) -> None:
    selfspec.wrap(llama, draft="low_bit", exit_layer=4, draft_length=5)
    texts = record(llama, [[5, 6, 7]], max_new_tokens=TOKENS, exits=(1,))
    depths = record_view(llama, llama.speculation.view, [[5, 6, 7]], texts, longest=5)
    llama.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=TOKENS, do_sample=False)
    assert int(replay(depths, [by_view(4, 5)]).accepted) == llama.speculation.stats.accepted


def test_what_was_not_recorded_is_refused() -> None:
    engine = tiny("llama")
    depths = recorded(engine, [[5, 6, 7]], 2, (4,))
    with pytest.raises(ValueError, match="draft_length=3: drafts of up to 2 tokens were recorded"):
        replay(depths, [by_view(4, 3)])
    with pytest.raises(ValueError, match=r"exits=\[5\]: this view's are 1 to 4"):
        record_view(engine.model, engine.view, [[5, 6, 7]], depths, exits=(5,))
    with pytest.raises(ValueError, match="longest=0"):
        record_view(engine.model, engine.view, [[5, 6, 7]], depths, longest=0)


def test_a_recording_of_other_texts_is_refused() -> None:
    engine = tiny("llama")
    depths = recorded(engine, [[5, 6, 7]], 2, (4,))
    other = replace(depths, tokens=depths.tokens.roll(1))
    with pytest.raises(ValueError, match="other texts than were recorded"):
        record_view(engine.model, engine.view, [[5, 6, 7]], other)
