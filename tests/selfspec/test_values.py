"""The value of one setting at a time."""

from __future__ import annotations

import pytest

from selfspec.values import parse_bytes


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        (None, None),
        (0, 0),
        (12_345, 12_345),
        ("12345", 12_345),
        ("1GiB", 1 << 30),
        ("1.5 MiB", 3 << 19),
        ("300MB", 300_000_000),
        ("2 kb", 2_000),
        ("2KiB", 2_048),
        ("0.5G", 500_000_000),
        ("7B", 7),
    ],
)
def test_memory_is_read_in_bytes_or_units(memory: int | str | None, expected: int | None) -> None:
    assert parse_bytes(memory) == expected
