"""The search: the best of its predictions, what is worth recording for it, and limits that it keeps to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from quick_tuning import where_drafts_pay

from selfspec.drafting.stopping import StopRule
from selfspec.tuning import search as search_module
from selfspec.tuning.cost_model import Fit
from selfspec.tuning.prediction import Limits, predict
from selfspec.tuning.replay import Setting
from selfspec.tuning.search import search, worthwhile_early_exits, worthwhile_exits


def test_the_best_of_the_search_is_the_best_of_its_predictions(tuned: Any) -> None:
    _, result = tuned
    costs, recording = result.profile.costs, result.recording
    everything = [Setting(e, k) for e in (1, 2, 3) for k in range(1, 5)]
    rates = [p.tokens_per_second for p in predict(recording, costs, everything)]
    assert result.found.best.tokens_per_second >= 0.995 * max(rates)


def test_the_best_with_siblings_is_told_beside_the_chain_that_is_chosen(tuned: Any) -> None:
    _, result = tuned
    costs, recording, found = result.profile.costs, result.recording, result.found
    everything = [Setting(e, k, siblings=w) for e in (1, 2, 3) for k in range(1, 5) for w in (2, 3, 4)]
    rates = [p.tokens_per_second for p in predict(recording, costs, everything)]
    assert found.best_branching.tokens_per_second == max(rates)
    assert found.branching == everything[rates.index(max(rates))]
    cheap = where_drafts_pay(result.profile, found.setting).costs  # a second choice costs nothing
    chain, forked = (search(recording, cheap, longest=4, siblings=may) for may in (False, True))
    assert chain.setting.siblings == 1 < forked.setting.siblings
    assert chain.branching == forked.branching == forked.setting
    few = search(recording, costs, longest=4, limits=Limits(bytes=100 * 4), column_bytes=100)
    assert few.branching.draft_length * few.branching.siblings <= 3
    none = search(recording, costs, longest=4, limits=Limits(bytes=100 * 2), column_bytes=100)
    assert none.branching is none.best_branching is None


def test_only_those_exits_of_a_view_are_recorded_that_may_be_the_fastest(tuned: Any) -> None:
    recording, costs = tuned[1].recording, tuned[1].profile.costs
    step, rest = (0.0, 1e-3, 1e-3, 0.0, 0.0), (1e-3, 0.0, 1e-3, 0.0, 0.0)

    def worthwhile(share: float, right: float) -> list[int]:
        """A view whose steps take a share of the model's, of a model whose exits are right so often."""
        fit = Fit(1, step, rest, view=tuple(share * seconds for seconds in step))
        generator = torch.Generator().manual_seed(0)
        chosen = torch.rand(recording.tokens.shape, generator=generator) < right
        candidates = torch.where(chosen, recording.tokens, -1)[None, ..., None].expand(-1, -1, -1, 4)
        choices = {arm: replace(own, candidates=candidates) for arm, own in recording.choices.items()}
        space = replace(recording, choices=choices)
        return worthwhile_exits(space, replace(costs, fits=(fit,)), 4, longest=4)

    assert worthwhile(0.1, 0.9) == [1, 4]  # the shallowest, all exits being right as often
    assert worthwhile(0.1, 0.0) == [4]
    assert worthwhile(2.0, 0.9) == [4]


def test_early_exits_that_cost_clearly_more_than_the_whole_view_are_not_recorded(tuned: Any) -> None:
    costs = tuned[1].profile.costs
    step, rest = (0.0, 1e-3, 1e-3, 0.0, 0.0), (0.0, 0.0, 1e-3, 0.0, 0.0)

    def worthwhile(share: float | None, viewed: int = 4) -> list[int]:
        view = () if share is None else tuple(share * seconds for seconds in step)
        return worthwhile_early_exits(replace(costs, fits=(Fit(1, step, rest, view=view),)), viewed)

    assert worthwhile(0.1) == [1]  # 6 ms by the view; 12, 16, 20 ms by the exits
    assert worthwhile(0.5) == [1, 2]  # 14 ms
    assert worthwhile(2.0) == worthwhile(0.1, viewed=3) == worthwhile(None) == [1, 2, 3]


def test_limits_are_kept(tuned: Any) -> None:
    _, result = tuned
    costs, recording = result.profile.costs, result.recording
    found = search(recording, costs, longest=4, limits=Limits(bytes=100 * 3), column_bytes=100)
    assert found.setting.draft_length <= 2
    slowest = found.plain.round_seconds * 1.2
    found = search(recording, costs, longest=4, limits=Limits(seconds_per_token=slowest))
    assert found.best.round_seconds <= slowest
    with pytest.raises(
        ValueError, match=r"seconds_per_token=1e-06.* out of reach, a round without drafts takes"
    ):
        search(recording, costs, longest=4, limits=Limits(seconds_per_token=1e-6))
    with pytest.raises(ValueError, match=r"out of reach.* and 100 bytes"):
        search(recording, costs, longest=4, limits=Limits(bytes=99), column_bytes=100)
    with pytest.raises(ValueError, match="bytes=0"):
        Limits(bytes=0)


def test_rules_derived_from_costs_keep_to_the_limits(tuned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, result = tuned
    long = Setting(2, 4, stop=StopRule((0.0,)))
    monkeypatch.setattr(search_module, "_ruled_settings", lambda *_: [long])
    monkeypatch.setattr(search_module, "_SIMPLER", 2.0)  # a rule that is as good would be taken
    limits = Limits(bytes=100 * 3)
    found = search(result.recording, result.profile.costs, longest=4, limits=limits, column_bytes=100)
    assert found.setting.draft_length <= 2
