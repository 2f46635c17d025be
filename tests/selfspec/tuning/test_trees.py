"""Trees from recorded ranks: the counts, the best tree by brute force, and the same text from a found one."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest
import torch
from checks import own_generate
from tiny_models import random_prompts, tiny_model

import selfspec
from selfspec.config import SpeculationConfig
from selfspec.rows import RoundEvent
from selfspec.tree import Tree
from selfspec.tuning.trees import RankCounter, Ranks, best_tree, find_tree


def event(ranks: tuple[int, ...], deepest: int, committed: int | None = None) -> RoundEvent:
    """A round that accepted candidates of these ranks, and one token of the target's own after them."""
    tokens = len(ranks) + 1 if committed is None else committed
    return RoundEvent(row=0, drafted=[0] * 2 * deepest, deepest=deepest, ranks=ranks, committed=[0] * tokens)


def expected_tokens(tree: Tree, ranks: Ranks) -> float:
    """Accepted tokens of a tree: every node stands with the product of the chances along its path."""
    chances = [1.0]
    for parent, rank, depth in zip(tree.parents, tree.ranks, tree.depths[1:], strict=True):
        chances.append(chances[parent] * ranks[depth - 1][rank])
    return sum(chances[1:])


def all_trees(most_nodes: int, width: int, depth: int) -> list[Tree]:
    """Every tree with at most `width` children a node, and no deeper than `depth`."""
    found = {}
    for nodes in range(1, most_nodes + 1):
        for parents in itertools.product(*(range(i + 1) for i in range(nodes))):
            if max(map(parents.count, parents)) <= width:
                tree = Tree.of(parents)
                if tree.depth <= depth:
                    found[tree] = None
    return list(found)


def test_counts_are_chances_and_misses_count_against_every_rank() -> None:
    counter = RankCounter(depth=3, width=2)
    for round_ in [event((0, 0, 0), 3), event((0, 1), 3), event((), 3), event((0,), 3)]:
        counter(round_)
    first, second, third = counter.ranks
    # Each count and each share of misses gets half a round in advance.
    assert first == pytest.approx((3.5 / 5.5, 0.5 / 5.5))
    assert second == pytest.approx((1.5 / 4.5, 1.5 / 4.5))
    assert third == pytest.approx((1.5 / 2.5, 0.5 / 2.5))  # after a sibling there was nothing to miss


def test_a_cut_round_and_a_short_draft_are_no_misses() -> None:
    counter = RankCounter(depth=2, width=2)
    counter(event((0,), deepest=2, committed=1))  # the row ended at its last accepted token
    counter(event((0,), deepest=1))  # nothing was drafted at the second depth
    assert counter.ranks[0] == pytest.approx((2.5 / 3.5, 0.5 / 3.5))
    assert counter.ranks[1] == counter.ranks[0]  # nothing seen: as the depth before


@pytest.mark.parametrize("seed", range(12))
def test_the_best_tree_is_that_of_brute_force(seed: int) -> None:
    dice = random.Random(seed)
    ranks = tuple((dice.uniform(0.3, 0.9), dice.uniform(0.0, 0.3)) for _ in range(3))
    a_level, a_node = dice.uniform(0.05, 0.6), dice.uniform(0.0, 0.3)

    def seconds(tree: Tree) -> float:
        return 1 + a_level * tree.depth + a_node * tree.size

    best = max((1 + expected_tokens(tree, ranks)) / seconds(tree) for tree in all_trees(6, width=2, depth=3))
    tree, speed = best_tree(ranks, seconds, most_nodes=6)
    assert speed == pytest.approx(best)
    assert speed == pytest.approx((1 + expected_tokens(tree, ranks)) / seconds(tree))


def test_prices_shape_the_tree() -> None:
    ranks = ((0.8, 0.15),) * 4
    free, _ = best_tree(ranks, lambda tree: 1.0, most_nodes=30)
    assert (free.depth, free.size - 1) == (4, 30)  # what costs nothing is taken whole
    deep, _ = best_tree(ranks, lambda tree: 1.0 + 0.15 * tree.size, most_nodes=16)
    assert deep.is_chain  # a second choice is not worth a node
    wide, _ = best_tree(ranks, lambda tree: 1.0 if tree.depth == 1 else math.inf, most_nodes=16)
    assert wide.parents == (0, 0)


def test_settings_keep_the_tree_that_was_found() -> None:
    """By parents alone some would come back as others: a second choice may have children, the first none."""
    by_parents = 0
    for seed in range(60):
        dice = random.Random(seed)
        ranks = tuple((dice.uniform(0.05, 0.6), dice.uniform(0.05, 0.6)) for _ in range(3))
        tree, _ = best_tree(ranks, lambda tree: 1 + 0.2 * tree.depth + 0.05 * tree.size, most_nodes=8)
        config = SpeculationConfig(draft="low_bit", tree=tree, draft_length=tree.depth)
        assert config.shape(tree.depth) == tree
        by_parents += Tree.of(tree.parents) != tree
    assert by_parents


def test_a_tree_has_at_least_one_node() -> None:
    with pytest.raises(ValueError, match="at least one node"):
        best_tree(((0.5, 0.5),), lambda tree: 1.0, most_nodes=0)


def test_a_found_tree_drafts_and_keeps_the_text() -> None:
    model: Any = tiny_model("llama")
    prompt = random_prompts(24)["input_ids"]
    expected = own_generate(model, prompt, max_new_tokens=24, do_sample=False)
    selfspec.wrap(model, draft="low_bit", tree="siblings", exit_layer=2, draft_length=3)
    tree = find_tree(model, [prompt], max_new_tokens=32, most_nodes=6)
    assert 1 <= tree.size - 1 <= 6 and tree.depth <= 3
    selfspec.wrap(model, draft="low_bit", tree=tree, exit_layer=2, draft_length=tree.depth)
    assert torch.equal(model.generate(prompt, max_new_tokens=24, do_sample=False), expected)
    assert model.speculation.stats.drafted > 0


@pytest.mark.parametrize(
    "settings",
    [
        {"draft": "early_exit", "tree": "siblings", "exit_layer": 2, "draft_length": 3},
        {"draft": "low_bit", "exit_layer": 2, "draft_length": 3},
        {"draft": "low_bit", "tree": "siblings", "exit_layer": 2},
    ],
    ids=str,
)
def test_ranks_are_recorded_from_siblings_of_a_view_at_fixed_numbers(settings: dict[str, Any]) -> None:
    model: Any = selfspec.wrap(tiny_model("llama"), **settings)
    with pytest.raises(selfspec.ConfigError, match="find_tree needs"):
        find_tree(model, [random_prompts(8)["input_ids"]])
