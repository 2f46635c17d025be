"""Hugging Face streamers: tokens as they are committed, one column of the batch at a time."""

from typing import Any

from torch import Tensor

from selfspec.rows import Rows


class Stream:
    """Hands a call's committed tokens to a streamer; a column goes once nothing in it can change."""

    def __init__(self, streamer: Any) -> None:
        self._streamer = streamer
        self._sent = 0

    def __call__(self, rows: Rows) -> None:
        while self._sent < rows.settled:
            column = rows.sequences[:, rows.prompt_width + self._sent].clone()
            for row, count in enumerate(rows.lengths):
                if count <= self._sent:
                    column[row] = rows.pad_token
            self._streamer.put(column.cpu())
            self._sent += 1


class WithoutPrompt:
    """A streamer that has had its prompt already."""

    def __init__(self, streamer: Any) -> None:
        self._streamer = streamer
        self._prompt_seen = False

    def put(self, value: Tensor) -> None:
        if self._prompt_seen:
            self._streamer.put(value)
        self._prompt_seen = True

    def end(self) -> None:
        self._streamer.end()
