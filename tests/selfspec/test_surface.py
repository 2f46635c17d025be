"""Every option of generate() is accounted for: none is silently ignored."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from transformers import GenerationConfig, GenerationMixin
from transformers.generation import logits_process

from selfspec import processing
from selfspec.surface import LEFT, LEFT_ARGUMENTS, MOOT, SPECULATED, unserved

OPTIONS = [name for name in vars(GenerationConfig()) if not name.startswith("_")]


def test_every_option_of_the_installed_release_is_in_one_place() -> None:
    for name in OPTIONS:
        assert (name in SPECULATED) + (name in MOOT) + (name in LEFT) == 1, name
    gone = (SPECULATED | MOOT.keys() | LEFT.keys()) - set(OPTIONS)
    assert gone <= {"continuous_batching_config"}


def test_every_argument_of_generate_is_in_one_place() -> None:
    handled = {
        "self", "inputs", "generation_config", "logits_processor", "stopping_criteria", "kwargs", "streamer",
        "prefix_allowed_tokens_fn",
    }  # fmt: skip
    only_with = {"negative_prompt_attention_mask"}  # of negative_prompt_ids
    names = set(inspect.signature(GenerationMixin.generate).parameters)
    assert names == handled | only_with | (LEFT_ARGUMENTS.keys() & names)


def test_an_option_that_the_table_does_not_know_is_left_to_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one of a later release would be."""
    monkeypatch.setattr("selfspec.surface.SPECULATED", SPECULATED - {"top_h"})
    assert unserved(GenerationConfig()) is None
    assert unserved(GenerationConfig(top_h=0.5)) == ("top_h=0.5", "not known to the engine")


def test_an_option_at_its_default_asks_for_nothing() -> None:
    config = GenerationConfig(**GenerationConfig()._get_default_generation_params())
    assert unserved(config) is None
    config.num_beams = 2
    assert unserved(config) == ("num_beams=2", LEFT["num_beams"][1])


@pytest.mark.parametrize("option", LEFT)
def test_an_option_that_is_left_is_named_and_neutral_values_are_not(option: str) -> None:
    neutral, why = LEFT[option]
    config: Any = GenerationConfig()
    for value in neutral:
        setattr(config, option, value)
        assert unserved(config) is None
    setattr(config, option, "something else")
    assert unserved(config) == (f"{option}='something else'", why)


def test_every_processor_of_the_installed_release_is_known_or_left() -> None:
    """Those that are not known need more than a row's own tokens and scores."""
    classes = {
        name
        for name, thing in vars(logits_process).items()
        if inspect.isclass(thing) and issubclass(thing, logits_process.LogitsProcessor)
    }
    left = classes - {kind.__name__ for kind in processing._ROWWISE} - {"LogitsProcessor"}
    assert left == {
        "AlternatingCodebooksLogitsProcessor",
        "BarkEosPrioritizerLogitsProcessor",
        "ClassifierFreeGuidanceLogitsProcessor",
        "DiaClassifierFreeGuidanceLogitsProcessor",
        "DiaEOSChannelFilterLogitsProcessor",
        "DiaEOSDelayPatternLogitsProcessor",
        "SynthIDTextWatermarkLogitsProcessor",
        "UnbatchedClassifierFreeGuidanceLogitsProcessor",
        "WhisperNoSpeechDetection",
        "WhisperTimeStampLogitsProcessor",
    }
    names = {*processing._PREFIX_FREE_NAMES, *processing._PREFIX_NAMES}
    assert names <= classes
