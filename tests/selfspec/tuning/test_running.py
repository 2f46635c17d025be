"""Runs of the engine for the tuner leave what is not theirs as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from selfspec.tuning.record import record


def test_other_generators_are_left_alone(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda *_: pytest.fail("the GPU's generator"))
    torch.default_generator.manual_seed(5)
    before = torch.default_generator.get_state()
    record(llama, [[5, 6]], max_new_tokens=4, generate_arguments={"do_sample": True})
    assert torch.equal(torch.default_generator.get_state(), before)
