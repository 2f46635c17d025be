"""A training forward pass of a Llama model over its own parameters, with per-sample layer dropout.

The Hugging Face layers do the same arithmetic. Here the norm has a short backward pass, and weights are cast
to the compute dtype once a step while the master weights stay in fp32.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class _RMSNorm(torch.autograd.Function):
    """x / rms(x) * weight with an explicit gradient: two passes over memory instead of nine."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """`x` [..., D], `weight` [D]."""
        mean_square = torch.linalg.vecdot(x, x).float() / x.shape[-1]
        inverse = torch.rsqrt(mean_square + epsilon).to(x.dtype).unsqueeze(-1)
        normal = x * inverse
        ctx.save_for_backward(normal, inverse, weight)
        return normal * weight

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> Any:
        """dx = (g - n * mean(g n)) / rms, with n the normalised x and g the gradient times the weight."""
        normal, inverse, weight = ctx.saved_tensors
        (gradient,) = outputs
        weight_gradient = (gradient * normal).flatten(0, -2).sum(0, dtype=torch.float32).to(weight.dtype)
        gradient = gradient * weight
        projection = (torch.linalg.vecdot(gradient, normal) / normal.shape[-1]).unsqueeze(-1)
        return (gradient - normal * projection) * inverse, weight_gradient, None


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Root-mean-square normalisation over the last dimension of `x` [..., D]."""
    result: Tensor = _RMSNorm.apply(x, weight, epsilon)
    return result


def rotary_tables(length: int, head_size: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin of the rotary angles, each [length, head_size / 2]."""
    frequencies = theta ** (-torch.arange(0, head_size, 2, dtype=torch.float32) / head_size)
    angles = torch.arange(length, dtype=torch.float32)[:, None] * frequencies
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class TrainingForward:
    """Runs `model` (a LlamaForCausalLM) layer by layer in `dtype`."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        self.model = model
        self.dtype = dtype
        self.config = model.config
        self.head_size = self.config.hidden_size // self.config.num_attention_heads
        self._tables: dict[int, tuple[Tensor, Tensor]] = {}

    def _rotary(self, length: int) -> tuple[Tensor, Tensor]:
        if length not in self._tables:
            theta = float(self.config.rope_parameters["rope_theta"])
            self._tables[length] = rotary_tables(length, self.head_size, theta, self.dtype)
        return self._tables[length]

    def _layer(self, layer: Any, x: Tensor) -> Tensor:
        """One decoder layer on `x` [B, T, D]: the change that it adds to x is included."""
        rows, length, _ = x.shape
        epsilon, dtype, attention, mlp = self.config.rms_norm_eps, self.dtype, layer.self_attn, layer.mlp
        cos, sin = self._rotary(length)
        normal = rms_norm(x, layer.input_layernorm.weight.to(dtype), epsilon)
        query, key, value = (
            F.linear(normal, projection.weight.to(dtype))
            .view(rows, length, -1, self.head_size)
            .transpose(1, 2)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        grouped = query.shape[1] != key.shape[1]
        mixed = F.scaled_dot_product_attention(
            _rotate(query, cos, sin), _rotate(key, cos, sin), value, is_causal=True, enable_gqa=grouped
        )
        x = x + F.linear(mixed.transpose(1, 2).reshape(rows, length, -1), attention.o_proj.weight.to(dtype))
        normal = rms_norm(x, layer.post_attention_layernorm.weight.to(dtype), epsilon)
        gate = F.silu(F.linear(normal, mlp.gate_proj.weight.to(dtype)))
        up = F.linear(normal, mlp.up_proj.weight.to(dtype))
        return x + F.linear(gate * up, mlp.down_proj.weight.to(dtype))

    def _layer_on_kept(self, layer: Any, x: Tensor, keep: Tensor) -> Tensor:
        """The layer on the rows that keep it; the others pass it by and cost nothing."""
        if bool(keep.all()):
            return self._layer(layer, x)
        if not bool(keep.any()):
            return x
        rows = keep.nonzero().squeeze(1)
        return x.index_copy(0, rows, self._layer(layer, x.index_select(0, rows)))

    def hiddens(self, tokens: Tensor, exits: Collection[int], keep: Tensor | None = None) -> list[Tensor]:
        """Normalised hidden states [B * T, D] after the layers in `exits`, shallow to deep.

        `tokens` [B, T]; `keep` [L, B] bool: which rows run which layer (None: all of them).
        """
        inner = self.model.model
        norm = inner.norm.weight.to(self.dtype)
        x = F.embedding(tokens, self.head())
        found = []
        for index, layer in enumerate(inner.layers):
            x = self._layer(layer, x) if keep is None else self._layer_on_kept(layer, x, keep[index])
            if index in exits:
                found.append(rms_norm(x, norm, self.config.rms_norm_eps).flatten(0, 1))
        return found

    def head(self) -> Tensor:
        """The LM head's weight [V, D], which is the embedding's too, in the compute dtype."""
        weight: Tensor = self.model.lm_head.weight
        return weight.to(self.dtype)
