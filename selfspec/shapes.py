"""Shapes whose rows do not depend on the shape, found by trying.

A matrix product over one row and one over several may differ in the last bit, and so may attention over
keys of another length; in bf16 that flips a token now and then. The engine therefore pads its passes to
shapes that a probe found to give bit-equal rows, and the text is the same for every draft setting. Where a
model computes something that the probe does not look at, that is said, not claimed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from layer_skip.attention import attend
from layer_skip.decoder import LayeredDecoder
from layer_skip.onednn_linear import OneDNNLinear, onednn_product

_ALL_ROWS = 32
"""Up to this many rows every count is probed, beyond it a few."""
_ROW_COUNTS = (*range(1, _ALL_ROWS + 1), 48, 64)
_WIDTHS = range(1, 17)
_QUANTA = (64, 128, 256, 512)
_PROBED_COLUMNS = 4096
_NO_SHAPES = "this machine offers no shapes with bit-equal rows"


@dataclass(frozen=True)
class ShapePlan:
    """How far a pass is padded: query tokens per row, and keys."""

    bad_widths: frozenset[int] = frozenset()
    """Query widths at which attention rounds differently."""
    bad_rows: frozenset[int] = frozenset()
    """Row counts B*m at which a matrix product rounds differently."""
    key_quantum: int = 64
    """Key lengths are multiples of this."""
    doubt: str = _NO_SHAPES
    """Why rows may not be bit-equal at these shapes; empty where they were found to be."""

    @property
    def exact(self) -> bool:
        """Whether all that decides a token was found to be bit-equal at these shapes."""
        return not self.doubt

    def width(self, rows: int, width: int) -> int:
        """The least width >= `width` that is safe for `rows` rows."""
        while width in self.bad_widths or rows * width in self.bad_rows:
            width += 1
        return width

    def key_length(self, slots: int) -> int:
        """`slots` rounded up to the quantum."""
        return -(-slots // self.key_quantum) * self.key_quantum


_Product = tuple[Callable[..., Tensor], tuple[int, int], bool, bool, torch.dtype, torch.device]
"""A product, the shape [outputs, inputs] of its matrix, whether that is kept transposed, whether it is
probed with a bias, dtype and device."""
FASTEST = ShapePlan()
_UNPADDED = ShapePlan(doubt="")
_plans: WeakKeyDictionary[LayeredDecoder, ShapePlan] = WeakKeyDictionary()


def describe(shapes: ShapePlan, deterministic: bool) -> str:
    """Whether rounding can change the text under these shapes, in words."""
    if not deterministic:
        return "not deterministic: rounding may flip a near-tie when settings change"
    if shapes.doubt:
        return f"{shapes.doubt}: rounding may flip a near-tie"
    width = shapes.width(1, 1)
    least = f"at least {width} query tokens, " if width > 1 else ""
    return f"bit-equal rows: {least}keys in multiples of {shapes.key_quantum}"


def padding_on_device(doubt: str, shapes: Callable[[], ShapePlan]) -> ShapePlan:
    """How far passes on the device alone are padded: lean layers round every row alike at any width.

    Args:
        doubt: why rows may depend on each other, as `layer_skip.lean.lean` says it; "" where they do not.
        shapes: for where they may; not asked for, and so not probed, elsewhere.
    """
    return shapes() if doubt else _UNPADDED


def probe(decoder: LayeredDecoder) -> ShapePlan:
    """The smallest shapes at which this model's products and attention give bit-equal rows."""
    plan = _plans.get(decoder)
    if plan is None:
        plan = _plans[decoder] = _probe(decoder)
    return plan


def forget_probes() -> None:
    """Probe again where next asked: for benchmarks of what probing takes."""
    _plans.clear()
    _probe_product.cache_clear()
    _probe_attention.cache_clear()


def _probe(decoder: LayeredDecoder) -> ShapePlan:
    config, threads = decoder.config, torch.get_num_threads()
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    groups = heads // (getattr(config, "num_key_value_heads", None) or heads)
    bad_widths, key_quantum = _probe_attention(head_size, groups, decoder.dtype, decoder.device, threads)
    unprobed = _unprobed_attention(decoder)
    products: set[_Product] = set()
    for module in decoder.products():
        reason = _unprobed_product(module)
        if reason:
            unprobed.add(reason)
        else:
            products.add(_product(module))
    bad_rows = frozenset().union(*(_probe_product(*product, threads) for product in products))
    settled = max(bad_widths, default=0) < max(_WIDTHS) and max(bad_rows, default=0) < _ALL_ROWS
    if key_quantum is None or not settled:
        return FASTEST
    doubt = f"not probed are {', '.join(sorted(unprobed))}" if unprobed else ""
    return ShapePlan(bad_widths, bad_rows, key_quantum, doubt)


def _unprobed_attention(decoder: LayeredDecoder) -> set[str]:
    """What of the attention is not probed, in words."""
    config, attention = decoder.config, getattr(decoder.layers[0], decoder.family.attention)
    found = {
        "attention code of the model's own": decoder.family.own_attention,
        "soft caps on attention scores": bool(getattr(config, "attn_logit_softcapping", None)),
        "attention sinks": hasattr(attention, "sinks"),
        "latent keys and values": bool(getattr(config, "kv_lora_rank", None)),
    }
    return {reason for reason, there in found.items() if there}


