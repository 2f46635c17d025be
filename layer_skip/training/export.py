"""Writes a trained model as a folder that `from_pretrained` loads offline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from layer_skip.training.checkpoint import write_atomically


def export_model(model: Any, tokenizer: Any, folder: Path) -> int:
    """Write config, generation config, bf16 weights and tokenizer; return the bytes of the weights.

    Tied embeddings are stored once. Everything is written beside `folder` first and then moved in, file by
    file, weights last: an interruption leaves no half-written file.
    """
    from transformers import GenerationConfig, LlamaForCausalLM

    staging = folder.with_name(folder.name + ".partial")
    shutil.rmtree(staging, ignore_errors=True)
    copy = LlamaForCausalLM(model.config).to(torch.bfloat16)
    copy.load_state_dict(model.state_dict())
    copy.tie_weights()
    copy.config.dtype = torch.bfloat16
    copy.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    copy.save_pretrained(staging)
    # Left by from_pretrained: they tell how this process loaded the tokenizer, not how to load it.
    for name in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(name, None)
    tokenizer.save_pretrained(staging)
    folder.mkdir(parents=True, exist_ok=True)
    written = sorted(staging.iterdir(), key=lambda path: path.suffix == ".safetensors")
    for path in written:
        path.replace(folder / path.name)
    staging.rmdir()
    # safetensors makes its file readable by the owner alone, which a packaged model must not be.
    (folder / "model.safetensors").chmod(0o644)
    return (folder / "model.safetensors").stat().st_size


def write_history(folder: Path, record: dict[str, Any]) -> None:
    """Write `training.json`: settings, data, scores and the loss history of a run."""
    write_atomically(folder / "training.json", json.dumps(record, indent=1) + "\n")
