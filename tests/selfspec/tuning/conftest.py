"""A model that was tuned once, quickly."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from quick_tuning import PROMPTS, QUICK
from tiny_models import LAYERS, tiny_model

from layer_skip.decoder import LayeredDecoder
from layer_skip.low_bit import LowBitView
from selfspec.tuning.tune import tune


@pytest.fixture(scope="session")
def tuned() -> Any:
    """A quickly tuned llama, as (model, Tuned)."""
    model = tiny_model("llama")
    return model, tune(model, PROMPTS, workload="code", **QUICK)


@pytest.fixture(scope="session")
def tuned_with_view() -> Any:
    """A quickly tuned llama with a low-bit view, of which two exits were recorded: (model, view, Tuned).

    With products in fp32, which round as near as nothing: replay is exact.
    """
    model = tiny_model("llama")
    view = LowBitView(LayeredDecoder(model), LAYERS, dtype=torch.float32)
    every, some = (lambda *_: [*range(1, LAYERS)]), (lambda *_: [LAYERS // 2, LAYERS])
    room = "selfspec.tuning.tune.worthwhile"
    with mock.patch(f"{room}_early_exits", every), mock.patch(f"{room}_exits", some):
        return model, view, tune(model, PROMPTS, workload="code", view=view, **QUICK)


@pytest.fixture
def saved(tuned: Any, tmp_path: Path) -> tuple[Any, Path]:
    """The same as (model, file of the profile)."""
    return tuned[0], tuned[1].profile.save(tmp_path / "code.json")
