"""Whole runs of a micro model."""

from __future__ import annotations

import dataclasses
import json
import os
import signal

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from layer_skip.training import trainer
from layer_skip.training.batches import Batches
from layer_skip.training.checkpoint import CheckpointError
from layer_skip.training.loop import Run, make_model
from layer_skip.training.trainer import TrainingInterrupted, run_until_done, train


def _run(config):
    stream = torch.randint(2, 320, (2000,), generator=torch.Generator().manual_seed(7))
    return Run(config, make_model(config, 0, 1), Batches(stream, config))


def _same_weights(first, second):
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def silent(run, loss):
    """Reports nothing."""


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(micro, tmp_path, optimizer):
    config = dataclasses.replace(micro, optimizer=optimizer, distill=0.5, exit_weighting="shallow")
    whole, first, second = _run(config), _run(config), _run(config)
    run_until_done(whole, tmp_path / "whole.pt", silent)
    for _ in range(3):
        first.advance()
    first.save(tmp_path / "half.pt")
    second.load(tmp_path / "half.pt")
    run_until_done(second, tmp_path / "second.pt", silent)
    assert second.step == whole.step == 6 and second.tokens == whole.tokens
    assert _same_weights(whole.model, second.model)


def test_recipe_off_is_ordinary_next_token_training(micro):
    run = _run(dataclasses.replace(micro, recipe=False))
    tokens, labels = run.batches(0)
    with torch.no_grad():
        logits = run.model(tokens).logits
    assert run.train_step() == pytest.approx(
        float(F.cross_entropy(logits.flatten(0, 1), labels.flatten())), rel=1e-5
    )
    run.batches.keep_rows = None  # a plain run that asked for dropped rows would fail on this
    run.train_step()


def test_distillation_changes_when_the_learning_rate_starts_to_fall(micro):
    config = dataclasses.replace(micro, max_steps=11, decay_fraction=0.5, distill=0.25, decay_distill=1.0)
    run = _run(config)
    shares = []
    for run.step in range(11):
        shares.append(run.distill)
    assert shares == [0.25] * 6 + [1.0] * 5


def test_training_lowers_the_loss(micro):
    run = _run(dataclasses.replace(micro, max_steps=40, long_every=0))
    run.batches.stream = torch.arange(2000) % 40 + 2
    losses = [run.advance() for _ in range(40)]
    assert losses[-1] < losses[0] - 1.0


def test_ctrl_c_leaves_a_checkpoint_that_goes_on(micro, tmp_path):
    run = _run(micro)
    before = signal.getsignal(signal.SIGINT)

    def press(run, loss):
        if run.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrainingInterrupted, match="stopped at step 2"):
        run_until_done(run, tmp_path / "c.pt", press)
    assert signal.getsignal(signal.SIGINT) is before
    assert [path.name for path in tmp_path.iterdir()] == ["c.pt"]
    again = _run(micro)
    again.load(tmp_path / "c.pt")
    assert again.step == 2 and _same_weights(run.model, again.model)


def test_train_writes_a_folder_that_loads_offline(micro, tmp_path, corpus):
    result = train(micro, tmp_path, progress=False, corpus=corpus)
    names = {path.name for path in tmp_path.iterdir()}
    expected = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"}
    assert expected | {"training.json", "loss.png", "exits.png", "run"} <= names
    assert not [name for name in names if "partial" in name]
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o444 == 0o444
    assert model.dtype == torch.bfloat16 and model.num_parameters() == result.parameters
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert tokenizer.decode(tokenizer("def f(x):\n    return x")["input_ids"]) == "def f(x):\n    return x"
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["steps"] == 6 and record["held_out_files"] == [file.name for file in corpus.held_out]
    assert [row["exit_layer"] for row in record["held_out"]] == [1, 2, 3, 4]
    assert record["held_out"][-1]["agreement"] == 1.0


def test_the_card_names_sources_licences_and_every_exit(micro, tmp_path, corpus):
    train(micro, tmp_path, progress=False, corpus=corpus)
    card = (tmp_path / "README.md").read_text()
    assert "PSF-2.0" in card and "Python standard library" in card
    for exit_layer in range(1, 5):
        assert f"\n| {exit_layer} | " in card
    assert str(tmp_path) not in card


def test_train_resumes_a_longer_run_from_its_folder(micro, tmp_path, corpus):
    train(micro, tmp_path, progress=False, corpus=corpus)
    with pytest.raises(CheckpointError, match="a run is there already; resume it"):
        train(micro, tmp_path, progress=False, corpus=corpus)
    longer = dataclasses.replace(micro, max_steps=8)
    assert train(longer, tmp_path, resume=True, progress=False, corpus=corpus).steps == 8
    with pytest.raises(CheckpointError, match="intermediate_size=64, not 32"):
        other = dataclasses.replace(micro, intermediate_size=32)
        train(other, tmp_path, resume=True, progress=False, corpus=corpus)


def test_resuming_from_a_truncated_checkpoint_is_one_clear_error(micro, tmp_path, corpus):
    train(micro, tmp_path, progress=False, corpus=corpus)
    path = tmp_path / "run" / trainer.CHECKPOINT
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="damaged checkpoint"):
        train(micro, tmp_path, resume=True, progress=False, corpus=corpus)


def test_a_run_limited_by_seconds_ends(micro, tmp_path):
    run = _run(dataclasses.replace(micro, max_steps=None, max_seconds=0.2))
    run_until_done(run, tmp_path / "c.pt", silent)
    assert run.finished and run.progress == 1.0 and run.step > 0
