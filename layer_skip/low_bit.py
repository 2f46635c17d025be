"""A low-bit view of layers [0, E) and the head: packed copies of the target's weights, for drafting only."""

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from layer_skip.adapters import kept_in, switches_of
from layer_skip.decoder import LayeredDecoder
from layer_skip.int8_product import int8_is_fastest
from layer_skip.onednn_linear import OneDNNLinear
from layer_skip.packed_linear import PackedLinear, packed_bytes
from layer_skip.slot_cache import SlotCache

FINE_GROUP, COARSE_GROUP = 32, 64
"""Inputs that share a scale. Attention and head gain most from fine groups, and hold the fewer weights. On a
GPU the layers' groups are all coarse: fine ones take a tenth more bytes and half as many instructions again,
and the draft step is to be cheap above all; its one head stays fine."""
_SMALL_HEAD = 1 / 6
"""A head with at most this share of the layers' weights is kept in 8 bits: it decides close calls between
tokens, and a third of what 4 bits get wrong comes from it (plain twin: 0.933 agreement for 0.901)."""
LEAST_FOR_INT8 = 3 << 19
"""Weights of a matrix from which on its product in whole numbers is faster than one with the weights alone in
few bits, where it is at all: it takes some 30 microseconds more and less than half as long a weight."""

