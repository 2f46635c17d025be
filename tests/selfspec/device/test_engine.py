"""Rounds that run on the device alone write the text that rounds launched one by one write."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checks import own_generate, text
from strategies import CHAINS, with_repeats
from streams import Recorder
from tiny_models import PAD, random_prompts, tiny_model, wide_model
from torch import Tensor

import selfspec
from layer_skip.families import FAMILIES
from selfspec.device.static_round import Kind
from selfspec.device.workspace import Workspace
from selfspec.rows import RoundEvent

ONE, THREE = with_repeats(random_prompts(14)), with_repeats(random_prompts(9, 21, 2, seed=1))
MODULES = ["gemma", "gemma2", "gemma3_text", "glm4", "gpt2", "olmo2", "opt", "phi3", "smollm3", "starcoder2"]
"""Families that run module by module, each with something that others lack."""
LEAN = [name for name, family in FAMILIES.items() if family.lean]
SAMPLINGS: list[dict[str, Any]] = [
    {"temperature": 0.8, "top_k": 0},
    {"temperature": 1.0, "top_k": 9},
    {"temperature": 1.3, "top_k": 30, "top_p": 0.9, "min_p": 0.05},
]


@pytest.fixture
def model(on_device: None) -> Any:
    return wide_model("llama")


def both_ways(model: Any, settings: dict[str, Any], **request: Any) -> tuple[Tensor, Tensor, str]:
    """The text on the device, the text launched from Python, and how the first was launched."""
    selfspec.wrap(model, **settings)
    found, launching = text(model, **request), model.speculation.stats.launching
    selfspec.wrap(model, **settings, graph_memory=0)
    expected = text(model, **request)
    assert model.speculation.stats.launching == "from Python: graph_memory=0"
    selfspec.unwrap(model)
    return found, expected, launching


@pytest.mark.parametrize("prompts", [ONE, THREE], ids=["one row", "three rows"])
@pytest.mark.parametrize("family", [*LEAN, *MODULES])
def test_greedy_text_is_the_models_own(on_device: None, family: str, prompts: dict[str, Tensor]) -> None:
    model = wide_model(family)
    expected = own_generate(model, **prompts, max_new_tokens=16, do_sample=False)
    # Every family under a few settings, every setting in a few families.
    for settings in [{"draft_length": 0}, *CHAINS[len(family) % 3 :: 3]]:
        if settings.get("draft_bits") == 8:
            continue  # for CPUs
        selfspec.wrap(model, **settings)
        assert torch.equal(model.generate(**prompts, max_new_tokens=16, do_sample=False), expected), settings
        assert model.speculation.stats.launching.startswith("CUDA graphs")
        assert ("module by module" in model.speculation.stats.launching) == (family in MODULES)
        selfspec.unwrap(model)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("settings", [{"draft_length": 0}, *CHAINS[::2]], ids=str)
def test_sampled_text_is_that_of_the_seed(
    model: Any, settings: dict[str, Any], sampling: dict[str, Any]
) -> None:
    request = {**THREE, "max_new_tokens": 16, "do_sample": True, **sampling}
    found, expected, launching = both_ways(model, settings, **request)
    assert launching == "CUDA graphs"
    assert torch.equal(found, expected)


def test_a_text_in_16_bits_does_not_depend_on_how_many_rows_are_written_together(on_device: None) -> None:
    """For many rows the head writes its logits, rounded; for few it chooses where it computes them."""
    model = wide_model("llama").bfloat16()
    prompts = random_prompts(*[9] * 8, seed=3)
    selfspec.wrap(model, draft_length=0)
    request = {"max_new_tokens": 40, "do_sample": False}
    together = model.generate(**prompts, **request)
    for row in range(8):
        alone = {name: value[row : row + 1] for name, value in prompts.items()}
        assert torch.equal(model.generate(**alone, **request), together[row : row + 1])


def test_sampled_text_depends_on_the_seed(model: Any) -> None:
    selfspec.wrap(model, draft_length=2)
    request = {**ONE, "max_new_tokens": 16, "do_sample": True}
    assert not torch.equal(text(model, seed=1, **request), text(model, seed=2, **request))


def test_every_way_to_draft_really_drafts(model: Any) -> None:
    for settings in CHAINS:
        selfspec.wrap(model, **settings)
        model.generate(**ONE, max_new_tokens=24)
        assert model.speculation.stats.drafted > 0, settings


def test_rows_end_where_they_end(model: Any) -> None:
    free = own_generate(model, **THREE, max_new_tokens=24, do_sample=False)
    end = int(free[1, THREE["input_ids"].shape[1] + 5])
    request = {**THREE, "max_new_tokens": 24, "do_sample": False, "eos_token_id": end, "pad_token_id": PAD}
    expected = own_generate(model, **request)
    for settings in ({"draft_length": 0}, {"draft": "early_exit", "exit_layer": 3, "draft_length": 5}):
        selfspec.wrap(model, **settings)
        assert torch.equal(model.generate(**request), expected)


@pytest.mark.parametrize("new_tokens", [1, 2, 600])
def test_any_length_of_text(model: Any, new_tokens: int) -> None:
    selfspec.wrap(model, draft="early_exit", exit_layer=2, draft_length=3)
    request = {**ONE, "max_new_tokens": new_tokens, "do_sample": False}
    assert torch.equal(model.generate(**request), own_generate(model, **request))


@pytest.mark.parametrize("draft", [{"draft": "early_exit", "exit_layer": 2}, {"draft": "lookup"}], ids=str)
def test_the_longest_draft_that_may_be_set(model: Any, draft: dict[str, Any]) -> None:
    """It is one token longer than a pass on the device takes."""
    prompt = {name: value.repeat(1, 12) for name, value in ONE.items()}  # something to find, and much of it
    selfspec.wrap(model, **draft, draft_length=64)
    request = {**prompt, "max_new_tokens": 80, "do_sample": False}
    assert torch.equal(model.generate(**request), own_generate(model, **request))
    assert model.speculation.stats.launching == "CUDA graphs"


def test_more_end_tokens_than_a_device_is_given(model: Any) -> None:
    selfspec.wrap(model, draft_length=2)
    request = {**ONE, "max_new_tokens": 8, "do_sample": False, "eos_token_id": list(range(97, 170))}
    assert torch.equal(model.generate(**request), own_generate(model, **request))
    assert "end tokens" in model.speculation.stats.launching


def test_a_prompt_of_one_token(model: Any) -> None:
    prompt = random_prompts(1)
    selfspec.wrap(model, draft="early_exit", exit_layer=2, draft_length=3)
    request = {**prompt, "max_new_tokens": 9, "do_sample": False}
    assert torch.equal(model.generate(**request), own_generate(model, **request))


def test_rounds_are_told_as_they_were(model: Any) -> None:
    selfspec.wrap(model, draft="early_exit", exit_layer=2, draft_length=3)
    events: list[RoundEvent] = []
    out = model.generate(**THREE, max_new_tokens=20, on_round=events.append)
    width = THREE["input_ids"].shape[1]
    for row in range(3):
        committed = [token for event in events if event.row == row for token in event.committed]
        assert committed == out[row, width:].tolist()
    for event in events:
        assert event.drafted[: event.accepted] == event.committed[: event.accepted]
        assert event.deepest == len(event.drafted) <= 3
    stats = model.speculation.stats
    assert stats.accepted == sum(event.accepted for event in events)
    assert stats.drafted == sum(len(event.drafted) for event in events)


def test_a_longer_round_that_is_captured_serves_the_end_of_a_text_alone(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere who chose to draft little would pay for much, and learn that little costs as much."""
    served: list[int] = []
    run = Workspace.ready_for

    def noted(self: Workspace, kind: Kind) -> Kind:
        served.append(kind.length)
        return run(self, kind)

    monkeypatch.setattr(Workspace, "ready_for", noted)
    selfspec.wrap(model, draft="early_exit", exit_layer=3, draft_length=4)
    events: list[RoundEvent] = []
    model.generate(**ONE, max_new_tokens=20, on_round=events.append)
    said = [sum(len(event.committed) for event in events[:i]) for i in range(len(events))]
    assert served == [min(4, 19 - n) for n in said if 4 >= 19 - n > 0]
    assert len(served) < len(events) - 2


