"""Which rounds are timed: a few of each kind, from which `fitting` makes a cost model."""

from __future__ import annotations

from dataclasses import dataclass

from selfspec.round import Arm


@dataclass(frozen=True)
class Cell:
    """One kind of round."""

    exit_layer: int
    draft_length: int
    checked: bool = False
    """Whether a stop rule looks at every draft token."""
    context: int = 0
    """Tokens that prompts are lengthened to; 0: as they are."""
    siblings: int = 1
    """Candidates at every depth, see `Setting.siblings`."""
    low_bit: bool = False
    """Whether layers of the view draft."""

    @property
    def arm(self) -> Arm:
        """The layers that draft."""
        return Arm(self.exit_layer, self.low_bit)


@dataclass(frozen=True)
class Timing:
    """One kind of round as it was timed: medians of `count` rounds."""

    cell: Cell
    rows: int
    context: float
    """Mean of the cached tokens, of the longest row."""
    draft_seconds: float
    """NaN where rounds run whole on a device, and nobody can tell."""
    round_seconds: float
    count: int


def default_cells(
    n_layers: int, longest: int, long_context: int = 0, trees: bool = True, rules: bool = True, view: int = 0
) -> list[Cell]:
    """Cells that span exits and draft lengths, a few with a stop rule, with siblings, and at a long context.

    Long drafts from a late exit take the most time and are never chosen: such exits get short ones only. Of
    the view, whose steps are cheap, the deepest and the middle exit are enough: its layers are all alike.

    Args:
        trees: whether siblings can be drafted.
        rules: whether a rule can stop a draft on the way.
        view: layers of the low-bit view, 0 where there is none.
    """
    lengths = sorted({0, min(1, longest), min(2, longest), longest // 2, longest})
    shallow = sorted({1, max(1, n_layers // 4), max(1, n_layers // 2)})
    cells = [Cell(e, k) for e in shallow for k in lengths]
    if n_layers - 1 not in shallow:
        cells += [Cell(n_layers - 1, k) for k in lengths[:3]]
    middle, viewed = min(longest // 2, 8), sorted({max(1, view // 2), view}) if view else []
    drafted = sorted({1, max(longest // 2, 1)})
    cells += [Cell(e, k, low_bit=True) for e in viewed for k in drafted]
    if rules:
        cells += [Cell(e, max(lengths), checked=True) for e in shallow[:2]]
        cells += [Cell(e, drafted[-1], checked=True, low_bit=True) for e in viewed[-1:]]
    if trees and longest > 1:
        last = shallow[:2][-1]
        cells += [Cell(1, middle, siblings=2), Cell(last, middle, siblings=3), Cell(last, 2, siblings=4)]
        cells += [Cell(e, middle, siblings=2, low_bit=True) for e in viewed[-1:]]
    ends = {0, max(lengths)} if long_context else set()
    cells += [Cell(e, k, context=long_context) for e in {1, shallow[-1]} for k in sorted(ends)]
    return cells + [Cell(e, drafted[-1], context=long_context, low_bit=True) for e in viewed[-1:] if ends]