_TRIED_SLOTS = 16
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What the packed products take."""

Advance = Callable[[str], None]
_SAMPLED = 8
"""Elements of a matrix that are looked at to see whether it is what it was."""
_Version = tuple[int, int, int]
"""Where a weight stands, how often it was written to, and which bias stands beside it."""
_Sample = tuple[int, ...]
"""The bits of those elements: by value NaN would not be equal to what it was."""


class NothingToViewError(ValueError):
    """The model has no weights that could be packed, or modules that read more of them than a product."""


class LowBitView:
    """Layers [0, E) and the head of a model with their matrices in few bits.

    Everything else (norms, embeddings, biases, adapters, modules that are no plain matrix) is shared with the
    model. Packed weights follow the model's: one that was changed or replaced is packed anew at the next use.
    PyTorch does not count what is written through `weight.data`, as merging an adapter does; that is seen if
    it reaches one of eight elements from corner to corner. So an edit of single rows may go unseen until the
    model is wrapped again.

    Args:
        decoder: the model.
        n_layers: E, from 1 to L.
        bits: 4 or 8; a head that is small beside the layers has 8 on a CPU either way. A view in 8 bits
            rounds the inputs of large matrices, too, where that is the fastest (`int8_is_fastest`).
        advance: told the name of each matrix before it is packed or taken over.
        head: whether to view the head too.
        begun: a view whose packed matrices are taken over where they are this one's too.
        dtype: of the products but those of whole numbers; None for what the device is fast in (bf16 on a CPU,
            elsewhere the weights').

    Raises:
        NothingToViewError: no matrix of these layers can be packed, or they do not run with packed ones.
    """

    def __init__(
        self,
        decoder: LayeredDecoder,
        n_layers: int,
        bits: int = 4,
        advance: Advance = lambda name: None,
        head: bool = True,
        begun: "LowBitView | None" = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if bits != 4 and decoder.device.type != "cpu":
            raise NothingToViewError(f"a view in {bits} bits is for CPUs; on a GPU there are 4")
        self.n_layers = n_layers
        self.bits = bits
        self._head, self._dtype = head, dtype
        self._packed: dict[int, tuple[weakref.ref[nn.Module], tuple[_Version, _Sample], PackedLinear]] = (
            {} if begun is None or begun._dtype != dtype else begun._packed
        )
        self._state: tuple[object, ...] = ()
        self._lock = threading.Lock()
        self._decoder = self._build(decoder, advance)
        if not self._packed:
            raise NothingToViewError(
                "no weight matrix of this model can be viewed in low bits: they are quantised already, or no "
                "plain matrices of floating-point numbers"
            )
        self._try()

    def of(self, decoder: LayeredDecoder) -> LayeredDecoder:
        """The view as a decoder of E layers; brought up to date if the model's weights have changed."""
        with self._lock:
            if _state_of(decoder, self.n_layers) != self._state:
                self._decoder = self._build(decoder, lambda name: None)
            return self._decoder

    @property
    def bytes(self) -> int:
        """Memory that the view adds."""
        return sum(packed.bytes for _, _, packed in self._packed.values())

    @property
    def kept(self) -> str:
        """The kinds of matrices that were left as they are, empty where there are none."""
        return self._kept

    @property
    def viewed_bytes(self) -> int:
        """Memory of the weights that it stands for."""
        modules: list[Any] = [reference() for reference, _, _ in self._packed.values()]
        return sum(m.weight.numel() * m.weight.element_size() for m in modules if m is not None)

    @torch.no_grad()
    def _try(self) -> None:
        """One token's pass: a module around a matrix may want more of it than its product."""
        decoder, cache = self._decoder, SlotCache(1, self.n_layers, _TRIED_SLOTS)
        tokens = torch.zeros(1, 1, dtype=torch.int64, device=decoder.device)
        span = decoder.span(tokens, _TRIED_SLOTS, 0)
        cache.open(span)
        try:
            decoder.logits(decoder.run(decoder.embed(tokens, span), 0, self.n_layers, span, cache))
        except torch.cuda.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, IndexError, KeyError, AttributeError) as error:
            raise NothingToViewError(
                f"the layers of this model do not run with weights in low bits ({error})"
            ) from error

    def _build(self, decoder: LayeredDecoder, advance: Advance) -> LayeredDecoder:
        # Before anything is packed: what is written meanwhile is another state.
        self._state = _state_of(decoder, self.n_layers)
        before, self._packed = self._packed, {}
        table = {}
        matrices = list(_matrices(decoder, self.n_layers, self.bits, self._head))
        samples = _samples([matrix.module for matrix in matrices])
        for (name, module, bits, group, rounds_inputs), sample in zip(matrices, samples, strict=True):
            advance(name)
            version = _version(module), sample
            old = before.get(id(module))
            # An id may be that of a module that is gone; the reference tells.
            if old is None or old[0]() is not module or old[1] != version or old[2].bits != bits:
                packed = PackedLinear(*_matrix(module), bits, group, self._dtype, rounds_inputs)
                old = (weakref.ref(module), version, packed)
            self._packed[id(module)] = old
            table[module] = old[2]
        others = {
            names.get(m, type(m).__name__)
            for layer in decoder.layers[: self.n_layers]
            for names in [kept_in(layer)]
            for m in layer.modules()
            if m not in table and any(p.dim() > 1 for p in m.parameters(recurse=False))
        }
        self._kept = ", ".join(sorted(others))
        self.padded = sum(bool(p.spare_inputs or p.spare_outputs) for _, _, p in self._packed.values())
        return decoder.with_modules(table, self.n_layers)


def fastest_bits(decoder: LayeredDecoder) -> int:
    """Bits of a view unless asked otherwise: 4, or 8 where matrices of that size are faster in those."""
    sizes = [_matrix(m.module)[0].numel() for m in _matrices(decoder, 1, 8, head=False)]
    return 8 if sizes and _is_for_int8(decoder.device, sum(sizes) / len(sizes)) else 4


def _is_for_int8(device: torch.device, size: float) -> bool:
    return device.type == "cpu" and int8_is_fastest() and size >= LEAST_FOR_INT8


def view_bytes(decoder: LayeredDecoder, n_layers: int, bits: int = 4) -> int:
    """Memory that a view would add."""
    matrices = _matrices(decoder, n_layers, bits)
    return sum(packed_bytes(_matrix(m.module)[0], m.bits, m.group, m.rounds_inputs) for m in matrices)


def layers_that_fit(decoder: LayeredDecoder, memory: int, bits: int = 4) -> int:
    """The most layers whose view, the head's included, adds at most `memory` bytes; 0 if none does."""
    fitting = [e for e in range(1, decoder.n_layers + 1) if view_bytes(decoder, e, bits) <= memory]
    return max(fitting, default=0)


