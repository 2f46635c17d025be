"""Errors as one line on stderr that says what to do."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import typer

P = ParamSpec("P")
R = TypeVar("R")


class UserError(Exception):
    """Something that the user can put right; the message says how."""


def complain(message: object, code: int) -> int:
    """Print the message as one line on stderr and return the exit code."""
    print("selfspec:", " ".join(str(message).split()), file=sys.stderr, flush=True)
    return code


def reporting(command: Callable[P, R]) -> Callable[P, R]:
    """The command with its errors told in one line: exit code 2 for a mistake, 130 for Ctrl-C.

    The engine refuses impossible settings, prompts and models with a ValueError (damaged checkpoints with a
    CheckpointError), files fail with an OSError. Anything else is a defect of ours and keeps its traceback.
    """

    @functools.wraps(command)
    def wrapped(*args: P.args, **keywords: P.kwargs) -> R:
        try:
            return command(*args, **keywords)
        except BrokenPipeError as error:
            # Whoever read our output has gone (`selfspec … | head`); flushing stdout at exit would complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(141) from error
        except KeyboardInterrupt as interruption:
            print(file=sys.stderr)
            raise typer.Exit(complain(str(interruption) or "interrupted", 130)) from interruption
        except (UserError, ValueError, OSError) as error:
            raise typer.Exit(complain(_message(error), 2)) from error
        except RuntimeError as error:
            if type(error).__name__ != "CheckpointError":
                raise
            raise typer.Exit(complain(error, 2)) from error

    return wrapped


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)
