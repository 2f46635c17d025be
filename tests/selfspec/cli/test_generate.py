"""`selfspec generate`."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPT = "def f(x):\n\treturn [1]"
DRAFT = ("--exit-layer", 2, "--draft-length", 3)


def expected(folder: Path, prompt: str, new_tokens: int) -> str:
    """What the model itself writes."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    output = model.generate(ids, max_new_tokens=new_tokens, do_sample=False)
    return str(tokenizer.decode(output[0, ids.shape[1] :]))


def test_the_text_is_the_models_own_to_the_last_character(
    run: Callable[..., Any], model_folder: Path
) -> None:
    prompt = PROMPT.replace("\t", "    ")
    result = run("generate", prompt, "-m", model_folder, "-n", 30, *DRAFT)
    assert result.code == 0
    assert result.out == prompt + expected(model_folder, prompt, 30) + "\n"
    assert "30 tokens in" in result.err and "E = 2, K = 3" in result.err


@pytest.mark.parametrize("source", ["argument", "file", "stdin", "dash"])
def test_the_prompt_may_come_from_anywhere(
    run: Callable[..., Any], model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    (tmp_path / "prompt.txt").write_text("x = [", encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", io.StringIO("x = ["))
    given = {"argument": ["x = ["], "file": ["--file", "prompt.txt"], "stdin": [], "dash": ["-"]}[source]
    result = run("generate", *given, "-m", model_folder, "-n", 3)
    assert result.code == 0
    assert result.out.startswith("x = [")


def test_json_is_pure_and_complete(run: Callable[..., Any], model_folder: Path) -> None:
    data = run("generate", "for i in", "-m", model_folder, "-n", 12, "--json", *DRAFT).json
    assert data["text"] == expected(model_folder, "for i in", 12)
    assert (len(data["tokens"]), data["prompt_tokens"], data["prompt"]) == (12, 8, "for i in")
    assert [token for event in data["rounds"] for token in event["committed"]] == data["tokens"]
    assert data["statistics"]["tokens"] == 12
    assert data["model"] == str(model_folder)


def test_drafts_are_coloured_with_a_legend(run: Callable[..., Any], model_folder: Path) -> None:
    result = run("generate", "for i in", "-m", model_folder, "-n", 40, "--show-drafts", *DRAFT)
    assert all(word in result.out for word in ("accepted", "corrected", "bonus", "\x1b[32m"))
    plain = run("generate", "for i in", "-m", model_folder, "-n", 40, *DRAFT)
    assert "\x1b" not in plain.out


def test_a_seed_decides_sampled_text(run: Callable[..., Any], model_folder: Path) -> None:
    sampling = (
        "--temperature",
        0.9,
        "--top-p",
        0.95,
        "--top-k",
        20,
        "--min-p",
        0.01,
        "--repetition-penalty",
        1.1,
    )

    def text(seed: int, *draft: object) -> str:
        command = ("generate", "x", "-m", model_folder, "-n", 20, "--json", *sampling, "--seed", seed, *draft)
        return str(run(*command).json["text"])

    assert text(1, *DRAFT) == text(1, "--draft-length", 0)
    assert text(1, *DRAFT) != text(2, *DRAFT)


def test_without_a_prompt_on_a_terminal_it_says_where_to_put_one(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdin", terminal)
    result = run("generate")
    assert (result.code, result.out) == (2, "")
    assert "no prompt: give it as an argument" in result.err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["x", "--temperature", 0], "temperature=0: allowed is more than 0"),
        (["x", "--temperature", -1], "temperature=-1: allowed is more than 0"),
        (["x", "--top-p", 1.5], "top_p=1.5: allowed is 0 to 1"),
        (["x", "--min-p", -0.1], "min_p=-0.1: allowed is 0 to 1"),
        (["x", "--repetition-penalty", 0], "penalty"),
        (["x", "-n", 0], "--max-new-tokens"),
        (["x", "--seed", 10**23], f"seed={10**23}: allowed is -2^63 to 2^63 - 1"),
        (["x", "--seed", 1 << 63], "allowed is -2^63"),
        (["x", "--exit-layer", 0], "exit_layer=0: allowed is"),
        (["x", "--exit-layer", 4], "this model has 4 layers"),
        (["x", "--exit-layer", "three"], "exit_layer='three': allowed is"),
        (["x", "--draft-length", -1], "draft_length=-1: allowed is"),
        (["x", "--draft-length", 10000], "draft_length=10000: allowed is"),
        (["x", "--acceptance", "maybe"], "acceptance='maybe': allowed are"),
        (["x", "--confidence-threshold", 2], "confidence_threshold=2"),
        (["x", "--json", "--show-drafts"], "choose one"),
        (["x", "--file", "y"], "not both"),
        (["--file", "none.txt"], "none.txt: No such file"),
        ([""], "the prompt is empty"),
        (["a" * 300], "300 tokens, the model 256 positions"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_is_allowed(
    run: Callable[..., Any], model_folder: Path, arguments: list[object], complaint: str
) -> None:
    result = run("generate", "-m", model_folder, *arguments)
    assert result.code == 2
    assert result.err.count("\n") == 1 and result.err.startswith("selfspec: ")
    assert complaint in result.err
    assert os.listdir() == []
