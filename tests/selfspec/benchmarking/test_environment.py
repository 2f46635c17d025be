"""What a measurement says of the machine."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from selfspec.benchmarking import environment
from selfspec.tuning.identity import Identity


def test_a_processor_is_named_with_its_vector_instructions() -> None:
    named = environment.hardware(torch.device("cpu"))
    assert torch.backends.cpu.get_cpu_capability() in named.rsplit("(", 1)[1]


def test_profiles_of_processors_with_other_vector_instructions_are_told_apart(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Machines to rent go by one name whatever they have."""
    found = []
    for instructions in ("AVX2", "AVX512", "AVX512, bf16"):
        monkeypatch.setattr(environment, "vector_instructions", lambda has=instructions: has)
        found.append(Identity.of(llama))
    assert len(set(found)) == 3
    assert [line.split(" is ")[0] for line in found[0].differences(found[2])] == ["device"]
