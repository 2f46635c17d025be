"""Generated text on the terminal as it is committed, coloured by where each token came from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from selfspec import RoundEvent

_CONTEXT = 6
"""Prompt tokens decoded together with the first new ones: alone, some tokenizers drop a leading space."""
_BROKEN = "\ufffd"
"""What a decoder writes where a character's last bytes are still to come."""


class Origin(Enum):
    """Where a token came from; the value is its style. Legible without colour as well."""

    ACCEPTED = "green"
    CORRECTED = "bold underline red"
    BONUS = "bold cyan"
    PLAIN = ""


LEGEND = {
    Origin.ACCEPTED: "accepted: drafted, and confirmed by the whole model",
    Origin.CORRECTED: "corrected: the draft was wrong, this is the full model's token",
    Origin.BONUS: "bonus: all drafts stood, and the full model added one",
}


def origins(event: RoundEvent) -> list[Origin]:
    """Where each committed token of a round came from."""
    if not event.drafted:
        return [Origin.PLAIN] * len(event.committed)
    last = Origin.BONUS if event.accepted == event.deepest else Origin.CORRECTED
    return [Origin.ACCEPTED if i < event.accepted else last for i in range(len(event.committed))]


class TextStream:
    """Turns tokens into pieces of text as they arrive; a piece waits until its characters are whole.

    Args:
        tokenizer: a Hugging Face tokenizer.
        prompt: the tokens in front of the first one.
        write: called with each piece and the origin of the token that completed it.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int], write: Callable[[str, Origin], None]) -> None:
        self._tokenizer = tokenizer
        self._tokens = list(prompt[-_CONTEXT:])
        self._written = self._decode(self._tokens)
        self._pending = 0
        self._write = write
        self._origin = Origin.PLAIN

    def put(self, token: int, origin: Origin) -> None:
        """Take one more token and write what it completes."""
        self._tokens.append(token)
        self._pending += 1
        self._origin = origin
        text = self._decode(self._tokens)
        if len(text) > len(self._written) and not text.endswith(_BROKEN):
            self._write(text[len(self._written) :], origin)
            # Only a few tokens stay: decoding all of them anew for every token would be quadratic.
            self._tokens = self._tokens[-max(_CONTEXT, self._pending) :]
            self._written = self._decode(self._tokens)
            self._pending = 0

    def end(self) -> None:
        """Write what is left, a broken character included."""
        rest = self._decode(self._tokens)[len(self._written) :]
        if rest:
            self._write(rest, self._origin)

    def _decode(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


class DraftPrinter:
    """Prints a prompt and its continuation; with `colours`, every token in its origin's style.

    Call it with the rounds of `generate(..., on_round=printer)`, then `end()`.
    """

    def __init__(self, console: Console, tokenizer: Any, prompt: Sequence[int], colours: bool) -> None:
        self._console = console
        self._colours = colours
        self._stream = TextStream(tokenizer, prompt, self._print)

    def legend(self) -> None:
        """Say what the colours mean."""
        for origin, meaning in LEGEND.items():
            word, _, rest = meaning.partition(":")
            self._write(f"{word:>9}", origin.value)
            self._write(f" {rest.strip()}\n", "dim")
        self._write("\n", "")

    def prompt(self, text: str) -> None:
        """Print the text that is continued."""
        self._write(text, "dim")

    def __call__(self, event: RoundEvent) -> None:
        """Print what a round committed."""
        for token, origin in zip(event.committed, origins(event), strict=True):
            self._stream.put(token, origin)

    def end(self) -> None:
        """Print what is left and a line break."""
        self._stream.end()
        self._write("\n", "")

    def _print(self, piece: str, origin: Origin) -> None:
        self._write(piece, origin.value if self._colours else "")

    def _write(self, text: str, style: str) -> None:
        if style and self._console.is_terminal:
            # As it is: rich would take square brackets for markup, highlight numbers and fold long lines.
            self._console.print(
                text, style=style, end="", markup=False, highlight=False, emoji=False, soft_wrap=True
            )
        else:
            # Rich would turn tabs into spaces; in a file every character counts.
            self._console.file.write(text)
        self._console.file.flush()
