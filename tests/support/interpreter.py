"""Kernels in Triton's interpreter, which is chosen when a module is imported: hence a process of its own.

A script `NAME_interpreted.py` calls `run`; a test reads what it printed with `results_of("NAME")`. For every
case the script gives an error against the reference, for every mutation of the kernels' source the error of
the case that must show it.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import selfspec_kernels

GUARD = 512
"""Elements before and after a guarded tensor."""
_COPIES = count()

Mutations = Mapping[str, tuple[str, str, str]]
"""By name: the case that shows it, a piece of the kernels' source, and what becomes of it."""


# In a test


def environment() -> dict[str, str]:
    """This process's, with its module path, for processes of one thread."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}


@cache
def results_of(name: str) -> dict[str, Any]:
    """What `NAME_interpreted.py` printed."""
    if sys.platform != "linux":
        pytest.skip("triton is for Linux")
    script = Path(__file__).with_name(f"{name}_interpreted.py")
    run = subprocess.run(
        [sys.executable, str(script)],
        env=environment() | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


# In a script


def prepare() -> None:
    """One thread, outputs poisoned, and no copy of every argument's storage after a launch."""
    from triton.runtime.interpreter import GridExecutor

    torch.set_num_threads(1)
    torch.empty = poisoned(torch.empty)
    GridExecutor._restore_args_dev = lambda *_: None  # they are on the CPU already


@contextmanager
def launches() -> Iterator[list[str]]:
    """The names of the kernels that are launched in here."""
    from triton.runtime.interpreter import GridExecutor

    call, names = GridExecutor.__call__, []

    def counted(self: Any, *arguments: Any, **keywords: Any) -> None:
        names.append(self.fn.__name__)
        call(self, *arguments, **keywords)

    GridExecutor.__call__ = counted
    try:
        yield names
    finally:
        GridExecutor.__call__ = call


@contextmanager
def shuffled(seed: int) -> Iterator[None]:
    """Programs, which run one after another, do so in an order of the first axis that depends on the seed."""
    from triton.runtime.interpreter import interpreter_builder

    def set_grid_idx(x: int, y: int, z: int) -> None:
        count = interpreter_builder.grid_dim[0]
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        type(interpreter_builder).set_grid_idx(interpreter_builder, int(order[x]), y, z)

    interpreter_builder.set_grid_idx = set_grid_idx
    try:
        yield
    finally:
        del interpreter_builder.set_grid_idx


def run(
    cases: Mapping[str, Any], mutations: Mutations, error: Callable[[Any, ModuleType], float], launch: str
) -> dict[str, dict[str, Any]]:
    """Errors by case, cases and errors by mutation; `error` computes one, with the launch module named."""
    whole = importlib.import_module(f"selfspec_kernels.{launch}")
    found = {name: error(case, whole) for name, case in cases.items()}
    spoilt = {}
    with tempfile.TemporaryDirectory() as folder:
        sys.path.insert(0, folder)
        for name, (case, source, becomes) in mutations.items():
            mutant = importlib.import_module(f"{mutated(source, becomes, Path(folder))}.{launch}")
            spoilt[name] = {"case": case, "error": error(cases[case], mutant)}
    return {"cases": found, "mutations": spoilt}


def mutated(source: str, becomes: str, folder: Path) -> str:
    """The name of a second copy of the package, with every occurrence of `source` in a kernel replaced.

    Triton reads a kernel's source from its file, so the copy is one of files.
    """
    package = Path(selfspec_kernels.__file__).parent
    name = f"mutated_{next(_COPIES)}"
    (folder / name).mkdir()
    occurrences = 0
    for path in package.glob("*.py"):
        text = path.read_text(encoding="utf-8").replace(package.name, name)
        if path.stem.endswith("_kernels"):
            occurrences += text.count(source)
            text = text.replace(source, becomes)
        (folder / name / path.name).write_text(text, encoding="utf-8")
    if not occurrences:
        raise ValueError(f"the kernels have no {source!r} to mutate")
    importlib.invalidate_caches()
    return name


def guarded(tensor: torch.Tensor, value: float) -> torch.Tensor:
    """The tensor between elements that spoil what reads them."""
    whole = torch.full((tensor.numel() + 2 * GUARD,), value, dtype=tensor.dtype)
    inner = whole[GUARD:-GUARD].view(tensor.shape)
    inner.copy_(tensor)
    return inner


def poisoned(make: Any) -> Any:
    """`torch.empty` with NaN, or a large number, in it: an output that nobody writes shows."""

    def empty(*size: Any, **options: Any) -> torch.Tensor:
        out = make(*size, **options)
        return out.fill_(float("nan") if out.is_floating_point() else 99_999)

    return empty
