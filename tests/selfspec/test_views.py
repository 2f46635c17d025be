"""The low-bit view of a wrapped model: what is made, what is said, and what is refused."""

from __future__ import annotations

import io
import logging
import math
import re
import sys
from typing import Any

import pytest
import torch
from checks import own_generate
from tiny_models import LAYERS, random_prompts, tiny_model
from torch import nn

import selfspec
from layer_skip import low_bit
from layer_skip.decoder import LayeredDecoder
from layer_skip.int8_product import int8_is_fastest
from layer_skip.low_bit import view_bytes
from selfspec import speculation, views
from selfspec.config import ConfigError, SpeculationConfig
from selfspec.tuning.costs import WIDTHS, PassCosts
from selfspec.views import make_view

PROMPTS = random_prompts(9, 4)


def view_of(model: Any, bits: int = 4, **settings: Any) -> tuple[Any, str]:
    return make_view(LayeredDecoder(model), SpeculationConfig(draft="low_bit", **settings), bits)


def test_a_view_of_all_layers_is_made_and_described(llama: Any) -> None:
    view, note = view_of(llama)
    assert (view.n_layers, view.bits) == (LAYERS, 4)
    assert note.startswith("4-bit view of 4 of 4 layers and the head: ")
    assert f"{view.bytes / view.viewed_bytes:.0%} of the weights viewed" in note
    assert f"padded to whole groups: {view.padded} matrices" in note
    assert "kept as they are" not in note


@pytest.mark.parametrize("exit_layer", [1, 3, LAYERS])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_view_has_the_layers_and_bits_that_are_asked_for(llama: Any, exit_layer: int, bits: int) -> None:
    selfspec.wrap(llama, draft="low_bit", exit_layer=exit_layer, draft_bits=bits)
    view = llama.speculation.view
    assert (view.n_layers, view.bits) == (exit_layer, bits)
    assert llama.speculation.view_note.startswith(f"{bits}-bit view of {exit_layer} of 4 layers")


@pytest.mark.skipif(not int8_is_fastest(), reason="views are in 4 bits by default on other CPUs")
@pytest.mark.parametrize("draft", ["auto", "low_bit", "hybrid"])
def test_a_view_of_large_matrices_has_the_bits_that_the_machine_is_fastest_in(
    llama: Any, monkeypatch: pytest.MonkeyPatch, draft: str
) -> None:
    monkeypatch.setattr(views, "_WORTHWHILE", math.inf)
    monkeypatch.setattr(views, "_may_pay", lambda *_: True)
    expected = own_generate(llama, **PROMPTS, max_new_tokens=12)
    for least, settings, bits in ((0, {}, 8), (0, {"draft_bits": 4}, 4), (low_bit.LEAST_FOR_INT8, {}, 4)):
        monkeypatch.setattr(low_bit, "LEAST_FOR_INT8", least)
        selfspec.wrap(llama, draft=draft, **settings)
        assert torch.equal(llama.generate(**PROMPTS, max_new_tokens=12), expected)
        assert llama.speculation.view.bits == llama.speculation.knowledge.bits == bits


