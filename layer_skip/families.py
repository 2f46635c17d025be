"""A table of model families: where each one keeps what early exit needs. A family is a row, not a class."""

from dataclasses import dataclass
from typing import Any

from torch import nn


class UnsupportedModelError(ValueError):
    """The model cannot be taken apart into embed, layers and head; the message says why."""


@dataclass(frozen=True)
class Family:
    """Names of the parts of one model family, as attribute paths from the model or from its base."""

    model_type: str
    base: str = "model"
    embed: str = "embed_tokens"
    layers: str = "layers"
    norm: str = "norm"
    attention: str = "self_attn"
    rotary: str | None = "rotary_emb"
    position_embedding: str | None = None
    """Learned absolute positions, added to the token embeddings."""
    position_offset: int = 0
    """OPT keeps two spare rows in front of its position table."""
    cache_argument: str = "past_key_values"
    """The decoder layer's own name for the cache."""
    logit_softcap: str | None = None
    """Name of the config field c of c * tanh(logits / c), where the family caps its logits."""


_ROWS = (
    Family("llama"),
    Family("mistral"),
    Family("qwen2"),
    Family("qwen3"),
    Family("phi3"),
    Family("gemma2", logit_softcap="final_logit_softcapping"),
    Family(
        "gpt2",
        base="transformer",
        embed="wte",
        layers="h",
        norm="ln_f",
        attention="attn",
        rotary=None,
        position_embedding="wpe",
    ),
    Family(
        "gpt_neox",
        base="gpt_neox",
        embed="embed_in",
        norm="final_layer_norm",
        attention="attention",
        cache_argument="layer_past",
    ),
    Family(
        "opt",
        base="model.decoder",
        norm="final_layer_norm",
        rotary=None,
        position_embedding="embed_positions",
        position_offset=2,
    ),
)

FAMILIES: dict[str, Family] = {row.model_type: row for row in _ROWS}


def family_of(model: nn.Module) -> Family:
    """The row of `model`'s family.

    Raises:
        UnsupportedModelError: no config, an encoder-decoder, or a `model_type` without a row.
    """
    config: Any = getattr(model, "config", None)
    if config is None or not hasattr(config, "model_type"):
        raise UnsupportedModelError(
            f"{type(model).__name__} is not a Hugging Face model: it has no config.model_type"
        )
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{type(model).__name__} is an encoder-decoder; only decoder-only models exit early"
        )
    if config.model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise UnsupportedModelError(
            f"no row for model_type={config.model_type!r} in layer_skip/families.py; known: {known}"
        )
    return FAMILIES[config.model_type]
