"""The support matrix: every family that has a row, and every one that is refused, with the reason.

`python -m layer_skip.support_matrix README.md` writes it between the README's markers.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from layer_skip.families import FAMILIES, Family
from layer_skip.refusals import REFUSED

BEGIN = "<!-- support matrix: python -m layer_skip.support_matrix README.md -->"
END = "<!-- end of the support matrix -->"


@dataclass(frozen=True)
class Support:
    """One line of the matrix."""

    family: str
    """model_type of the config."""
    supported: bool
    attention: str
    """Whose attention code runs; empty where none does."""
    notes: str
    """What is particular about it, or why it is refused."""


def support_matrix() -> list[Support]:
    """Supported families by popularity, then refused ones by reason."""
    supported = [Support(row.model_type, True, _attention(row), row.notes) for row in FAMILIES.values()]
    return supported + [Support(name, False, "", reason) for name, reason in REFUSED.items()]


def _attention(row: Family) -> str:
    return "the model's own" if row.own_attention else "the engine's"


def markdown() -> str:
    """A table of the supported families, and a list of the refused ones by reason."""
    lines = ["| family | attention | notes |", "|---|---|---|"]
    reasons: dict[str, list[str]] = {}
    for row in support_matrix():
        if row.supported:
            lines.append(f"| `{row.family}` | {row.attention} | {row.notes} |")
        else:
            reasons.setdefault(row.notes, []).append(f"`{row.family}`")
    refused = [f"- {', '.join(names)}: {reason}." for reason, names in reasons.items()]
    return "\n".join([*lines, "", "Refused at wrap:", "", *refused])


def rewrite(text: str) -> str:
    """`text` with the current matrix between the markers.

    Raises:
        ValueError: a marker is missing.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the markers {BEGIN!r} and {END!r} are not in the text")
    return f"{before}{BEGIN}\n\n{markdown()}\n\n{END}{after}"


if __name__ == "__main__":
    readme = Path(sys.argv[1])
    readme.write_text(rewrite(readme.read_text(encoding="utf-8")), encoding="utf-8")
