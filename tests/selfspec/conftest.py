"""Fixtures of the engine's tests: a wrapped model, rounds that go by a script, a look after each of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from checks import own_generate
from fake_drafters import Place, Right, generated, use_scripted_drafts
from tiny_models import VOCAB
from tokenizers import Tokenizer, decoders, models
from torch import Tensor
from transformers import PreTrainedTokenizerFast

import selfspec
from selfspec import engine
from selfspec.call import Call


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`scripted(model, prompts, right, **settings)`: a wrapped model that drafts by a script."""

    def set_up(
        model: Any,
        prompts: dict[str, Tensor],
        right: Right,
        draft_length: int,
        exit_layer: int = 2,
        place: Place = lambda row, index: 0,
        **settings: Any,
    ) -> Any:
        texts = generated(own_generate(model, **prompts, max_new_tokens=24), prompts)
        use_scripted_drafts(monkeypatch, texts, right, VOCAB, place)
        return selfspec.wrap(model, exit_layer=exit_layer, draft_length=draft_length, **settings)

    return set_up


@pytest.fixture
def after_every_round(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Call], None]], None]:
    """`after_every_round(look)`: call look(call) when a round is committed."""

    def set_up(look: Callable[[Call], None]) -> None:
        commit = engine.commit

        def committed(call: Call, *arguments: Any) -> int:
            tokens = commit(call, *arguments)
            look(call)
            return tokens

        monkeypatch.setattr(engine, "commit", committed)

    return set_up


@pytest.fixture
def wrapped(llama: Any) -> Any:
    """A small model with fixed settings."""
    return selfspec.wrap(llama, exit_layer=2, draft_length=3)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """One character per token: "!" is 0, "a" is 64."""
    backend = Tokenizer(models.BPE({chr(33 + i): i for i in range(VOCAB)}, []))
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="!", padding_side="left")
