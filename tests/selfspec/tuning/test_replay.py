"""Replay is exact: it tells every round of a real run, for any setting, from one recording."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny_models import padded, random_prompts, tiny_model

import selfspec
from selfspec.drafting.stopping import StopRule
from selfspec.rows import RoundEvent
from selfspec.tree import Tree
from selfspec.tuning.record import record
from selfspec.tuning.replay import Setting, replay

SAMPLED = {"do_sample": True, "temperature": 0.9, "top_k": 0}
THRESHOLDS = (0.0, 0.3, 0.6, 0.9)


def wrapped(model: Any, setting: Setting) -> Any:
    """`model` wrapped with this setting."""
    return selfspec.wrap(
        model,
        exit_layer=setting.exit_layer,
        draft_length=setting.draft_length,
        confidence_threshold=setting.confidence_threshold,
        tree=_tree(setting),
    )


def _tree(setting: Setting) -> Any:
    if setting.tree is not None and setting.draft_length:
        return setting.tree
    if setting.siblings == 1 or not setting.draft_length:
        return "chain"
    return "siblings" if setting.siblings == 2 else setting.shape(setting.draft_length).parents


def real_rounds(
    model: Any, prompts: Sequence[Sequence[int]], seed: int = 0, **arguments: Any
) -> list[list[RoundEvent]]:
    """What a real run of a wrapped model does, round by round, to every row."""
    events: list[RoundEvent] = []
    torch.manual_seed(seed)
    model.generate(**padded(prompts), pad_token_id=0, on_round=events.append, **arguments)
    return [[event for event in events if event.row == row] for row in range(len(prompts))]


def check(model: Any, prompts: list[list[int]], settings: Sequence[Setting], **arguments: Any) -> int:
    """Compare every count of every setting and prompt with a real run; return how many settings."""
    recording = record(model, prompts, **recorded_with(arguments))
    predicted = replay(recording, settings)
    for s, setting in enumerate(settings):
        wrapped(model, setting)
        for p, prompt in enumerate(prompts):
            rounds = real_rounds(model, [prompt], **arguments)[0]
            drafted = sum(len(event.drafted) for event in rounds)
            text = [token for event in rounds for token in event.committed]
            assert text == recording.tokens[p, : recording.lengths[p]].tolist()
            assert int(predicted.row_rounds[s, p]) == len(rounds), setting
            assert int(predicted.accepted[s, p]) == sum(event.accepted for event in rounds), setting
            rejected = sum(event.accepted < min(event.deepest, len(event.committed)) for event in rounds)
            assert int(predicted.rejected[s, p]) == rejected, setting
            assert int(predicted.drafted_least[s, p]) <= drafted <= int(predicted.drafted_most[s, p]), setting
            if setting.rule is None:
                assert int(predicted.drafted_least[s, p]) == int(predicted.drafted_most[s, p])
    selfspec.unwrap(model)
    return len(settings)


def recorded_with(arguments: dict[str, Any]) -> dict[str, Any]:
    """The keywords of `record` for those of generate."""
    rest = {name: value for name, value in arguments.items() if name not in ("max_new_tokens", "seed")}
    own = {name: value for name, value in arguments.items() if name in ("max_new_tokens", "seed")}
    return {**own, "generate_arguments": rest}


def grid(n_layers: int, lengths: Sequence[int] = (0, 1, 2, 4, 8)) -> list[Setting]:
    """Exits and lengths, each with each other, and thresholds in turn."""
    exits = sorted({1, n_layers // 2, n_layers - 1})
    pairs = [(e, k) for e in exits for k in lengths]
    return [Setting(e, k, THRESHOLDS[i % len(THRESHOLDS)] if k else 0.0) for i, (e, k) in enumerate(pairs)]


@pytest.mark.parametrize("arguments", [{}, SAMPLED], ids=["greedy", "coupled"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_replay_equals_real_runs_of_random_models(family: str, arguments: dict[str, Any]) -> None:
    model = tiny_model(family)
    prompts = [p[p.index(next(filter(None, p))) :] for p in random_prompts(5, 9, 14)["input_ids"].tolist()]
    assert check(model, prompts, grid(4), max_new_tokens=24, seed=3, **arguments) == 15


REFERENCE_SETTINGS = [
    Setting(e, k, t) for e in (1, 3, 8, 15) for k in (1, 2, 4, 7, 12) for t in (0.0, 0.3, 0.6)
]
"""60 of the reference model. Every other one is greedy: so each mode has every pair of E, K and threshold."""


@pytest.mark.parametrize(
    ("settings", "arguments"),
    [(REFERENCE_SETTINGS[::2], {}), (REFERENCE_SETTINGS[1::2], SAMPLED)],
    ids=["greedy", "coupled"],
)
def test_replay_equals_real_runs_of_the_reference_model_in_bf16(
    settings: list[Setting],
    arguments: dict[str, Any],
    reference_model_bf16: Any,
    held_out_prompts: list[list[int]],
) -> None:
    prompts = [held_out_prompts[3]]
    assert check(reference_model_bf16, prompts, settings, max_new_tokens=16, **arguments) == 30


def test_a_text_that_ends_by_itself_is_replayed_to_its_end(llama: Any) -> None:
    prompts = [[5, 6, 7], [9, 8]]
    whole = record(llama, prompts, max_new_tokens=24)
    end = int(whole.tokens[0, 11])
    check(llama, prompts, grid(4, (0, 2, 5)), max_new_tokens=24, eos_token_id=end)
    assert (
        record(llama, prompts, max_new_tokens=24, generate_arguments={"eos_token_id": end}).lengths[0] <= 12
    )


@pytest.mark.parametrize(("batch", "arguments"), [(4, {}), (2, SAMPLED)], ids=["greedy", "coupled"])
def test_rows_of_a_batch_share_the_length_of_a_round(
    llama: Any, batch: int, arguments: dict[str, Any]
) -> None:
    # The last batch is a short one.
    prompts = [[5, 6, 7], [9, 8], [1, 2, 3, 4], [40, 41], [30, 31, 32]]
    recording = record(llama, prompts, max_new_tokens=20, seed=3, generate_arguments=arguments)
    settings = grid(4, (0, 2, 5))
    predicted = replay(recording, settings, batch=batch)
    for s, setting in enumerate(settings):
        for g, first in enumerate(range(0, len(prompts), batch)):
            group = prompts[first : first + batch]
            rows = real_rounds(wrapped(llama, setting), group, seed=3, max_new_tokens=20, **arguments)
            for p, rounds in enumerate(rows, first):
                assert int(predicted.row_rounds[s, p]) == len(rounds)
                assert int(predicted.accepted[s, p]) == sum(event.accepted for event in rounds)
            assert int(predicted.rounds[s, g]) == max(map(len, rows))


def test_a_penalty_that_reads_the_prefix_is_recorded_as_the_draft_sees_it(llama: Any) -> None:
    settings = [Setting(2, 4), Setting(3, 5, 0.5)]
    check(llama, [[5, 6, 7], [9, 8]], settings, max_new_tokens=20, repetition_penalty=1.4)


def test_equal_prompts_are_recorded_as_if_each_were_alone(llama: Any) -> None:
    recording = record(llama, [[5, 6], [5, 6], [7]], max_new_tokens=12, generate_arguments=SAMPLED)
    assert torch.equal(recording.tokens[0], recording.tokens[1])
    assert not torch.equal(recording.tokens[0], recording.tokens[2])


def test_a_recording_does_not_depend_on_how_prompts_are_grouped(llama: Any) -> None:
    prompts = [[5, 6], [9, 8, 7, 6], [1], [30, 31, 32]]
    alone, together = (
        record(llama, prompts, max_new_tokens=12, chunk=chunk, generate_arguments=SAMPLED) for chunk in (1, 4)
    )
    assert torch.equal(alone.tokens, together.tokens)
    for arm in alone.arms:
        assert torch.equal(alone.of(arm).candidates, together.of(arm).candidates)


RULES = (
    StopRule((0.9, 0.5, 0.2)),
    StopRule((0.4, 0.3), chances=((0.1, 0.5, 0.9), (0.2, 0.4, 0.8))),
    StopRule((0.25,), chances=((0.1, 0.35, 0.6, 0.95),)),
)


@pytest.mark.parametrize("arguments", [{}, SAMPLED], ids=["greedy", "coupled"])
@pytest.mark.parametrize("rule", RULES)
def test_rules_by_position_stop_in_replay_where_they_stop_in_the_engine(
    llama: Any, rule: StopRule, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from selfspec import strategy
    from selfspec.drafting import EarlyExit

    monkeypatch.setattr(strategy, "EarlyExit", lambda e, *_: EarlyExit(e, rule=rule))
    settings = [Setting(e, k, stop=rule) for e in (2, 3) for k in (2, 6)]
    check(llama, [[5, 6, 7], [9, 8]], settings, max_new_tokens=24, **arguments)


@pytest.mark.parametrize("arguments", [{}, SAMPLED], ids=["greedy", "coupled"])
def test_siblings_catch_the_next_best_candidates_as_in_a_real_tree(
    llama: Any, arguments: dict[str, Any]
) -> None:
    settings = [Setting(e, k, siblings=2) for e in (1, 3) for k in (1, 3, 6)]
    check(llama, [[5, 6, 7], [9, 8]], settings, max_new_tokens=24, **arguments)


@pytest.mark.parametrize("siblings", [3, 4])
def test_wider_siblings_are_replayed_as_they_run(llama: Any, siblings: int) -> None:
    settings = [Setting(e, k, siblings=siblings) for e in (1, 2) for k in (1, 4)]
    check(llama, [[5, 6, 7]], settings, max_new_tokens=24)


TREES = (
    Tree((0, 0, 0, 0)),  # the four likeliest, and nothing after them
    Tree((0, 0, 1, 1, 2), (0, 1, 0, 1, 0)),
    Tree((0, 0, 1, 1), (2, 0, 3, 1)),  # the third choice goes on, the first does not
    Tree((0, 1, 2, 0, 1, 1, 2, 3, 3, 3)),
    Tree.of((0, 0, 0, 1, 1, 2, 4, 4, 6, 7)),
)
"""Static trees: wide, narrow, with ranks out of order, a chain with leaves, one with branches of branches."""


@pytest.mark.parametrize("arguments", [{}, SAMPLED], ids=["greedy", "coupled"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_static_trees_are_replayed_as_they_run(family: str, arguments: dict[str, Any]) -> None:
    settings = [Setting(e, t.depth, tree=t) for e, t in zip((3, 1, 3, 2, 3), TREES, strict=True)]
    settings += [Setting(3, 2, tree=TREES[-1]), Setting(3, 0, tree=TREES[-1])]  # deeper nodes are cut off
    check(tiny_model(family), [[5, 6, 7], [9, 8]], settings, max_new_tokens=24, **arguments)


def test_static_trees_that_miss_on_the_way_are_replayed_in_batches_and_to_an_end(llama: Any) -> None:
    prompts = [[5, 6, 7], [9, 8], [1, 2, 3, 4]]
    end = int(record(llama, prompts, max_new_tokens=24).tokens[0, 11])
    arguments = {"max_new_tokens": 24, "eos_token_id": end}
    recording = record(llama, prompts, **recorded_with(arguments))
    settings = [Setting(2, t.depth, tree=t) for t in TREES]
    predicted = replay(recording, settings, batch=3)
    for s, setting in enumerate(settings):
        rows = real_rounds(wrapped(llama, setting), prompts, **arguments)
        for p, rounds in enumerate(rows):
            assert int(predicted.row_rounds[s, p]) == len(rounds)
            assert int(predicted.accepted[s, p]) == sum(event.accepted for event in rounds)
            assert int(predicted.drafted_most[s, p]) == sum(len(event.drafted) for event in rounds)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"draft_length": 3, "tree": TREES[0]}, "draft_length=3: the tree is 1 deep"),
        ({"draft_length": 1, "tree": TREES[0], "siblings": 2}, "tree with siblings or a stop rule"),
        ({"draft_length": 1, "tree": TREES[0], "confidence_threshold": 0.5}, "tree with siblings or a stop"),
        ({"draft_length": 1, "tree": Tree((0,) * 5)}, "ranks up to 4: the likeliest 4 candidates were rec"),
        ({"draft_length": 1, "tree": (0, 0)}, r"tree=\(0, 0\): allowed is a Tree"),
    ],
)
def test_a_static_tree_that_was_not_recorded_is_refused(how: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Setting(2, **how)


def test_siblings_with_a_stop_rule_or_too_many_are_refused() -> None:
    with pytest.raises(ValueError, match="siblings=2 with a stop rule"):
        Setting(2, 3, 0.5, siblings=2)
    with pytest.raises(ValueError, match="siblings=3 with draft_length=22: allowed are up to 64 candidates"):
        Setting(2, 22, siblings=3)


def test_an_exit_that_was_not_recorded_is_refused(llama: Any) -> None:
    recording = record(llama, [[5, 6]], max_new_tokens=4, exits=(1, 3))
    with pytest.raises(ValueError, match=r"exit_layer=2 was not recorded; recorded are \[1, 3\]"):
        replay(recording, [Setting(2, 1)])


def test_recording_nothing_is_refused(llama: Any) -> None:
    with pytest.raises(ValueError, match="no prompts"):
        record(llama, [])
