"""Impossible settings are refused with what would be allowed."""

from __future__ import annotations

import pytest

from layer_skip.training.config import TrainingConfig


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"optimizer": "sgd"}, ["optimizer='sgd'", "'muon'", "'adamw'"]),
        ({"curriculum": "random"}, ["curriculum='random'", "'rotational'", "'gradual'"]),
        ({"exit_weighting": "deep"}, ["exit_weighting='deep'", "'paper'", "'shallow'"]),
        ({"max_dropout": 1.5}, ["max_dropout=1.5", "from 0 to 1"]),
        ({"distill": -0.1}, ["distill=-0.1", "from 0 to 1"]),
        ({"decay_distill": 2.0}, ["decay_distill=2.0", "from 0 to 1"]),
        ({"layers": 8.5}, ["layers=8.5", "a whole number"]),
        ({"max_steps": "many"}, ["max_steps='many'", "a whole number or None"]),
        ({"seed": True}, ["seed=True", "a whole number"]),
        ({"recipe": "no"}, ["recipe='no'", "true or false"]),
        ({"learning_rate": float("nan")}, ["learning_rate=nan", "a finite number"]),
        ({"layers": 1}, ["layers=1", "2 or more"]),
        ({"learning_rate": 0.0}, ["learning_rate=0.0", "more than 0"]),
        ({"kv_heads": 3}, ["kv_heads=3", "divisors of heads=4"]),
        ({"hidden_size": 250}, ["hidden_size=250", "multiples of 2 * heads = 8"]),
        ({"sequence_length": 4000}, ["4000 tokens", "max_positions=2048"]),
        ({"max_seconds": 5.0}, ["max_steps=2400", "max_seconds=5.0", "exactly one"]),
    ],
)
def test_a_bad_setting_is_named_with_the_allowed_values(settings, words):
    with pytest.raises(ValueError) as error:
        TrainingConfig(**settings)
    for word in words:
        assert word in str(error.value)


def test_settings_survive_a_dictionary():
    config = TrainingConfig(layers=8, distill=0.5)
    assert TrainingConfig.from_dict(config.as_dict()) == config


def test_an_unknown_setting_is_refused():
    with pytest.raises(ValueError, match=r"unknown setting 'layer'.*layers"):
        TrainingConfig.from_dict({"layer": 8})
