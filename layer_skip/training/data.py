"""Python source with a licence that permits training, and the files held out of it.

Two kinds of source: the running interpreter's standard library, and installed distributions named in a table
together with their licence. Whole files are held out by a hash of their relative name, so the same files are
held out on every machine that has the same interpreter, and held-out prompts can never have been trained on.
"""

from __future__ import annotations

import hashlib
import platform
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

STANDARD_LIBRARY = "python"

# Directories that hold tests, other people's packages, or data that only looks like code.
SKIPPED_PARTS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "testing", "idle_test", "lib2to3", "__pycache__"}
    | {"encodings", "pydoc_data", "_vendor", "_vendored_packages", "generated", "ctypes_test"}
)
# _sysconfigdata records how the interpreter was built: settings and paths of one machine, not source code.
SKIPPED_PREFIXES = ("_sysconfigdata", "test_")


@dataclass(frozen=True)
class Source:
    """Where training text comes from.

    `name` is the distribution's name, `package` the importable directory, `licence` an SPDX identifier, and
    `share_bytes` the most bytes that may be taken from it (None: all), so that no package drowns the others.
    """

    name: str
    package: str
    licence: str
    share_bytes: int | None


MB = 1_000_000
SOURCES: tuple[Source, ...] = (
    Source(STANDARD_LIBRARY, "", "PSF-2.0", None),
    Source("torch", "torch", "BSD-3-Clause", 4 * MB),
    Source("transformers", "transformers", "Apache-2.0", 4 * MB),
    Source("sympy", "sympy", "BSD-3-Clause", 3 * MB),
    Source("networkx", "networkx", "BSD-3-Clause", 3 * MB),
    Source("numpy", "numpy", "BSD-3-Clause", 3 * MB),
    Source("matplotlib", "matplotlib", "PSF-2.0", 3 * MB),
    Source("pytest", "_pytest", "MIT", 2 * MB),
    Source("rich", "rich", "MIT", 2 * MB),
    Source("mpmath", "mpmath", "BSD-3-Clause", 2 * MB),
    Source("click", "click", "BSD-3-Clause", 2 * MB),
    Source("typer", "typer", "MIT", 2 * MB),
    Source("jinja2", "jinja2", "BSD-3-Clause", 2 * MB),
    Source("einops", "einops", "MIT", 2 * MB),
)


@dataclass(frozen=True)
class SourceFile:
    """One file: `name` is '<source>/<path relative to the source's root>', `text` its content."""

    name: str
    source: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """Training and held-out files, with the rows of the table that they came from."""

    train: tuple[SourceFile, ...]
    held_out: tuple[SourceFile, ...]
    versions: dict[str, str]

    def bytes_of(self, source: str) -> int:
        """Bytes of training text taken from one source."""
        return sum(len(f.text.encode()) for f in self.train if f.source == source)


def _fraction(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def is_held_out(name: str, fraction: float) -> bool:
    """Whether the file of this relative name is held out of training; `fraction` of all names are."""
    return _fraction("held-out:" + name) < fraction


def _root(source: Source) -> tuple[Path, str] | None:
    """The directory of a source and its version; None when it is not installed."""
    if source.name == STANDARD_LIBRARY:
        return Path(sysconfig.get_path("stdlib")), platform.python_version()
    try:
        distribution = metadata.distribution(source.name)
    except metadata.PackageNotFoundError:
        return None
    root = Path(str(distribution.locate_file(source.package)))
    return (root, distribution.version) if root.is_dir() else None


def _is_wanted(relative: Path) -> bool:
    if SKIPPED_PARTS.intersection(relative.parts):
        return False
    return not relative.name.startswith(SKIPPED_PREFIXES)


def read_files(root: Path, source: str) -> list[SourceFile]:
    """All Python files under `root` that are source code worth learning, sorted by name."""
    found = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if not _is_wanted(relative):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        # Below 200 bytes there is only an import or a licence line; very long lines are data tables.
        if len(text) >= 200 and max(map(len, text.splitlines())) <= 1000:
            found.append(SourceFile(f"{source}/{relative.as_posix()}", source, text))
    return found


def _unique(files: Iterable[SourceFile], seen: set[str]) -> list[SourceFile]:
    """The files whose content has not been seen before; `seen` grows."""
    kept = []
    for file in files:
        digest = hashlib.sha256(file.text.encode()).hexdigest()
        if digest not in seen:
            seen.add(digest)
            kept.append(file)
    return kept


def _capped(files: Sequence[SourceFile], share_bytes: int | None) -> list[SourceFile]:
    """A reproducible choice of files whose sizes add up to at most `share_bytes`."""
    if share_bytes is None:
        return list(files)
    kept, total = [], 0
    for file in sorted(files, key=lambda f: _fraction("share:" + f.name)):
        size = len(file.text.encode())
        if total + size <= share_bytes:
            kept.append(file)
            total += size
    return kept


def gather(sources: Sequence[Source] = SOURCES, held_out_fraction: float = 0.05) -> Corpus:
    """Read, deduplicate, cap and split the sources.

    A source that is not installed is left out. The text of a held-out file never appears in training: files
    of equal content are kept once, the held-out copy first.
    """
    if not 0.0 < held_out_fraction < 0.5:
        raise ValueError(f"held_out_fraction={held_out_fraction}; allowed: more than 0 and less than 0.5")
    seen: set[str] = set()
    train: list[SourceFile] = []
    held_out: list[SourceFile] = []
    versions: dict[str, str] = {}
    found = [(source, place) for source in sources if (place := _root(source)) is not None]
    files = {s.name: _capped(read_files(root, s.name), s.share_bytes) for s, (root, _) in found}
    for source, (_, version) in found:
        versions[source.name] = version
        chosen = [f for f in files[source.name] if is_held_out(f.name, held_out_fraction)]
        held_out += _unique(chosen, seen)
    for source, _ in found:
        chosen = [f for f in files[source.name] if not is_held_out(f.name, held_out_fraction)]
        train += _unique(chosen, seen)
    return Corpus(tuple(train), tuple(held_out), versions)
