"""The page of the tuner says what its JSON says and which targets were missed, and leaves gaps empty."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from tuner_page import TEXTS, median_error_over_ar, page, reached

from selfspec.tuning.replay import Setting

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks/results"
STORED = json.loads((RESULTS / "tuner.json").read_text())


def rows_of(results: dict[str, Any]) -> dict[str, list[str]]:
    """Title -> cells of its row, of both tables."""
    rows = [line.strip("|").split("|") for line in page(results).splitlines() if line.startswith("| ")]
    return {title.strip(): [cell.strip() for cell in cells] for title, *cells in rows}


def line_of(results: dict[str, Any], begin: str) -> str:
    return next(line for line in page(results).splitlines() if line.startswith(f"- {begin}"))


@pytest.fixture
def fine() -> Any:
    """Results that reach every target."""
    found = copy.deepcopy(STORED)
    good = {"median_error": 0.05, "tuning_seconds": 30, "sweep_over_tuning": 20}
    good |= dict.fromkeys(("own_over_best", "chosen_over_best"), 0.97)
    for name in (*TEXTS, "code, temperature 0.8"):
        found[name] |= {**good, "distinct_3grams": 0.75, "counts_equal": True}
    found["single setting"]["tuned_over_single"] |= {**dict.fromkeys(TEXTS, 1.0), "prose": 1.2}
    for ratio in found["useless exits"]["over_ar"].values():
        ratio["median"] = 0.97
    for own in found["controller"]["workloads"].values():
        own["share"] = 0.01
    return found


@pytest.mark.parametrize("folder", [RESULTS, RESULTS / "float32"], ids=["bf16", "fp32"])
def test_the_page_is_that_of_the_stored_results(folder: Path) -> None:
    assert (folder / "tuner.md").read_text() == page(json.loads((folder / "tuner.json").read_text()))


def test_what_was_not_measured_is_left_empty(fine: Any) -> None:
    for name in (*TEXTS, "code, temperature 0.8"):
        fine[name].pop("distinct_3grams")
        fine[name].pop("draft", None)
    assert rows_of(fine)["distinct 3-grams of the runs' text"] == [""] * 5
    assert reached(fine)


def test_every_target_has_its_verdict(fine: Any) -> None:
    assert reached(fine)
    assert page(fine).count("reached") == 9
    rows = rows_of(fine)
    assert rows["distinct 3-grams of the runs' text"] == ["0.75"] * 4 + [""]
    assert rows["tuning on 32 prompts, seconds"][-1] == "target 30: reached"
    fine["prose"] |= {"median_error": 0.051, "tuning_seconds": 31}
    rows = rows_of(fine)
    assert rows["median error of predicted tokens/s, best settings"][1::3] == ["5.1%", "target 5%: MISSED"]
    assert rows["tuning on 32 prompts, seconds"][-1] == "target 30: MISSED"
    assert not reached(fine)


def test_the_useless_exits_and_the_controller_have_theirs(fine: Any) -> None:
    fine["useless exits"]["over_ar"]["auto"]["median"] = 0.96
    fine["controller"]["workloads"]["code"]["share"] = 0.011
    assert line_of(fine, "a model with useless exits").endswith("target 0.97: MISSED")
    assert line_of(fine, "the controller's decisions").endswith("target 1%: MISSED")
    assert not reached(fine)


def test_a_setting_of_ones_own_may_be_slower_than_the_single_one_by_the_noise_alone(fine: Any) -> None:
    found = fine["single setting"]
    found["single"], found["tuned_over_single"] = "one", {**dict.fromkeys(TEXTS, 1.1), "prose": 0.98}

    def judged(spread: float) -> str:
        runs = {"one": [1 - spread, 1 + spread] * 8, "tuned": [1.0] * 16}
        found["seconds_per_token"] = dict.fromkeys(TEXTS, runs)
        return rows_of(fine)["own setting, fixed, over the single one, ± twice its standard error"][-1]

    assert "reached" in judged(0.05)  # twice 0.05 / 4
    assert "MISSED" in judged(0.03)


def test_a_setting_of_ones_own_is_faster_than_the_single_one_somewhere(fine: Any) -> None:
    fine["single setting"]["tuned_over_single"]["prose"] = 1.0
    assert page(fine).count("reached") == 8
    assert not reached(fine)


def test_a_replay_that_was_not_exact_is_not_within_the_targets(fine: Any) -> None:
    fine["code"]["counts_equal"] = False
    assert not reached(fine)


def test_what_slows_all_runs_alike_is_no_error_of_the_speed_over_ar() -> None:
    plain, fast, slow = Setting(1, 0), Setting(3, 4), Setting(1, 8)
    predicted = {plain: 100.0, fast: 200.0, slow: 50.0}
    halved = {at: (speed, speed / 2) for at, speed in predicted.items()}
    assert median_error_over_ar(halved) == pytest.approx(0)
    halved[fast] = (220.0, 100.0)
    assert median_error_over_ar(halved) == pytest.approx(0.05)  # the median of 0.1 and 0
