"""The one KV cache: preallocated, shared by draft and verification, rolled back by a length per row."""

import torch
from torch import Tensor

from layer_skip.decoder import LayeredDecoder
from layer_skip.span import Span


class KVCache:
    """Keys and values of every layer, [B, Hkv, capacity, Dh] each, allocated when a layer first writes.

    A committed token's slot is its position in its own row (rows are kept without padding). Slots past a
    row's committed length are scratch: drafted tokens write there, and what is not accepted is overwritten.
    So rollback is a smaller length, kept by the engine; only an accepted branch of a tree is ever copied.

    Args:
        rows: B.
        n_layers: L.
        capacity: slots to begin with; grows by doubling.
    """

    def __init__(self, rows: int, n_layers: int, capacity: int) -> None:
        self.rows = rows
        self.capacity = capacity
        self.keys: list[Tensor | None] = [None] * n_layers
        self.values: list[Tensor | None] = [None] * n_layers

    def reserve(self, slots: int) -> None:
        """Make room for at least `slots` slots per row."""
        if slots <= self.capacity:
            return
        self.capacity = max(slots, 2 * self.capacity)
        self.keys = [self._grown(tensor) for tensor in self.keys]
        self.values = [self._grown(tensor) for tensor in self.values]

    @torch.inference_mode()
    def clear(self) -> None:
        """Forget all that was stored, slots past the committed ones too."""
        for tensor in (*self.keys, *self.values):
            if tensor is not None:
                tensor.zero_()

    def keep(self, rows: Tensor) -> None:
        """Keep only `rows` (indices, [B'] int64), in that order: a finished row costs nothing more."""
        self.rows = len(rows)
        self.keys = [None if tensor is None else tensor[rows] for tensor in self.keys]
        self.values = [None if tensor is None else tensor[rows] for tensor in self.values]

    def gather(self, starts: Tensor, columns: Tensor) -> None:
        """Bring an accepted path together: slots start + columns move to start, start + 1, ... in all layers.

        Args:
            starts: [B], the slot of each row's last committed token.
            columns: [B, d], where in the round the tokens of the path stand.
        """
        sources = (starts[:, None] + columns)[:, None, :, None]
        targets = (starts[:, None] + torch.arange(columns.shape[1], device=starts.device))[:, None, :, None]
        for tensor in (*self.keys, *self.values):
            if tensor is not None:
                shape = (-1, tensor.shape[1], -1, tensor.shape[3])
                tensor.scatter_(2, targets.expand(shape), tensor.gather(2, sources.expand(shape)))

    def window(self, span: Span, rows: slice | None = None) -> "CacheWindow":
        """A view for one pass: writes to the span's slots, reads its first `key_length` slots."""
        return CacheWindow(self, span, rows)

    def layer(self, index: int, like_key: Tensor, like_value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, allocated in the shape and dtype of its first K/V."""
        key, value = self.keys[index], self.values[index]
        if key is None or value is None:
            # Zeros, not empty memory: masked slots are multiplied by a weight of 0, and 0 * NaN is NaN.
            key = self.keys[index] = self._allocate(like_key)
            value = self.values[index] = self._allocate(like_value)
        return key, value

    def _allocate(self, like: Tensor) -> Tensor:
        return like.new_zeros(self.rows, like.shape[1], self.capacity, like.shape[3])

    def _grown(self, old: Tensor | None) -> Tensor | None:
        if old is None:
            return None
        new = self._allocate(old)
        new[:, :, : old.shape[2]] = old
        return new


class CacheWindow:
    """What a decoder layer sees as its cache during one pass (the `update` of Hugging Face's Cache)."""

    def __init__(self, cache: KVCache, span: Span, rows: slice | None) -> None:
        self._cache = cache
        self._span = span
        self._rows = rows

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: object) -> tuple[Tensor, Tensor]:
        """Store key, value [B, Hkv, m, Dh]; return the layer's first S slots [B, Hkv, S, Dh]."""
        keys, values = self._cache.layer(layer_idx, key, value)
        if self._rows is not None:
            keys, values = keys[self._rows], values[self._rows]
        start, length = self._span.start, self._span.key_length
        if start is not None:
            keys[:, :, start : start + key.shape[2]] = key
            values[:, :, start : start + key.shape[2]] = value
        else:
            slots = self._span.slots[:, None, :, None]
            keys.scatter_(2, slots.expand_as(key), key)
            values.scatter_(2, slots.expand_as(value), value)
        return keys[:, :, :length], values[:, :, :length]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens before this pass, 0 where rows differ: for attention code that asks (MPT, Llama 4)."""
        return self._span.start or 0


@torch.inference_mode()
def allocated_cache(decoder: LayeredDecoder, rows: int, capacity: int) -> KVCache:
    """A cache in which every layer has its K/V: it runs on one token a row, to see what it stores."""
    cache = KVCache(rows, decoder.n_layers, capacity)
    positions = torch.zeros(rows, 1, dtype=torch.int64, device=decoder.device)
    span = decoder.span(positions, capacity, 0)
    decoder.run(decoder.embed(positions, span), 0, decoder.n_layers, span, cache.window(span))
    return cache
