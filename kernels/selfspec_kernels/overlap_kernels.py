"""How kernels overlap with their neighbours, see `launching`: import this only where triton is installed."""

import triton
import triton.language as tl


@triton.jit
def allow_next(PDL: tl.constexpr):
    """The next kernel's programs may take places once all programs of this one have said so."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def await_previous(PDL: tl.constexpr):
    """The kernel before this one has ended, and what it wrote is seen."""
    if PDL:
        tl.extra.cuda.gdc_wait()


@triton.jit
def request(row_ptrs, BYTES: tl.constexpr, PDL: tl.constexpr):
    """The first BYTES behind every pointer [rows] come to L2: 0, or a power of two from 128, a cache line.

    Nothing is loaded, so a later write is not missed. The rows must be that long.
    """
    if PDL and BYTES > 0:
        line = tl.arange(0, BYTES // 128) * 128
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; // $0",
            "=r,l",
            [row_ptrs.to(tl.int64)[:, None] + line[None, :]],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
