"""From settings to views and corpora: what is made, what is said, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checks import own_generate
from tiny_models import LAYERS, random_prompts, tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

import selfspec
from layer_skip.decoder import LayeredDecoder
from layer_skip.low_bit import view_bytes
from selfspec.config import ConfigError, SpeculationConfig
from selfspec.strategy import make_view, read_corpus

PROMPTS = random_prompts(9, 4)


def view_of(model: Any, **settings: Any) -> tuple[Any, str]:
    return make_view(LayeredDecoder(model), SpeculationConfig(draft="low_bit", **settings))


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
    view, note = view_of(llama, exit_layer=exit_layer, draft_bits=bits)
    assert (view.n_layers, view.bits) == (exit_layer, bits)
    assert note.startswith(f"{bits}-bit view of {exit_layer} of 4 layers")


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
    llama: Any, capsys: Any, draft: str, draft_length: Any, settings: dict[str, Any]
) -> None:
    expected = own_generate(llama, **PROMPTS, max_new_tokens=16)
    selfspec.wrap(llama, draft=draft, draft_memory=0, draft_length=draft_length, **settings)
    assert "selfspec: draft_memory=0 is too small" in capsys.readouterr().err
    assert torch.equal(llama.generate(**PROMPTS, max_new_tokens=16), expected)
    stats = llama.speculation.stats
    assert stats.view.startswith("draft_memory=0 is too small")
    assert "low_bit" not in stats.strategy


def test_a_model_of_quantised_matrices_drafts_with_those(llama: Any, capsys: Any) -> None:
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
    assert "drafting with the model's own weights" in capsys.readouterr().err
    assert torch.equal(llama.generate(**PROMPTS, max_new_tokens=12), expected)
    assert llama.speculation.stats.strategy == "early_exit"
    selfspec.wrap(llama)  # "auto" tries a view, and goes without
    assert torch.equal(llama.generate(**PROMPTS, max_new_tokens=12), expected)


def test_what_the_view_adds_is_printed_once_and_kept_in_the_statistics(llama: Any, capsys: Any) -> None:
    selfspec.wrap(llama, draft="low_bit", draft_length=3, exit_layer=LAYERS)
    printed = capsys.readouterr().err
    assert printed.startswith("selfspec: 4-bit view of 4 of 4 layers and the head: ")
    llama.generate(**PROMPTS, max_new_tokens=8)
    assert capsys.readouterr().err == ""
    assert f"selfspec: {llama.speculation.stats.view}\n" == printed


@pytest.mark.parametrize("draft", ["early_exit", "lookup"])
def test_no_view_is_made_where_none_is_used(llama: Any, capsys: Any, draft: str) -> None:
    selfspec.wrap(llama, draft=draft)
    assert llama.speculation.view is None
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("share", "made"), [(0.5, True), (0.9, False)])
def test_auto_makes_a_view_only_where_its_layers_are_faster(
    llama: Any, monkeypatch: pytest.MonkeyPatch, share: float, made: bool
) -> None:
    from selfspec import speculation
    from selfspec.tuning.costs import PassCosts

    def timed(decoder: LayeredDecoder) -> PassCosts:
        packed = any("Packed" in type(m).__name__ for m in decoder.layers[0].modules())
        return PassCosts((share if packed else 1.0,) * 6, (1.0,) * 6)

    monkeypatch.setattr(speculation, "time_passes", timed)
    selfspec.wrap(llama)
    assert (llama.speculation.view is not None) is made


def test_a_corpus_of_token_ids_is_taken_as_it_is() -> None:
    corpus = read_corpus(None, [1, 2, 3, 1])
    assert corpus is not None
    assert corpus.tokens.tolist() == [1, 2, 3, 1]
    assert read_corpus(None, None) is None


@pytest.fixture
def in_a_folder(llama: Any, tmp_path: Path) -> Any:
    """A model that names the folder of its tokenizer: one token a word."""
    words = {word: i for i, word in enumerate(["<unk>", "to", "be", "or", "not"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(tmp_path)
    llama.config._name_or_path = str(tmp_path)
    return llama


def test_a_corpus_file_is_read_with_the_models_own_tokenizer(in_a_folder: Any, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("to be or not to be", encoding="utf-8")
    for corpus in (path, str(path)):
        automaton = read_corpus(in_a_folder, corpus)
        assert automaton is not None
        assert automaton.tokens.tolist() == [1, 2, 3, 4, 1, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"corpus='.*notes.txt': No such file or directory"),
        (b"\xff\xfe\x00\x81", r"corpus='.*notes.txt': not a UTF-8 text file \(invalid start byte\)"),
    ],
)
def test_a_corpus_that_cannot_be_read_is_refused_and_nothing_is_changed(
    in_a_folder: Any, tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "notes.txt"
    if content is not None:
        path.write_bytes(content)
    before = dict(vars(in_a_folder))
    with pytest.raises(ConfigError, match=message):
        selfspec.wrap(in_a_folder, draft="lookup", corpus=str(path))
    assert vars(in_a_folder) == before


def test_a_corpus_file_for_a_model_without_a_tokenizer_says_what_to_pass(llama: Any, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("to be", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"pass token ids: corpus=tokenizer\(text\)\.input_ids"):
        selfspec.wrap(llama, draft="hybrid", corpus=str(path))
    assert not selfspec.is_wrapped(llama)


def test_a_view_of_one_family_is_made_as_well_as_of_another(family: str) -> None:
    view, note = view_of(tiny_model(family), exit_layer=2)
    assert view.n_layers == 2
    assert "of 4 layers and the head" in note
