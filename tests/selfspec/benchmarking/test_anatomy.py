"""What `selfspec inspect` says of a model."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_model

from selfspec.benchmarking.anatomy import dissect


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt_bigcode", "deepseek_v3"])
def test_a_tokens_keys_and_values_are_what_the_model_itself_keeps(family: str) -> None:
    model = tiny_model(family)
    with torch.no_grad():
        own = model(torch.tensor([[1]]), use_cache=True).past_key_values
    kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in own.layers)
    assert dissect(model, [[1, 2, 3]]).cache_bytes_per_token == kept
