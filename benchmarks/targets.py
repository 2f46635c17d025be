"""Whether what was measured reaches its target, in the same words on one page and another."""

from __future__ import annotations


def verdict(target: float, *measured: float, most: bool = False, form: str = "g") -> str:
    """Such as "target 2.5: reached"; MISSED where a number misses it, as NaN does, or there is none.

    Args:
        most: the target is the most that a number may be, not the least.
        form: how the target is written.
    """
    met = bool(measured) and all(n <= target if most else n >= target for n in measured)
    return f"target {target:{form}}: {'reached' if met else 'MISSED'}"