def n_matrices(decoder: LayeredDecoder, n_layers: int) -> int:
    """How many matrices a view packs."""
    return sum(1 for _ in _matrices(decoder, n_layers, 4))


class _ToPack(NamedTuple):
    name: str
    module: nn.Module
    bits: int
    group: int
    rounds_inputs: bool


def _matrices(decoder: LayeredDecoder, n_layers: int, bits: int, head: bool = True) -> Iterator[_ToPack]:
    """What can be packed, and how."""

    def rounds_inputs(size: int) -> bool:
        return bits == 8 and _is_for_int8(decoder.device, size)

    weights = 0
    attention_group = FINE_GROUP if decoder.device.type == "cpu" else COARSE_GROUP
    for index, layer in enumerate(decoder.layers[:n_layers]):
        attention = set(getattr(layer, decoder.family.attention).modules())
        kept = kept_in(layer)
        for name, module in layer.named_modules():
            if _is_plain(module) and module not in kept:
                group = attention_group if module in attention else COARSE_GROUP
                size = _matrix(module)[0].numel()
                weights += size
                yield _ToPack(f"layer {index}: {name}", module, bits, group, rounds_inputs(size))
    if head and _is_plain(decoder.head):
        size = _matrix(decoder.head)[0].numel()
        finely = size <= _SMALL_HEAD * weights and decoder.device.type == "cpu"
        yield _ToPack("head", decoder.head, 8 if finely else bits, FINE_GROUP, rounds_inputs(size))


def _is_plain(module: nn.Module) -> bool:
    """Whether a module is x W^T + b with an ordinary W; a subclass may compute something else."""
    if type(module) not in (nn.Linear, OneDNNLinear, Conv1D):
        return False
    weight: Any = module.weight
    plain = type(weight) in (nn.Parameter, Tensor) and weight.dtype in _DTYPES
    return plain and weight.device.type in ("cpu", "cuda")


def _matrix(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight [N, K] and bias [N]."""
    matrix: Any = module
    weight = matrix.weight.detach()
    return (weight.t() if isinstance(module, Conv1D) else weight), matrix.bias


def _version(module: nn.Module) -> _Version:
    weight: Any = module.weight
    # Tensors made under inference mode count no versions, nor can they be changed outside of it.
    # A bias is shared: what is written to it is seen as it is, another one in its place is not.
    bias = module._parameters.get("bias")
    return weight.data_ptr(), -1 if weight.is_inference() else weight._version, id(bias)


@torch.no_grad()
def _samples(modules: Sequence[nn.Module]) -> list[_Sample]:
    """Of each plain matrix, the bits of a few elements; one copy from a device for all of a dtype."""
    alike: dict[tuple[torch.device, torch.dtype], dict[int, Tensor]] = {}
    for place, module in enumerate(modules):
        weight: Any = module.weight
        (rows, columns), (down, right) = weight.shape, weight.stride()
        step = rows // _SAMPLED * down + columns // _SAMPLED * right
        few = weight.as_strided((_SAMPLED,), (step,), weight.storage_offset())
        alike.setdefault((weight.device, weight.dtype), {})[place] = few
    found: dict[int, _Sample] = {}
    for (_, dtype), own in alike.items():
        bits = torch.stack([*own.values()]).view(torch.int32 if dtype.itemsize == 4 else torch.int16)
        found |= zip(own, map(tuple, bits.tolist()), strict=True)
    return [found[place] for place in range(len(modules))]


def _state_of(decoder: LayeredDecoder, n_layers: int) -> tuple[object, ...]:
    """Changes when a viewed module is replaced, its weight written to or its adapter switched."""
    inside = [module for layer in decoder.layers[:n_layers] for module in layer.modules()]
    modules = [*(module for module in inside if not module._modules), decoder.head]
    versions = [
        (id(module), *(_version(module) if module._parameters.get("weight") is not None else ()))
        for module in modules
    ]
    samples = _samples([module for module in modules if _is_plain(module)])
    return (*versions, *map(switches_of, inside), *samples)
