"""What a round of early exit drafts costs: a linear model of its parts, fitted to timed rounds.

A round of K drafts at exit layer E runs K exit heads and (K + 1) E layers one token wide, then L - E layers
and the head m = K + 1 tokens wide (padded to a safe width). Time per layer grows with the keys that it reads.

For the tuner, which keeps it in the profile, residuals included. `costs` is for draft="auto": single
passes, timed within the time that wrapping takes.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from selfspec.shapes import ShapePlan

DRAFT_TERMS = ("draft", "step", "step layer", "stop check", "step layer and 1k keys")
REST_TERMS = ("round", "column", "layer", "layer and column", "layer and 1k keys")


@dataclass(frozen=True)
class Cell:
    """One kind of round."""

    exit_layer: int
    draft_length: int
    checked: bool = False
    """Whether a stop rule looks at every draft token."""


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


@dataclass(frozen=True)
class CostModel:
    """Seconds of a round by exit layer, draft steps, rows and context."""

    n_layers: int
    fits: tuple[Fit, ...]
    """By growing batch size."""
    widths: tuple[tuple[int, tuple[int, ...]], ...]
    """Per batch size: the padded width of a pass over 0, 1, 2, … tokens."""
    key_quantum: int
    residual: float
    """Median of |predicted - measured| / measured over the timed cells."""
    worst_residual: float

    def round_seconds(
        self,
        exit_layer: Tensor | float,
        steps: Tensor | float,
        *,
        rows: float = 1,
        context: Tensor | float = 256,
        checked: Tensor | bool = False,
    ) -> Tensor:
        """Seconds of a round with `steps` draft steps (a mean may be fractional); arguments broadcast."""
        below = max(
            (fit for fit in self.fits if fit.rows <= rows), key=lambda f: f.rows, default=self.fits[0]
        )
        above = min(
            (fit for fit in self.fits if fit.rows >= rows), key=lambda f: f.rows, default=self.fits[-1]
        )
        low = self._at(below, exit_layer, steps, context, checked)
        if above.rows == below.rows:
            return low
        high = self._at(above, exit_layer, steps, context, checked)
        return low + (high - low) * (rows - below.rows) / (above.rows - below.rows)

    @property
    def step_seconds(self) -> float:
        """Seconds of a draft step without its layers, at the smallest batch: head and choice."""
        return max(self.fits[0].draft[1], 0.0)

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> CostModel:
        """The inverse of `as_dict`."""
        fits = tuple(Fit(f["rows"], tuple(f["draft"]), tuple(f["rest"])) for f in data["fits"])
        widths = tuple((rows, tuple(table)) for rows, table in data["widths"])
        return cls(**{**data, "fits": fits, "widths": widths})

    def _at(
        self,
        fit: Fit,
        exit_layer: Tensor | float,
        steps: Tensor | float,
        context: Tensor | float,
        checked: Tensor | bool,
    ) -> Tensor:
        e, k, t, c = torch.broadcast_tensors(
            *(torch.as_tensor(x, dtype=torch.float64) for x in (exit_layer, steps, context, checked))
        )
        keys = (t / self.key_quantum).ceil() * self.key_quantum
        width = self._width(fit.rows, k)
        draft, rest = _terms(e, k, width, keys, c, self.n_layers)
        seconds = draft @ torch.tensor(fit.draft, dtype=torch.float64)
        return seconds + rest @ torch.tensor(fit.rest, dtype=torch.float64)

    def _width(self, rows: int, steps: Tensor) -> Tensor:
        """Padded width of verification, interpolated for a fractional number of steps."""
        table = torch.tensor(dict(self.widths)[rows], dtype=torch.float64)
        below = steps.floor().long()
        share = steps - below
        return table[below + 1] * (1 - share) + table[(below + 2).clamp(max=len(table) - 1)] * share


def default_cells(n_layers: int, longest: int) -> list[Cell]:
    """Cells that span exits and draft lengths, and a few with a stop rule.

    Long drafts from a late exit take the most time and are never chosen: such exits get short ones only.
    """
    lengths = sorted({0, min(1, longest), min(2, longest), longest // 2, longest})
    shallow = sorted({1, max(1, n_layers // 4), max(1, n_layers // 2)})
    cells = [Cell(e, k) for e in shallow for k in lengths]
    if n_layers - 1 not in shallow:
        cells += [Cell(n_layers - 1, k) for k in lengths[:3]]
    return cells + [Cell(e, k, checked=True) for e in shallow[:2] for k in {max(lengths)} - {0}]


def fit_costs(timings: Sequence[Timing], n_layers: int, shapes: ShapePlan, longest: int = 64) -> CostModel:
    """Least squares on relative errors, per batch size; a cell far off the first fit is not in the second.

    Raises:
        ValueError: there is nothing to fit to.
    """
    if not timings:
        raise ValueError("no round was timed: the texts are too short for the draft lengths asked for")
    batches = sorted({timing.rows for timing in timings})
    widths = tuple(
        (rows, tuple(shapes.width(rows, max(n, 1)) for n in range(longest + 3))) for rows in batches
    )
    fits = []
    for rows in batches:
        own = [timing for timing in timings if timing.rows == rows]
        draft, rest = _fit(own, n_layers, shapes)
        fits.append(Fit(rows, draft, rest))
    model = CostModel(n_layers, tuple(fits), widths, shapes.key_quantum, 0.0, 0.0)
    errors = [abs(relative_error(model, timing)) for timing in timings]
    return CostModel(
        n_layers, tuple(fits), widths, shapes.key_quantum, statistics.median(errors), max(errors)
    )


def relative_error(model: CostModel, timing: Timing) -> float:
    """(predicted - measured) / measured of a timed cell's round."""
    cell = timing.cell
    predicted = model.round_seconds(
        cell.exit_layer,
        cell.draft_length,
        rows=timing.rows,
        context=timing.context,
        checked=cell.checked,
    )
    return float(predicted) / timing.round_seconds - 1


