"""Stopping criteria of the caller's own: asked about all rows at one length, as the model's own loop asks."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import StoppingCriteriaList

from selfspec.rows import RoundEvent, Rows
from selfspec.stats import Stats


class Lockstep:
    """Asks a call's stopping criteria once for every length, when all rows that go on have reached it.

    Rows accept different numbers of tokens, so most of them stand ahead of the last question. What such a row
    wrote past its stop is cut off when the call is over: a text does not depend on what follows it. Until the
    criteria have been asked about all of its tokens, a round is not told to `on_round`.

    Args:
        rows: of the call, with the criteria; `asked` and `stops` are kept up to date.
        scores: the target's processed scores [B, V] of a step; None where the call does not return scores.
    """

    def __init__(
        self,
        rows: Rows,
        scores: Callable[[int], Tensor] | None = None,
        on_round: Callable[[RoundEvent], None] | None = None,
    ) -> None:
        self._rows = rows
        self._criteria = StoppingCriteriaList(rows.criteria)
        self._pads = any(hasattr(criterion, "eos_token_id") for criterion in rows.criteria)
        self._ids = rows.sequences[:, : rows.prompt_width].clone()
        self._unfinished = self._ids.new_ones(len(rows.generated))
        self._scores_of = scores
        self._scores: tuple[Tensor, ...] | None = None
        self._on_round = on_round
        self._held: list[tuple[int, RoundEvent]] = []
        self._cut: list[tuple[RoundEvent, RoundEvent | None]] = []

    def hold(self, event: RoundEvent) -> None:
        """Keep the round of a row, whose tokens have just been committed, until it is settled."""
        self._held.append((self._rows.generated[event.row] - len(event.committed), event))

    def ask(self) -> None:
        """Ask about every length that all rows reach by now; tell the rounds that this settles.

        Raises:
            RuntimeError, TypeError: a criterion answered with what the model's own loop cannot take.
        """
        # The conditions of the model's own loop: a criterion may keep what it is given, and write to it.
        with torch.inference_mode(False), torch.no_grad():
            while self._may_ask():
                self._step()
        self._settle()

    def finish(self, stats: Stats) -> None:
        """Cut the rows that ran past their stops, and take out of `stats` what they did there."""
        for event, kept in self._cut:
            _count(stats, event, -1)
            if kept is not None:
                _count(stats, kept, 1)
        self._rows.cut()

    def _may_ask(self) -> bool:
        going = self._going()
        return bool(going) and all(self._rows.generated[row] > self._rows.asked for row in going)

    def _going(self) -> list[int]:
        return [row for row in range(len(self._rows.generated)) if row not in self._rows.stops]

    def _step(self) -> None:
        """One step of the model's own loop, its tokens being known.

        Written as there, so that answers of another kind or shape do, or break, what they do there.
        """
        rows = self._rows
        tokens = rows.sequences[:, rows.prompt_width + rows.asked]
        if self._pads:
            tokens = tokens * self._unfinished + rows.pad_token * (1 - self._unfinished)
        self._ids = torch.cat([self._ids, tokens[:, None]], dim=-1)
        if self._scores_of is not None:
            self._scores = (*(self._scores or ()), self._scores_of(rows.asked))
        self._unfinished = self._unfinished & ~self._criteria(self._ids, self._scores)
        rows.asked += 1
        if bool(self._unfinished.max() == 0):
            stopped = self._going()
        elif self._pads:
            going = self._unfinished.tolist()
            stopped = [row for row in self._going() if not going[row]]
        else:  # without an end token stopped rows go on until all have stopped
            stopped = []
        rows.stops.update(dict.fromkeys(stopped, rows.asked))

    def _settle(self) -> None:
        """Tell the rounds all of whose tokens stand, or that are known to be cut."""
        going = []
        for start, event in self._held:
            stop = self._rows.stops.get(event.row)
            if stop is None and start + len(event.committed) > self._rows.asked:
                going.append((start, event))
                continue
            kept = event if stop is None else event.cut(stop - start)
            if kept is not event:
                self._cut.append((event, kept))
            if kept is not None and self._on_round is not None:
                self._on_round(kept)
        self._held = going


def _count(stats: Stats, event: RoundEvent, times: int) -> None:
    stats.count_row(len(event.drafted), event.deepest, event.accepted, len(event.committed), times)
