"""A thousand bit flips and a thousand truncations of FASTA and VCF files give an input error or a result."""

from __future__ import annotations

import random

import pytest
from seqssm_dna.fasta import stream_fasta
from seqssm_dna.genome import Genome
from seqssm_dna.intervals import read_bed
from seqssm_dna.labelled import read_labelled
from seqssm_dna.records import read_records, stream_pieces
from seqssm_dna.variants import STATUSES, Variants
from seqssm_dna.vcf import write_scores

from seqssm.errors import InputError

from .conftest import COMPRESSIONS, blocks, fasta, letters
from .test_variants import CASES, CHR1, CHR2, HEAD, SAMPLES

TIMES = 1500  # a third is flipped, a third cut, a third both
FASTA = fasta([("one first", letters(300, 1)), ("two", letters(90, 2, "ACGTNacgt")), ("", ""), ("one", letters(61, 3))])
VCF = HEAD + "".join(line for line, _ in CASES[1:30:3])


def damaged(content: bytes, times: int, seed: int):
    """Copies of `content` with a flipped bit, with a truncated end, or with both, in turn."""
    draw = random.Random(seed)
    for turn in range(times):
        copy = bytearray(content)
        if turn % 3 != 1:
            copy[draw.randrange(len(copy))] ^= 1 << draw.randrange(8)
        if turn % 3 != 0:
            del copy[draw.randrange(len(copy)) :]
        yield bytes(copy)


def outcome(read, path):
    """The result, or the error's message."""
    try:
        return read(path)
    except InputError as error:
        return None if "\n" not in str(error) and str(path) in str(error) else f"a bad message: {error}"


def by_pieces(path):
    found = []
    for piece in stream_pieces(path, size=128):
        if piece.start == 0 and len(found) == piece.record:
            found.append((piece.name, b""))
        found[-1] = (piece.name, found[-1][1] + piece.sequence)
    return found


def by_records(path):
    return [(one.name, one.sequence) for one in read_records(path)]


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_fasta(tmp_path, compression):
    suffix, compress = COMPRESSIONS[compression]
    path = tmp_path / f"a.fa{suffix}"
    results = []
    for copy in damaged(compress(FASTA.encode()), TIMES if compression == "plain" else TIMES // 6, 1):
        path.write_bytes(copy)
        results.append(outcome(by_pieces, path))
        assert outcome(by_records, path) == results[-1]
    refused = sum(one is None for one in results)
    assert 0 < refused < len(results) + (compression == "xz")  # its checksum detects every flip


@pytest.mark.parametrize("compression", ["plain", "bgzf"])
def test_random_access(tmp_path, compression):
    suffix, compress = COMPRESSIONS[compression]
    for number, copy in enumerate(damaged(compress(FASTA.encode()), 120, 2)):
        path = tmp_path / f"{number}.fa{suffix}"
        path.write_bytes(copy)

        def fetched(path):
            genome = Genome(path)
            return [(name, genome.fetch(record)) for record, name in enumerate(genome.names)]

        found = outcome(fetched, path)
        assert found == outcome(by_pieces, path) or (compression == "bgzf" and found is None)


def test_a_file_damaged_after_it_was_indexed(tmp_path):
    import os

    path = tmp_path / "a.fa.gz"
    content = blocks(FASTA.encode())
    path.write_bytes(content)
    genome = Genome(path)
    before = path.stat()
    draw = random.Random(3)
    for _ in range(200):
        copy = bytearray(content)
        copy[draw.randrange(len(copy))] ^= 1 << draw.randrange(8)
        path.write_bytes(bytes(copy))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # the same size and time
        genome._reader = None
        found = outcome(lambda _: genome.fetch(0), path)
        assert found is None or len(found) == 300


@pytest.mark.parametrize("compression", ["plain", "gzip", "bgzf"])
def test_vcf(tmp_path, compression):
    (tmp_path / "genome.fa").write_text(fasta([("chr1", CHR1), ("chr2", CHR2)]))
    genome = Genome(tmp_path / "genome.fa")
    suffix, compress = COMPRESSIONS[compression]
    path = tmp_path / f"calls.vcf{suffix}"
    refused = 0

    def rows(path):
        variants = Variants(path, genome, 32)
        found = list(variants)
        for one in found:
            assert one.status in STATUSES
            if one.status == "ok":
                windows = variants.windows(one)
                assert 0 < len(windows.ref) == len(windows.alt) <= 32
        variants.report()
        return found

    for copy in damaged(compress(VCF.encode()), TIMES if compression == "plain" else TIMES // 6, 4):
        path.write_bytes(copy)
        found = outcome(rows, path)
        refused += found is None
        if found is not None:
            assert [one.index for one in found] == list(range(len(found)))
    assert refused > 0


def test_writing_into_damaged_files(tmp_path):
    path, target = tmp_path / "in.vcf", tmp_path / "out.vcf"
    scores = [[1.0] * count for count in (1, 3, 0, 1)]
    for copy in damaged(SAMPLES.encode(), 100, 5):
        path.write_bytes(copy)
        written = outcome(lambda path: write_scores(path, target, scores), path)
        assert written in (4, None)


def test_bed_tables_and_other_formats(tmp_path):
    (tmp_path / "genome.fa").write_text(fasta([("chr1", CHR1)]))
    genome = Genome(tmp_path / "genome.fa")
    bed = "chr1\t0\t100\tgene\t0\t-\t0\t100\t0\t2\t10,20,\t0,80,\nchr1\t5\t9\tx\t0\t+\n"
    table = "sequence,label\n" + "".join(f"{letters(20, k)},{k % 2}\n" for k in range(8))
    fastq = "".join(f"@r{k}\n{letters(20, k)}\n+\n{'I' * 20}\n" for k in range(4))
    genbank = (
        "LOCUS       AB000001                  10 bp    DNA     linear   BCT 01-JAN-2000\nDEFINITION  Made.\n"
        "ACCESSION   AB000001\nVERSION     AB000001.1\nFEATURES             Location/Qualifiers\n"
        "     gene            1..10\nORIGIN\n        1 acgtacgtac\n//\n"
    )
    for name, text, read in (
        ("a.bed", bed, lambda path: read_bed(path, genome)),
        ("a.csv", table, read_labelled),
        ("a.fastq", fastq, by_records),
        ("a.gb", genbank, by_records),
    ):
        path = tmp_path / name
        for copy in damaged(text.encode(), 90, 6):
            path.write_bytes(copy)
            outcome(read, path)


def test_pieces_of_any_size_give_the_same_error(tmp_path):
    path = tmp_path / "a.fa"
    for copy in damaged(FASTA.encode(), 100, 7):
        path.write_bytes(copy)
        messages = []
        for size in (3, 50, 10_000):
            try:
                list(stream_fasta(path, size=size))
                messages.append(None)
            except InputError as error:
                messages.append(str(error))
        assert len(set(messages)) == 1
