"""Tokens to text, piece by piece, with their origins."""

from __future__ import annotations

import pytest

from selfspec import RoundEvent
from selfspec.cli.drafts import Origin, TextStream, origins


class Bytes:
    """A tokenizer whose tokens are bytes; 0 is special and prints nothing."""

    def decode(self, tokens: list[int], **_: object) -> str:
        return bytes(token for token in tokens if token).decode("utf-8", errors="replace")


def streamed(text: bytes, prompt: bytes = b"") -> list[str]:
    pieces: list[str] = []
    stream = TextStream(Bytes(), list(prompt), lambda piece, origin: pieces.append(piece))
    for byte in text:
        stream.put(byte, Origin.ACCEPTED)
    stream.end()
    return pieces


@pytest.mark.parametrize(
    ("drafted", "accepted", "committed", "expected"),
    [
        ([], 0, [5], [Origin.PLAIN]),
        ([1, 2], 0, [7], [Origin.CORRECTED]),
        ([1, 2], 1, [1, 7], [Origin.ACCEPTED, Origin.CORRECTED]),
        ([1, 2], 2, [1, 2, 3], [Origin.ACCEPTED, Origin.ACCEPTED, Origin.BONUS]),
        ([1, 2, 3], 2, [1, 2], [Origin.ACCEPTED, Origin.ACCEPTED]),
    ],
)
def test_every_token_has_its_origin(
    drafted: list[int], accepted: int, committed: list[int], expected: list[Origin]
) -> None:
    assert origins(RoundEvent(0, drafted, len(drafted), (0,) * accepted, committed)) == expected


@pytest.mark.parametrize("text", ["plain", "späße, 数学 and 🙂\n\ttabs", "x" * 50 + "é" * 50, ""])
def test_pieces_add_up_to_the_text(text: str) -> None:
    assert "".join(streamed(text.encode(), prompt=b"before")) == text


def test_a_character_waits_until_it_is_whole() -> None:
    assert streamed("aé🙂b".encode()) == ["a", "é", "🙂", "b"]


def test_a_broken_character_is_written_at_the_end() -> None:
    assert "".join(streamed(b"ok\xf0\x9f")) == "ok\ufffd"


def test_many_broken_bytes_lose_nothing_that_follows() -> None:
    assert "".join(streamed(b"\xff" * 20 + b"end")) == "\ufffd" * 20 + "end"


def test_special_tokens_print_nothing() -> None:
    assert "".join(streamed(b"a\x00b")) == "ab"
