"""The shape of a round's candidates: a chain, or a tree whose branches are verified in one pass."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from selfspec.values import ConfigError, check_choice

MAX_CANDIDATES = 64
"""Most candidates of one round: beyond it a verification pass is bound by arithmetic on any machine."""


@dataclass(frozen=True)
class Level:
    """One draft pass: the nodes of one depth that have children, and where those stand."""

    depth: int
    first: int
    """Column of the first node that is run; they are consecutive."""
    last: int
    children: tuple[int, ...]
    """Columns of the children of these nodes."""
    parents: tuple[int, ...]
    """For each child, which of the nodes that are run it follows."""
    ranks: tuple[int, ...]
    """For each child, which of its parent's candidates it is: 0 for the likeliest."""

    @property
    def breadth(self) -> int:
        """Candidates to take from each node."""
        return max(self.ranks) + 1


@dataclass(frozen=True)
class Tree:
    """Candidates 1..n after the last committed token, which is node 0.

    Nodes stand in the order of their columns: first those with children, by depth, then the leaves. So every
    draft pass is a run of columns, and all leaves are one run.

    Args:
        parents: the parent of each of the nodes 1..n.
        ranks: which of its parent's candidates each node is; by default the next one that is free.
        grafted: so many of the last nodes come from elsewhere: a draft that grows the tree skips them.

    Raises:
        ValueError: parents in another order, ranks for other nodes, or more than MAX_CANDIDATES nodes.
    """

    parents: tuple[int, ...]
    ranks: tuple[int, ...] = ()
    grafted: int = 0

    def __post_init__(self) -> None:
        if len(self.parents) > MAX_CANDIDATES:
            raise ValueError(f"a tree of {len(self.parents)} candidates: allowed are up to {MAX_CANDIDATES}")
        _check_order(self.parents)
        grown = self.parents[: len(self.parents) - self.grafted]
        inner = [node for node in range(len(grown) + 1) if node in grown]
        depths = [self.depths[node] for node in inner]
        if inner != list(range(len(inner))) or depths != sorted(depths):
            raise ValueError(f"tree {self.parents}: nodes with children come first, in the order of depth")
        if not self.ranks:
            object.__setattr__(self, "ranks", _next_free(self.parents))
        if len(self.ranks) != len(self.parents) or min(self.ranks, default=0) < 0:
            raise ValueError(
                f"ranks {self.ranks}: allowed is one for each of {len(self.parents)} nodes, from 0"
            )

    @classmethod
    def of(cls, parents: Sequence[int], ranks: Sequence[int] = ()) -> "Tree":
        """A tree from nodes in any order in which parents come before their children."""
        _check_order(parents)
        depths = _depths(parents)
        inner = set(parents)
        order = sorted(range(1, len(depths)), key=lambda node: (node not in inner, depths[node], node))
        column = {0: 0, **{node: i + 1 for i, node in enumerate(order)}}
        ranks = ranks or _next_free(parents)
        return cls(tuple(column[parents[n - 1]] for n in order), tuple(ranks[n - 1] for n in order))

    @property
    def size(self) -> int:
        """Nodes, the last committed token included: the verify width m."""
        return len(self.parents) + 1

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Depth of every node; 0 for the last committed token."""
        return tuple(_depths(self.parents))

    @cached_property
    def depth(self) -> int:
        """Tokens on the longest path: K of a chain."""
        return max(self.depths)

    @cached_property
    def grown_depth(self) -> int:
        """The same of what was grown, without what was grafted."""
        return max(self.depths[: self.size - self.grafted])

    @cached_property
    def is_chain(self) -> bool:
        return self.parents == tuple(range(len(self.parents)))

    @cached_property
    def n_inner(self) -> int:
        """Grown nodes with children; the leaves, and what was grafted, are columns [n_inner, size)."""
        return max(self.parents[: len(self.parents) - self.grafted], default=-1) + 1

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """The draft passes, from the root down."""
        levels = []
        for depth in sorted({self.depths[node] for node in range(self.n_inner)}):
            run = [node for node in range(self.n_inner) if self.depths[node] == depth]
            grown = range(1, self.size - self.grafted)
            children = [node for node in grown if self.parents[node - 1] in run]
            levels.append(
                Level(
                    depth,
                    run[0],
                    run[-1] + 1,
                    tuple(children),
                    tuple(self.parents[node - 1] - run[0] for node in children),
                    tuple(self.ranks[node - 1] for node in children),
                )
            )
        return tuple(levels)

    @cached_property
    def paths(self) -> tuple[tuple[int, ...], ...]:
        """For every node the candidates on its way, itself included: indices into [B, n] tokens."""
        paths: list[tuple[int, ...]] = [()]
        for index, parent in enumerate(self.parents):
            paths.append((*paths[parent], index))
        return tuple(paths)

    @cached_property
    def path_columns(self) -> Tensor:
        """For every node the columns from the root to it, [n+1, depth+1]; short paths repeat their end."""
        rows = [[0, *(index + 1 for index in path)] for path in self.paths]
        return torch.tensor([row + row[-1:] * (self.depth + 1 - len(row)) for row in rows], device="cpu")

    def ancestors(self, width: int) -> Tensor:
        """Which columns each column sees, itself included: bool [width, width], see `_ancestors`."""
        return _ancestors(self.parents, width)

    def padded_depths(self, width: int) -> tuple[int, ...]:
        """Depths of `width` columns; spare ones follow the last node."""
        return self.depths + tuple(range(self.depths[-1] + 1, self.depths[-1] + 1 + width - self.size))


def _check_order(parents: Sequence[int]) -> None:
    if any(not 0 <= parent <= i for i, parent in enumerate(parents)):
        raise ValueError("a node's parent must be 0 or one of the nodes before it")


def _depths(parents: Sequence[int]) -> list[int]:
    """Depth of every node, the root's included."""
    depths = [0]
    for parent in parents:
        depths.append(depths[parent] + 1)
    return depths


