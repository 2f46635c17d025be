"""Which files are read, and which are held out."""

from __future__ import annotations

import pytest

from layer_skip.training import data
from layer_skip.training.data import SOURCES, Source, gather, is_held_out, read_files


def _write(root, name, text):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A made-up distribution of 60 files in place of the installed ones."""
    for number in range(60):
        _write(tmp_path, f"module_{number}.py", f"value_{number} = {number}\n" * 30)
    _write(tmp_path, "copy.py", "value_7 = 7\n" * 30)
    _write(tmp_path, "tests/test_it.py", "skipped = True\n" * 30)
    _write(tmp_path, "test_more.py", "skipped = True\n" * 30)
    _write(tmp_path, "short.py", "import this\n")
    _write(tmp_path, "table.py", "x = '" + "a" * 2000 + "'\n")
    monkeypatch.setattr(data, "_root", lambda source: (tmp_path, "1.0"))
    return (Source("made-up", "made_up", "MIT", None),)


def test_tests_stubs_and_data_tables_are_not_read(installed, tmp_path):
    names = {file.name for file in read_files(tmp_path, "made-up")}
    assert names == {f"made-up/module_{n}.py" for n in range(60)} | {"made-up/copy.py"}


def test_held_out_files_are_never_trained_on_and_the_same_every_time(installed):
    first, second = gather(installed, 0.2), gather(installed, 0.2)
    assert first == second
    held_out = {file.text for file in first.held_out}
    assert held_out and not held_out.intersection(file.text for file in first.train)
    assert all(is_held_out(file.name, 0.2) for file in first.held_out)


def test_equal_files_are_kept_once(installed):
    corpus = gather(installed, 0.2)
    texts = [file.text for file in (*corpus.train, *corpus.held_out)]
    assert len(texts) == len(set(texts)) == 60


def test_a_source_takes_no_more_than_its_share(installed):
    (source,) = installed
    capped = Source(source.name, source.package, source.licence, share_bytes=2000)
    corpus = gather((capped,), 0.2)
    total = sum(len(file.text.encode()) for file in (*corpus.train, *corpus.held_out))
    assert 1000 < total <= 2000


def test_a_distribution_that_is_not_installed_is_left_out():
    assert data._root(Source("no-such-distribution", "nothing", "MIT", None)) is None


def test_the_held_out_fraction_is_checked():
    with pytest.raises(ValueError, match=r"held_out_fraction=0\.0; allowed"):
        gather(held_out_fraction=0.0)


def test_every_source_names_a_permissive_licence():
    assert {source.licence for source in SOURCES} <= {"PSF-2.0", "MIT", "BSD-3-Clause", "Apache-2.0"}
