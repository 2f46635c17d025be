"""A corpus and a configuration small enough to train in a second."""

from __future__ import annotations

import pytest
import torch

from layer_skip.training.config import TrainingConfig
from layer_skip.training.data import Corpus, SourceFile


def _file(source: str, number: int) -> SourceFile:
    lines = [
        f"def function_{number}_{k}(value, other):\n    return value * {k} + other\n\n" for k in range(40)
    ]
    return SourceFile(f"{source}/file_{number}.py", source, "".join(lines))


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    train = tuple(_file("python", number) for number in range(6))
    held_out = tuple(_file("python", number) for number in range(6, 8))
    return Corpus(train, held_out, {"python": "3"})


@pytest.fixture
def micro() -> TrainingConfig:
    return TrainingConfig(
        layers=4, hidden_size=32, heads=2, kv_heads=1, intermediate_size=64, vocab_size=320, max_positions=64,
        max_steps=6, tokens_per_step=64, sequence_length=16, long_sequence_length=32, long_every=3,
        warmup_steps=2, max_dropout=0.5, rotation=2, threads=0, compute_dtype="float32", learning_rate=1e-2,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    """Micro models are slower on several threads than on one, and reductions depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
