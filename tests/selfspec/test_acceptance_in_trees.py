"""Acceptance among candidates in a tree: the longest path that the target itself would choose."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfspec.acceptance import accept_in_tree, accept_matching
from selfspec.round import NOTHING
from selfspec.tree import Tree, chain


def walk_down(node: int, draft: list[int], choices: list[int], tree: Tree) -> tuple[list[int], list[int]]:
    """Committed tokens and columns of the longest right path from `node` down."""
    best: tuple[list[int], list[int]] = ([choices[node]], [node])
    for child in range(1, tree.size):
        if tree.parents[child - 1] == node and draft[child - 1] == choices[node]:
            tokens, columns = walk_down(child, draft, choices, tree)
            if len(tokens) + 1 > len(best[0]):
                best = [choices[node], *tokens], [node, *columns]
    return best


@st.composite
def drafted_trees(draw: st.DrawFn) -> tuple[Tree, list[list[int]], list[list[int]]]:
    """A tree, candidates of three rows (NOTHING among them), and the target's choices at every node."""
    parents = [draw(st.integers(0, i)) for i in range(draw(st.integers(1, 12)))]
    tree = Tree.of(parents)
    few = st.integers(0, 2)  # so that choices are often among the candidates, and twice
    drafts = [[draw(st.sampled_from([0, 1, 2, NOTHING])) for _ in parents] for _ in range(3)]
    return tree, drafts, [[draw(few) for _ in range(tree.size)] for _ in range(3)]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(drafted_trees())
def test_acceptance_in_a_tree_is_the_walk_down_while_the_choice_is_among_the_children(
    case: tuple[Tree, list[list[int]], list[list[int]]],
) -> None:
    tree, drafts, choices = case
    verdict = accept_in_tree(torch.tensor(drafts), torch.tensor(choices), tree)
    assert verdict.columns is not None
    for row, (draft, chosen) in enumerate(zip(drafts, choices, strict=True)):
        tokens, columns = walk_down(0, draft, chosen, tree)
        accepted = int(verdict.accepted[row])
        assert accepted == len(columns) - 1
        path = verdict.columns[row, : accepted + 1].tolist()
        # Equal candidates in two branches: any of the longest right paths will do, if it is one.
        assert path[0] == 0
        for parent, node in itertools.pairwise(path):
            assert tree.parents[node - 1] == parent
            assert draft[node - 1] == chosen[parent]
        assert verdict.tokens[row, : accepted + 1].tolist() == [chosen[node] for node in path]
        assert len(tokens) == accepted + 1


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.tuples(*[st.sampled_from([0, 1, NOTHING])] * 2), min_size=1, max_size=6))
def test_a_chain_accepts_the_same_as_a_chain_and_as_a_tree(pairs: list[tuple[int, int]]) -> None:
    draft = torch.tensor([[a for a, _ in pairs]])
    choices = torch.tensor([[max(b, 0) for _, b in pairs] + [0]])
    as_chain, as_tree = accept_matching(draft, choices), accept_in_tree(draft, choices, chain(len(pairs)))
    assert torch.equal(as_chain.accepted, as_tree.accepted)
    count = int(as_chain.accepted) + 1
    assert torch.equal(as_chain.tokens[:, :count], as_tree.tokens[:, :count])
