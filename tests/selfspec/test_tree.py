"""Shapes of candidates: columns, draft passes, ancestors, cuts, siblings, grafts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfspec.tree import MAX_CANDIDATES, Tree, chain, cut, grafted, with_siblings

Path = tuple[int, ...]


def by_path(parents: list[int], ranks: list[int]) -> set[Path]:
    """A tree as the set of its paths, each node written as its rank among its parent's candidates."""
    paths: list[Path] = [()]
    for parent, rank in zip(parents, ranks, strict=True):
        paths.append((*paths[parent], rank))
    return set(paths[1:])


def paths_of(tree: Tree) -> set[Path]:
    return by_path(list(tree.parents), list(tree.ranks))


def ranks_of(parents: list[int]) -> list[int]:
    return [parents[:i].count(parent) for i, parent in enumerate(parents)]


@st.composite
def parent_lists(draw: st.DrawFn) -> list[int]:
    return [draw(st.integers(0, i)) for i in range(draw(st.integers(0, 20)))]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(parent_lists())
def test_a_tree_of_any_order_is_the_same_tree_in_columns(parents: list[int]) -> None:
    tree = Tree.of(parents)
    assert tree.size == len(parents) + 1
    assert paths_of(tree) == by_path(parents, ranks_of(parents))
    inner = [node for node in range(tree.size) if node in tree.parents]
    assert inner == list(range(tree.n_inner))
    assert tree.is_chain == (list(tree.parents) == list(range(len(parents))))
    assert tree.depth == max((len(path) for path in paths_of(tree)), default=0)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(parent_lists())
def test_levels_are_runs_of_columns_that_draft_every_candidate_once(parents: list[int]) -> None:
    tree = Tree.of(parents)
    ready, run = {0}, []
    for level in tree.levels:
        nodes = list(range(level.first, level.last))
        run += nodes
        assert set(nodes) <= ready  # their tokens are chosen before they are run
        assert {tree.depths[node] for node in nodes} == {level.depth}
        for child, parent, rank in zip(level.children, level.parents, level.ranks, strict=True):
            assert tree.parents[child - 1] == level.first + parent
            assert tree.ranks[child - 1] == rank < level.breadth
            assert child not in ready
            ready.add(child)
    assert ready == set(range(tree.size))
    assert run == list(range(tree.n_inner))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(parent_lists(), st.integers(0, 4))
def test_a_column_sees_itself_and_those_on_its_way(parents: list[int], spare: int) -> None:
    tree = Tree.of(parents)
    width = tree.size + spare
    seen = tree.ancestors(width)
    depths = tree.padded_depths(width)
    for node in range(width):
        way, at = {node}, node
        while at:
            # A spare column follows the one before it.
            at = tree.parents[at - 1] if at < tree.size else at - 1
            way.add(at)
        assert {column for column in range(width) if seen[node, column]} == way
        assert depths[node] == len(way) - 1
        if node < tree.size:
            assert [0, *(index + 1 for index in tree.paths[node])] == sorted(way)
            columns = tree.path_columns[node].tolist()
            assert columns[: len(way)] == sorted(way)
            assert set(columns[len(way) :]) <= {node}


@settings(max_examples=100, deadline=None, derandomize=True)
@given(parent_lists(), st.integers(0, 6))
def test_a_cut_tree_holds_the_paths_up_to_that_depth(parents: list[int], depth: int) -> None:
    tree = Tree.of(parents)
    assert paths_of(cut(tree, depth)) == {path for path in paths_of(tree) if len(path) <= depth}


def test_a_node_keeps_its_rank_when_the_tree_is_reordered_or_cut() -> None:
    """The second candidate stays the second, although the first stands in a later column or is gone."""
    tree = Tree.of((0, 0, 2, 3), ranks=(0, 1, 1, 0))
    assert paths_of(tree) == {(0,), (1,), (1, 1), (1, 1, 0)}
    assert paths_of(cut(tree, 2)) == {(0,), (1,), (1, 1)}


@pytest.mark.parametrize("length", [0, 1, 2, 7])
def test_a_chain_is_one_token_after_the_other(length: int) -> None:
    tree = chain(length)
    assert tree.is_chain
    assert (tree.size, tree.depth, tree.n_inner) == (length + 1, length, length)
    assert [(level.first, level.last, level.children) for level in tree.levels] == [
        (i, i + 1, (i + 1,)) for i in range(length)
    ]
    assert torch.equal(tree.ancestors(tree.size), torch.ones(length + 1, length + 1).tril().bool())


@pytest.mark.parametrize(("length", "width"), [(0, 2), (1, 2), (4, 2), (3, 3), (2, 1)])
def test_siblings_stand_beside_every_token_of_a_chain(length: int, width: int) -> None:
    tree = with_siblings(length, width)
    best = [(0,) * depth for depth in range(length)]
    assert paths_of(tree) == {(*path, rank) for path in best for rank in range(width)}
    assert tree.depth == length
    assert len(tree.levels) == length  # as many draft passes as the chain
    assert tree.is_chain == (length == 0 or width == 1)


@pytest.mark.parametrize("base", [chain(0), chain(3), with_siblings(2), Tree.of((0, 0, 1, 1, 2, 5))], ids=str)
@pytest.mark.parametrize("length", [1, 4])
def test_a_graft_is_a_chain_of_its_own_in_the_last_columns(base: Tree, length: int) -> None:
    tree = grafted(base, length)
    first = base.size
    assert tree.size == base.size + length
    assert tree.parents[: base.size - 1] == base.parents
    assert [tree.depths[node] for node in range(first, tree.size)] == list(range(1, length + 1))
    assert tree.paths[tree.size - 1] == tuple(range(base.size - 1, tree.size - 1))
    # The draft grows what it grew before, and runs the graft together with its leaves.
    assert [(v.first, v.last, v.children) for v in tree.levels] == [
        (v.first, v.last, v.children) for v in base.levels
    ]
    assert tree.n_inner == base.n_inner
    assert not bool(tree.ancestors(tree.size)[first:, 1:first].any())
    assert not bool(tree.ancestors(tree.size)[:first, first:].any())


def test_the_widest_tree_is_allowed_and_a_wider_one_refused() -> None:
    assert Tree((0,) * MAX_CANDIDATES).size == MAX_CANDIDATES + 1
    with pytest.raises(ValueError, match="a tree of 65 candidates: allowed are up to 64"):
        Tree((0,) * (MAX_CANDIDATES + 1))


@pytest.mark.parametrize("parents", [(1,), (0, 3), (-1,), (0, 0, -2)])
def test_a_parent_that_does_not_come_before_its_child_is_refused(parents: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="a node's parent must be"):
        Tree(parents)
    with pytest.raises(ValueError, match="a node's parent must be"):
        Tree.of(parents)


@pytest.mark.parametrize("parents", [(0, 0, 2), (0, 1, 0, 3), (0, 0, 1, 1, 4, 2)])
def test_columns_in_another_order_are_refused(parents: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="nodes with children come first, in the order of depth"):
        Tree(parents)
    assert Tree.of(parents).size == len(parents) + 1


def test_equal_trees_are_equal_however_they_were_made() -> None:
    assert with_siblings(2) == Tree((0, 1, 0, 1), (0, 0, 1, 1))
    assert Tree.of((0, 1, 2)) == chain(3)
    assert hash(Tree.of((0, 1, 2))) == hash(chain(3))
