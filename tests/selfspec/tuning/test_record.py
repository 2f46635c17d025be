"""Which prompts are recorded together. What recording finds is tested by what `replay` tells of it."""

import pytest

from selfspec.tuning import record

PROMPTS = [[7] * n for n in (9, 30, 10, 31, 11, 200)]


@pytest.mark.parametrize(
    ("prompts", "size", "expected"),
    [
        (PROMPTS, 2, [[0, 2], [4, 1], [3], [5]]),
        (PROMPTS, 6, [[0, 2, 4, 1], [3], [5]]),
        ([*PROMPTS, [7] * 9], 6, [[0, 2, 4, 1], [6, 3], [5]]),
    ],
    ids=["few at a time", "few tokens at a time, and a long one alone", "equal ones apart"],
)
def test_like_lengths_go_together_within_both_bounds(
    prompts: list[list[int]], size: int, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "_CHUNK_TOKENS", 140)
    assert record.groups_of(prompts, size, 5) == expected
