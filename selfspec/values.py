"""The value of one setting at a time: checked, with what is allowed in the message."""

import difflib
import operator
import re
from pathlib import Path
from typing import Any, Literal


class ConfigError(ValueError):
    """A setting that does not exist or cannot be; the message says what is allowed."""


def parse_bytes(memory: int | str | None, name: str = "draft_memory") -> int | None:
    """Bytes of "1GiB", "300 MB" or a number; None for no limit.

    Raises:
        ConfigError: it is neither.
    """
    if memory is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?i?B?)\s*", str(memory), re.IGNORECASE)
    if isinstance(memory, (bool, float)) or match is None:
        raise ConfigError(f'{name}={memory!r}: allowed are bytes, or a text such as "512MiB" or "1GB"')
    unit = match[2].upper().rstrip("B")
    step = 1024 if unit.endswith("I") else 1000
    return int(float(match[1]) * step ** ("KMGT".index(unit[0]) + 1 if unit else 0))


def checked_corpus(corpus: Any) -> str | Path | tuple[int, ...] | None:
    """A corpus as it was given, its token ids as plain numbers.

    Raises:
        ConfigError: it is neither a path nor token ids.
    """
    if corpus is None or isinstance(corpus, (str, Path)):
        return corpus
    try:
        tokens = tuple(operator.index(token) for token in corpus)
    except TypeError as error:
        raise ConfigError(f"corpus={corpus!r}: allowed are the path of a text file, or token ids") from error
    outside = [token for token in tokens if not 0 <= token < 1 << 31]
    if outside:
        raise ConfigError(f"corpus: {outside[0]} is no token id, those are 0 to 2^31 - 1")
    return tokens


def check_choice(name: str, value: object, allowed: tuple[object, ...]) -> None:
    """Raise ConfigError unless `value` is one of `allowed`."""
    # By type as well: True == 1, and a flag is no number.
    if not any(value == choice and type(value) is type(choice) for choice in allowed):
        near = difflib.get_close_matches(str(value), map(str, allowed), n=1)
        hint = f" (nearest: {near[0]!r})" if near else ""
        raise ConfigError(f"{name}={value!r}: allowed are {', '.join(map(repr, allowed))}{hint}")


def checked_int(name: str, value: Any, least: int, most: int | None) -> int | Literal["auto"]:
    """A whole number of any type as a plain int, or "auto"; most=None: the number of layers.

    Raises:
        ConfigError: it is neither, or out of range.
    """
    if isinstance(value, str) and value == "auto":
        return "auto"
    end = "the number of layers" if most is None else most
    allowed = f"a whole number from {least} to {end}, or 'auto'"
    try:
        number = None if isinstance(value, bool) else operator.index(value)  # NumPy's and torch's too
    except TypeError:
        number = None
    if number is None:
        raise ConfigError(f"{name}={value!r}: allowed is {allowed}")
    if number < least or (most is not None and number > most):
        nearest = least if number < least else most
        raise ConfigError(f"{name}={number}: allowed is {allowed} (nearest: {nearest})")
    return number
