"""The fenced blocks of a page."""

from __future__ import annotations

import re
from dataclasses import dataclass

BLOCK = re.compile(r"(?:<!-- (?P<mark>[^>]*?) -->\n+)?```(?P<language>\w+)\n(?P<code>.*?)^```", re.S | re.M)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the code, the first line's number, the comment mark before it."""

    language: str
    code: str
    line: int
    mark: str


def read_blocks(text: str) -> list[Block]:
    return [
        Block(
            found["language"],
            found["code"],
            text.count("\n", 0, found.start("code")) + 1,
            found["mark"] or "",
        )
        for found in BLOCK.finditer(text)
    ]
