"""The conditions of a measurement: hardware, versions, threads. Nothing that names a person or a machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("selfspec", "torch", "transformers", "triton")


def conditions(model: Any) -> dict[str, Any]:
    """Hardware, versions, threads, dtype and size of the model, ready for JSON."""
    device = next(model.parameters()).device
    return {
        "hardware": hardware(device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": versions(),
        "device": device.type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "model_type": model.config.model_type,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def hardware(device: torch.device) -> str:
    """The accelerator's name; or the processor's and its vector instructions, which speed follows more."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor_name(Path('/proc/cpuinfo'))} ({vector_instructions()})"


def vector_instructions() -> str:
    """The widest that PyTorch uses, and whether there are some for bf16: AVX512, bf16."""
    in_bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
    return torch.backends.cpu.get_cpu_capability() + (", bf16" if in_bf16 else "")


def processor_name(cpuinfo: Path) -> str:
    """The processor's name as Linux tells it, or what Python knows elsewhere."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name") and ":" in line]
    return names[0] if names else platform.processor() or platform.machine()


def named_versions(found: Mapping[str, str]) -> str:
    """Versions as a page names them: selfspec 0.1.0, torch 2.13.0."""
    return ", ".join(f"{name} {version}" for name, version in found.items())


def versions() -> dict[str, str]:
    """Installed versions of the packages that a speed depends on."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
