"""The round's arithmetic, worked out by hand, and which layers it runs."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from checks import own_generate
from fake_drafters import RIGHT, TREE, generated, rounds_by_hand
from tiny_models import LAYERS, random_prompts, tiny_model
from torch import Tensor

import selfspec
from selfspec import generation
from selfspec.tree import Tree


@pytest.mark.parametrize(
    ("right", "rounds", "drafted", "accepted"),
    [
        # 16 tokens in 4 rounds of 3 drafts and a bonus.
        ("always", 4, 12, 12),
        # One token a round; the last three rounds can use 2, 1 and 0 drafts only.
        ("never", 16, 13 * 3 + 2 + 1, 0),
        # Tokens 0, 1 stand, 2 is corrected: five rounds of 3 tokens, and one for the sixteenth.
        ("two of three", 6, 5 * 3, 10),
    ],
)
def test_rounds_drafted_and_accepted_are_as_computed_by_hand(
    llama: Any, scripted: Any, right: str, rounds: int, drafted: int, accepted: int
) -> None:
    prompts = random_prompts(7)
    model = scripted(llama, prompts, RIGHT[right], 3)
    expected = own_generate(model, **prompts, max_new_tokens=16)
    assert torch.equal(model.generate(**prompts, max_new_tokens=16), expected)
    stats = model.speculation.stats
    assert (stats.rounds, stats.row_rounds, stats.tokens) == (rounds, rounds, 16)
    assert (stats.drafted, stats.accepted) == (drafted, accepted)
    assert stats.acceptance_rate == pytest.approx(accepted / drafted)
    assert stats.acceptance_length == pytest.approx(16 / rounds)


@pytest.mark.parametrize("draft_length", [0, 1, 2, 5, 8, 64])
@pytest.mark.parametrize("right", RIGHT)
def test_every_round_is_as_computed_by_hand(llama: Any, scripted: Any, right: str, draft_length: int) -> None:
    prompts = random_prompts(5)
    model = scripted(llama, prompts, RIGHT[right], draft_length)
    for tokens in (1, 2, 13):
        events: list[Any] = []
        model.generate(**prompts, max_new_tokens=tokens, on_round=events.append)
        flags = [RIGHT[right](0, index) for index in range(tokens)]
        by_hand = rounds_by_hand(flags, draft_length, tokens)
        assert [(len(e.drafted), e.accepted, len(e.committed)) for e in events] == by_hand


def test_every_row_of_a_batch_accepts_its_own_number_of_tokens(llama: Any, scripted: Any) -> None:
    prompts = random_prompts(4, 11, 7)
    model = scripted(llama, prompts, RIGHT["unequal rows"], 3)
    events: list[Any] = []
    out = model.generate(**prompts, max_new_tokens=24, on_round=events.append)
    texts = generated(out, prompts)
    assert torch.equal(out, own_generate(model, **prompts, max_new_tokens=24))
    for row in range(3):
        flags = [RIGHT["unequal rows"](row, index) for index in range(24)]
        done = 0
        for event in (e for e in events if e.row == row):
            # A row drafts as far as the longest remaining one; past its own end nothing counts.
            right = next(
                (i for i, _ in enumerate(event.drafted) if done + i >= 24 or not flags[done + i]), None
            )
            accepted = len(event.drafted) if right is None else right
            assert event.accepted == min(accepted, 24 - done)
            assert event.committed == texts[row][done : done + accepted + 1]
            assert event.drafted[: event.accepted] == event.committed[: event.accepted]
            done += len(event.committed)
        assert done == 24
    accepted_by_row = Counter[int]()
    for event in events:
        accepted_by_row[event.row] += event.accepted
    assert len(set(accepted_by_row.values())) > 1


def test_every_round_with_a_tree_is_as_computed_by_hand(llama: Any, scripted: Any) -> None:
    """The right token is the second candidate at every third place, and nowhere at every fifth."""

    def right(row: int, index: int) -> bool:
        return index % 5 != 4

    def place(row: int, index: int) -> int:
        return int(index % 3 == 1)

    prompts = random_prompts(7)
    model = scripted(llama, prompts, right, 4, place=place, tree="siblings")
    events: list[Any] = []
    out = model.generate(**prompts, max_new_tokens=20, on_round=events.append)
    texts = generated(out, prompts)[0]
    done = 0
    for event in events:
        depth = min(4, 20 - done - 1)
        accepted = 0
        while accepted < depth and right(0, done + accepted):
            accepted += 1
            if place(0, done + accepted - 1):  # a sibling has no children
                break
        assert (event.deepest, len(event.drafted)) == (depth, 2 * depth)
        assert (event.accepted, event.committed) == (accepted, texts[done : done + accepted + 1])
        done += accepted + 1
    assert done == 20
    stats = model.speculation.stats
    assert stats.drafted == sum(len(e.drafted) for e in events)
    assert stats.accepted == sum(e.accepted for e in events)
    assert stats.rejected == sum(e.accepted < e.deepest for e in events)


@pytest.mark.parametrize("tree", ["siblings", TREE], ids=str)
def test_no_layer_runs_twice_on_a_trees_nodes(llama: Any, scripted: Any, tree: Any) -> None:
    prompts = random_prompts(7)
    model = scripted(llama, prompts, RIGHT["two of three"], 3, tree=tree, deterministic=False)
    columns = Counter[int]()
    passes = Counter[int]()
    for index, layer in enumerate(model.model.layers):

        def count(_: Any, inputs: tuple[Tensor], __: Any, index: int = index) -> None:
            columns[index] += inputs[0].shape[1]
            passes[index] += 1

        layer.mlp.register_forward_hook(count)
    model.generate(**prompts, max_new_tokens=16)
    stats = model.speculation.stats
    assert columns == dict.fromkeys(range(LAYERS), 6 + stats.rounds + stats.drafted)
    assert passes[LAYERS - 1] == 1 + stats.rounds
    # One pass per depth that has children, and one for all leaves together.
    levels = len(Tree.of(TREE).levels) if tree == TREE else 3
    assert passes[0] <= 1 + stats.rounds * (levels + 1)


@pytest.mark.parametrize("exit_layer", [1, 2, 3])
@pytest.mark.parametrize("right", ["always", "never", "two of three"])
def test_no_layer_runs_twice_on_a_drafted_token(
    llama: Any, scripted: Any, right: str, exit_layer: int
) -> None:
    prompts = random_prompts(7)
    model = scripted(llama, prompts, RIGHT[right], 3, exit_layer, deterministic=False)
    columns = Counter[int]()
    for index, layer in enumerate(model.model.layers):

        def count(_: Any, inputs: tuple[Tensor], __: Any, index: int = index) -> None:
            columns[index] += inputs[0].shape[1]

        layer.mlp.register_forward_hook(count)
    model.generate(**prompts, max_new_tokens=16)
    stats = model.speculation.stats
    # The prompt but its last token; then, in every round, the last committed token and the drafted ones.
    assert columns == dict.fromkeys(range(LAYERS), 6 + stats.rounds + stats.drafted)


def test_plain_rounds_run_every_layer_once_on_one_token(llama: Any) -> None:
    widths = []
    llama.model.layers[0].mlp.register_forward_hook(lambda _, inputs, __: widths.append(inputs[0].shape[:2]))
    selfspec.wrap(llama, draft_length=0, deterministic=False)
    widths.clear()
    llama.generate(**random_prompts(7), max_new_tokens=5)
    assert widths == [(1, 6)] + [(1, 1)] * 5


def test_finished_rows_leave_the_batch(llama: Any, after_every_round: Any) -> None:
    prompts = random_prompts(4, 11, 7, 9)
    texts = generated(own_generate(llama, **prompts, max_new_tokens=20), prompts)
    ends = [text[n] for text, n in zip(texts, (3, 8, 12, 16), strict=True)]
    first_end = [min(text.index(end) for end in ends if end in text) for text in texts]
    batches, sizes = [], []
    llama.model.layers[3].mlp.register_forward_hook(lambda _, inputs, __: batches.append(inputs[0].shape[0]))
    selfspec.wrap(llama, exit_layer=2, draft_length=2)
    after_every_round(lambda call: sizes.append((len(call.rows.active), call.cache.rows)))
    batches.clear()
    llama.generate(**prompts, max_new_tokens=20, eos_token_id=ends)
    rounds = batches[4:]  # after one prefill per prompt
    assert len(set(first_end)) > 1
    assert rounds == sorted(rounds, reverse=True)
    assert set(rounds) >= {4, 1}
    assert all(active == rows for active, rows in sizes[:-1])
    assert sizes[-1][0] == 0


def test_prefill_leaves_out_the_last_token_and_runs_long_prompts_in_chunks(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = random_prompts(23, 9)
    expected = own_generate(llama, **prompts, max_new_tokens=9)
    monkeypatch.setattr(generation, "PREFILL_CHUNK", 5)
    for deterministic in (True, False):
        selfspec.wrap(llama, exit_layer=2, draft_length=2, deterministic=deterministic)
        widths: list[tuple[int, ...]] = []
        hook = llama.model.layers[0].mlp.register_forward_hook(
            lambda _, inputs, __, widths=widths: widths.append(tuple(inputs[0].shape[:2]))
        )
        assert torch.equal(llama.generate(**prompts, max_new_tokens=9), expected)
        hook.remove()
        alone = [(1, 5)] * 4 + [(1, 2), (1, 5), (1, 3)]
        together = [(2, 5)] * 4 + [(2, 2)]
        assert widths[: len(alone if deterministic else together)] == (alone if deterministic else together)


def test_a_prompt_of_one_token_needs_no_prefill(family: str) -> None:
    model = tiny_model(family)
    for prompts in (random_prompts(1), random_prompts(1, 1, 1), random_prompts(1, 6)):
        expected = own_generate(model, **prompts, max_new_tokens=10)
        selfspec.wrap(model, exit_layer=2, draft_length=3)
        assert torch.equal(model.generate(**prompts, max_new_tokens=10), expected)
        selfspec.unwrap(model)


def test_the_pacer_is_told_of_every_round(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, float, float]] = []
    observe = selfspec.pacing.FixedLength.observe

    def spy(self: Any, length: int, tokens: float, seconds: float) -> None:
        seen.append((length, tokens, seconds))
        observe(self, length, tokens, seconds)

    monkeypatch.setattr(selfspec.pacing.FixedLength, "observe", spy)
    selfspec.wrap(llama, exit_layer=2, draft_length=3)
    per_round: list[list[int]] = []

    def note(event: Any) -> None:
        while len(per_round) <= len(seen):
            per_round.append([])
        per_round[len(seen)].append(len(event.committed))

    llama.generate(**random_prompts(5, 9), max_new_tokens=12, on_round=note)
    stats = llama.speculation.stats
    assert len(seen) == len(per_round) == stats.rounds
    assert [tokens for _, tokens, _ in seen] == [sum(row) / len(row) for row in per_round]  # per row
    assert sum(map(sum, per_round)) == stats.tokens == 24
    assert all(0 <= length <= 3 and seconds > 0 for length, _, seconds in seen)
