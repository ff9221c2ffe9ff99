"""Random access equals slicing for every file layout; the index is cached, and a stale one is detected."""

from __future__ import annotations

import os
import pickle
import random
import time
from pathlib import Path

import pytest
from seqssm_dna.contigs import Contigs, parse_region
from seqssm_dna.genome import Genome
from seqssm_dna.genomes import open_genome
from seqssm_dna.letters import reverse_complement

from seqssm.errors import InputError

from .conftest import COMPRESSIONS, fasta, letters

RECORDS = [
    ("one a description", letters(3000, 1, "ACGTNacgtn")),
    ("two", ""),
    ("three", letters(60, 2)),
    ("one", letters(121, 3)),
    ("", letters(7, 4)),
]


def index_files() -> list[Path]:
    return sorted(Path(os.environ["XDG_CACHE_HOME"]).rglob("*.fai"))


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("layout", [(60, "\n"), (60, "\r\n"), (None, "\n"), (50, "\r")])
@pytest.mark.parametrize("mark", ["", "\ufeff"])  # byte-order mark, of three bytes
def test_fetching_is_slicing(write, compression, layout, mark):
    genome = Genome(write(mark + fasta(RECORDS, *layout), compression=compression))
    indexed = compression in ("plain", "bgzf")
    assert genome.held is not indexed
    assert len(index_files()) == indexed
    assert genome.lengths == [len(sequence) for _, sequence in RECORDS]
    draw = random.Random(0)
    for record, (_, sequence) in enumerate(RECORDS):
        assert genome.fetch(record) == sequence.encode()
        for _ in range(40):
            start = draw.randint(0, len(sequence))
            end = draw.randint(start, len(sequence))
            assert genome.fetch(record, start, end) == sequence[start:end].encode()
            turned = genome.fetch(record, start, end, "-")
            assert turned == reverse_complement(sequence[start:end].encode())
    assert genome.findings.bases == sum(genome.lengths)


def test_the_last_line_may_lack_a_newline(write):
    sequence = letters(120, 5)
    for text in (
        f">a\n{sequence[:60]}\n{sequence[60:]}",
        f">a\n{sequence}",
        f">a\n{sequence[:60]}\n{sequence[60:]}\n\n\n",
    ):
        genome = Genome(write(text))
        assert not genome.held
        assert genome.fetch("a", 50, 120) == sequence[50:].encode()


def test_lines_of_unequal_length_are_held_in_memory(write):
    genome = Genome(write(">a\nACGT\nAC\nACGT\n"))
    assert genome.held
    assert genome.fetch("a") == b"ACGTACACGT"
    assert any("differ in length" in note for note in genome.notes)


def test_repeated_names_are_refused_by_name_only(write):
    genome = Genome(write(fasta(RECORDS)))
    assert genome.fetch(3) == RECORDS[3][1].encode()
    with pytest.raises(InputError, match=r"contig 'one' matches several records .*: 1 'one', 4 'one'"):
        genome.fetch("one")
    assert any("2 records share 1 names" in note for note in genome.notes)


def test_positions_outside_of_a_contig(write):
    genome = Genome(write(fasta(RECORDS)))
    for start, end in ((0, 61), (-1, 5), (5, 4), (61, 61)):
        with pytest.raises(InputError, match="outside of 'three'"):
            genome.fetch("three", start, end)
    with pytest.raises(InputError, match=r"no contig 'thre'.*did you mean three"):
        genome.fetch("thre", 0, 1)


