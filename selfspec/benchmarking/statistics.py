"""Statistics of a benchmark: pure functions of numbers and token lists."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Spread:
    """A median with the 20th and 80th percentiles around it, in the unit of the values."""

    median: float
    p20: float
    p80: float

    def as_dict(self) -> dict[str, float]:
        """The three numbers by name."""
        return asdict(self)

    def __format__(self, spec: str) -> str:
        return f"{self.median:{spec}} ({self.p20:{spec}}-{self.p80:{spec}})"


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the values lie, interpolated between neighbours.

    Raises:
        ValueError: there are no values, or the share is not between 0 and 1.
    """
    if not values:
        raise ValueError("a percentile needs at least one value")
    if not 0 <= share <= 1:
        raise ValueError(f"share={share}: allowed is 0 to 1")
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below, above = math.floor(place), math.ceil(place)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def spread(values: Sequence[float]) -> Spread:
    """Median, 20th and 80th percentile."""
    return Spread(percentile(values, 0.5), percentile(values, 0.2), percentile(values, 0.8))


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Between which the median of what the values were drawn from lies.

    The chance is 95%, for eight values 92%, and for two or three, which are all taken, 50% and 75%. How many
    of n values are below that median is binomial, whatever they are spread like: so about 0.98 sqrt(n) ranks
    to either side of the middle (Conover, Practical Nonparametric Statistics, 3.2).

    Raises:
        ValueError: there are no values.
    """
    reach = min(0.98 / math.sqrt(max(len(values), 1)), 0.5)
    return percentile(values, 0.5 - reach), percentile(values, 0.5 + reach)


def paired_ratios(base: Sequence[float], other: Sequence[float]) -> list[float]:
    """How many times faster `other` [seconds] was than `base` [seconds], prompt by prompt.

    Ratios of pairs measured moments apart keep a machine's slow drift out of the comparison; a ratio of two
    medians does not.

    Raises:
        ValueError: the lists differ in length.
    """
    return [b / o for b, o in zip(base, other, strict=True)]


def distinct_ngrams(tokens: Sequence[int], n: int = 3) -> float:
    """Share of a text's n-grams that are distinct, 0 to 1: near 0 for a text that loops.

    Small models loop under greedy decoding, and a loop is easy to draft: a speed without this number
    flatters. A text shorter than n counts as 1.
    """
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0
