"""Checkpoints are whole or absent, and a damaged one says so in a line."""

from __future__ import annotations

import pytest
import torch

from layer_skip.training.checkpoint import CheckpointError, check_same_run, load_checkpoint, save_checkpoint


def test_what_is_saved_comes_back(tmp_path):
    save_checkpoint(tmp_path / "c.pt", {"x": torch.arange(3), "step": 4})
    state = load_checkpoint(tmp_path / "c.pt")
    assert state["step"] == 4 and torch.equal(state["x"], torch.arange(3))
    assert [path.name for path in tmp_path.iterdir()] == ["c.pt"]


@pytest.mark.parametrize("kept", [0, 10, 500])
def test_a_truncated_checkpoint_is_one_clear_line(tmp_path, kept):
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"x": torch.arange(1000)})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="damaged checkpoint") as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_a_missing_checkpoint_and_a_foreign_file_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "c.pt")
    torch.save({"other": 1}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="not a checkpoint of format"):
        load_checkpoint(tmp_path / "c.pt")


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"step": 1})

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(path, {"step": 2})
    monkeypatch.undo()
    assert load_checkpoint(path)["step"] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.pt"]


def test_another_runs_checkpoint_is_refused_but_a_longer_run_is_not(tmp_path):
    check_same_run(tmp_path, {"layers": 4, "max_steps": 10}, {"layers": 4, "max_steps": 20})
    with pytest.raises(CheckpointError, match="layers=4, not 8"):
        check_same_run(tmp_path, {"layers": 4}, {"layers": 8})
