"""The model side of selfspec: what early exit needs to know of a model."""

from pathlib import Path

REFERENCE_MODEL = Path(__file__).parent / "reference_model"
"""Folder of the bundled checkpoint; `AutoModelForCausalLM.from_pretrained(REFERENCE_MODEL)` loads it."""

__all__ = ["REFERENCE_MODEL"]
