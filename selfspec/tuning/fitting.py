"""A cost model from timed rounds: robust least squares, with no part of a round below zero."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from selfspec.shapes import ShapePlan
from selfspec.tuning.cells import Timing
from selfspec.tuning.cost_model import CostModel, Fit, exact_layers, terms_of

_TELLING = 2.0
"""Timed contexts must differ by this factor to say anything of a layer's time by keys."""


def fit_costs(timings: Sequence[Timing], n_layers: int, shapes: ShapePlan, longest: int = 64) -> CostModel:
    """Least squares on relative errors, per batch size; a cell far off the first fit is not in the second.

    No part of a round takes less than no time: coefficients are 0 or more, so that no prediction is negative.

    Raises:
        ValueError: there is nothing to fit to.
    """
    if not timings:
        raise ValueError("no round was timed: the texts are too short for the draft lengths asked for")
    batches = sorted({timing.rows for timing in timings})
    widths = tuple(
        (rows, tuple(shapes.width(rows, max(n, 1)) for n in range(longest + 3))) for rows in batches
    )
    fits = tuple(
        _fit([t for t in timings if t.rows == rows and t.cell.siblings == 1], n_layers, shapes)
        for rows in batches
    )
    contexts = [timing.context for timing in timings]
    timed = min(contexts), max(contexts)
    model = CostModel(n_layers, fits, widths, shapes.key_quantum, timed, 0.0, 0.0)
    model = replace(model, fits=tuple(_with_siblings(model, fit, timings) for fit in model.fits))
    errors = [abs(relative_error(model, timing)) for timing in timings]
    return replace(model, residual=statistics.median(errors), worst_residual=max(errors))


def relative_error(model: CostModel, timing: Timing) -> float:
    """(predicted - measured) / measured of a timed cell's round."""
    cell = timing.cell
    predicted = model.round_seconds(
        cell.exit_layer,
        cell.draft_length,
        rows=timing.rows,
        context=timing.context,
        checked=cell.checked,
        siblings=cell.siblings,
        low_bit=cell.low_bit,
    )
    return float(predicted) / timing.round_seconds - 1


def _fit(timings: Sequence[Timing], n_layers: int, shapes: ShapePlan) -> Fit:
    """Of chains at one batch size. Where the draft's part of a round is not known, all parts at once."""
    rows = timings[0].rows
    columns = [
        [t.cell.exit_layer for t in timings],
        [t.cell.draft_length for t in timings],
        [shapes.width(rows, t.cell.draft_length + 1) for t in timings],
        [shapes.key_length(int(t.context)) for t in timings],
        [t.cell.checked for t in timings],
        [t.cell.low_bit for t in timings],
    ]
    e, k, width, keys, checked, view = (torch.tensor(column, dtype=torch.float64) for column in columns)
    draft, rest = terms_of(e, k, width, keys, checked, view, n_layers)
    if keys.max() < _TELLING * keys.min():  # nothing to learn of context here, and nothing to blame on it
        draft[:, -1], rest[:, -1] = 0, 0
    drafting = torch.tensor([t.draft_seconds for t in timings], dtype=torch.float64)
    whole = torch.tensor([t.round_seconds for t in timings], dtype=torch.float64)
    by_view = view > 0
    if bool(drafting.isnan().any()):
        terms = torch.cat([draft * ~by_view[:, None], draft * by_view[:, None], rest], dim=1)
        found = _robust_least_squares(terms, whole, 1 / whole)
        d = draft.shape[1]
        parts = found[:d], found[d : 2 * d], found[2 * d :]
    else:
        of_exits, of_view = (
            _robust_least_squares(draft[own], drafting[own], 1 / whole[own]) for own in (~by_view, by_view)
        )
        parts = of_exits, of_view, _robust_least_squares(rest, whole - drafting, 1 / whole)
    return Fit(rows, parts[0], parts[2], view=parts[1] if bool(by_view.any()) else ())


def _with_siblings(model: CostModel, fit: Fit, timings: Sequence[Timing]) -> Fit:
    """`fit` with what rounds with siblings took more than chains that verify as many tokens."""
    own = [timing for timing in timings if timing.rows == fit.rows and timing.cell.siblings > 1]
    if not own:
        return fit
    e, k, w, view = (
        torch.tensor([getattr(timing.cell, name) for timing in own], dtype=torch.float64)
        for name in ("exit_layer", "draft_length", "siblings", "low_bit")
    )
    seconds = torch.tensor([timing.round_seconds for timing in own], dtype=torch.float64)
    context = torch.tensor([timing.context for timing in own], dtype=torch.float64)
    chains = model.round_seconds(e, k, rows=fit.rows, context=context, siblings=w, low_bit=view)
    terms = model.sibling_terms(fit.rows, exact_layers(e, view), k, w)
    return replace(fit, siblings=tuple(_least_squares(terms, seconds - chains, 1 / seconds).tolist()))


def _robust_least_squares(terms: Tensor, seconds: Tensor, weight: Tensor) -> tuple[float, ...]:
    """Twice: the second time without what lies more than four median residuals off the first."""
    if not len(terms):
        return (0.0,) * terms.shape[1]
    first = _least_squares(terms, seconds, weight)
    residual = ((terms @ first - seconds) * weight).abs()
    kept = residual <= 4 * residual.median() + 1e-9
    if int(kept.sum()) <= terms.shape[1]:
        return tuple(first.tolist())
    return tuple(_least_squares(terms[kept], seconds[kept], weight[kept]).tolist())


def _least_squares(terms: Tensor, seconds: Tensor, weight: Tensor) -> Tensor:
    """Coefficients of 0 or more: while some come out negative, the worst is 0 and the others refit.

    0 as well for what never occurs.
    """
    norms = (terms * weight[:, None]).norm(dim=0)
    used, scale = norms > 0, norms.clamp(min=1e-30)
    scaled, found = terms * weight[:, None] / scale, terms.new_zeros(terms.shape[1])
    while bool(used.any()):
        found = terms.new_zeros(terms.shape[1])
        found[used] = torch.linalg.pinv(scaled[:, used], rtol=1e-6) @ (seconds * weight)
        # Rounding around 0 is no sign of anything.
        if bool((found >= -1e-9 * found.abs().max()).all()):
            break
        used[int(found.argmin())] = False
    return found.clamp(min=0) / scale