def test_nothing_is_written_beside_the_file_and_the_index_is_reused(write, monkeypatch):
    path = write(fasta(RECORDS), compression="bgzf")
    first = Genome(path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    monkeypatch.setattr("seqssm_dna.genome.stream_fasta", None)  # is not called again
    second = Genome(path)
    assert second.fetch(0, 10, 2000) == first.fetch(0, 10, 2000)
    assert second.findings.to_dict() == first.findings.to_dict()
    assert second.notes == first.notes


def test_a_changed_file_gets_a_new_index(write):
    path = write(fasta([("a", "ACGT" * 30)]))
    old = Genome(path)
    time.sleep(0.01)
    path.write_text(fasta([("longer", "GGCC" * 40)]))
    with pytest.raises(InputError, match="has changed since it was opened"):
        old.fetch(0, 0, 4)
    assert Genome(path).fetch("longer", 0, 4) == b"GGCC"
    assert len(index_files()) == 2


def test_a_damaged_index_is_rebuilt(write):
    path = write(fasta(RECORDS))
    Genome(path)
    (index,) = index_files()
    for damage in ("", "0\t1\t2\n", "nonsense"):
        index.write_text(damage)
        assert Genome(path).fetch(2) == RECORDS[2][1].encode()
    about = index.with_suffix(".json")
    about.write_text("{}")
    assert Genome(path).fetch(2) == RECORDS[2][1].encode()


def test_an_index_that_disagrees_is_detected(write):
    path = write(fasta(RECORDS))
    Genome(path)
    (index,) = index_files()
    rows = [line.split("\t") for line in index.read_text().splitlines()]
    rows[2][2] = str(int(rows[2][2]) - 8)
    index.write_text("".join("\t".join(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"does not match its index; delete .*\.fai"):
        Genome(path).fetch(2, 0, 30)


def test_a_stale_index_beside_the_file_is_not_used(write):
    path = write(fasta([("a", "ACGT" * 30)]))
    beside = path.with_name(path.name + ".fai")
    beside.write_text("a\t4\t0\t4\t5\n")
    os.utime(beside, (1, 1))
    printed = []
    genome = Genome(path, say=printed.append)
    assert genome.lengths == [120]
    assert len([line for line in printed if "older than the FASTA file" in line]) == 1
    assert beside.read_text() == "a\t4\t0\t4\t5\n"


def test_a_cache_that_cannot_be_written(write, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    printed = []
    genome = Genome(write(fasta(RECORDS), compression="bgzf"), say=printed.append)
    assert genome.fetch(0) == RECORDS[0][1].encode()
    assert pickle.loads(pickle.dumps(genome)).fetch(0, 5, 9) == RECORDS[0][1][5:9].encode()
    assert len([line for line in printed if "is not writable" in line]) == 1


def test_what_cannot_be_indexed_has_a_limit(write):
    path = write(fasta(RECORDS), compression="gzip")
    assert Genome(path, memory=5000).held
    with pytest.raises(InputError, match="gzip files cannot be indexed; compress it with bgzip"):
        Genome(path, memory=100)


def test_copies_and_forks_read_independently(write):
    genome = Genome(write(fasta(RECORDS), compression="bgzf"))
    genome.fetch(0, 0, 100)
    copy = pickle.loads(pickle.dumps(genome))
    assert copy.fetch(0, 1000, 1500) == RECORDS[0][1][1000:1500].encode()
    child = os.fork()
    if not child:
        good = all(genome.fetch(0, k, k + 50) == RECORDS[0][1][k : k + 50].encode() for k in range(0, 2900, 7))
        os._exit(0 if good else 1)
    for k in range(0, 2900, 11):
        assert genome.fetch(0, k, k + 50) == RECORDS[0][1][k : k + 50].encode()
    assert os.waitpid(child, 0)[1] == 0


def test_several_files_are_one_genome(write):
    a = write(fasta([("MAL1", letters(200, 1)), ("MAL2", letters(90, 2))]), "a.fa", "bgzf")
    b = write(fasta([("MAL13", letters(300, 3))]), "b.fa", "gzip")
    genome = open_genome([a, b])
    assert genome.names == ["MAL1", "MAL2", "MAL13"]
    assert genome.lengths == [200, 90, 300]
    assert genome.fetch("MAL13", 5, 205) == letters(300, 3)[5:205].encode()
    assert genome.fetch("MAL2", 0, 90, "-") == reverse_complement(letters(90, 2).encode())
    assert any(note.startswith("b.fa.gz: held in memory") for note in genome.notes)
    assert (genome.findings.records, genome.findings.bases) == (3, 590)
    assert pickle.loads(pickle.dumps(genome)).fetch(1) == letters(90, 2).encode()
    with pytest.raises(InputError, match="duplicate sequence file"):
        open_genome([a, a])
    with pytest.raises(InputError, match="no contig 'MAL4'"):
        genome.find("MAL4")
    assert not isinstance(open_genome(a), type(genome))


# -- names -------------------------------------------------------------------------------------------------------------

NCBI = [
    ("NC_000001.11", "NC_000001.11 Homo sapiens chromosome 1, GRCh38.p14 Primary Assembly"),
    ("NC_000010.11", "NC_000010.11 Homo sapiens chromosome 10, GRCh38.p14 Primary Assembly"),
    ("NC_012920.1", "NC_012920.1 Homo sapiens mitochondrion, complete genome"),
]
MOUSE = [("CM000994.3", "CM000994.3 Mus musculus chromosome 1, GRCm39 reference primary assembly C57BL/6J")]
ALIASES = [
    ([("chr1", ""), ("chr10", ""), ("chrM", "")], {"1": 0, "10": 1, "MT": 2, "M": 2, "NC_000010.10": 1, "Chr1": 0}),
    ([("1", ""), ("10", ""), ("MT", "")], {"chr1": 0, "chr10": 1, "chrM": 2, "NC_000001.11": 0, "NC_012920.1": 2}),
    (NCBI, {"chr1": 0, "1": 0, "10": 1, "NC_000010": 1, "chrM": 2, "MT": 2, "NC_000001.10": 0}),
    (MOUSE, {"chr1": 0, "1": 0, "CM000994": 0}),
    ([("gi|88193823|ref|NC_007795.1|", "")], {"NC_007795": 0, "NC_007795.1": 0, "88193823": 0}),
    ([("20:3000001-9000000", "")], {"20:3000001-9000000": 0}),
]


@pytest.mark.parametrize(("records", "wanted"), ALIASES)
def test_aliases(records, wanted):
    contigs = Contigs([name for name, _ in records], [text for _, text in records])
    assert {name: contigs.find(name) for name in wanted} == wanted
    assert contigs.aliases == {name: records[k][0] for name, k in wanted.items() if records[k][0] != name}


def test_no_alias_is_guessed():
    contigs = Contigs(["chr1", "chr2", "chrX", "1"])
    assert contigs.find("chr1") == 0
    assert contigs.find("1") == 3
    for name in ("3", "chr22", "chr", "", "NC_000002", "ref"):
        if name == "NC_000002":
            assert contigs.find(name) == 1
            continue
        with pytest.raises(InputError, match="no contig"):
            contigs.find(name)
    with pytest.raises(InputError, match="several records"):
        contigs.find("CHR1")
    assert contigs.aliases == {"NC_000002": "chr2"}


def test_regions():
    contigs = Contigs(["chr7", "20:3000001-9000000"])
    lengths = [5000, 6_000_000]
    assert parse_region("chr7", contigs, lengths) == (0, 0, 5000)
    assert parse_region("7:1-10", contigs, lengths) == (0, 0, 10)
    assert parse_region("chr7:1,001-2,000", contigs, lengths) == (0, 1000, 2000)
    assert parse_region("chr7:5000", contigs, lengths) == (0, 4999, 5000)
    assert parse_region("20:3000001-9000000", contigs, lengths) == (1, 0, 6_000_000)
    assert parse_region("20:3000001-9000000:11-20", contigs, lengths) == (1, 10, 20)
    for text in ("chr7:0-10", "chr7:10-5", "chr7:1-5001"):
        with pytest.raises(InputError, match="expected 1 <= start <= end <= 5000"):
            parse_region(text, contigs, lengths)
    fields = Contigs(["gi|123|ref|NC_01.1|", "chrX"])
    assert parse_region("gi|123|ref|NC_01.1|:1-5", fields, [3000, 9]) == (0, 0, 5), "a field of it names the record too"
    assert parse_region("NC_01.1:2", fields, [3000, 9]) == (0, 1, 2)
    with pytest.raises(InputError, match="expected 1 <= start <= end <= 3000"):
        parse_region("gi|123|ref|NC_01.1|:9000-9005", fields, [3000, 9])
    assert parse_region("chr20:3000001-9000000", contigs, lengths) == (1, 0, 6_000_000), "another name of the record"
    for text in ("chr8", "chr8:1-10", "chr7:x-10", "chr7:-10"):
        with pytest.raises(InputError, match="no contig"):
            parse_region(text, contigs, lengths)
