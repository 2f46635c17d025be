"""The static tree with the most expected tokens per second, from recorded ranks and measured costs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from selfspec.config import ConfigError
from selfspec.round import Arm
from selfspec.rows import RoundEvent
from selfspec.tree import Tree

Ranks = tuple[tuple[float, ...], ...]
"""[depth][rank]: chance that the target's choice is the draft's candidate of that rank at that depth."""

_PRIOR = 0.5
"""Rounds that are added to each count, so that a rank that was never seen is not impossible."""


@dataclass
class RankCounter:
    """Counts which of a draft's candidates the target chose; handed to generate as `on_round`."""

    depth: int
    width: int

    def __post_init__(self) -> None:
        self._chosen = [[0] * self.width for _ in range(self.depth)]
        self._seen = [0] * self.depth

    def __call__(self, event: RoundEvent) -> None:
        for depth, rank in enumerate(event.ranks):
            self._seen[depth] += 1
            self._chosen[depth][rank] += 1
        reached = len(event.ranks)
        through_chain = all(rank == 0 for rank in event.ranks)  # a sibling has no children that could miss
        if through_chain and reached < event.deepest and len(event.committed) > reached:
            self._seen[reached] += 1

    @property
    def ranks(self) -> Ranks:
        """The chances that the counts give; where nothing was seen, those of the depth before."""
        rows: list[tuple[float, ...]] = []
        for chosen, seen in zip(self._chosen, self._seen, strict=True):
            if not seen and rows:
                rows.append(rows[-1])
            else:
                rows.append(tuple((count + _PRIOR) / (seen + _PRIOR * (self.width + 1)) for count in chosen))
        return tuple(rows)


def best_tree(ranks: Ranks, seconds: Callable[[Tree], float], most_nodes: int = 16) -> tuple[Tree, float]:
    """The tree with the most expected tokens per second, and that figure.

    Dynamic programming over (depth, nodes): a node's children take ranks in order, each with a share of the
    nodes (Chen et al. 2024, "Sequoia", arXiv 2402.12374, section 3.1, with chances by depth and without its
    assumption that only the number of nodes costs time: every size and depth is priced by `seconds`).
    """
    best: tuple[Tree, float] | None = None
    for depth in range(1, len(ranks) + 1):
        plan = _planner(ranks[:depth])
        for nodes in range(depth, most_nodes + 1):
            tokens, parents = plan(nodes)
            tree = Tree.of(*parents)
            speed = (1 + tokens) / seconds(tree)
            if best is None or speed > best[1]:
                best = (tree, speed)
    if best is None:
        raise ValueError(f"most_nodes={most_nodes}: a tree has at least one node")
    return best


def find_tree(
    model: Any,
    prompts: Sequence[Any],
    max_new_tokens: int = 64,
    most_nodes: int = 16,
    generate_arguments: Mapping[str, Any] | None = None,
) -> Tree:
    """Record ranks along a wrapped model's own text and find its best tree, for `wrap(model, tree=...)`.

    The tree itself says which of the draft's candidates its nodes are; `tree.parents` alone would not.

    Args:
        model: wrapped with draft="low_bit", tree="siblings", and numbers for `exit_layer` and `draft_length`
            (the deepest tree to consider).
        prompts: input_ids [1, P] each.
        generate_arguments: for generate, such as those of sampling.

    Raises:
        ConfigError: the model is wrapped otherwise.
    """
    speculation = model.speculation
    config = speculation.config
    numbers = "auto" not in (config.exit_layer, config.draft_length)
    if config.kind != "low_bit" or config.tree != "siblings" or not numbers:
        raise ConfigError("find_tree needs draft='low_bit', tree='siblings', and numbers for E and K")
    counter = RankCounter(int(config.draft_length), 2)
    for prompt in prompts:
        arguments = {"max_new_tokens": max_new_tokens, **(generate_arguments or {})}
        model.generate(prompt, **arguments, on_round=counter)
    knowledge = speculation.knowledge
    arm = Arm(int(config.exit_layer), low_bit=speculation.view is not None)

    def seconds(tree: Tree) -> float:
        steps = sum(knowledge.step_seconds(arm, level.last - level.first) for level in tree.levels)
        return steps + knowledge.exact.seconds(knowledge.n_layers, tree.size)

    return best_tree(counter.ranks, seconds, most_nodes)[0]


def _planner(ranks: Ranks) -> Callable[[int], tuple[float, tuple[list[int], list[int]]]]:
    """nodes -> (expected accepted tokens, (parents, ranks)) of the best tree with so many nodes."""
    width = len(ranks[0])

    @cache
    def below(depth: int, nodes: int, rank: int) -> tuple[float, int]:
        """Most tokens from children of rank >= `rank`, `nodes` nodes in all, and the first one's share."""
        if not nodes or depth == len(ranks) or rank == width:
            return 0.0, 0
        options = [(below(depth, nodes, width)[0], 0)]
        for share in range(1, nodes + 1):
            inside = 1 + below(depth + 1, share - 1, 0)[0]
            options.append((ranks[depth][rank] * inside + below(depth, nodes - share, rank + 1)[0], share))
        return max(options)

    def plan(nodes: int) -> tuple[float, tuple[list[int], list[int]]]:
        parents: list[int] = []
        taken: list[int] = []
        todo = [(0, 0, nodes, 0)]  # node, its depth, nodes for its children, rank of the next child
        while todo:
            node, depth, left, rank = todo.pop()
            share = below(depth, left, rank)[1]
            if share:
                parents.append(node)
                taken.append(rank)
                todo.append((node, depth, left - share, rank + 1))
                todo.append((len(parents), depth + 1, share - 1, 0))
        return below(0, nodes, 0)[0], (parents, taken)

    return plan
