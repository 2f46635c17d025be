"""The noise of `selfspec_kernels.noise` inside Triton kernels: import this only where triton is installed."""

import triton
import triton.language as tl

GOLDEN = tl.constexpr(0x9E3779B97F4A7C15)
MIX_1 = tl.constexpr(0xBF58476D1CE4E5B9)
MIX_2 = tl.constexpr(0x94D049BB133111EB)
SPREAD = tl.constexpr(0x9E3779B9)
HASH_1 = tl.constexpr(0x21F0AAAD)
HASH_2 = tl.constexpr(0xD35A2D97)
STEP = tl.constexpr(2.0**-31)
LARGEST = tl.constexpr(1 - 2.0**-24)


@triton.jit
def mix64(z):
    """The finaliser of SplitMix64 on uint64."""
    z = (z ^ (z >> 30)) * MIX_1
    z = (z ^ (z >> 27)) * MIX_2
    return z ^ (z >> 31)


@triton.jit
def position_key(key, position):
    """uint64 key of a position, both int64."""
    return mix64(key.to(tl.uint64, bitcast=True) + position.to(tl.uint64, bitcast=True) * GOLDEN)


@triton.jit
def noise_bits(key, token):
    """int32 from 0 to 2^31 - 1 for uint64 keys and int32 tokens, broadcast."""
    z = token.to(tl.uint32, bitcast=True) * SPREAD + key.to(tl.uint32)
    z = (z ^ (z >> 16)) * HASH_1
    z = (z ^ (z >> 15) ^ (key >> 32).to(tl.uint32)) * HASH_2
    return ((z ^ (z >> 15)) >> 1).to(tl.int32)


@triton.jit
def uniform(key, token):
    """Numbers in (0, 1) in float32 for uint64 keys and int32 tokens, broadcast."""
    return tl.minimum((noise_bits(key, token).to(tl.float32) + 0.5) * STEP, LARGEST)


@triton.jit
def gumbel(key, token):
    """Standard Gumbel noise for uint64 keys and int32 tokens, broadcast."""
    return gumbel_of(uniform(key, token))


@triton.jit
def gumbel_of(u):
    """-log(-log(1 - u)) in float32."""
    rest = 1.0 - u
    # Kahan's log1p: the rounding of 1 - u cancels in u / (1 - rest). There is no log1p in the interpreter.
    exponential = tl.where(rest == 1.0, u, -tl.log(rest) * (u / (1.0 - rest)))
    return -tl.log(exponential)