def _next_free(parents: Sequence[int]) -> tuple[int, ...]:
    """Ranks where none are given: how many children each node's parent has before it."""
    return tuple(parents[:i].count(parent) for i, parent in enumerate(parents))


def checked_tree(tree: Any) -> str | Tree | tuple[int, ...]:
    """A tree as settings name it: by name, as a Tree, or the parents of its nodes as plain numbers.

    Raises:
        ConfigError: it is none of these.
    """
    if isinstance(tree, Tree):
        return tree
    if isinstance(tree, str):
        check_choice("tree", tree, ("chain", "siblings"))
        return tree
    try:
        parents = tuple(operator.index(parent) for parent in tree)
        Tree.of(parents)
    except ValueError as error:
        raise ConfigError(f"tree={tree!r}: {error}") from error
    except TypeError as error:
        raise ConfigError(
            f"tree={tree!r}: allowed are 'chain', 'siblings', a Tree, or the parents of its nodes"
        ) from error
    return parents


TreeOfDepth = Callable[[int], Tree]
"""The tree to draft when the next round may go K tokens deep."""


@lru_cache(maxsize=512)
def chain(length: int) -> Tree:
    """K tokens, one after the other."""
    return Tree(tuple(range(length)))


@lru_cache(maxsize=512)
def with_siblings(length: int, width: int = 2) -> Tree:
    """A chain with the next `width` - 1 candidates of the draft beside each of its tokens.

    Nearly every miss of a good draft is its second candidate, which costs no draft step more.
    """
    siblings = [(depth, rank) for depth in range(length) for rank in range(1, width)]
    parents = (*range(length), *(depth for depth, _ in siblings))
    return Tree(parents, (0,) * length + tuple(rank for _, rank in siblings))


@lru_cache(maxsize=4096)
def forked(length: int, depths: tuple[int, ...]) -> Tree:
    """A chain of `length` tokens with a second choice after the nodes at `depths`."""
    return Tree((*range(length), *depths), (0,) * length + (1,) * len(depths))


@lru_cache(maxsize=512)
def cut(tree: Tree, depth: int) -> Tree:
    """The nodes of `tree` that are at most `depth` deep."""
    kept = [node for node in range(1, tree.size) if tree.depths[node] <= depth]
    column = {0: 0, **{node: i + 1 for i, node in enumerate(kept)}}
    return Tree.of([column[tree.parents[n - 1]] for n in kept], [tree.ranks[n - 1] for n in kept])


@lru_cache(maxsize=512)
def grafted(tree: Tree, length: int) -> Tree:
    """`tree` with a chain of `length` tokens from elsewhere beside it, in the last columns."""
    first = tree.size
    parents = (*tree.parents, 0, *range(first, first + length - 1))
    return Tree(parents, (*tree.ranks, *(0,) * length), length)


@lru_cache(maxsize=512)
def _ancestors(parents: tuple[int, ...], width: int) -> Tensor:
    seen = torch.eye(width, dtype=torch.bool, device="cpu")
    for node in range(1, width):
        parent = parents[node - 1] if node <= len(parents) else node - 1
        seen[node] |= seen[parent]
    return seen
