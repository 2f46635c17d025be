"""Logits processors over several positions at once: each sees exactly its own prefix."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from tiny_models import padded
from torch import Tensor
from transformers.generation.logits_process import (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    WatermarkLogitsProcessor,
)

from selfspec.processing import Processors
from selfspec.round import NOTHING
from selfspec.rows import Rows
from selfspec.tree import Tree, chain

VOCAB = 10
PROMPTS = [[1, 2, 3, 1], [4, 4], [5, 6, 5]]


def some_rows() -> Rows:
    batch = padded(PROMPTS)
    rows = Rows.of_prompts(
        batch["input_ids"], batch["attention_mask"], 20, 20, eos_tokens=frozenset(), pad_token=0
    )
    rows.append(0, [2, 3])
    rows.append(2, [6])
    rows.active = [0, 2]
    return rows


def logits(width: int) -> Tensor:
    return torch.randn(2, width, VOCAB, generator=torch.Generator().manual_seed(0))


CHAIN = chain(2).paths


def test_prefix_free_processors_take_all_positions_and_give_what_they_give_one_by_one() -> None:
    in_order = [
        TemperatureLogitsWarper(0.7),
        TopKLogitsWarper(6),
        TopPLogitsWarper(0.9),
        MinPLogitsWarper(0.05),
    ]
    processors = Processors(in_order)
    assert not processors.reads_prefix
    scores = processors(logits(3), some_rows(), torch.zeros(2, 2, dtype=torch.int64), CHAIN)
    for row in range(2):
        for column in range(3):
            one = logits(3)[row, column][None]
            for processor in in_order:
                one = processor(torch.zeros(1, 1, dtype=torch.int64), one)
            assert torch.equal(scores[row, column], one[0])


@pytest.mark.parametrize(
    "processor",
    [RepetitionPenaltyLogitsProcessor(1.7), NoRepeatNGramLogitsProcessor(2)],
    ids=lambda p: type(p).__name__,
)
def test_a_processor_that_reads_the_prefix_sees_padding_prompt_committed_and_drafted_tokens(
    processor: Any,
) -> None:
    processors = Processors([processor])
    assert processors.reads_prefix
    rows = some_rows()
    drafts = torch.tensor([[7, 2], [5, 6]])
    scores = processors(logits(3), rows, drafts, CHAIN)
    prefixes = ([1, 2, 3, 1, 2, 3], [0, 5, 6, 5, 6])
    for row in range(2):
        for column in range(3):
            prefix = torch.tensor([[*prefixes[row], *drafts[row, :column].tolist()]])
            expected = processor(prefix, logits(3)[row, column][None].clone())[0]
            assert torch.equal(scores[row, column], expected)


def test_a_draft_step_reads_its_own_prefix() -> None:
    seen = []

    def spy(ids: Tensor, scores: Tensor) -> Tensor:
        seen.append(ids[0].tolist())
        return scores

    processors, rows = Processors([spy]), some_rows()
    drafts = torch.tensor([[7], [8]])
    processors(logits(1), rows, drafts, [()])
    processors(logits(1), rows, drafts, [(0,)])
    assert seen == [
        [1, 2, 3, 1, 2, 3], [0, 5, 6, 5, 6],
        [1, 2, 3, 1, 2, 3, 7], [0, 5, 6, 5, 6, 8],
    ]  # fmt: skip


def test_every_node_of_a_tree_reads_its_own_branch() -> None:
    seen = []

    def spy(ids: Tensor, scores: Tensor) -> Tensor:
        seen.append(ids[0].tolist())
        return scores + ids.sum()

    tree = Tree.of((0, 0, 1, 2, 3))
    assert tree.parents == (0, 0, 1, 2, 3)
    drafts = torch.tensor([[7, 8, 9, 4, 6], [1, NOTHING, 2, NOTHING, 3]])
    scores = Processors([spy])(logits(6), some_rows(), drafts, tree.paths)
    first, second = [1, 2, 3, 1, 2, 3], [0, 5, 6, 5, 6]
    branches = [[], [7], [8], [7, 9], [8, 4], [7, 9, 6]]
    assert seen[:6] == [first + branch for branch in branches]
    # Its other two nodes are NOTHING: no prefix ends so.
    assert seen[6:] == [second + branch for branch in ([], [1], [1, 2], [1, 2, 3])]
    for column, branch in enumerate(branches):
        assert torch.equal(scores[0, column], logits(6)[0, column] + sum(first + branch))


def never(prefix: list[int]) -> bool:
    """A language without a 7 after a 3."""
    return (3, 7) in itertools.pairwise(prefix)


def test_a_constraint_is_not_asked_about_prefixes_that_it_does_not_allow() -> None:
    """Some raise then, and what was found or stands beside a chain knows nothing of them."""
    asked = []

    def allowed(row: int, ids: Tensor) -> list[int]:
        asked.append((row, ids.tolist()))
        assert not never(ids.tolist())
        return [token for token in range(VOCAB) if not never([int(ids[-1]), token])]

    tree = Tree.of((0, 0, 1, 2, 3))
    drafts = torch.tensor([[7, 8, 9, 4, 6], [3, NOTHING, 7, NOTHING, 6]])
    processors = Processors([PrefixConstrainedLogitsProcessor(allowed, 1)])
    for _ in range(2):  # as in a draft's last pass, and in verification
        asked.clear()
        scores = processors(logits(6), some_rows(), drafts, tree.paths)
        first, second = [1, 2, 3, 1, 2, 3], [0, 5, 6, 5, 6]
        assert asked == [(0, first + branch) for branch in ([], [8], [8, 4])] + [
            (2, second + branch) for branch in ([], [3])
        ]
        assert bool(scores[0, 0, 7].isneginf())
        assert bool(scores[1, 1, 7].isneginf())
    processors(logits(1), some_rows(), drafts, [(0, 2)])
    assert len(asked) == 5  # a later pass remembers the earlier ones of its round
    rows = some_rows()
    rows.append(0, [4])
    processors(logits(1), rows, drafts, [()])
    assert asked[-2:] == [(0, [1, 2, 3, 1, 2, 3, 4]), (2, [0, 5, 6, 5, 6])]


def test_where_every_score_is_minus_infinity_drafts_are_read_on() -> None:
    def nothing(ids: Tensor, scores: Tensor) -> Tensor:
        return torch.full_like(scores, -float("inf"))

    scores = Processors([nothing])(logits(3), some_rows(), torch.tensor([[0, 0], [0, 0]]), CHAIN)
    assert bool(scores.isneginf().all())


@pytest.mark.parametrize("rows", [2, 4])
def test_a_processor_that_knows_its_rows_by_place_is_asked_as_the_row_it_is(rows: int) -> None:
    """`rows`: of the batch; with several sequences for each of two prompts, or one."""
    prompts = torch.tensor([[1, 2, 3, 1, 2], [4, 5, 6, 4, 5]])
    ids = torch.tensor([[8, 1, 2], [9, 4, 5]]).repeat_interleave(rows // 2, dim=0)
    batch = Rows.of_prompts(ids, torch.ones_like(ids), 5, 5, eos_tokens=frozenset(), pad_token=0)
    raw = torch.randn(rows, 1, VOCAB, generator=torch.Generator().manual_seed(1))
    for processor in (
        EncoderRepetitionPenaltyLogitsProcessor(1.7, prompts),
        EncoderNoRepeatNGramLogitsProcessor(2, prompts),
        RepetitionPenaltyLogitsProcessor(1.7, prompt_ignore_length=torch.arange(rows) % 3),
        PrefixConstrainedLogitsProcessor(lambda row, prefix: [row, int(prefix[-1])], 1),
        WatermarkLogitsProcessor(VOCAB, "cpu", greenlist_ratio=0.4),
    ):
        expected = processor(ids, raw[:, 0].clone())
        actual = Processors([processor])(raw, batch, ids[:, :0], [()])[:, 0]
        assert torch.equal(actual, expected), type(processor).__name__
        assert not torch.equal(actual, raw[:, 0])


def test_candidates_are_scratch() -> None:
    processors, rows = Processors([lambda ids, scores: scores]), some_rows()
    before = rows.output()
    processors(logits(3), rows, torch.tensor([[7, 9], [8, 9]]), CHAIN)
    assert torch.equal(rows.output(), before)


def test_scores_are_float32_and_the_logits_stay_as_they_are() -> None:
    def to_zero(ids: Tensor, scores: Tensor) -> Tensor:
        return scores.zero_()

    for processors in ([], [to_zero], [TemperatureLogitsWarper(2.0)]):
        original = logits(2).bfloat16()
        scores = Processors(processors)(
            original, some_rows(), torch.zeros(2, 1, dtype=torch.int64), chain(1).paths
        )
        assert scores.dtype == torch.float32
        assert torch.equal(original, logits(2).bfloat16())


def test_a_subclass_of_a_prefix_free_processor_may_read_the_prefix() -> None:
    class Own(TemperatureLogitsWarper):
        pass

    assert Processors([Own(0.5)]).reads_prefix
