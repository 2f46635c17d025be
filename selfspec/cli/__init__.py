"""The `selfspec` command: generate, bench, tune, inspect, train, demo.

Only typer and rich are imported here; torch and transformers come with the first command that needs them, so
that `selfspec --help` answers at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import typer

from selfspec.cli import bench, demo, generate, inspect, train, tune
from selfspec.cli.errors import complain, reporting

app = typer.Typer(
    name="selfspec",
    help="Make a language model generate faster, with the same output: its first layers draft, all verify.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
for _module in (generate, bench, tune, inspect, train, demo):
    app.command(_module.__name__.rpartition(".")[2])(reporting(_module.command))

# Some releases of typer bring their own click: only typer's own names lead to the class that it raises.
_UsageError: type = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0: done. 1: done, but a contender's output differs. 2: a mistake that the one line on stderr explains.
    130: interrupted. 141: whoever read the output has gone.
    """
    try:
        code = app(args=arguments, standalone_mode=False, prog_name="selfspec")
    except typer.Abort:
        return complain("interrupted", 130)
    except Exception as error:
        if not isinstance(error, _UsageError):
            raise
        return complain(f"{_usage(error)} (options: {_command_path(error)} --help)", 2)
    return code if isinstance(code, int) else 0


def _usage(error: Exception) -> str:
    return str(getattr(error, "format_message", error.__str__)()).rstrip(".")


def _command_path(error: Exception) -> str:
    return getattr(getattr(error, "ctx", None), "command_path", "selfspec")
