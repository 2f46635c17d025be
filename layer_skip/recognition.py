"""Which row describes a model: its family's own, or one made up from its structure."""

import inspect
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

from torch import nn

from layer_skip.families import FAMILIES, Family, UnsupportedModelError
from layer_skip.refusals import reason_against

_BASES = ("model", "transformer", "model.decoder", "backbone", "decoder")
_EMBEDS = ("embed_tokens", "wte", "embed_in", "word_embeddings", "tok_embeddings", "embeddings")
_LAYERS = ("layers", "h", "blocks", "block")
_NORMS = ("norm", "ln_f", "final_layernorm", "final_layer_norm", "norm_f", "layer_norm")
_ATTENTIONS = ("self_attn", "attn", "attention", "self_attention")
_ROTARIES = ("rotary_emb", "rotary")
_POSITIONS = ("wpe", "embed_positions", "position_embeddings")
_CACHES = ("past_key_values", "layer_past", "past_key_value")


def family_of(model: nn.Module) -> Family:
    """The row of `model`'s family; for an unknown family one by structure, which only a check can confirm.

    Raises:
        UnsupportedModelError: the model cannot roll back, or a part is not found; the message says why.
    """
    reason = reason_against(model)
    if reason is not None:
        raise UnsupportedModelError(f"{type(model).__name__} {reason}")
    config: Any = model.config
    return FAMILIES.get(config.model_type) or _by_structure(model)


def is_guessed(family: Family) -> bool:
    """Whether the row was made up from a model's structure."""
    return FAMILIES.get(family.model_type) is not family


def _by_structure(model: Any) -> Family:
    """A row of common names, as far as they are found in `model`."""
    prefix = getattr(model, "base_model_prefix", "") or "model"
    base_name = _found(model, (*_BASES, prefix), "base model", model, _has_layers)
    base = attrgetter(base_name)(model)
    layers = _found(base, _LAYERS, "list of layers", model)
    layer = next(iter(getattr(base, layers)))
    attention = _found(layer, _ATTENTIONS, "attention in its layers", model)
    rotary = next((name for name in _ROTARIES if hasattr(base, name)), None)
    asked = inspect.signature(type(layer).forward).parameters
    return Family(
        model.config.model_type,
        base=base_name,
        embed=_found(base, _EMBEDS, "token embedding", model),
        layers=layers,
        norm=_found(base, _NORMS, "final norm", model),
        attention=attention,
        own_attention=not hasattr(getattr(layer, attention), "config"),
        position_table=hasattr(getattr(layer, attention), "embed_positions"),
        rotary=rotary,
        rotary_by_layer_type=rotary is not None
        and "layer_type" in inspect.signature(getattr(base, rotary).forward).parameters,
        position_embedding=next((name for name in _POSITIONS if hasattr(base, name)), None),
        position_argument="position_ids" if _takes(asked, "position_ids") else None,
        cache_argument=next((name for name in _CACHES if name in asked), _CACHES[0]),
        # These fields mean the same wherever they occur.
        embed_multiplier_field="embedding_multiplier",
        logit_multiplier_field="logit_scale",
        logit_divisor_field="logits_scaling",
        logit_softcap_field="final_logit_softcapping",
    )


def _takes(parameters: Any, name: str) -> bool:
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _has_layers(part: nn.Module) -> bool:
    return any(hasattr(part, name) for name in _LAYERS)


def _found(
    owner: Any,
    names: Sequence[str],
    what: str,
    model: Any,
    fits: Callable[[nn.Module], bool] = lambda part: True,
) -> str:
    """The first of `names` under which `owner` has a module that fits."""
    for name in names:
        part = owner
        for step in name.split("."):
            part = getattr(part, step, None)
        if isinstance(part, nn.Module) and fits(part):
            return name
    raise UnsupportedModelError(
        f"no row for model_type={model.config.model_type!r} in layer_skip/families.py, and "
        f"{type(model).__name__} has no {what} under a common name ({', '.join(names)})"
    )
