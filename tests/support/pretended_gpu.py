"""A CUDA device that is not there: tensors without numbers, and launches that are noted.

What runs on it is checked for what a GPU would be asked to do, not for what it would answer: a value that the
host reads raises an error, copies between devices are counted, and every launch is kept with the arguments
that Triton compiles a variant of a kernel for.
"""

from __future__ import annotations

import ctypes
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

from layer_skip import exits, lean, low_bit, norms, packed_linear, products
from selfspec.device.waiting import crosses_devices
from selfspec_kernels import launching, narrow_product_launch
from selfspec_kernels.low_bit_product_reference import TILE_INPUTS, TILE_OUTPUTS
from selfspec_kernels.row_norm_reference import Norm

PROCESSORS = 132
SHARED_MEMORY = 232_448
_CUDA, _META = 1, 14
"""Their numbers among PyTorch's devices."""


@dataclass(frozen=True)
class Variant:
    """What a kernel is compiled for."""

    kernel: str
    key: str
    compile: Any = field(compare=False, repr=False)
    """Makes the compiled kernel."""


@dataclass
class PretendedGPU:
    """What was asked of the device."""

    model: Any
    """A model that is there."""
    variants: list[Variant] = field(default_factory=list)
    """Of all launches in their order."""
    copies: list[str] = field(default_factory=list)
    """From one device to another, and where in the code."""


@contextmanager
def pretended_gpu(model: Any, capability: int = 90) -> Iterator[PretendedGPU]:
    """In here `model` is on a GPU."""
    gpu, mode = PretendedGPU(model), FakeTensorMode()
    found = {id(module): _norm_of(module) for module in model.modules()}

    def norm_of(module: Any) -> Norm | None:
        if isinstance(module, norms.LeanNorm):
            return module.norm
        norm = found.get(id(module))
        bias = module.bias if norm is not None and norm.bias is not None else None
        return None if norm is None else replace(norm, weight=module.weight, bias=bias)

    def launched(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **keywords: Any) -> None:
        gpu.variants.append(_variant(kernel, [*map(_argument, arguments)], keywords))

    properties = SimpleNamespace(multi_processor_count=PROCESSORS)
    patches: list[tuple[Any, str, Any]] = [
        (torch.version, "cuda", "13.0"),
        (torch.cuda, "get_device_capability", lambda device=None: divmod(capability, 10)),
        (torch.cuda, "get_device_properties", lambda device=None: properties),
        (torch.cuda, "device", lambda device: nullcontext()),
        (triton.JITFunction, "run", launched),
        (launching, "_has_pdl", lambda device: capability >= 90),
        (narrow_product_launch, "_shared_memory", lambda device: SHARED_MEMORY),
        # What asks for numbers when a model is looked at, once, before any round.
        (lean, "norm_of", norm_of),
        (exits, "norm_of", norm_of),
        (low_bit, "_samples", lambda modules: [()] * len(modules)),
        (low_bit.LowBitView, "_try", lambda view: None),
        (packed_linear, "pack_levels", _levels),
        # A parameter without numbers is of this type.
        (products, "Tensor", FakeTensor),
        (low_bit, "Tensor", FakeTensor),
    ]
    with ExitStack() as stack:
        for owner, name, value in patches:
            stack.enter_context(mock.patch.object(owner, name, value))
        stack.enter_context(_guarded_device())
        stack.enter_context(_triton_for(capability))
        _move(model, mode)
        stack.enter_context(mode)
        stack.enter_context(torch.inference_mode())
        with _Copies(gpu.copies):
            yield gpu


def _norm_of(module: Any) -> Norm | None:
    """As it is found by what it computes; of a model that never had numbers by its name."""
    if getattr(module, "weight", None) is not None and module.weight.is_meta:
        is_norm = type(module).__name__.endswith("RMSNorm")
        return Norm("rms", module.weight, None, module.variance_epsilon) if is_norm else None
    return norms.norm_of(module)


def _move(model: Any, mode: FakeTensorMode) -> None:
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, old in tensors.items():
                if old is not None:
                    with mode:
                        new = torch.empty_strided(old.shape, old.stride(), dtype=old.dtype, device="cuda:0")
                    learned = isinstance(old, nn.Parameter)
                    tensors[name] = nn.Parameter(new, requires_grad=False) if learned else new


class _Copies(TorchDispatchMode):
    """Notes operations whose tensors are on several devices."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self._found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if crosses_devices(args, kwargs, out):
            frames = [f for f in traceback.extract_stack() if "site-packages" not in f.filename]
            ours = [f"{Path(f.filename).name}:{f.name}" for f in frames if "support" not in f.filename]
            self._found.append(f"{func} in {ours[-1]}")
        return out


class _Driver(DriverBase):
    """What Triton asks for where to compile."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)

    def get_benchmarker(self) -> Any:
        raise NotImplementedError

    def get_current_device(self) -> int:
        return self._capability  # kernels keep what they are compiled for by this number


@contextmanager
def _triton_for(capability: int) -> Iterator[None]:
    driver = triton.runtime.driver
    before = driver._active
    driver.set_active(_Driver(capability))
    try:
        yield
    finally:
        driver._active = before


@contextmanager
def _guarded_device() -> Iterator[None]:
    """A PyTorch built without CUDA has nobody to ask which device is current, not even after PyTorch's own
    remedy for one without a GPU; the meta device's answers will do."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    slots = (ctypes.c_void_p * (_META + 1)).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    before = slots[_CUDA]
    if before is None:
        slots[_CUDA] = slots[_META]
    try:
        yield
    finally:
        slots[_CUDA] = before


@dataclass(frozen=True)
class _Pointer:
    """Where a tensor of no memory begins, as far as Triton looks: is that divisible by 16?"""

    dtype: torch.dtype
    offset: int

    def data_ptr(self) -> int:
        return (1 << 20) + self.offset


def _argument(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return _Pointer(value.dtype, value.storage_offset() * value.element_size())


def _variant(kernel: Any, arguments: list[Any], keywords: dict[str, Any]) -> Variant:
    *_, target, backend, bind = kernel.device_caches[triton.runtime.driver.active.get_current_device()]
    keywords = {"debug": False, "instrumentation_mode": "", **keywords}
    bound, specialization, options = bind(*arguments, **keywords)

    def compiled() -> Any:
        how, signature, constants, attributes = kernel._pack_args(
            backend, keywords, bound, specialization, options
        )
        source = triton.compiler.ASTSource(kernel, signature, constants, attributes)
        return triton.compile(source, target=target, options=how.__dict__)

    return Variant(kernel.__name__, f"{specialization} {sorted(options.items(), key=str)}", compiled)


def _levels(q: Tensor, group: int) -> Tensor:
    """As large as `pack_levels` makes them."""
    tiles = -(-q.shape[0] // TILE_OUTPUTS), -(-q.shape[1] // TILE_INPUTS)
    return q.new_empty(tiles[0] * TILE_OUTPUTS, tiles[1] * TILE_INPUTS // 2)
