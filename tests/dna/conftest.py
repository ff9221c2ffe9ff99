"""A separate cache for each test, small simulated genomes, and writers of files in every compression."""

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


def csv(rows, header: str = "sequence,label,split", mark: str = ",") -> str:
    """Table of rows."""
    return "\n".join([header.replace(",", mark), *(mark.join(map(str, row)) for row in rows)]) + "\n"


def fasta(records, width: int | None = 60, end: str = "\n") -> str:
    """FASTA text of (header, sequence) pairs."""
    lines = []
    for header, sequence in records:
        step = width or max(len(sequence), 1)
        lines.append(f">{header}")
        lines += [sequence[start : start + step] for start in range(0, len(sequence), step)]
    return end.join(lines) + end


SMALL = ("--model.d_model", "16", "--model.n_layers", "1", "--model.d_state", "4", "--model.threads", "1")


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Simulated data (`made/`) and small trained runs (`tiny`, `finetune`, `yeast_generation`); read-only."""
    from seqssm_dna import simulate

    from seqssm.cli.main import main

    folder = tmp_path_factory.mktemp("dna")
    made = folder / "made"
    simulate.folder(made, seed=3, length=6000, labelled=40, alleles=20)
    random = np.random.default_rng(1)
    rows = [f"{letters(28 + k % 3, 90 + k)},{random.normal():.4f}" for k in range(40)]
    (made / "training.csv").write_text("\n".join(["sequence,expression", *rows]) + "\n")
    data = {
        "tiny": ("--data.fasta", str(made / "genome.fa"), "--data.bed", str(made / "splits.bed")),
        "finetune": ("--data.train", str(made / "promoters.csv")),
        "yeast_generation": ("--data.train", str(made / "training.csv")),
    }
    data["tiny"] += ("--model.conv_layers", "2")
    data["finetune"] += ("--model.mixer", "mamba", "--model.attn_period", "2", "--model.attn_offset", "0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "1")  # removes variables that a command sets
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        for preset, flags in data.items():
            fit = ["dna", "fit", "--config", preset, *SMALL, *flags, "--trainer.max_epochs", "1"]
            fit += ["--trainer.limit_train_batches", "4", "--trainer.accelerator", "cpu"]
            assert main([*fit, "--output", str(folder / preset)]) == 0
    return folder
