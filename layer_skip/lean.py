"""A decoder layer of Llama's plan in nine launches or ten: norm, q/k/v, RoPE and cache, attention, out, MLP.

A layer that runs module by module takes about 45 launches; on a GPU each costs some 2 us, as much as reading
6 MB. The modules' own weights are read, roundings are those of the modules, and every row is computed alike
whatever stands beside it.
"""

from typing import Any, Protocol

from torch import Tensor, nn

from layer_skip.attention import Visible
from layer_skip.decoder import LayeredDecoder
from layer_skip.norms import LeanNorm, norm_of
from layer_skip.packed_linear import PackedLinear
from layer_skip.products import ForFew, added, gated, together
from selfspec_kernels.overlap import with_overlap
from selfspec_kernels.rope_store import rope_store
from selfspec_kernels.rope_store_reference import Projections
from selfspec_kernels.row_norm import row_norm
from selfspec_kernels.row_norm_reference import Norm
from selfspec_kernels.verify_attention import verify_attention
from selfspec_kernels.verify_attention_reference import HEAD_SIZES, Attention

_PROJECTIONS = ("q_proj", "k_proj", "v_proj")
_MODELS = "transformers.models."
"""Whose code it is that the kernels stand for."""


class Store(Protocol):
    """A cache that a layer writes to by itself."""

    def storage(self, layer_idx: int, heads: int, size: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values [B, heads, S, size] of a layer, and the slots [B, m] of the pass's tokens."""


class LeanLayer(nn.Module):
    """Takes the arguments of the layer that it stands for, with `Visible` in place of a mask.

    Args:
        layer: the model's own, or a shell of it with packed matrices.
        attention: the name of its attention.

    Raises:
        ValueError: the layer is built in another way; the message says what differs.
    """

    def __init__(self, layer: nn.Module, attention: str) -> None:
        super().__init__()
        own: Any = layer
        attend = getattr(own, attention)
        for module in (own, attend, own.mlp):
            _check_forward(module)
        self._heads, self._size = attend.q_proj.out_features, int(attend.head_dim)
        self._heads //= self._size
        self._kv_heads = attend.k_proj.out_features // self._size
        if self._size not in HEAD_SIZES:
            raise ValueError(f"heads of {self._size}")
        self._scaling, self._layer_idx = float(attend.scaling), int(attend.layer_idx)
        self._before, self._between = (
            _norm(own, name) for name in ("input_layernorm", "post_attention_layernorm")
        )
        self._query_norm, self._key_norm = _head_norm(attend, "q_norm"), _head_norm(attend, "k_norm")
        self._qkv = together([getattr(attend, name) for name in _PROJECTIONS])
        self._out = added(attend.o_proj)
        self._gated = gated(own.mlp.gate_proj, own.mlp.up_proj, own.mlp.act_fn)
        self._down = added(own.mlp.down_proj)
        self._multiplier = float(getattr(own, "residual_multiplier", 1.0))
        self._overlaps = isinstance(own.mlp.down_proj, PackedLinear)
        """Kernels of weights in 4 bits are short enough to gain by it."""
        self.is_exact = all(isinstance(p, ForFew) for p in (self._qkv, self._out, self._gated, self._down))
        """Whether up to MOST_ROWS rows are computed alike: not where a product is a module's own, as of an
        adapter."""

    def forward(
        self,
        hidden: Tensor,
        attention_mask: Visible,
        position_embeddings: tuple[Tensor, Tensor],
        past_key_values: Store,
        **unused: object,
    ) -> Tensor:
        """hidden [B, m, D] -> [B, m, D]; K/V of its tokens go to the cache."""
        with with_overlap(self._overlaps):
            return self._forward(hidden, attention_mask, position_embeddings, past_key_values)

    def _forward(
        self, hidden: Tensor, seen: Visible, position_embeddings: tuple[Tensor, Tensor], cache: Store
    ) -> Tensor:
        qkv = self._qkv(row_norm(hidden, self._before))
        keys, values, slots = cache.storage(self._layer_idx, self._kv_heads, self._size, qkv)
        new = Projections(
            qkv,
            *position_embeddings,
            keys,
            values,
            slots,
            heads=self._heads,
            query_norm=None if self._query_norm is None else self._query_norm.weight,
            key_norm=None if self._key_norm is None else self._key_norm.weight,
            eps=1e-6 if self._query_norm is None else self._query_norm.eps,
        )
        query = rope_store(new)
        attended = verify_attention(
            Attention(query, keys, values, seen.lengths, self._scaling, window=seen.window)
        )
        hidden = self._out(attended.flatten(2), hidden, self._multiplier)
        return self._down(self._gated(row_norm(hidden, self._between)), hidden, self._multiplier)


class LeanHead(nn.Module):
    """An LM head whose rows are computed alike, however many there are."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.matrix = head
        self._product = together([head])
        self.is_exact = isinstance(self._product, ForFew)

    def forward(self, hidden: Tensor) -> Tensor:
        return self._product(hidden)


def lean(decoder: LayeredDecoder) -> tuple[LayeredDecoder, str]:
    """The decoder with lean layers, and why rows of a pass may still depend on each other.

    The latter is "" where up to MOST_ROWS of them do not. A decoder whose layers are built in another way
    keeps its own. A view in few bits becomes lean like the model itself.
    """
    if not decoder.family.lean:
        return decoder, f"layers of {decoder.family.model_type!r} run module by module"
    try:
        layers = [LeanLayer(layer, decoder.family.attention) for layer in decoder.layers]
    except (ValueError, AttributeError) as error:
        return decoder, f"layers run module by module: {error}"
    norm, head = norm_of(decoder.norm), LeanHead(decoder.head)
    exact = norm is not None and head.is_exact and all(layer.is_exact for layer in layers)
    note = "" if exact else "rows may be rounded by how many they are: some products are modules' own"
    return decoder.with_parts(layers, decoder.norm if norm is None else LeanNorm(norm), head), note


def _check_forward(module: nn.Module) -> None:
    """Somebody's own forward, on the module, in a class of theirs or put into its class, would be passed by.

    Raises:
        ValueError: there is one.
    """
    forward: Any = type(module).forward
    if "forward" in vars(module) or not forward.__module__.startswith(_MODELS):
        raise ValueError(f"{type(module).__name__} has a forward of its own")


def _norm(owner: Any, name: str) -> Norm:
    norm = norm_of(getattr(owner, name))
    if norm is None:
        raise ValueError(f"{name} is a norm that the kernels lack")
    return norm


def _head_norm(attention: Any, name: str) -> Norm | None:
    if not hasattr(attention, name):
        return None
    norm = _norm(attention, name)
    if norm.kind != "rms":
        raise ValueError(f"{name} is of kind {norm.kind!r}")
    return norm
