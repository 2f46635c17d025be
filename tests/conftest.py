"""Fixtures of the engine's tests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import tiny_model as build_tiny_model

from layer_skip import REFERENCE_MODEL
from layer_skip.families import FAMILIES

ROOT = Path(__file__).resolve().parent.parent

transformers.logging.set_verbosity_error()


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Tiny models are slower on several threads than on one, and tests often share a machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    """Every family, one after the other."""
    return str(request.param)


@pytest.fixture
def tiny_model() -> Any:
    """`tiny_model(family, **settings)` builds a small lively model; see support/tiny_models.py."""
    return build_tiny_model


@pytest.fixture
def llama() -> Any:
    """A tiny Llama of one's own."""
    return build_tiny_model("llama")


@pytest.fixture(scope="session")
def reference_model() -> Any:
    """The bundled model in fp32, shared: leave it as it was."""
    return _reference(torch.float32)


@pytest.fixture(scope="session")
def reference_model_bf16() -> Any:
    """The bundled model in bf16, shared: leave it as it was."""
    return _reference(torch.bfloat16)


@pytest.fixture(scope="session")
def held_out_prompts() -> list[list[int]]:
    """Token ids of at least 100 held-out prompts, 8 to 1,000 tokens long, shortest first."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(REFERENCE_MODEL)
    lines = (ROOT / "benchmarks" / "prompts" / "code.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["prompt"] for line in lines if line.strip()]
    ids = [tokenizer(text)["input_ids"] for text in texts]
    assert len(ids) >= 100, f"only {len(ids)} prompts"
    # Cut to lengths that grow evenly on a logarithmic scale: most prompts are short, as most work is.
    ids.sort(key=len)
    lengths = [round(8 * 125 ** (i / (len(ids) - 1))) for i in range(len(ids))]
    return [prompt[:length] for prompt, length in zip(ids, lengths, strict=True)]


def _reference(dtype: torch.dtype) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(REFERENCE_MODEL, dtype=dtype).eval()
    model.generation_config.eos_token_id = None  # every text gets its full length
    return model
