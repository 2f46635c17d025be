"""Where tables go."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_FILE_WIDTH = 120


def terminal() -> Console:
    """A console on stdout: as wide as the terminal, and wide enough for our tables in a file or a pipe."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else _FILE_WIDTH)
