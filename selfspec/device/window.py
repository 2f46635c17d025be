"""What a layer sees as its cache during a pass whose place is known to the device alone."""

from torch import Tensor

from layer_skip.span import Span
from selfspec.cache import KVCache


class DeviceWindow:
    """Writes to the slots that a span says, reads all of the cache: `Visible` says what of it counts."""

    def __init__(self, cache: KVCache, span: Span) -> None:
        self._cache = cache
        self._slots = span.slots

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: object) -> tuple[Tensor, Tensor]:
        """Store key, value [B, Hkv, m, Dh]; return all slots of the layer [B, Hkv, S, Dh]."""
        keys, values = self._cache.layer(layer_idx, key, value)
        slots = self._slots[:, None, :, None]
        keys.scatter_(2, slots.expand_as(key), key)
        values.scatter_(2, slots.expand_as(value), value)
        return keys, values

    def storage(self, layer_idx: int, heads: int, size: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values [B, heads, S, size] of a layer, and the slots [B, m] of the pass's tokens."""
        like = like.view(-1)[: heads * size].view(1, heads, 1, size)
        return *self._cache.layer(layer_idx, like, like), self._slots
