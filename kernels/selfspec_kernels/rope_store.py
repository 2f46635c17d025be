"""What stands between a layer's first product and its attention: head norms, rotary embedding, cache write.

One launch takes the projections of the new tokens side by side, turns queries and keys, writes keys and
values to the slots of the cache, and returns the queries as `verify_attention` takes them. The roundings are
those of Hugging Face's modules, so that a layer made of these launches says what the model's own says.
"""

from torch import Tensor

from selfspec_kernels.backend import Backend, choose_backend
from selfspec_kernels.rope_store_reference import Projections, reference_rope_store


def rope_store(new: Projections, *, backend: Backend | None = None) -> Tensor:
    """Queries [B, H, m, Dh], turned and contiguous; keys and values of the new tokens go to the cache.

    Args:
        backend: "triton" or "reference"; by default Triton on CUDA, the reference elsewhere.

    Raises:
        KernelInputError: a backend that is unknown or cannot run there.
    """
    if choose_backend(backend, "qkv", new.qkv) == "reference":
        return reference_rope_store(new)
    from selfspec_kernels import rope_store_launch

    return rope_store_launch.store(new)
