"""The tuner, where rounds run on the device alone: it times and runs what calls run."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from checks import own_generate
from quick_tuning import PROMPTS, QUICK, where_drafts_pay
from tiny_models import LAYERS, random_prompts, wide_model

import selfspec
from layer_skip.decoder import LayeredDecoder
from layer_skip.low_bit import LowBitView
from selfspec.device.workspace import Workspace
from selfspec.tuning.cells import Cell, default_cells
from selfspec.tuning.record import record
from selfspec.tuning.replay import Setting, replay
from selfspec.tuning.running import Engine
from selfspec.tuning.timing import time_rounds
from selfspec.tuning.tune import tune
from selfspec.tuning.validate import compare, run_setting
from selfspec.tuning.view_record import record_view

SETTINGS = [Setting(2, 3), Setting(LAYERS, 4, draft="low_bit"), Setting(1, 0)]


@pytest.fixture
def engine(on_device: None) -> Engine:
    model = wide_model("llama")
    return Engine(model, view=LowBitView(LayeredDecoder(model), LAYERS))


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The rounds that ran on the device."""
    run, seen = Workspace.run, []

    def noted(self: Workspace, kind: Any) -> Any:
        seen.append((kind.arm, kind.length, self))
        return run(self, kind)

    monkeypatch.setattr(Workspace, "run", noted)
    return seen


def test_every_cell_is_timed_as_a_round_on_the_device(engine: Engine, kinds: list[Any]) -> None:
    cells = default_cells(LAYERS, 4, trees=False, rules=False, view=LAYERS)
    timings = time_rounds(engine, [[5, 6, 7], [8, 9]], cells, max_new_tokens=24, repeats=2)
    assert {timing.cell for timing in timings} == set(cells)
    assert all(math.isnan(t.draft_seconds) and t.round_seconds > 0 for t in timings)
    asked = {(cell.arm if cell.draft_length else None, cell.draft_length) for cell in cells}
    assert asked <= {(arm, length) for arm, length, _ in kinds}
    assert len({id(space) for *_, space in kinds}) == 1  # its graphs are there in the next call


def test_without_graph_memory_rounds_are_timed_as_python_launches_them(
    on_device: None, kinds: list[Any]
) -> None:
    engine = Engine(wide_model("llama"), graph_memory=0)
    assert not engine.fixed
    [timing] = time_rounds(engine, [[5, 6, 7]], [Cell(2, 2)], max_new_tokens=24, repeats=2)
    assert 0 < timing.draft_seconds < timing.round_seconds
    assert kinds == []


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_a_setting_runs_on_the_device_what_was_replayed(
    engine: Engine, kinds: list[Any], setting: Setting
) -> None:
    recording = record(engine.model, PROMPTS, max_new_tokens=16)
    view: Any = engine.view
    recording = recording.beside(record_view(engine.model, view, PROMPTS, recording, longest=4))
    predicted = replay(recording, [setting])
    for p, prompt in enumerate(PROMPTS):
        stats = run_setting(engine, [prompt], setting, max_new_tokens=16, do_sample=False)
        assert stats.launching == "CUDA graphs"
        assert (stats.row_rounds, stats.accepted) == (predicted.row_rounds[0, p], predicted.accepted[0, p])
    assert len(kinds) == int(predicted.rounds.sum())


def test_siblings_and_stop_rules_are_not_chosen_and_the_profile_is_followed_there(
    engine: Engine, kinds: list[Any]
) -> None:
    model, tuned = engine.model, tune(engine.model, PROMPTS, view=engine.view, **{**QUICK, "siblings": True})
    assert tuned.engine.fixed
    assert tuned.profile.setting.siblings == 1 and tuned.profile.setting.rule is None
    assert tuned.found.branching is None
    assert not any(timing.cell.checked or timing.cell.siblings > 1 for timing in tuned.timings)
    request = {**random_prompts(5), "max_new_tokens": 40, "pad_token_id": 0, "do_sample": False}
    expected = own_generate(model, **request)
    for setting in SETTINGS[:2]:
        kinds.clear()
        selfspec.wrap(model, profile=where_drafts_pay(tuned.profile, setting))
        assert torch.equal(model.generate(**request), expected)
        assert model.speculation.stats.launching == "CUDA graphs"
        assert setting.arm in {arm for arm, length, _ in kinds if length}
        selfspec.unwrap(model)


def test_predictions_are_compared_with_runs_on_the_device(engine: Engine, kinds: list[Any]) -> None:
    tuned = tune(engine.model, PROMPTS, view=engine.view, **QUICK)
    kinds.clear()
    arguments: dict[str, Any] = {"generate_arguments": {"do_sample": False}}
    found = compare(
        tuned.engine, PROMPTS, tuned.recording, tuned.profile.costs, SETTINGS, repeats=1, **arguments
    )
    assert all(comparison.counts_equal for comparison in found)
    assert {arm for arm, length, _ in kinds if length} == {setting.arm for setting in SETTINGS[:2]}
