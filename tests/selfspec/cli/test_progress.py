"""The progress bar: what it shows of a command that goes through stages."""

from __future__ import annotations

from typing import Any

import pytest
import rich.console
import rich.progress

from selfspec.cli.progress import progress_bar


def test_every_stage_counts_from_its_own_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[int, int | None]] = []

    def note(self: Any, task: Any, *, description: str, total: int | None, completed: int) -> None:
        shown.append((completed, total))

    monkeypatch.setattr(rich.console.Console, "is_terminal", property(lambda self: True))
    monkeypatch.setattr(rich.progress.Progress, "update", note)
    with progress_bar(True) as advance:
        for name in ("recording",) * 3 + ("timing",) * 2 + ("searching",):
            advance(name, {"recording": 3, "timing": 0, "searching": 1}[name])
        for _ in range(2):  # of several workloads, each with as many steps
            for name in ("one contender", "another"):
                advance(name, 2)
    assert shown[:6] == [(0, 3), (1, 3), (2, 3), (0, None), (1, None), (0, 1)]
    assert shown[6:] == [(0, 2), (1, 2)] * 2
