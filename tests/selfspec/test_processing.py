"""Logits processors over several positions at once: each sees exactly its own prefix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import padded
from torch import Tensor
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
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
    assert [seen[6 + column] for column in (0, 1, 3, 5)] == [second + b for b in ([], [1], [1, 2], [1, 2, 3])]
    for column, branch in enumerate(branches):
        assert torch.equal(scores[0, column], logits(6)[0, column] + sum(first + branch))


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
