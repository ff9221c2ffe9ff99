"""A cache of its own for each test, small made genomes, and writers of files in every compression."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os

import numpy as np
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

COMPRESSIONS = {
    "plain": ("", lambda data: data),
    "gzip": (".gz", gzip.compress),
    "bgzf": (".gz", lambda data: blocks(data)),
    "xz": (".xz", lzma.compress),
    "bzip2": (".bz2", bz2.compress),
}
"""Name -> (suffix, function that compresses bytes)."""


def blocks(data: bytes) -> bytes:
    """Data as BGZF, in small blocks."""
    from Bio import bgzf

    class Kept(io.BytesIO):
        def close(self) -> None:
            self.content = self.getvalue()

    out = Kept()
    writer = bgzf.BgzfWriter(fileobj=out)
    for start in range(0, len(data), 500):
        writer.write(data[start : start + 500])
        writer.flush()
    writer.close()
    return out.content


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def write(tmp_path):
    """Writes text or bytes to a file and returns its path."""

    def writer(content, name="sequences.fa", compression="plain"):
        suffix, compress = COMPRESSIONS[compression]
        path = tmp_path / (name + suffix)
        path.write_bytes(compress(content if isinstance(content, bytes) else content.encode()))
        return path

    return writer


def letters(length: int, seed: int = 0, alphabet: str = "ACGT") -> str:
    """Random letters."""
    return "".join(np.random.default_rng(seed).choice(list(alphabet), length))


def fasta(records, width: int | None = 60, end: str = "\n") -> str:
    """FASTA text of (header, sequence) pairs."""
    lines = []
    for header, sequence in records:
        step = width or max(len(sequence), 1)
        lines.append(f">{header}")
        lines += [sequence[start : start + step] for start in range(0, len(sequence), step)]
    return end.join(lines) + end
