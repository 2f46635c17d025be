"""Whether what was measured reaches its target, in the words of every page."""

from __future__ import annotations


def verdict(target: float, *measured: float, most: bool = False, form: str = "g") -> str:
    """Such as "target 2.5: reached", or MISSED where one of the numbers misses it; NaN, for none, does.

    Args:
        most: the target is the most that a number may be, not the least.
        form: how the target is written.
    """
    met = all(number <= target if most else number >= target for number in measured)
    return f"target {target:{form}}: {'reached' if met else 'MISSED'}"