def test_streamers_see_every_token(model: Any) -> None:
    selfspec.wrap(model, draft="early_exit", exit_layer=2, draft_length=3)
    recorder = Recorder()
    out = model.generate(**ONE, max_new_tokens=9, streamer=recorder)
    assert [token for put in recorder.log[1:-1] for token in put] == out[0, 14:].tolist()


def test_scores_that_are_not_numbers_are_an_error(model: Any) -> None:
    selfspec.wrap(model, draft="early_exit", exit_layer=2, draft_length=2)
    model.lm_head.weight.data[5] = float("nan")
    with pytest.raises(ValueError, match="scores hold NaN"):
        model.generate(**ONE, max_new_tokens=5)


def test_a_call_that_failed_leaves_nothing_to_the_next(model: Any) -> None:
    """Neither NaN in slots that a mask hides: it is added to what stands there."""
    selfspec.wrap(model, draft="early_exit", exit_layer=2, draft_length=2)
    spoilt, weight = random_prompts(30, seed=2), model.model.embed_tokens.weight
    token = int(spoilt["input_ids"][0, 20])
    assert token not in ONE["input_ids"]
    with torch.no_grad():
        kept = weight[token].clone()
        weight[token] = float("nan")
        with pytest.raises(ValueError, match="scores hold NaN"):
            model.generate(**spoilt, max_new_tokens=5)
        weight[token] = kept
    expected = own_generate(model, **ONE, max_new_tokens=5)
    assert torch.equal(model.generate(**ONE, max_new_tokens=5), expected)


