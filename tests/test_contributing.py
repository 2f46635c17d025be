"""The shortest draft strategy of CONTRIBUTING.md is one: the engine runs with it as it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checks import own_generate
from pages import read_blocks
from tiny_models import random_prompts

import selfspec
from selfspec import strategy
from selfspec.call import Call
from selfspec.round import Draft
from selfspec.tree import chain

CONTRIBUTING = Path(__file__).resolve().parent.parent / "CONTRIBUTING.md"


@pytest.mark.parametrize("lengths", [(7,), (5, 9, 3)])
def test_the_shortest_draft_strategy_runs(
    llama: Any, monkeypatch: pytest.MonkeyPatch, lengths: tuple[int, ...]
) -> None:
    blocks = read_blocks(CONTRIBUTING.read_text(encoding="utf-8"))
    (code,) = (block.code for block in blocks if "def draft(self, call" in block.code)
    names: dict[str, Any] = {"Call": Call, "Draft": Draft, "chain": chain}
    exec(code, names)
    monkeypatch.setattr(strategy, "Lookup", lambda *_: names["Nothing"]())
    request = {**random_prompts(*lengths), "max_new_tokens": 12, "do_sample": False}
    expected = own_generate(llama, **request)
    selfspec.wrap(llama, draft="lookup", draft_length=3)
    assert torch.equal(llama.generate(**request), expected)
    assert llama.speculation.stats.rounds == 12
    assert llama.speculation.stats.drafted == 0