def test_no_view_is_made_where_verifying_costs_as_much_as_plain_steps(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in bf16 on CPUs without instructions for it: drafts could not pay if they were always right."""

    def costs(decoder: LayeredDecoder, *_: object) -> PassCosts:
        packed = any("Packed" in type(m).__name__ for m in decoder.layers[0].modules())
        verify = tuple(1 + share * (width - 1) for width in WIDTHS)
        return PassCosts((0.2,) * 6 if packed else verify, (1.0,) * 6)

    monkeypatch.setattr(speculation, "time_passes", costs)
    share = 0.85
    selfspec.wrap(llama)
    assert llama.speculation.view_note == (
        "no low-bit view: a layer in 4 bits takes 0.20 of its own time here and verifying 4 tokens 3.5 plain "
        "steps, so that drafts would hardly pay if they were always right"
    )
    share = 0.72  # and 0.2 to draft a token: by 8% faster at the most
    selfspec.wrap(llama)
    assert llama.speculation.view is None
    share = 0.65
    selfspec.wrap(llama)
    assert llama.speculation.view is not None


def test_the_largest_view_that_fits_the_memory_is_made(llama: Any) -> None:
    decoder = LayeredDecoder(llama)
    for layers in range(1, LAYERS + 1):
        view, _ = view_of(llama, draft_memory=view_bytes(decoder, layers))
        assert view.n_layers == layers
        assert view.bytes <= view_bytes(decoder, layers)
    view, _ = view_of(llama, exit_layer=2, draft_memory="1GiB")
    assert view.n_layers == 2  # no more than was asked for


@pytest.mark.parametrize("memory", [0, "1KiB"])
def test_too_little_memory_falls_back_to_the_models_own_weights_and_says_so(llama: Any, memory: Any) -> None:
    view, note = view_of(llama, draft_memory=memory)
    assert view is None
    assert note == (
        f"draft_memory={memory!r} is too small for a low-bit view of one layer and the head: "
        "drafting with the model's own weights"
    )


@pytest.mark.parametrize("settings", [{}, {"exit_layer": 2}, {"exit_layer": LAYERS}], ids=str)
@pytest.mark.parametrize("draft", ["low_bit", "hybrid"])
@pytest.mark.parametrize("draft_length", ["auto", 3])
def test_drafting_goes_on_without_a_view(
    llama: Any, caplog: Any, draft: str, draft_length: Any, settings: dict[str, Any]
) -> None:
    expected = own_generate(llama, **PROMPTS, max_new_tokens=16)
    selfspec.wrap(llama, draft=draft, draft_memory="1KiB", draft_length=draft_length, **settings)
    assert "draft_memory='1KiB' is too small" in caplog.text
    assert torch.equal(llama.generate(**PROMPTS, max_new_tokens=16), expected)
    stats = llama.speculation.stats
    assert stats.view.startswith("draft_memory='1KiB' is too small")
    assert "low_bit" not in stats.strategy


def test_a_model_of_quantised_matrices_drafts_with_those(llama: Any, caplog: Any) -> None:
    class Quantised(nn.Module):
        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.weight = nn.Parameter(
                (base.weight.detach() * 500).round().to(torch.int8), requires_grad=False
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight.to(x.dtype).T / 500

    for parent in list(llama.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, Quantised(child))
    expected = own_generate(llama, **PROMPTS, max_new_tokens=12)
    selfspec.wrap(llama, draft="low_bit", exit_layer=2, draft_length=3)
    assert "drafting with the model's own weights" in caplog.text
    assert torch.equal(llama.generate(**PROMPTS, max_new_tokens=12), expected)
    assert llama.speculation.stats.strategy == "early_exit"
    selfspec.wrap(llama)  # "auto" tries a view, and goes without
    assert torch.equal(llama.generate(**PROMPTS, max_new_tokens=12), expected)
    assert llama.speculation.stats.view.startswith("no low-bit view: no weight matrix of this model")


def test_a_view_that_is_too_slow_to_be_worth_its_memory_is_not_made_and_the_statistics_say_so(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "_WORTHWHILE", 0.0)
    selfspec.wrap(llama)
    llama.generate(**PROMPTS, max_new_tokens=8)
    assert llama.speculation.view is None
    said = llama.speculation.stats.view
    assert re.fullmatch(r"no low-bit view: a layer in 4 bits takes \d+\.\d\d of its own time here", said)


def test_what_the_view_adds_is_logged_once_and_kept_in_the_statistics(
    llama: Any, caplog: Any, capsys: Any
) -> None:
    caplog.set_level(logging.INFO, "selfspec")
    selfspec.wrap(llama, draft="low_bit", draft_length=3, exit_layer=LAYERS)
    llama.generate(**PROMPTS, max_new_tokens=8)
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("selfspec", logging.INFO)
    assert record.message.startswith("4-bit view of 4 of 4 layers and the head: ")
    assert record.message == llama.speculation.stats.view
    assert capsys.readouterr() == ("", "")  # a library says nothing on its own


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("slow", "terminal"), [(True, True), (True, False), (False, True)])
def test_on_a_terminal_the_making_of_a_large_view_is_shown_and_what_it_takes(
    llama: Any, monkeypatch: pytest.MonkeyPatch, slow: bool, terminal: bool
) -> None:
    stream = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(views, "_SLOW_MATRICES", 1 if slow else 1 << 27)
    _, note = view_of(llama)
    text = stream.getvalue()
    if not (slow and terminal):
        assert text == ""
        return
    bar, erased, rest = text.rpartition("\x1b[2K")
    assert "head" in bar and "100%" in bar  # the last matrix, and all of them done
    assert erased  # the bar is gone, the note stays
    assert rest.strip() == note
    assert "MiB added" in note


@pytest.mark.parametrize("draft", ["auto", "low_bit", "hybrid"])
def test_no_view_is_made_or_tried_where_it_may_add_nothing(
    llama: Any, caplog: Any, monkeypatch: pytest.MonkeyPatch, draft: str
) -> None:
    monkeypatch.setattr(speculation, "LowBitView", None)
    monkeypatch.setattr(views, "LowBitView", None)
    selfspec.wrap(llama, draft=draft, draft_memory="0 MB")
    llama.generate(**PROMPTS, max_new_tokens=8)
    assert llama.speculation.view is None
    assert llama.speculation.stats.view == "draft_memory='0 MB': no low-bit view"
    assert caplog.records == []


@pytest.mark.parametrize("draft", ["low_bit", "hybrid"])
@pytest.mark.parametrize("draft_length", ["auto", 4])
def test_an_exit_layer_for_which_memory_is_short_is_refused_with_the_deepest_that_fits(
    llama: Any, draft: str, draft_length: Any
) -> None:
    memory = view_bytes(LayeredDecoder(llama), 2)
    with pytest.raises(ConfigError, match=r"exit_layer=3: within draft_memory=.* allowed are 1 to 2, 'auto'"):
        selfspec.wrap(llama, draft=draft, exit_layer=3, draft_memory=memory, draft_length=draft_length)
    assert not selfspec.is_wrapped(llama)
    selfspec.wrap(llama, draft=draft, exit_layer=2, draft_memory=memory, draft_length=draft_length)
    assert llama.speculation.view.n_layers == 2


@pytest.mark.parametrize("draft", ["early_exit", "lookup"])
def test_no_view_is_made_where_none_is_used(llama: Any, draft: str) -> None:
    selfspec.wrap(llama, draft=draft)
    assert llama.speculation.view is None


@pytest.mark.parametrize(("share", "made"), [(0.5, True), (0.9, False)])
def test_auto_makes_a_view_only_where_its_layers_are_faster(
    llama: Any, monkeypatch: pytest.MonkeyPatch, share: float, made: bool
) -> None:
    def timed(decoder: LayeredDecoder, *_: object) -> PassCosts:
        packed = any("Packed" in type(m).__name__ for m in decoder.layers[0].modules())
        return PassCosts((share if packed else 1.0,) * 6, (1.0,) * 6)

    monkeypatch.setattr(speculation, "time_passes", timed)
    selfspec.wrap(llama)
    assert (llama.speculation.view is not None) is made


def test_a_view_of_one_family_is_made_as_well_as_of_another(family: str) -> None:
    view, note = view_of(tiny_model(family), exit_layer=2)
    assert view.n_layers == 2
    assert "of 4 layers and the head" in note
