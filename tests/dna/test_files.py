"""The public names, and writing FASTA and bedGraph."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import seqssm_dna
from seqssm_dna.files import bedgraph, open_genome, read_records, write_fasta
from seqssm_dna.variants import STATUSES

from seqssm.errors import InputError

from .conftest import letters


def test_public_names():
    for name in seqssm_dna._LAZY:
        assert callable(getattr(seqssm_dna, name))
    assert set(seqssm_dna.__all__) == {*seqssm_dna._LAZY, "DOMAIN"}
    with pytest.raises(AttributeError):
        _ = seqssm_dna.nothing


def test_readers_need_no_torch():
    code = "import sys, seqssm_dna.files; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "lightning", "sklearn", "numba", "matplotlib"} & set(loaded)


@pytest.mark.parametrize("name", ["out.fa", "out.fa.gz"])
@pytest.mark.parametrize("width", [60, 0, 7])
def test_written_fasta_is_read_again(tmp_path, name, width):
    records = [("a first", letters(130, 1)), ("b", b""), ("c", letters(7, 2, "acgtN"))]
    assert write_fasta(tmp_path / name, records, width) == 3
    found = [(one.description, one.sequence) for one in read_records(tmp_path / name)]
    assert found == [(header, one if isinstance(one, bytes) else one.encode()) for header, one in records]
    genome = open_genome(tmp_path / name)
    assert not genome.held
    assert genome.fetch("a", 55, 125) == letters(130, 1)[55:125].encode()


def test_what_cannot_be_written(tmp_path):
    path = tmp_path / "out.fa"
    path.write_text("before")
    for record, message in (
        (("a\nb", "ACGT"), "header contains a line break"),
        (("a", "ACGX"), "record 1, position 4"),
    ):
        with pytest.raises(InputError, match=message):
            write_fasta(path, [record])
    assert path.read_text() == "before"


def test_bedgraph():
    values = np.array([1.0, 1.00001, np.nan, np.nan, 0.5, 1.0, np.nan])
    assert bedgraph("chr1", 10, values).decode().splitlines() == [
        "chr1\t10\t12\t1.0000",
        "chr1\t14\t15\t0.5000",
        "chr1\t15\t16\t1.0000",
    ]
    assert bedgraph("chr1", 0, np.zeros(0)) == b""
    assert bedgraph("chr1", 0, np.full(3, np.nan)) == b""
    random = np.random.default_rng(0).random(500).round(1)
    restored = np.full(500, np.nan)
    for line in bedgraph("x", 0, random, 2).decode().splitlines():
        _, a, b, value = line.split("\t")
        restored[int(a) : int(b)] = float(value)
    assert (restored == random).all()


def test_the_readmes_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sequence = letters(3000, 1)
    write_fasta("genome.fa", [("chr1", sequence)])
    Path("splits.bed").write_text("chr1\t0\t2000\ttrain\nchr1\t2000\t2500\tvalid\nchr1\t2500\t3000\ttest\n")
    other = "A" if sequence[99] != "A" else "C"
    head = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    Path("calls.vcf").write_text(f"{head}1\t100\t.\t{sequence[99]}\t{other}\t.\t.\t.\n")
    rows = "".join(f"{letters(30, k)},{'ab'[k % 2]}\n" for k in range(8))
    Path("promoters.csv").write_text("sequence,label\n" + rows)
    page = Path(seqssm_dna.__file__).with_name("README.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1
    found = {}
    exec(compile(blocks[0], "README.md", "exec"), found)
    printed = capsys.readouterr().out
    assert "contig 1 read as chr1" in printed
    assert "['a', 'b']" in printed
    assert len(found["both"].ref) == len(found["both"].alt) == 128
    assert len(found["windows"]) == 8


def test_the_readme_names_every_status():
    page = Path(seqssm_dna.__file__).with_name("README.md").read_text()
    assert all(f"`{status}`" in page for status in STATUSES)
