"""Compiling Triton kernels for GPUs that are not there, and what the result takes of them."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

SHARED_MEMORY = {80: 166_912, 90: 232_448}
"""Bytes that a program may have, by compute capability. Triton does not refuse more; the launch fails."""
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@dataclass(frozen=True)
class Compiled:
    """What a program of a compiled kernel takes."""

    registers: int
    """A thread."""
    stack: int
    """Bytes a thread: registers that were spilled, and arrays that found no register."""
    local_accesses: int
    """Loads and stores of spilled registers in the machine code."""
    shared_memory: int
    """Bytes."""
    ptx: str
    sass: str


def compile_kernel(
    kernel: Any, types: dict[str, str], constants: dict[str, Any], capability: int, options: dict[str, Any]
) -> Compiled:
    """Compile for sm_80 or sm_90; arguments in neither `types` nor `constants` are None.

    Pointers and sizes, all but those that the kernel does not specialise, are taken to be divisible by 16, as
    they are for the matrices of real models.
    """
    names = kernel.arg_names
    signature = {name: types.get(name, "constexpr") for name in names}
    fixed = {(i,): constants.get(name) for i, name in enumerate(names) if name not in types}
    free = {p.name for p in kernel.params if p.do_not_specialize or p.do_not_specialize_on_alignment}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if name in types and name not in free and types[name] != "fp32"
    }
    compiled = triton.compile(
        ASTSource(kernel, signature, fixed, aligned),
        target=GPUTarget("cuda", capability, 32),
        options=options,
    )
    found = resources(compiled)
    if options.get("launch_pdl"):
        _check_wait(found.sass)
    return found


def resources(compiled: Any) -> Compiled:
    """What a program of a kernel that Triton has compiled takes."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, sass = (
            subprocess.run([CUOBJDUMP, option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("--dump-resource-usage", "--dump-sass")
        )
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    spilled = len(re.findall(r"\b(?:LDL|STL)\b", sass))
    return Compiled(
        int(found[1]), int(found[2]), spilled, compiled.metadata.shared, compiled.asm["ptx"], sass
    )


def _check_wait(sass: str) -> None:
    """The next kernel is let in first, the one before is waited for, and only then is memory touched.

    Prefetches aside, and loads past the first-level cache (`.cg`), which only hints may come from.
    """
    found = re.findall(r"\b(PREEXIT|ACQBULK|EXIT|(?:LD|ST|ATOM|RED)G?\.E\S*|(?:LDGSTS|ATOMG|REDG)\S*)", sass)
    touching = [one for one in found if not one.startswith("LDG.E.STRONG.GPU")]
    assert touching[:2] == ["PREEXIT", "ACQBULK"], touching[:4]


def check_resources(found: Compiled, capability: int) -> None:
    """A program fits the GPU, and no register was spilled."""
    assert found.shared_memory <= SHARED_MEMORY[capability]
    assert (found.stack, found.local_accesses) == (0, 0)
    assert found.registers <= 255
