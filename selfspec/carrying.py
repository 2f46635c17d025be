"""Keys and values between the engine's cache and Hugging Face's, where rows are padded on the left."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from layer_skip.decoder import LayeredDecoder
from selfspec.cache import KVCache
from selfspec.fallback import NotSpeculatedError

_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer)


def check_cache(cache: Any, decoder: LayeredDecoder, rows: int) -> None:
    """Raise NotSpeculatedError for a caller's cache that cannot be read here and added to."""
    if type(cache) is not DynamicCache or getattr(cache, "offloading", False):
        raise NotSpeculatedError("past_key_values", f"in a {type(cache).__name__}")
    layers = cache.layers
    if any(type(layer) not in _LAYERS or getattr(layer, "record_past", False) for layer in layers):
        raise NotSpeculatedError("past_key_values", "with layers that are not read here")
    length = cache.get_seq_length()
    if not length:
        return
    if len(layers) != decoder.n_layers or any(layer.get_seq_length() != length for layer in layers):
        raise NotSpeculatedError("past_key_values", f"does not hold the model's {decoder.n_layers} layers")
    for layer in layers:
        same = layer.keys.dtype == decoder.dtype and layer.keys.device == decoder.device
        if not same or len(layer.keys) != rows:
            found = f"{len(layer.keys)} rows in {layer.keys.dtype} on {layer.keys.device}"
            raise NotSpeculatedError("past_key_values", f"holds {found}, the call has {rows}")


def load(cache: DynamicCache, into: KVCache, pads: Sequence[int], known: int) -> None:
    """Copy a caller's K/V of the first `known` columns to the slots of each row.

    A sliding layer holds its last tokens only, which are all that later ones see.
    """
    into.reserve(known)
    for index, layer in enumerate(cache.layers):
        into.keys[index] = _slots(layer.keys, into.capacity, pads, known)
        into.values[index] = _slots(layer.values, into.capacity, pads, known)


def add(cache: DynamicCache, source: KVCache, pads: Sequence[int], known: int, columns: int) -> None:
    """Append columns [known, columns) to a cache in Hugging Face's form, as the model itself would have."""
    for index, (keys, values) in enumerate(zip(source.keys, source.values, strict=True)):
        if keys is not None and values is not None:
            new = (_columns(stored, pads, known, columns) for stored in (keys, values))
            cache.update(*new, index)


def _slots(held: Tensor, capacity: int, pads: Sequence[int], known: int) -> Tensor:
    """Columns [known - n, known) in `held` [B, Hkv, n, Dh] by row and slot: [B, Hkv, capacity, Dh]."""
    out = held.new_zeros(held.shape[0], held.shape[1], capacity, held.shape[3])
    first = known - held.shape[2]
    for row, pad in enumerate(pads):
        begin = max(first, pad)
        if begin < known:
            out[row, :, begin - pad : known - pad] = held[row, :, begin - first :]
    return out


def _columns(stored: Tensor, pads: Sequence[int], first: int, last: int) -> Tensor:
    """Columns [first, last) of `stored` [B, Hkv, S, Dh] in the padded layout, zeros for padding."""
    out = stored.new_zeros(stored.shape[0], stored.shape[1], last - first, stored.shape[3])
    for row, pad in enumerate(pads):
        begin = max(first, pad)
        out[row, :, begin - first :] = stored[row, :, begin - pad : last - pad]
    return out
