"""The cache of compiled kernels: damaged files, read-only folders, and the messages about them."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numba
import pytest
from numba import types
from seqssm_kernels.cpu import compile as c
from seqssm_kernels.cpu.compile import compiled

SIGNATURE = types.int64(types.int64)


def make(offset: int):
    def add(value):
        return value + offset

    return add


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache, and a compiler that has not reported anything yet."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(c, "_said", set())
    monkeypatch.setattr(c, "SLOW", 1e6)  # no announcements, even on a busy machine
    return tmp_path


def files(folder: Path) -> dict[str, Path]:
    found = {file.suffix: file for file in folder.rglob("*.nb?")}
    assert set(found) == {".nbi", ".nbc"}
    return found


def truncate(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGE = {
    "truncated": truncate,
    "last byte lost": lambda content: content[:-1],
    "empty": lambda content: b"",
    "a flipped bit": flip,
    "garbage": lambda content: os.urandom(len(content)),
    "zeros": lambda content: bytes(len(content)),
    "another pickle": lambda content: pickle.dumps([1, 2]),
    "from a plain numba": lambda content: content[: -c._TRAILER],
}


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_deleted_and_reported_once(folder, capsys, damage, suffix):
    assert compiled(make(3), SIGNATURE, "test")(4) == 7
    file = files(folder)[suffix]
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    assert compiled(make(3), SIGNATURE, "test")(4) == 7
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "is corrupt or was written by another version" in message
    assert str(folder) in message
    again = compiled(make(3), SIGNATURE, "test")
    assert again(4) == 7
    assert sum(again.stats.cache_hits.values()) == 1
    assert capsys.readouterr().err == ""


def test_files_that_cannot_be_loaded_are_compiled_again_without_checksums_too(folder, capsys, monkeypatch):
    """As with a numba whose internals have changed."""
    monkeypatch.setattr(c, "_cache_file", lambda kernel: None)
    compiled(make(3), SIGNATURE, "test")
    file = files(folder)[".nbc"]
    file.write_bytes(truncate(file.read_bytes()))
    assert compiled(make(3), SIGNATURE, "test")(4) == 7
    assert "corrupt" in capsys.readouterr().err


def test_an_intact_cache_is_used(folder, capsys):
    assert sum(compiled(make(5), SIGNATURE, "test").stats.cache_hits.values()) == 0
    for offset, hits in ((5, 1), (6, 0), (6, 1), (5, 1)):
        kernel = compiled(make(offset), SIGNATURE, "test")
        assert (kernel(1), sum(kernel.stats.cache_hits.values())) == (1 + offset, hits)
    assert capsys.readouterr().err == ""


def test_a_kernel_that_does_not_compile_raises_its_error(folder):
    def wrong(value):
        return value.no_such_attribute

    with pytest.raises(numba.TypingError):
        compiled(wrong, SIGNATURE, "test")


def test_no_writable_folder_is_reported_once(folder, capsys, monkeypatch):
    monkeypatch.setattr("numba.core.caching.CacheImpl._locator_classes", [])
    for offset in (1, 2):
        assert compiled(make(offset), SIGNATURE, "test")(1) == 1 + offset
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "set NUMBA_CACHE_DIR to a writable folder" in message


def test_a_full_disk_is_reported_and_costs_a_compilation(folder, capsys, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile.save", full)
    assert compiled(make(3), SIGNATURE, "test")(4) == 7
    assert "No space left on device" in capsys.readouterr().err


def test_a_slow_compilation_is_announced_a_quick_one_is_not(folder, capsys, monkeypatch):
    compiled(make(3), SIGNATURE, "test")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(c, "SLOW", 0.001)
    compiled(make(4), SIGNATURE, "the test kernel")
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "compiling the test kernel for this processor, once; cached in" in message
    assert str(folder) in message
    compiled(make(4), SIGNATURE, "the test kernel")  # loaded, however long that takes
    time.sleep(0.05)
    assert capsys.readouterr().err == ""


SCAN = """
import torch
from seqssm_kernels import selective_scan
t = torch.ones(1, 3, 2)
print(selective_scan(t, t, -torch.ones(2, 1), t[..., :1], t[..., :1]).sum().item())
"""


def scan(folder: Path, prelude: str = "") -> str:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", prelude + SCAN], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(2 * (1 + 1.367879 + 1.503215), abs=1e-4)
    return done.stderr


@pytest.mark.long
def test_the_scan_survives_a_damaged_cache(tmp_path):
    scan(tmp_path)
    for file in tmp_path.rglob("*.nbc"):
        file.write_bytes(flip(file.read_bytes()))
    assert scan(tmp_path).count("is corrupt") == 1
    assert scan(tmp_path) == ""


def test_the_scan_works_where_no_folder_is_writable(tmp_path):
    prelude = "import numba.core.caching\nnumba.core.caching.CacheImpl._locator_classes = []\n"
    assert scan(tmp_path, prelude).count("set NUMBA_CACHE_DIR") == 1
    assert not list(tmp_path.rglob("*.nb?"))
