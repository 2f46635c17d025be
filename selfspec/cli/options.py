"""Options that several commands share, and what they mean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

_MODEL = "Model and its numbers"
_SPECULATION = "Speculation"
_SAMPLING = "Sampling"

Model = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", help="Folder or hub name of a causal language model. [default: the bundled model]"
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        help="float32, bfloat16 or float16; auto is what the weights are stored in.", rich_help_panel=_MODEL
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="CPU threads. [default: as many as torch chooses]", rich_help_panel=_MODEL),
]
Device = Annotated[
    str, typer.Option(help="cpu, cuda, cuda:1…; auto is a GPU where there is one.", rich_help_panel=_MODEL)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]
NewTokens = Annotated[int, typer.Option("--max-new-tokens", "-n", min=1, help="Tokens to generate.")]

DraftKind = Annotated[
    str,
    typer.Option(
        help="early_exit, low_bit, lookup, hybrid, or auto: measures and chooses.",
        rich_help_panel=_SPECULATION,
    ),
]
TreeShape = Annotated[
    str,
    typer.Option(help="chain, or siblings: second choices beside it.", rich_help_panel=_SPECULATION),
]
DraftMemory = Annotated[
    str | None,
    typer.Option(
        help="Most that a low-bit view may add, such as 1GiB; 0 makes none.", rich_help_panel=_SPECULATION
    ),
]
Corpus = Annotated[
    str | None,
    typer.Option(help="Text file that lookup may copy from as well.", rich_help_panel=_SPECULATION),
]
ExitLayer = Annotated[
    str,
    typer.Option(
        help="Layers that draft, from 1 on, or auto; low_bit can draft with all.",
        rich_help_panel=_SPECULATION,
    ),
]
DraftLength = Annotated[
    str,
    typer.Option(help="Tokens drafted in a round, or auto; 0 drafts nothing.", rich_help_panel=_SPECULATION),
]
Acceptance = Annotated[
    str,
    typer.Option(
        help="coupled: sampled text depends on the seed alone. rejection: accepts a little more.",
        rich_help_panel=_SPECULATION,
    ),
]
ConfidenceThreshold = Annotated[
    float,
    typer.Option(help="Stop drafting after a token less probable than this.", rich_help_panel=_SPECULATION),
]
Profile = Annotated[
    Path | None,
    typer.Option(help="Draft by this profile, a file of `selfspec tune`.", rich_help_panel=_SPECULATION),
]
Deterministic = Annotated[
    bool,
    typer.Option(help="Compute so that rounding never changes the text.", rich_help_panel=_SPECULATION),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature", "-t", help="Sample at this temperature. [default: greedy]", rich_help_panel=_SAMPLING
    ),
]


def _in_range(seed: int) -> int:
    if not -(1 << 63) <= seed < 1 << 63:
        raise typer.BadParameter(f"seed={seed}: allowed is -2^63 to 2^63 - 1")
    return seed


Seed = Annotated[
    int, typer.Option(help="Seed of sampled text.", rich_help_panel=_SAMPLING, callback=_in_range)
]

Prompts = Annotated[
    Path | None,
    typer.Option(
        "--prompts",
        "-p",
        help='JSON Lines file; a line holds {"prompt": …} or {"turns": […]}, of which the first is used. '
        "[default: bundled code prompts]",
    ),
]
Limit = Annotated[int, typer.Option(min=1, help="Use this many prompts at most.")]
PromptTokens = Annotated[
    int | None,
    typer.Option(
        min=1, help="Cut prompts to their first N tokens and leave shorter ones out. [default: as they are]"
    ),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for the JSON file and the plot.")]
RESULTS = Path("selfspec-results")


def speculation_settings(*, exit_layer: str, draft_length: str, **others: Any) -> dict[str, Any]:
    """The keywords of `selfspec.wrap`, which checks them."""
    return {
        "exit_layer": _number_or_word(exit_layer),
        "draft_length": _number_or_word(draft_length),
        **others,
    }


def _number_or_word(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text
