"""Fixtures of the engine's tests: rounds that go by a script, and a look after each of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from checks import own_generate
from fake_drafters import Place, Right, generated, use_scripted_drafts
from tiny_models import VOCAB
from torch import Tensor

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
