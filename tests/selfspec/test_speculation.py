"""What a wrapped model is measured for, and when: no sooner than something depends on it."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_models import random_prompts

import selfspec
from selfspec import speculation
from selfspec.tuning.costs import WIDTHS, time_passes


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was probed and timed, in order."""
    log: list[str] = []
    own_probe = speculation.probe

    def probe(decoder: Any) -> Any:
        log.append("shapes")
        return own_probe(decoder)

    def timed(*arguments: Any) -> Any:
        log.append("passes")
        return time_passes(*arguments)

    monkeypatch.setattr(speculation, "probe", probe)
    monkeypatch.setattr(speculation, "time_passes", timed)
    return log


@pytest.mark.parametrize("draft", ["early_exit", "low_bit"])
def test_fixed_settings_need_no_timing_and_wrap_no_probe(llama: Any, measured: list[str], draft: str) -> None:
    selfspec.wrap(llama, draft=draft, exit_layer=2, draft_length=3)
    assert measured == []
    llama.generate(**random_prompts(5), max_new_tokens=8)
    assert set(measured) == {"shapes"}


def test_settings_that_leave_a_choice_are_timed_once(llama: Any, measured: list[str]) -> None:
    selfspec.wrap(llama, draft="early_exit")
    for _ in range(2):
        llama.generate(**random_prompts(5), max_new_tokens=8)
    assert measured.count("passes") == 1


def test_the_default_times_passes_when_it_wraps(llama: Any, measured: list[str]) -> None:
    """Whether a view pays has to be known before it is made; calls do not wait for it."""
    selfspec.wrap(llama)
    at_wrap = measured.count("passes")
    assert at_wrap >= 2  # the model's, those of a first layer in few bits, and the view's if it pays
    llama.generate(**random_prompts(5), max_new_tokens=8)
    assert measured.count("passes") == at_wrap


def test_whether_a_view_pays_is_told_by_the_one_width_that_is_compared(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths: list[Any] = []

    def timed(decoder: Any, some: Any) -> Any:
        widths.append(some)
        return time_passes(decoder, some)

    monkeypatch.setattr(speculation, "time_passes", timed)
    selfspec.wrap(llama)
    assert sorted(widths)[0] == (1,)  # the trial's
    assert set(widths) == {(1,), WIDTHS}
