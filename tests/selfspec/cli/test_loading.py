"""Models that cannot be loaded."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from selfspec.cli.loading import load


@pytest.fixture
def copied(model_folder: Path, tmp_path: Path) -> Path:
    """A model folder to damage."""
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


def complaint(run: Callable[..., Any], *arguments: object) -> str:
    """The one line on stderr of a command that was refused."""
    result = run("generate", "x", *arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.count("\n") == 1
    return str(result.err)


@pytest.mark.parametrize("kept", [0, 5, 2000])
def test_a_truncated_weights_file_is_refused(run: Callable[..., Any], copied: Path, kept: int) -> None:
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    assert "the weights file is damaged or cut off" in complaint(run, "-m", copied)


def test_a_missing_weights_file_is_refused(run: Callable[..., Any], copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    assert "no weights (model.safetensors)" in complaint(run, "-m", copied)


def test_missing_tensors_are_not_replaced_by_random_ones(run: Callable[..., Any], copied: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copied / "model.safetensors", {"format": "pt"})
    assert "lacks 1 tensors, such as model.layers.1.mlp" in complaint(run, "-m", copied)


def test_a_damaged_config_is_refused(run: Callable[..., Any], copied: Path) -> None:
    (copied / "config.json").write_text("{", encoding="utf-8")
    assert "not a valid JSON file" in complaint(run, "-m", copied)


def test_a_folder_without_a_tokenizer_is_refused(run: Callable[..., Any], copied: Path) -> None:
    for path in copied.glob("tokenizer*"):
        path.unlink()
    assert "cannot load the tokenizer" in complaint(run, "-m", copied)


def test_a_folder_without_a_model_is_refused(run: Callable[..., Any], tmp_path: Path) -> None:
    assert "no config.json in this folder" in complaint(run, "-m", tmp_path)


def test_a_path_that_is_not_there_is_refused_without_asking_a_hub(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    assert "there is no such folder" in complaint(run, "-m", tmp_path / "none")
    assert "there is no such folder" in complaint(run, "-m", "./none")


def test_a_file_is_refused(run: Callable[..., Any], copied: Path) -> None:
    assert "is a file; name the folder" in complaint(run, "-m", copied / "config.json")


def test_unknown_numbers_and_devices_are_refused(run: Callable[..., Any], model_folder: Path) -> None:
    assert "dtype='int3': allowed are auto, float32" in complaint(run, "-m", model_folder, "--dtype", "int3")
    assert "choose cpu, cuda or auto" in complaint(run, "-m", model_folder, "--device", "abacus")


def test_dtype_and_threads_are_taken_up(model_folder: Path) -> None:
    assert load(str(model_folder), "bfloat16", "cpu", 1).model.dtype == torch.bfloat16
    assert torch.get_num_threads() == 1


def test_the_bundled_model_is_the_default() -> None:
    loaded = load(None)
    assert loaded.name == "bundled reference model"
    assert (
        loaded.tokenizer.decode(loaded.tokenizer("def f(x):\n    return x")["input_ids"])
        == "def f(x):\n    return x"
    )
