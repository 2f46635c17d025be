"""The value of one setting at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from selfspec.values import ConfigError, checked_int, parse_bytes


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


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), torch.tensor(3), torch.tensor([3])], ids=repr)
def test_a_whole_number_of_any_type_is_a_plain_one(value: Any) -> None:
    number = checked_int("draft_length", value, 0, 64)
    assert (number, type(number)) == (3, int)


@pytest.mark.parametrize(
    "value",
    [True, np.bool_(True), 3.0, np.float64(3), "3", None, torch.tensor([3, 4]), np.arange(2)],
    ids=repr,
)
def test_what_is_no_whole_number_is_refused_with_what_is_allowed(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"draft_length=.*: allowed is a whole number from 0 to 64"):
        checked_int("draft_length", value, 0, 64)


@pytest.mark.parametrize(("value", "nearest"), [(np.int64(-1), 0), (np.int32(65), 64)])
def test_a_number_out_of_range_is_refused_with_the_nearest(value: Any, nearest: int) -> None:
    with pytest.raises(ConfigError, match=rf"draft_length={int(value)}: .* \(nearest: {nearest}\)"):
        checked_int("draft_length", value, 0, 64)