def _terms(
    e: Tensor, k: Tensor, width: Tensor, keys: Tensor, checked: Tensor, n_layers: int
) -> tuple[Tensor, Tensor]:
    """What each coefficient is multiplied with, [..., DRAFT_TERMS] and [..., REST_TERMS]."""
    one, early, late, thousands = torch.ones_like(k), (k + 1) * e, n_layers - e, keys / 1000
    draft = torch.stack([one, k, early, k * checked, early * thousands], dim=-1)
    rest = torch.stack([one, width, late, late * width, late * thousands], dim=-1)
    return draft, rest


def _fit(
    timings: Sequence[Timing], n_layers: int, shapes: ShapePlan
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    rows = timings[0].rows
    columns = [
        [t.cell.exit_layer for t in timings],
        [t.cell.draft_length for t in timings],
        [shapes.width(rows, t.cell.draft_length + 1) for t in timings],
        [shapes.key_length(int(t.context)) for t in timings],
        [t.cell.checked for t in timings],
    ]
    e, k, width, keys, checked = (torch.tensor(column, dtype=torch.float64) for column in columns)
    draft_terms, rest_terms = _terms(e, k, width, keys, checked, n_layers)
    if keys.min() == keys.max():  # nothing to learn of context here, and nothing to blame on it
        draft_terms[:, -1], rest_terms[:, -1] = 0, 0
    draft_seconds = torch.tensor([t.draft_seconds for t in timings], dtype=torch.float64)
    rest_seconds = torch.tensor([t.round_seconds - t.draft_seconds for t in timings], dtype=torch.float64)
    whole = draft_seconds + rest_seconds
    return (
        _robust_least_squares(draft_terms, draft_seconds, 1 / whole),
        _robust_least_squares(rest_terms, rest_seconds, 1 / whole),
    )


def _robust_least_squares(terms: Tensor, seconds: Tensor, weight: Tensor) -> tuple[float, ...]:
    """Twice: the second time without what lies more than four median residuals off the first."""
    first = _least_squares(terms, seconds, weight)
    residual = ((terms @ first - seconds) * weight).abs()
    kept = residual <= 4 * residual.median() + 1e-9
    if int(kept.sum()) <= terms.shape[1]:
        return tuple(first.tolist())
    return tuple(_least_squares(terms[kept], seconds[kept], weight[kept]).tolist())


def _least_squares(terms: Tensor, seconds: Tensor, weight: Tensor) -> Tensor:
    scale = (terms * weight[:, None]).norm(dim=0).clamp(min=1e-30)
    return torch.linalg.pinv(terms * weight[:, None] / scale, rtol=1e-6) @ (seconds * weight) / scale
