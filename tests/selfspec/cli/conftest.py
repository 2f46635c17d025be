"""A tiny model in a folder, and the command line called as a shell would."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import PAD, tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from selfspec.cli import main

CHARACTERS = ["<pad>", "\n", *map(chr, range(32, 127))]
"""One token each: as many as the tiny models have."""


@dataclass(frozen=True)
class Result:
    """What a command printed and returned."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, which must be JSON and nothing else."""
        return json.loads(self.out)


@pytest.fixture
def run(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Result]:
    """`run("generate", "x", …)` in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Result:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Result(code, out, err)

    return call


def save_tiny_model(folder: Path, **settings: Any) -> Path:
    """A tiny Llama with a tokenizer of single characters."""
    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate(CHARACTERS)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tiny_model("llama", **settings).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model: read it, do not write to it."""
    assert len(CHARACTERS) == 97
    assert PAD == 0
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def prompts_file(tmp_path: Path) -> Path:
    """Three short prompts."""
    path = tmp_path / "prompts.jsonl"
    lines = [
        {"prompt": "def f(x):\n    "},
        {"prompt": "class A:\n    def"},
        {"turns": ["import os\n\nfor", "no"]},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def same_threads() -> Any:
    """Commands set the number of threads: put it back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
