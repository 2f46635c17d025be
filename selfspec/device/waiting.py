"""Whether a pass reads something back: then the host waits for the device, and a capture would break."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_READ_BACK = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal")
"""Operations whose outcome, or its size, the host waits for."""
_BY_MASK = ("aten::index", "aten::index_put", "aten::index_put_")
"""These do where an index is a mask."""


class HostReadError(RuntimeError):
    """A value was read by the host, or copied from or to it."""


class NoHostReads(TorchDispatchMode):
    """In here, in this thread, what the host would wait for raises a HostReadError.

    Copies count too where they are between devices: from memory that is not pinned they wait.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "prim":  # asks a tensor for its device, say
            return func(*args, **(kwargs or {}))
        with self:  # under inference mode operations come whole: what are they made of?
            out = func.decompose(*args, **(kwargs or {}))
        if out is not NotImplemented:
            return out
        name = func._schema.name
        masked = name in _BY_MASK and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in _READ_BACK or masked:
            raise HostReadError(f"{name} reads a value back")
        out = func(*args, **(kwargs or {}))
        if name in ("aten::copy_", "aten::_to_copy") and crosses_devices(args, out):
            raise HostReadError(f"{name} copies between devices")
        return out


def crosses_devices(*parts: Any) -> bool:
    """Whether the tensors that an operation takes and gives are on devices of several kinds."""
    return len({leaf.device.type for leaf in tree_leaves(parts) if isinstance(leaf, Tensor)}) > 1
