"""The cost model, on timings that are made up, and a real round's timing."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from selfspec.shapes import ShapePlan
from selfspec.tuning.round_costs import Cell, CostModel, Timing, default_cells, fit_costs, relative_error
from selfspec.tuning.timing import time_rounds

LAYERS = 8
SHAPES = ShapePlan(bad_widths=frozenset({1}), key_quantum=64)


def made_up(cell: Cell, rows: int = 1, context: float = 100.0, noise: float = 1.0) -> Timing:
    """A machine on which a layer takes 1 ms and 0.1 ms a column, the head 0.5 ms, and a round 2 ms more."""
    e, k = cell.exit_layer, cell.draft_length
    width = SHAPES.width(rows, k + 1)
    draft = 1e-3 * rows * ((k + 1) * e + 0.5 * k + 0.2 * k * cell.checked)
    rest = 1e-3 * rows * (2 + (LAYERS - e) * (1 + 0.1 * width) + 0.5 * width)
    return Timing(cell, rows, context, draft * noise, (draft + rest) * noise, 5)


def fitted(rows: tuple[int, ...] = (1,)) -> CostModel:
    timings = [made_up(cell, r) for cell in default_cells(LAYERS, 8) for r in rows]
    return fit_costs(timings, LAYERS, SHAPES, longest=16)


def test_a_machine_that_is_linear_is_learnt_exactly() -> None:
    costs = fitted()
    assert costs.worst_residual < 1e-6
    for cell in (Cell(3, 5), Cell(6, 0), Cell(2, 7, checked=True)):
        assert abs(relative_error(costs, made_up(cell))) < 1e-6


def test_one_wild_cell_does_not_move_the_others() -> None:
    cells = default_cells(LAYERS, 8)
    timings = [made_up(cell, noise=3.0 if i == 4 else 1.0) for i, cell in enumerate(cells)]
    costs = fit_costs(timings, LAYERS, SHAPES)
    assert abs(relative_error(costs, made_up(Cell(3, 5)))) < 0.05


def test_batch_sizes_between_those_timed_are_interpolated() -> None:
    costs = fitted((1, 8))
    assert float(costs.round_seconds(3, 4, rows=8)) == pytest.approx(8 * float(costs.round_seconds(3, 4)))
    between = float(costs.round_seconds(3, 4, rows=4.5))
    assert between == pytest.approx(4.5 * float(costs.round_seconds(3, 4)))


def test_a_fractional_mean_of_steps_lies_between_its_neighbours() -> None:
    costs = fitted()
    low, high = (float(costs.round_seconds(3, k)) for k in (4, 5))
    assert float(costs.round_seconds(3, 4.25)) == pytest.approx(low + (high - low) / 4)


def test_arguments_broadcast() -> None:
    exits, steps = torch.arange(1, 8)[:, None], torch.arange(5)[None]
    assert fitted().round_seconds(exits, steps).shape == (7, 5)


def test_a_cost_model_survives_json() -> None:
    costs = fitted((1, 4))
    assert CostModel.from_dict(json.loads(json.dumps(costs.as_dict()))) == costs


def test_context_is_learnt_where_it_varies() -> None:
    timings = []
    for cell in default_cells(LAYERS, 8):
        for context in (64, 640):
            timing = made_up(cell, context=context)
            extra = 1e-3 * context / 1000 * (LAYERS - cell.exit_layer)
            timings.append(
                Timing(cell, 1, context, timing.draft_seconds, timing.round_seconds + extra, timing.count)
            )
    costs = fit_costs(timings, LAYERS, SHAPES)
    assert costs.worst_residual < 1e-6
    assert float(costs.round_seconds(2, 3, context=1280)) > float(costs.round_seconds(2, 3, context=64))


def test_nothing_timed_is_refused() -> None:
    with pytest.raises(ValueError, match="no round was timed"):
        fit_costs([], LAYERS, SHAPES)


def test_rounds_of_every_cell_are_timed_within_ordinary_calls(llama: Any) -> None:
    cells = default_cells(4, 4)
    timings = time_rounds(llama, [[5, 6, 7], [8, 9]], cells, max_new_tokens=24, repeats=3)
    assert {timing.cell for timing in timings} == set(cells)
    assert all(0 < timing.draft_seconds < timing.round_seconds for timing in timings)
    assert "generate" not in vars(llama)


def test_rounds_of_a_batch_are_timed_together(llama: Any) -> None:
    timings = time_rounds(llama, [[5, 6, 7], [8, 9]], [Cell(2, 2)], rows=2, max_new_tokens=24, repeats=3)
    assert [timing.rows for timing in timings] == [2]
