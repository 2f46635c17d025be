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
from selfspec.tuning import store

ROOT = Path(__file__).resolve().parent.parent

transformers.logging.set_verbosity_error()


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Tiny models are slower on several threads than on one, and tests often share a machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def no_profiles_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Profiles kept on this machine would change how drafts are made; tests keep their own."""
    monkeypatch.setattr(store, "profiles_folder", lambda: tmp_path / "kept profiles")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--every-combination",
        action="store_true",
        help="every family under every exit layer, draft length and batch, not only a covering choice",
    )
    parser.addoption(
        "--conformance-cases",
        type=int,
        default=6,
        help="calls of generate() to compare in every family",
    )
    parser.addoption("--conformance-seed", type=int, default=0, help="which calls of generate() are drawn")


def pytest_report_header(config: pytest.Config) -> str:
    cases, seed = (config.getoption(f"--conformance-{name}") for name in ("cases", "seed"))
    return f"conformance: --conformance-cases {cases} --conformance-seed {seed}"


@pytest.fixture(params=["gemma2", "gpt2", "gpt_neox", "llama", "mistral", "opt", "phi3", "qwen2", "qwen3"])
def family(request: pytest.FixtureRequest) -> str:
    """Families that differ most; greedy text of all of them is in selfspec/test_families.py."""
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
    """Token ids of at least 100 held-out prompts, from 8 to 1,000 tokens, shortest first."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(REFERENCE_MODEL)
    lines = (ROOT / "benchmarks" / "prompts" / "code.jsonl").read_text(encoding="utf-8").splitlines()
    prompts = [tokenizer(json.loads(line)["prompt"])["input_ids"] for line in lines]
    # Most are of one length, for benchmarks: cut to all lengths up to it.
    common = max(map(len, prompts), key=[len(prompt) for prompt in prompts].count)
    alike = [prompt for prompt in prompts if len(prompt) == common]
    cut = [prompt[: 8 + i * (common - 8) // len(alike)] for i, prompt in enumerate(alike)]
    return sorted(cut + [prompt for prompt in prompts if len(prompt) != common], key=len)


def _reference(dtype: torch.dtype) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(REFERENCE_MODEL, dtype=dtype).eval()
    model.generation_config.eos_token_id = None  # every text gets its full length
    return model
