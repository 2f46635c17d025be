"""Settings: refused at once when they are impossible, with what is allowed."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from selfspec.config import MAX_DRAFT_LENGTH, ConfigError, SpeculationConfig

BAD = [
    ({"exit_layer": 0}, r"exit_layer=0: .*from 1 .*nearest: 1"),
    ({"exit_layer": -3}, r"exit_layer=-3: .*from 1"),
    ({"exit_layer": "3"}, r"exit_layer='3': allowed is a whole number"),
    ({"exit_layer": True}, r"exit_layer=True: allowed is a whole number"),
    ({"exit_layer": 2.0}, r"exit_layer=2\.0: allowed is a whole number"),
    ({"exit_layer": None}, r"exit_layer=None: allowed is a whole number"),
    ({"draft_length": -1}, r"draft_length=-1: allowed is a whole number from 0 to 64.*nearest: 0"),
    ({"draft_length": 10_000}, r"draft_length=10000: .*from 0 to 64.*nearest: 64"),
    ({"draft_length": "many"}, r"draft_length='many'"),
    ({"acceptance": "typical"}, r"acceptance='typical': allowed are 'coupled' and 'rejection'"),
    ({"confidence_threshold": 1.0}, r"confidence_threshold=1\.0: a number from 0"),
    ({"confidence_threshold": -0.1}, r"confidence_threshold=-0\.1"),
    ({"confidence_threshold": "0.5"}, r"confidence_threshold='0\.5'"),
    ({"confidence_threshold": float("nan")}, r"confidence_threshold=nan"),
    ({"deterministic": 1}, r"deterministic=1: allowed are True and False"),
    ({"strict": "yes"}, r"strict='yes': allowed are True and False"),
    ({"exit_layers": 3}, r"unknown setting 'exit_layers': did you mean 'exit_layer'\?.*known are exit_layer"),
    ({"colour": 3}, r"unknown setting 'colour': known are exit_layer, draft_length"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_an_impossible_setting_is_refused_with_what_is_allowed(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        SpeculationConfig.of(**settings)


def test_every_allowed_value_is_accepted() -> None:
    for settings in (
        {},
        {"exit_layer": 1, "draft_length": 0},
        {"exit_layer": "auto", "draft_length": MAX_DRAFT_LENGTH},
        {"acceptance": "rejection", "confidence_threshold": 0.999},
        {"confidence_threshold": 0, "deterministic": False, "strict": True},
    ):
        config = SpeculationConfig.of(**settings)
        assert {name: getattr(config, name) for name in settings} == settings


def test_settings_cannot_change_afterwards() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SpeculationConfig().exit_layer = 2  # type: ignore[misc]


def test_the_exit_layer_must_be_below_the_models_last_layer() -> None:
    SpeculationConfig(exit_layer=3).check_model(4)
    SpeculationConfig().check_model(2)
    for layer in (4, 5):
        with pytest.raises(
            ConfigError, match=rf"exit_layer={layer}: this model has 4 layers, allowed are 1 to 3"
        ):
            SpeculationConfig(exit_layer=layer).check_model(4)
