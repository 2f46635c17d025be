"""What a round of early exit drafts costs: a linear model of its parts (`fitting` fits it to timed rounds).

A round of K drafts at exit layer E runs K exit heads and (K + 1) E layers one token wide, then L - E layers
and the head m = K + 1 tokens wide (padded to a safe width). Time per layer grows with the keys that it reads.

For the tuner, which keeps it in the profile, residuals included. `costs` is for draft="auto": single
passes, timed within the time that wrapping takes.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

DRAFT_TERMS = ("draft", "step", "step layer", "stop check", "step layer and 1k keys")
REST_TERMS = ("round", "column", "layer", "layer and column", "layer and 1k keys")
SIBLING_TERMS = ("branching round", "early layer and leaf")
"""What siblings add to the round of a chain that verifies as many tokens."""


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


@dataclass(frozen=True)
class Timing:
    """One kind of round as it was timed: medians of `count` rounds."""

    cell: Cell
    rows: int
    context: float
    """Mean of the cached tokens, of the longest row."""
    draft_seconds: float
    round_seconds: float
    count: int


@dataclass(frozen=True)
class Fit:
    """Coefficients in seconds at one batch size."""

    rows: int
    draft: tuple[float, ...]
    """One for each of DRAFT_TERMS."""
    rest: tuple[float, ...]
    """One for each of REST_TERMS."""
    siblings: tuple[float, ...] = ()
    """One for each of SIBLING_TERMS; empty where none were timed."""

    def __post_init__(self) -> None:
        for terms, values in (
            (DRAFT_TERMS, self.draft),
            (REST_TERMS, self.rest),
            (SIBLING_TERMS, self.siblings or (0.0, 0.0)),
        ):
            if len(values) != len(terms) or not all(0 <= value < math.inf for value in values):
                raise ValueError(f"{values}: allowed are seconds of 0 or more for {', '.join(terms)}")
        if not any((*self.draft, *self.rest)):
            raise ValueError("a fit in which nothing costs any time")


@dataclass(frozen=True)
class CostModel:
    """Seconds of a round by exit layer, draft steps, rows and context."""

    n_layers: int
    fits: tuple[Fit, ...]
    """By growing batch size."""
    widths: tuple[tuple[int, tuple[int, ...]], ...]
    """Per batch size: the padded width of a pass over 0, 1, 2, … tokens."""
    key_quantum: int
    contexts: tuple[float, float]
    """Fewest and most cached tokens that rounds were timed at."""
    residual: float
    """Median of |predicted - measured| / measured over the timed cells."""
    worst_residual: float

    def __post_init__(self) -> None:
        if not self.fits or [fit.rows for fit in self.fits] != [rows for rows, _ in self.widths]:
            raise ValueError("fits: at least one is needed, and widths for each")
        if self.n_layers < 2 or self.key_quantum < 1 or min(len(table) for _, table in self.widths) < 3:
            raise ValueError("n_layers, key_quantum or widths: too small")

    def outside(self, rows: int, context: float) -> list[str]:
        """What of a call lies outside what was timed, in words."""
        batches, (least, most) = [fit.rows for fit in self.fits], self.contexts
        found = []
        if not batches[0] <= rows <= batches[-1]:
            found.append(f"batch {rows}, timed were {batches[0]} to {batches[-1]}")
        if not least / 2 <= context <= most * 2:
            found.append(f"about {context:.0f} tokens of context, timed were {least:.0f} to {most:.0f}")
        return found

    def round_seconds(
        self,
        exit_layer: Tensor | float,
        steps: Tensor | float,
        *,
        rows: float = 1,
        context: Tensor | float = 256,
        checked: Tensor | bool = False,
        siblings: Tensor | float = 1,
    ) -> Tensor:
        """Seconds of a round with `steps` draft steps (a mean may be fractional); arguments broadcast."""
        below = max(
            (fit for fit in self.fits if fit.rows <= rows), key=lambda f: f.rows, default=self.fits[0]
        )
        above = min(
            (fit for fit in self.fits if fit.rows >= rows), key=lambda f: f.rows, default=self.fits[-1]
        )
        low = self._at(below, exit_layer, steps, context, checked, siblings)
        if above.rows == below.rows:
            return low
        high = self._at(above, exit_layer, steps, context, checked, siblings)
        return low + (high - low) * (rows - below.rows) / (above.rows - below.rows)

    @property
    def knows_siblings(self) -> bool:
        """Whether rounds with siblings were timed."""
        return all(fit.siblings for fit in self.fits)

    @property
    def most_columns(self) -> int:
        """The widest verification whose padding is known."""
        return min(len(table) for _, table in self.widths) - 1

    @property
    def step_seconds(self) -> float:
        """Seconds of a draft step without its layers, at the smallest batch: head and choice."""
        return self.fits[0].draft[1]

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> CostModel:
        """The inverse of `as_dict`."""
        fits = tuple(
            Fit(f["rows"], tuple(f["draft"]), tuple(f["rest"]), tuple(f.get("siblings", ())))
            for f in data["fits"]
        )
        widths = tuple((rows, tuple(table)) for rows, table in data["widths"])
        return cls(**{**data, "fits": fits, "widths": widths, "contexts": tuple(data["contexts"])})

    def _at(
        self,
        fit: Fit,
        exit_layer: Tensor | float,
        steps: Tensor | float,
        context: Tensor | float,
        checked: Tensor | bool,
        siblings: Tensor | float,
    ) -> Tensor:
        e, k, t, c, w = torch.broadcast_tensors(
            *(
                torch.as_tensor(x, dtype=torch.float64)
                for x in (exit_layer, steps, context, checked, siblings)
            )
        )
        keys = (t / self.key_quantum).ceil() * self.key_quantum
        width = self._width(fit.rows, k * w)
        draft, rest = terms_of(e, k, width, keys, c, self.n_layers)
        seconds = draft @ torch.tensor(fit.draft, dtype=torch.float64)
        seconds = seconds + rest @ torch.tensor(fit.rest, dtype=torch.float64)
        if not fit.siblings:
            return seconds
        siblings_seconds = torch.tensor(fit.siblings, dtype=torch.float64)
        return seconds + self.sibling_terms(fit.rows, e, k, w) @ siblings_seconds

    def sibling_terms(self, rows: int, e: Tensor, k: Tensor, siblings: Tensor) -> Tensor:
        """What each coefficient of SIBLING_TERMS is multiplied with, [..., SIBLING_TERMS]; 0 for chains.

        All leaves run through the early layers together, where a chain runs its last token alone.
        """
        branching = ((siblings > 1) & (k > 0)).double()
        leaves = self._width(rows, k * (siblings - 1)) - self._width(rows, torch.zeros_like(k))
        return torch.stack([branching, branching * e * leaves], dim=-1)

    def _width(self, rows: int, candidates: Tensor) -> Tensor:
        """Padded width of a pass over one token and `candidates`, interpolated for a fractional number."""
        table = torch.tensor(dict(self.widths)[rows], dtype=torch.float64)
        below = candidates.floor().long()
        share = candidates - below
        return table[below + 1] * (1 - share) + table[(below + 2).clamp(max=len(table) - 1)] * share


def default_cells(n_layers: int, longest: int, long_context: int = 0, trees: bool = True) -> list[Cell]:
    """Cells that span exits and draft lengths, a few with a stop rule, with siblings, and at a long context.

    Long drafts from a late exit take the most time and are never chosen: such exits get short ones only.
    """
    lengths = sorted({0, min(1, longest), min(2, longest), longest // 2, longest})
    shallow = sorted({1, max(1, n_layers // 4), max(1, n_layers // 2)})
    cells = [Cell(e, k) for e in shallow for k in lengths]
    if n_layers - 1 not in shallow:
        cells += [Cell(n_layers - 1, k) for k in lengths[:3]]
    cells += [Cell(e, k, checked=True) for e in shallow[:2] for k in {max(lengths)} - {0}]
    if trees and longest > 1:
        last, middle = shallow[:2][-1], min(longest // 2, 8)
        cells += [Cell(1, middle, siblings=2), Cell(last, middle, siblings=3), Cell(last, 2, siblings=4)]
    ends = {0, max(lengths)} if long_context else set()
    return cells + [Cell(e, k, context=long_context) for e in {1, shallow[-1]} for k in sorted(ends)]


def terms_of(
    e: Tensor, k: Tensor, width: Tensor, keys: Tensor, checked: Tensor, n_layers: int
) -> tuple[Tensor, Tensor]:
    """What each coefficient is multiplied with, [..., DRAFT_TERMS] and [..., REST_TERMS]."""
    one, early, late, thousands = torch.ones_like(k), (k + 1) * e, n_layers - e, keys / 1000
    draft = torch.stack([one, k, early, k * checked, early * thousands], dim=-1)
    rest = torch.stack([one, width, late, late * width, late * thousands], dim=-1)
    return draft, rest
