"""Whether what was measured reaches its target, in the same words on one page and another."""

from __future__ import annotations


def met(target: float, *measured: float, most: bool = False) -> bool:
    """Whether all numbers, of which there is one at least, reach a target; NaN does not.

    Args:
        most: the target is the most that a number may be, not the least.
    """
    return bool(measured) and all(n <= target if most else n >= target for n in measured)


def verdict(target: float, *measured: float, most: bool = False, form: str = "g") -> str:
    """Such as "target 2.5: reached", or MISSED; see `met`. `form`: how the target is written."""
    return f"target {target:{form}}: {'reached' if met(target, *measured, most=most) else 'MISSED'}"
