"""Files are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from selfspec.files import write_whole


def test_text_and_bytes_arrive_in_folders_that_are_made(tmp_path: Path) -> None:
    write_whole(tmp_path / "a" / "b" / "text", "späť\n")
    write_whole(tmp_path / "bytes", b"\x00\xff")
    assert (tmp_path / "a" / "b" / "text").read_text(encoding="utf-8") == "späť\n"
    assert (tmp_path / "bytes").read_bytes() == b"\x00\xff"


def test_an_interruption_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.json"
    write_whole(path, "old")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, "new")
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]
