"""A large Llama from a small one, with the same text.

- Hidden states are tiled, [x, x, ...], whole vectors one after the other. A weight that reads n copies is
  divided by n, a power of two, which is exact. The mean square of [x, x, ...] is that of x, so RMSNorm stays.
- The head reads copies too. Dividing the last norm's weight instead of the head's leaves it tied.
- Attention heads and neurons are repeated in whole blocks (see `tiling`).
- More layers: real ones spread evenly, between them copies whose output projections are zero.
- More vocabulary: rows whose logits are far below the others. Unlike all the rest this is not exact for every
  text: see `quiet_row`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tiling import Shape, check_shape, tilings
from torch import Tensor

Advance = Callable[[str, int], None]
_REFERENCE_LAYERS = 16
_MOST_EXTRA_PROBABILITY = 1e-3
# Every weight of a layer with the dimensions that it writes and reads; a norm has one only.
_LAYER = {
    "input_layernorm": ("hidden", ""),
    "self_attn.q_proj": ("query", "hidden"),
    "self_attn.k_proj": ("key", "hidden"),
    "self_attn.v_proj": ("key", "hidden"),
    "self_attn.o_proj": ("hidden", "query"),
    "post_attention_layernorm": ("hidden", ""),
    "mlp.gate_proj": ("neurons", "hidden"),
    "mlp.up_proj": ("neurons", "hidden"),
    "mlp.down_proj": ("hidden", "neurons"),
}
_OUTPUTS = ("self_attn.o_proj", "mlp.down_proj")


def exit_layer_of(shape: Shape, source_exit: int, source_layers: int = _REFERENCE_LAYERS) -> int:
    """The exit layer of the inflated model that computes what `source_exit` of the small one does.

    It is at the same share of the depth: zero-update layers after the last real one are counted in.
    """
    return source_exit * shape.layers // source_layers


@torch.no_grad()
def inflate(
    model: Any,
    shape: Shape,
    texts: Sequence[Sequence[int]] | None = None,
    advance: Advance = lambda name, total: None,
) -> Any:
    """A LlamaForCausalLM of the given shape with the text of `model`, in its dtype and on its device.

    Args:
        model: the source, a LlamaForCausalLM without biases; it stays as it was.
        shape: what to reach.
        texts: token ids that extra vocabulary is kept silent on; default pseudo-random ones.
        advance: called before each layer with its name and the number of layers.

    Raises:
        ShapeError: the shape cannot be reached with the function kept.
        ValueError: not such a model, or no row is silent enough for the extra vocabulary.
    """
    config = model.config
    _check_source(model)
    check_shape(config, shape)
    grown = tilings(config, shape, model.device)
    weights = model.state_dict()
    state: dict[str, Tensor] = {}
    depth = config.num_hidden_layers
    for layer in range(shape.layers):
        advance(f"layer {layer}", shape.layers)
        # The last real layer up to this one: real layer i stands at `exit_layer_of` i, before its copies
        source = max(i for i in range(depth) if exit_layer_of(shape, i, depth) <= layer)
        real = exit_layer_of(shape, source, depth) == layer
        for name, (rows, columns) in _LAYER.items():
            small = weights[f"model.layers.{source}.{name}.weight"]
            large = grown[rows].grow(small, grown.get(columns))
            silent = not real and name in _OUTPUTS
            state[f"model.layers.{layer}.{name}.weight"] = large.zero_() if silent else large
    hidden = grown["hidden"]
    repeats = shape.hidden // config.hidden_size
    state["model.norm.weight"] = weights["model.norm.weight"][hidden.source] / repeats
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name == "lm_head.weight" and config.tie_word_embeddings:
            state[name] = state["model.embed_tokens.weight"]
            continue
        small, extra = weights[name], (shape.vocabulary or config.vocab_size) - config.vocab_size
        if extra:
            row = quiet_row(model, extra, texts).to(small)
            small = torch.cat([small, row.expand(extra, -1)])
        state[name] = small.repeat(1, repeats)
    return _assembled(model, shape, state)


def _check_source(model: Any) -> None:
    config = model.config
    if config.model_type != "llama":
        raise ValueError(f"a model of type {config.model_type!r}: only Llama checkpoints can be inflated")
    if config.attention_bias or config.mlp_bias:
        raise ValueError("a Llama with biases cannot be inflated; choose a checkpoint without")
    if model.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"{model.dtype}: dividing would lose small weights; load it in bfloat16 or float32")


def quiet_row(model: Any, count: int, texts: Sequence[Sequence[int]] | None = None) -> Tensor:
    """A row [D] for `count` extra tokens that are not chosen: its logit is far below the others on the texts.

    The row of an unlikely token is not enough: in the reference model the best is 9.7 below the largest logit
    at the least, and 124,000 copies weigh as much as one token 11.7 higher. So the row is fitted: least
    squares to a logit of -1 everywhere, then times the power of two that leaves the copies the least
    probability on every other text, which the fit did not see.

    Raises:
        ValueError: at temperature 1 the copies would be drawn more often than once in a thousand tokens.
    """
    if texts is None:
        generator = torch.Generator().manual_seed(0)
        texts = torch.randint(model.config.vocab_size, (64, 64), generator=generator).tolist()
    states = [model.model(torch.tensor([text], device=model.device)).last_hidden_state[0] for text in texts]
    head = model.lm_head.weight.float()
    held, seen = torch.cat(states[::2]).float(), torch.cat(states[1::2] or states).float()
    square = seen.T @ seen
    square += 1e-3 * square.diagonal().mean() * torch.eye(len(square), device=square.device)
    row = -torch.linalg.solve(square, seen.sum(dim=0))
    total = (held @ head.T).logsumexp(dim=-1)
    shares = {
        scale: (math.log(count) + scale * (held @ row) - total).sigmoid().mean().item()
        for scale in (2.0**power for power in range(8))
    }
    scale = min(shares, key=lambda choice: shares[choice])
    if shares[scale] > _MOST_EXTRA_PROBABILITY:
        raise ValueError(
            f"vocabulary: {count} extra tokens would be drawn with probability {shares[scale]:.1g} on "
            f"average, more than {_MOST_EXTRA_PROBABILITY:g}; choose a smaller one, or the source's"
        )
    return row * scale


def _assembled(model: Any, shape: Shape, state: dict[str, Tensor]) -> Any:
    """The model around the weights; nothing is initialised first, so the peak is the weights themselves."""
    from transformers import LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = copy.deepcopy(model.config)
    config.num_hidden_layers, config.hidden_size = shape.layers, shape.hidden
    config.num_attention_heads, config.num_key_value_heads = shape.heads, shape.kv_heads
    config.intermediate_size = shape.intermediate
    config.vocab_size = shape.vocabulary or config.vocab_size
    config.dtype = model.dtype
    with torch.device("meta"):
        large = LlamaForCausalLM(config)
    # Its buffers are no part of the state: made again where the weights are.
    large.model.rotary_emb = LlamaRotaryEmbedding(config).to(model.device)
    large.load_state_dict(state, assign=True)
    large.tie_weights()
    large.generation_config = copy.deepcopy(model.generation_config)
    return large.eval()
