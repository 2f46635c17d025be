"""The cost model, on timings that are made up, and a real round's timing."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from layer_skip.decoder import LayeredDecoder
from layer_skip.low_bit import LowBitView
from selfspec.shapes import ShapePlan
from selfspec.tuning import fitting, timing
from selfspec.tuning.cells import Cell, Timing, default_cells
from selfspec.tuning.cost_model import CostModel
from selfspec.tuning.fitting import fit_costs, relative_error
from selfspec.tuning.running import Engine
from selfspec.tuning.timing import Stopwatch, lengthened, long_context, time_rounds

LAYERS = 8
SHAPES = ShapePlan(bad_widths=frozenset({1}), key_quantum=64)


def made_up(cell: Cell, rows: int = 1, context: float = 100.0, noise: float = 1.0) -> Timing:
    """A machine on which a layer takes 1 ms and 0.1 ms a column, the head 0.5 ms, and a round 2 ms more."""
    e, k = cell.exit_layer, cell.draft_length
    width = SHAPES.width(rows, k * cell.siblings + 1)
    draft = 1e-3 * rows * ((k + 1) * e + 0.5 * k + 0.2 * k * cell.checked)
    rest = 1e-3 * rows * (2 + (LAYERS - e) * (1 + 0.1 * width) + 0.5 * width)
    if cell.low_bit:  # layers at a third, and the model's own run all of them in verification
        draft = 1e-3 * rows * (0.1 + k * (e / 3 + 0.4) + 0.2 * k * cell.checked)
        rest = 1e-3 * rows * (2 + LAYERS * (1 + 0.1 * width) + 0.5 * width)
    if cell.siblings > 1 and cell.low_bit:
        draft += 1e-3 * rows * 0.7
    elif cell.siblings > 1:  # 0.7 ms more, and all leaves run through the early layers together
        leaves = SHAPES.width(rows, 1 + k * (cell.siblings - 1)) - SHAPES.width(rows, 1)
        draft += 1e-3 * rows * (0.7 + 0.1 * e * leaves)
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


def test_rounds_with_siblings_are_learnt_beside_those_of_chains() -> None:
    costs = fitted((1, 8))
    assert costs.knows_siblings
    for cell in (Cell(3, 5, siblings=2), Cell(6, 2, siblings=4), Cell(2, 3, siblings=3)):
        assert abs(relative_error(costs, made_up(cell))) < 1e-6
        assert abs(relative_error(costs, made_up(cell, rows=8))) < 1e-6
    chains = [made_up(cell) for cell in default_cells(LAYERS, 8) if cell.siblings == 1]
    alone = fit_costs(chains, LAYERS, SHAPES, longest=16)
    assert not alone.knows_siblings
    assert float(alone.round_seconds(3, 5)) == pytest.approx(float(costs.round_seconds(3, 5)))


def test_rounds_by_a_view_are_learnt_beside_those_of_exits() -> None:
    timings = [made_up(cell) for cell in default_cells(LAYERS, 8, view=LAYERS)]
    costs = fit_costs(timings, LAYERS, SHAPES, longest=16)
    assert costs.knows_view
    others = [Cell(5, 3), Cell(3, 7), Cell(LAYERS, 4, checked=True), Cell(6, 3, siblings=3)]
    for cell in (replace(cell, low_bit=True) for cell in others):
        assert abs(relative_error(costs, made_up(cell))) < 1e-6
    assert abs(relative_error(costs, made_up(Cell(3, 5)))) < 1e-6
    assert CostModel.from_dict(json.loads(json.dumps(costs.as_dict()))) == costs
    assert not fitted().knows_view
    assert float(fitted().round_seconds(3, 4, low_bit=True)) == math.inf


def test_whole_rounds_are_enough_where_nobody_can_tell_the_drafts_part() -> None:
    cells = default_cells(LAYERS, 8, trees=False, rules=False, view=LAYERS)
    assert not any(cell.checked or cell.siblings > 1 for cell in cells)
    costs = fit_costs([replace(made_up(cell), draft_seconds=math.nan) for cell in cells], LAYERS, SHAPES)
    assert costs.worst_residual < 1e-6
    for cell in (Cell(3, 5), Cell(5, 0), Cell(5, 3, low_bit=True), Cell(LAYERS, 7, low_bit=True)):
        assert abs(relative_error(costs, made_up(cell))) < 1e-6


def test_siblings_are_not_timed_where_they_cannot_be_drafted() -> None:
    assert max(cell.siblings for cell in default_cells(LAYERS, 8)) > 1
    assert all(cell.siblings == 1 for cell in default_cells(LAYERS, 8, trees=False))
    assert all(cell.siblings == 1 for cell in default_cells(LAYERS, 1))


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
    timings = time_rounds(Engine(llama), [[5, 6, 7], [8, 9]], cells, max_new_tokens=24, repeats=3)
    assert {timing.cell for timing in timings} == set(cells)
    assert all(0 < timing.draft_seconds < timing.round_seconds for timing in timings)
    assert "generate" not in vars(llama)


def test_rounds_by_a_view_are_timed_with_the_view_that_calls_have(llama: Any) -> None:
    cells = default_cells(4, 4, view=4)
    view = LowBitView(LayeredDecoder(llama), 4)
    timings = time_rounds(Engine(llama, view=view), [[5, 6, 7]], cells, max_new_tokens=24, repeats=2)
    assert {timing.cell for timing in timings} == set(cells)
    with pytest.raises(ValueError, match="low-bit draft, exit layer 4: there is no low-bit view"):
        time_rounds(Engine(llama), [[5, 6, 7]], [Cell(4, 2, low_bit=True)], max_new_tokens=24)


def test_a_round_that_took_time_for_something_else_is_run_again() -> None:
    watch = Stopwatch(None, iter([Cell(1, 2), Cell(1, 3)]), ignored=0)
    for seconds, length in ((math.nan, 2), (1.0, 2), (math.nan, 3), (2.0, 3)):
        assert watch.draft_length(20) == length
        watch._rows = 1
        watch.observe(length, 1.0, seconds)
    assert [(t.cell, t.round_seconds, t.count) for t in watch.medians(1)] == [
        (Cell(1, 2), 1.0, 1),
        (Cell(1, 3), 2.0, 1),
    ]


def test_the_first_sweep_goes_from_short_drafts_to_long_ones() -> None:
    cells = default_cells(LAYERS, 8, view=LAYERS)
    plan = list(timing._plan(cells, 3))
    first = plan[: len(cells)]
    assert [cell.draft_length for cell in first] == sorted(cell.draft_length for cell in cells)
    assert set(first) == set(plan[len(cells) : 2 * len(cells)]) == set(cells)
    assert len(plan) == 3 * len(cells)


def test_rounds_of_a_batch_are_timed_together(llama: Any) -> None:
    prompts = [[5, 6, 7], [8, 9]]
    timings = time_rounds(Engine(llama), prompts, [Cell(2, 2)], rows=2, max_new_tokens=24, repeats=3)
    assert [timing.rows for timing in timings] == [2]


def test_no_part_of_a_round_is_fitted_to_less_than_no_time() -> None:
    # On this machine longer contexts and wider passes seem to take less time: noise, told as it came.
    timings = []
    for i, cell in enumerate(default_cells(LAYERS, 8, long_context=600)):
        timing = made_up(cell, context=cell.context or 100, noise=1 + 0.05 * (-1) ** i)
        less = timing.round_seconds * (0.7 if cell.context else 1.0)
        timings.append(replace(timing, round_seconds=less, draft_seconds=min(timing.draft_seconds, less / 2)))
    costs = fit_costs(timings, LAYERS, SHAPES)
    assert min(*costs.fits[0].draft, *costs.fits[0].rest) >= 0
    far = costs.round_seconds(torch.arange(1, LAYERS)[:, None], torch.arange(9)[None], context=100_000)
    assert float(far.min()) > 0


def test_fits_are_those_of_non_negative_least_squares() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        terms = torch.rand(30, 5, generator=generator, dtype=torch.float64)
        seconds = terms @ (torch.rand(5, generator=generator, dtype=torch.float64) - 0.3).clamp(min=0)
        seconds += 0.05 * torch.rand(30, generator=generator, dtype=torch.float64)
        found = fitting._least_squares(terms, seconds, torch.ones(30, dtype=torch.float64))
        _, best = optimize.nnls(terms.numpy(), seconds.numpy())
        assert bool((found >= 0).all())
        assert float((terms @ found - seconds).norm()) <= 1.02 * best


def test_contexts_that_hardly_differ_say_nothing_of_context() -> None:
    cells = default_cells(LAYERS, 8)
    timings = [
        made_up(cell, context=100 + 40 * (i % 2), noise=1 + 0.2 * (i % 2)) for i, cell in enumerate(cells)
    ]
    fit = fit_costs(timings, LAYERS, SHAPES).fits[0]
    assert fit.draft[-1] == fit.rest[-1] == 0


def test_rounds_at_a_long_context_are_timed_beside_the_others(llama: Any) -> None:
    prompts = [[5, 6, 7], [8, 9]]
    long = long_context(prompts, 24, llama.config.max_position_embeddings)
    assert long == 256 - 24
    timings = time_rounds(Engine(llama), prompts, default_cells(4, 4, long), max_new_tokens=24, repeats=2)
    contexts = {bool(t.cell.context): t.context for t in timings}
    assert contexts[True] >= long > 4 * contexts[False]
    costs = fit_costs(timings, 4, SHAPES)
    assert costs.contexts[1] >= long
    assert costs.outside(1, 100) == []
    assert "batch 2" in costs.outside(2, 100)[0]
    assert "1000 tokens of context" in costs.outside(1, 1000)[0]


def test_a_model_without_room_is_not_timed_at_a_long_context() -> None:
    assert long_context([[1] * 100], 100, 256) == 0
    assert long_context([[1] * 100], 100, None) == 600
    assert lengthened([1, 2, 3], 7) == [1, 2, 3, 1, 2, 3, 1]