def _unprobed_product(module: nn.Module) -> str:
    """Why the products of a module are not probed; empty where they are."""
    if any(p is not None and p.dim() > 2 for p in module._parameters.values()):
        return "experts, whose rows follow the routing"
    weight: Any = module._parameters.get("weight")
    if not isinstance(module, (nn.Linear, Conv1D)):
        return f"products of {type(module).__name__}"
    plain = type(weight) in (nn.Parameter, Tensor) and weight.is_floating_point() and weight.itemsize > 1
    return "" if plain else "quantised weights"


def _product(module: Any) -> _Product:
    weight = module.weight
    transposed = isinstance(module, Conv1D)  # GPT-2's keeps [in, out]
    outputs, inputs = reversed(weight.shape) if transposed else weight.shape
    product = onednn_product if isinstance(module, OneDNNLinear) else nn.functional.linear
    biased = weight.is_cuda and module.bias is not None  # there other code of the library adds it
    return product, (outputs, inputs), transposed, biased, weight.dtype, weight.device


@lru_cache(maxsize=256)
def _probe_product(
    product: Callable[..., Tensor],
    shape: tuple[int, int],
    transposed: bool,
    biased: bool,
    dtype: torch.dtype,
    device: torch.device,
    _threads: int,
) -> frozenset[int]:
    generator = torch.Generator().manual_seed(0)
    outputs, inputs = min(shape[0], _PROBED_COLUMNS), shape[1]
    weight = torch.randn(outputs, inputs, generator=generator, device="cpu").to(device, dtype)
    weight = weight.t().contiguous().t() if transposed else weight
    x = torch.randn(max(_ROW_COUNTS), inputs, generator=generator, device="cpu").to(device, dtype)
    more = [weight[:, 0].clone()] if biased else []
    reference = product(x, weight, *more)
    return frozenset(n for n in _ROW_COUNTS if not torch.equal(product(x[:n], weight, *more), reference[:n]))


@lru_cache(maxsize=64)
def _probe_attention(
    head_size: int, groups: int, dtype: torch.dtype, device: torch.device, _threads: int
) -> tuple[frozenset[int], int | None]:
    """Query widths that differ from the widest, and the least safe key quantum (None if there is none)."""
    samples = list(_attention_samples(head_size, groups, dtype, device))
    # As short as they can be at the largest quantum: four times as long costs a second and tells no more.
    ample = [_ample_length(s[3]) for s in samples]
    wide = [_attend(*s, max(_WIDTHS), length) for s, length in zip(samples, ample, strict=True)]
    bad = frozenset(
        width
        for width in _WIDTHS
        if any(
            not torch.equal(_attend(*s, width, length), w[:, :width])
            for s, length, w in zip(samples, ample, wide, strict=True)
        )
    )
    wide = [_attend(*s, max(_WIDTHS), 2048) for s in samples]
    width = next((w for w in _WIDTHS if w >= 4 and w not in bad), max(_WIDTHS))
    for quantum in _QUANTA:
        lengths = [
            (s, w[:, :width], length)
            for s, w in zip(samples, wide, strict=True)
            for length in range(-(-(s[3] + max(_WIDTHS)) // quantum) * quantum, 1025, quantum)
        ]
        if all(torch.equal(_attend(*s, width, length), w) for s, w, length in lengths):
            return bad, quantum
    return bad, None


def _attention_samples(
    head_size: int, groups: int, dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[Tensor, Tensor, Tensor, int]]:
    """Random query, key, value and prefix length; 16 heads or more, since differences are rare in each."""
    kv_heads = max(16 // groups, 1)
    for seed, cached in enumerate((5, 40, 100, 180, 240, 300, 370, 440, 600, 700, 800, 900)):
        generator = torch.Generator().manual_seed(seed)
        shapes = ((kv_heads * groups, max(_WIDTHS)), (kv_heads, 2048), (kv_heads, 2048))
        query, key, value = (
            torch.randn(1, h, n, head_size, generator=generator, device="cpu").to(device, dtype)
            for h, n in shapes
        )
        yield 2 * query, key, value, cached


def _ample_length(cached: int) -> int:
    """Keys for the widest query after `cached` tokens, in the largest quantum."""
    return -(-(cached + max(_WIDTHS)) // max(_QUANTA)) * max(_QUANTA)


def _attend(query: Tensor, key: Tensor, value: Tensor, cached: int, width: int, length: int) -> Tensor:
    own = cached + torch.arange(width, device=query.device)[:, None]
    hidden_slots = torch.arange(length, device=query.device) > own
    mask = torch.zeros(1, 1, width, length, device=query.device, dtype=query.dtype)
    mask = mask.masked_fill(hidden_slots, torch.finfo(query.dtype).min)
    module = SimpleNamespace()
    return attend(module, query[:, :, :width], key[:, :, :length], value[:, :, :length], mask)[0]  # type: ignore[arg-type]
