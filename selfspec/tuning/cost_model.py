"""What a round of drafts costs: a linear model of its parts (`fitting` fits it to timed rounds).

A round of K drafts at exit layer E runs K exit heads and (K + 1) E layers one token wide, then L - E layers
and the head m = K + 1 tokens wide (padded to a safe width). By a low-bit view it runs K E layers and K heads
of the view one token wide, at a price of their own, then all L layers. Time per layer grows with the keys
that it reads.

For the tuner, which keeps it in the profile, residuals included. `costs` is for draft="auto": single
passes, timed within the time that wrapping takes.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

DRAFT_TERMS = ("draft", "step", "step layer", "stop check", "step layer and 1k keys")
REST_TERMS = ("round", "column", "layer", "layer and column", "layer and 1k keys")
SIBLING_TERMS = ("branching round", "early layer and leaf")
"""What siblings add to the round of a chain that verifies as many tokens."""


@dataclass(frozen=True)
class Fit:
    """Coefficients in seconds at one batch size."""

    rows: int
    draft: tuple[float, ...]
    """One for each of DRAFT_TERMS."""
    rest: tuple[float, ...]
    """One for each of REST_TERMS."""
    siblings: tuple[float, ...] = ()
    """One for each of SIBLING_TERMS; empty where none were timed."""
    view: tuple[float, ...] = ()
    """One for each of DRAFT_TERMS, of drafts by the low-bit view; empty where none were timed."""

    def __post_init__(self) -> None:
        for terms, values in (
            (DRAFT_TERMS, self.draft),
            (DRAFT_TERMS, self.view or self.draft),
            (REST_TERMS, self.rest),
            (SIBLING_TERMS, self.siblings or (0.0, 0.0)),
        ):
            if len(values) != len(terms) or not all(0 <= value < math.inf for value in values):
                raise ValueError(f"{values}: allowed are seconds of 0 or more for {', '.join(terms)}")
        if not any((*self.draft, *self.rest)):
            raise ValueError("a fit in which nothing costs any time")


@dataclass(frozen=True)
class CostModel:
    """Seconds of a round by exit layer, draft steps, rows and context."""

    n_layers: int
    fits: tuple[Fit, ...]
    """By growing batch size."""
    widths: tuple[tuple[int, tuple[int, ...]], ...]
    """Per batch size: the padded width of a pass over 0, 1, 2, … tokens."""
    key_quantum: int
    contexts: tuple[float, float]
    """Fewest and most cached tokens that rounds were timed at."""
    residual: float
    """Median of |predicted - measured| / measured over the timed cells."""
    worst_residual: float

    def __post_init__(self) -> None:
        if not self.fits or [fit.rows for fit in self.fits] != [rows for rows, _ in self.widths]:
            raise ValueError("fits: at least one is needed, and widths for each")
        counts = [self.n_layers, self.key_quantum, *(width for _, table in self.widths for width in table)]
        if not all(isinstance(count, int) and count >= 1 for count in counts):
            raise ValueError("n_layers, key_quantum and widths: allowed are whole numbers of 1 or more")
        if self.n_layers < 2 or min(len(table) for _, table in self.widths) < 3:
            raise ValueError("n_layers or widths: too small")
        numbers = [at for at in self.contexts if isinstance(at, (int, float)) and 0 <= at < math.inf]
        if len(numbers) != 2 or list(self.contexts) != sorted(numbers):
            raise ValueError(f"contexts={self.contexts}: allowed are fewest and most, 0 or more")

    def outside(self, rows: int, context: float) -> list[str]:
        """What of a call lies outside what was timed, in words."""
        batches, (least, most) = [fit.rows for fit in self.fits], self.contexts
        found = []
        if not batches[0] <= rows <= batches[-1]:
            found.append(f"batch {rows}, timed were {batches[0]} to {batches[-1]}")
        if not least / 2 <= context <= most * 2:
            found.append(f"about {context:.0f} tokens of context, timed were {least:.0f} to {most:.0f}")
        return found

    def round_seconds(
        self,
        exit_layer: Tensor | float,
        steps: Tensor | float,
        *,
        rows: float = 1,
        context: Tensor | float = 256,
        checked: Tensor | bool = False,
        siblings: Tensor | float = 1,
        low_bit: Tensor | bool = False,
    ) -> Tensor:
        """Seconds of a round with `steps` draft steps (a mean may be fractional); arguments broadcast.

        Infinite for drafts by a view that was not timed.
        """
        below = max(
            (fit for fit in self.fits if fit.rows <= rows), key=lambda f: f.rows, default=self.fits[0]
        )
        above = min(
            (fit for fit in self.fits if fit.rows >= rows), key=lambda f: f.rows, default=self.fits[-1]
        )
        what = _broadcast(exit_layer, steps, context, checked, siblings, low_bit)
        low = self._at(below, *what)
        if above.rows == below.rows:
            return low
        high = self._at(above, *what)
        return low + (high - low) * (rows - below.rows) / (above.rows - below.rows)

    @property
    def knows_siblings(self) -> bool:
        """Whether rounds with siblings were timed."""
        return all(fit.siblings for fit in self.fits)

    @property
    def knows_view(self) -> bool:
        """Whether rounds by a low-bit view were timed."""
        return all(fit.view for fit in self.fits)

    @property
    def most_columns(self) -> int:
        """The widest verification whose padding is known."""
        return min(len(table) for _, table in self.widths) - 1

    @property
    def step_seconds(self) -> float:
        """Seconds of a draft step without its layers, at the smallest batch: head and choice."""
        return self.fits[0].draft[1]

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> CostModel:
        """The inverse of `as_dict`."""
        fits = tuple(
            Fit(f["rows"], *(tuple(f[name]) for name in ("draft", "rest", "siblings", "view")))
            for f in data["fits"]
        )
        widths = tuple((rows, tuple(table)) for rows, table in data["widths"])
        return cls(**{**data, "fits": fits, "widths": widths, "contexts": tuple(data["contexts"])})

    def _at(self, fit: Fit, e: Tensor, k: Tensor, t: Tensor, c: Tensor, w: Tensor, v: Tensor) -> Tensor:
        keys = (t / self.key_quantum).ceil() * self.key_quantum
        draft, rest = terms_of(e, k, self._width(fit.rows, k * w), keys, c, v, self.n_layers)
        own, after = (torch.tensor(values, dtype=torch.float64) for values in (fit.draft, fit.rest))
        by_view = draft @ torch.tensor(fit.view, dtype=torch.float64) if fit.view else math.inf
        seconds = torch.where(v > 0, by_view, draft @ own) + rest @ after
        if not fit.siblings:
            return seconds
        siblings_seconds = torch.tensor(fit.siblings, dtype=torch.float64)
        return seconds + self.sibling_terms(fit.rows, exact_layers(e, v), k, w) @ siblings_seconds

    def sibling_terms(self, rows: int, e: Tensor, k: Tensor, siblings: Tensor) -> Tensor:
        """What each coefficient of SIBLING_TERMS is multiplied with, [..., SIBLING_TERMS]; 0 for chains.

        All leaves run through the early layers together, where a chain runs its last token alone.

        Args:
            e: layers that the draft runs in the model's own weights.
        """
        branching = ((siblings > 1) & (k > 0)).double()
        leaves = self._width(rows, k * (siblings - 1)) - self._width(rows, torch.zeros_like(k))
        return torch.stack([branching, branching * e * leaves], dim=-1)

    def _width(self, rows: int, candidates: Tensor) -> Tensor:
        """Padded width of a pass over one token and `candidates`, interpolated for a fractional number."""
        table = torch.tensor(dict(self.widths)[rows], dtype=torch.float64)
        below = candidates.floor().long()
        share = candidates - below
        return table[below + 1] * (1 - share) + table[(below + 2).clamp(max=len(table) - 1)] * share


def exact_layers(e: Tensor, low_bit: Tensor) -> Tensor:
    """Layers that a draft at exit layer E runs in the model's own weights: none by a view."""
    return torch.where(low_bit > 0, torch.zeros_like(e), e)


def terms_of(
    e: Tensor, k: Tensor, width: Tensor, keys: Tensor, checked: Tensor, low_bit: Tensor, n_layers: int
) -> tuple[Tensor, Tensor]:
    """What each coefficient is multiplied with, [..., DRAFT_TERMS] and [..., REST_TERMS]."""
    one, late, thousands = torch.ones_like(k), n_layers - exact_layers(e, low_bit), keys / 1000
    early = torch.where(low_bit > 0, k, k + 1) * e
    draft = torch.stack([one, k, early, k * checked, early * thousands], dim=-1)
    rest = torch.stack([one, width, late, late * width, late * thousands], dim=-1)
    return draft, rest


def _broadcast(*values: Tensor | float) -> tuple[Tensor, ...]:
    return torch.broadcast_tensors(*(torch.as_tensor(value, dtype=torch.float64) for value in values))
