"""Rounds of static tensors on a CPU: what a GPU captures, run as it is, with the kernels' references."""

from __future__ import annotations

import pytest
from strategies import costs_under_which_drafts_pay

from selfspec import speculation
from selfspec.tuning import knowledge


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls run their rounds on the device alone, which here is the CPU."""
    monkeypatch.setattr(speculation, "device_is_able", lambda device: True)
    monkeypatch.setattr(speculation, "time_captured", costs_under_which_drafts_pay)
    monkeypatch.setattr(knowledge, "_PRIOR_AGREEMENT", 0.9)  # so that "auto" tries what it does not know
