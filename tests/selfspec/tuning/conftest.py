"""A model that was tuned once, quickly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from quick_tuning import PROMPTS, QUICK
from tiny_models import tiny_model

from selfspec.tuning.tune import tune


@pytest.fixture(scope="session")
def tuned() -> Any:
    """A quickly tuned llama, as (model, Tuned)."""
    model = tiny_model("llama")
    return model, tune(model, PROMPTS, workload="code", **QUICK)


@pytest.fixture
def saved(tuned: Any, tmp_path: Path) -> tuple[Any, Path]:
    """The same as (model, file of the profile)."""
    return tuned[0], tuned[1].profile.save(tmp_path / "code.json")