def test_hooks_that_transformers_leaves_on_layers_do_not_count(model: Any) -> None:
    """They stay once hidden states were asked for, and do nothing in other calls."""
    selfspec.wrap(model, draft="early_exit", exit_layer=2, draft_length=2)
    model(ONE["input_ids"], output_hidden_states=True)
    assert any(layer._forward_hooks for layer in model.model.layers)
    model.generate(**ONE, max_new_tokens=5)
    assert model.speculation.stats.launching == "CUDA graphs"
    model.model.layers[0].register_forward_hook(lambda *_: None)
    model.generate(**ONE, max_new_tokens=5)
    assert model.speculation.stats.launching == "from Python: hooks in the model's passes"


@pytest.mark.parametrize(
    ("settings", "request_", "reason"),
    [
        ({"acceptance": "rejection"}, {"do_sample": True}, "rejection sampling"),
        ({}, {"repetition_penalty": 1.2}, "logits processors that need the host"),
        ({}, {"max_time": 60.0}, "stopping criteria that need the host"),
        ({}, {"return_dict_in_generate": True}, "a cache or scores to give back"),
        (
            {"draft": "early_exit", "exit_layer": 2, "draft_length": 3, "tree": "siblings"},
            {},
            "drafts of a shape that is decided on the way",
        ),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_needs_the_host_is_launched_from_python_and_said(
    model: Any, settings: dict[str, Any], request_: dict[str, Any], reason: str
) -> None:
    selfspec.wrap(model, **settings)
    model.generate(**ONE, max_new_tokens=5, **request_)
    assert model.speculation.stats.launching == f"from Python: {reason}"


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("mixtral", "its experts are chosen on the host"),
        ("bloom", "its attention code is its own, it takes ALiBi biases"),
        ("llama", "its heads are of 8 and 8"),
    ],
)
def test_models_that_cannot_are_launched_from_python_and_say_why(
    on_device: None, family: str, reason: str
) -> None:
    model = tiny_model(family)
    expected = own_generate(model, **ONE, max_new_tokens=8)
    selfspec.wrap(model)
    assert torch.equal(model.generate(**ONE, max_new_tokens=8), expected)
    assert model.speculation.stats.launching == f"from Python: {reason}"


def test_nothing_runs_on_a_device_that_has_no_graphs(llama: Any) -> None:
    selfspec.wrap(llama)
    llama.generate(**ONE, max_new_tokens=5)
    assert llama.speculation.stats.launching == "from Python: no CUDA graphs on cpu"
