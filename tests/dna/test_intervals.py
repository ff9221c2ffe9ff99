"""BED files and windows."""

from __future__ import annotations

import random

import numpy as np
import pytest
from seqssm_dna.genome import Genome
from seqssm_dna.intervals import Interval, of_split, read_bed, require_apart, require_splits, whole_contigs
from seqssm_dna.letters import reverse_complement
from seqssm_dna.windows import make_windows, n_fraction, starts_of

from seqssm.errors import InputError

from .conftest import fasta, letters

SEQUENCES = {"chr1": letters(1000, 1, "ACGTN"), "chr2": letters(300, 2, "ACGTacgt"), "gi|1|ref|NC_7.1|": "N" * 50}


@pytest.fixture
def genome(write):
    return Genome(write(fasta(SEQUENCES.items())))


def test_bed_columns(write, genome):
    text = (
        "# a comment\ntrack name=x\nbrowser position chr1\n\nchr1\t0\t10\n"
        "2\t5\t25\tsite\t0\t-\nNC_7\t0\t50\tall\t3\t+\r\nchr1\t990\t1000\tend\n"
    )
    found = read_bed(write(text, "a.bed", "gzip"), genome)
    assert [(one.contig, one.start, one.end, one.name, one.strand) for one in found] == [
        (0, 0, 10, "", "."), (1, 5, 25, "site", "-"), (2, 0, 50, "all", "+"), (0, 990, 1000, "end", "."),
    ]  # fmt: skip
    assert [one.line for one in found] == [5, 6, 7, 8]
    assert found[1].sequence(genome) == reverse_complement(SEQUENCES["chr2"][5:25].encode())
    assert genome.contigs.aliases == {"2": "chr2", "NC_7": "gi|1|ref|NC_7.1|"}


def test_splits(write, genome):
    found = read_bed(write("chr1\t0\t500\ttrain\nchr1\t500\t600\tvalid\nchr2\t0\t300\tTEST\n", "a.bed"), genome)
    assert [one.split for one in found] == ["train", "val", "test"]
    assert of_split(found, "val") == [found[1]]
    require_apart(found, "a.bed")
    names = read_bed(write("chr1\t0\t500\ttrain\nchr1\t500\t600\tsite\n", "b.bed"), genome)
    assert [one.name for one in names] == ["train", "site"]
    assert names[0].split is None


def test_a_header_names_the_columns(write, genome):
    text = "chromosome\tstart\tend\tsplit\tlabel\tstrand\nchr1\t0\t9\tvalid\t1,3\t-\n"
    (found,) = read_bed(write(text, "bend.bed"), genome)
    assert (found.split, found.label, found.strand, found.name) == ("val", "1,3", "-", "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chr1\t0\t5\ttrain\nchr1\t5\t9\teval\n", "line 2: 'eval' in the fourth column; expected train, valid or test"),
        ("chr1\t0\t5\ttrain\nchr1\t5\t9\n", "line 2: no split in the fourth column; expected train, valid or test"),
        ("#chrom\tstart\tend\tname\nchr1\t0\t5\ttrain\n", "column of train, valid and test must be called split"),
        ("chr1\t0\t5\tgene\nchr1\t5\t9\n", "has no splits; expected train, valid or test in the fourth column"),
    ],
)
def test_a_file_without_splits(write, text, message):
    with pytest.raises(InputError, match=message):
        require_splits(read_bed(write(text, "a.bed")), "a.bed")


def test_blocks_are_joined(write, genome):
    text = "chr2\t10\t60\tgene\t0\t-\t10\t60\t0\t3\t5,10,20,\t0,12,30,\n"
    (found,) = read_bed(write(text, "a.bed12"), genome)
    plain = SEQUENCES["chr2"]
    joined = (plain[10:15] + plain[22:32] + plain[40:60]).encode()
    assert found.sequence(genome) == reverse_complement(joined)
    assert found.sequence(genome, spliced=False) == reverse_complement(plain[10:60].encode())


GENE = "chr2\t10\t60\tgene\t0\t-\t10\t60\t0\t"
ERRORS = {
    "": "contains no intervals",
    "# nothing\n": "contains no intervals",
    "chr1\t0\t9\nchr1\t5\n": "line 2: 2 columns",
    "chr1\t9\t9\n": "line 1: start 9 is not less than end 9",
    "chr1\t-1\t9\n": "line 1: start '-1' is not a position",
    "chr1\t1e3\t9\n": "line 1: start '1e3' is not a position",
    "chr1\t0\t1001\n": "line 1: end 1001 is beyond the end of 'chr1' (length 1000)",
    "chr3\t0\t10\n": "line 1: no contig 'chr3' in the FASTA file, which has 'chr1', 'chr2'",
    "chr1\t0\t9\tx\t0\tplus\n": "line 1: strand 'plus': expected +, - or .",
    GENE + "2\t5,10,20,\t0,12,30,\n": "line 1: block count 2, but 3 sizes and 3 starts",
    GENE + "2\t5,20\t0,31\n": "line 1: blocks overlap, or do not span the interval from start to end",
    GENE + "2\t15,40\t0,10\n": "line 1: blocks overlap",
    GENE + "1\tx\t0\n": "line 1: block 'x' is not a position",
    "chrom\tstart\tend\tsplit\nchr1\t0\t5\tmaybe\n": "line 2: split 'maybe'",
}


@pytest.mark.parametrize("text", ERRORS)
def test_errors_name_the_line(write, genome, text):
    with pytest.raises(InputError) as caught:
        read_bed(write(text, "bad.bed"), genome)
    assert ERRORS[text] in str(caught.value)


def test_splits_must_not_overlap(genome):
    def check(*rows):
        require_apart([Interval(0, "chr1", a, b, split=split, line=k) for k, (a, b, split) in enumerate(rows, 1)], "x")

    check((0, 10, "train"), (10, 20, "test"), (5, 10, "train"), (15, 30, None))
    with pytest.raises(InputError, match="line 3: test interval overlaps the train interval of line 1"):
        check((0, 100, "train"), (5, 10, "train"), (50, 60, "test"))
    require_apart([Interval(0, "a", 0, 9, split="train"), Interval(1, "b", 0, 9, split="test")], "x")


@pytest.mark.parametrize("seed", range(30))
def test_starts_cover_the_stretch_and_stay_inside(seed):
    draw = random.Random(seed)
    length, size, step = draw.randint(0, 60), draw.randint(1, 20), draw.randint(1, 20)
    for partial in (False, True):
        starts = starts_of(length, size, step, partial)
        ends = np.minimum(starts + size, length)
        assert (starts >= 0).all()
        assert (np.diff(starts) > 0).all()
        assert partial or (ends - starts == size).all()
        if step <= size and length and (partial or length >= size):
            covered = np.zeros(length, int)
            for a, b in zip(starts, ends):
                covered[a:b] += 1
            assert (covered > 0).all()
            if partial and step == size:
                assert (covered == 1).all()


def test_windows_of_a_genome(write, genome, monkeypatch):
    monkeypatch.setattr("seqssm_dna.windows.SPAN", 200)  # several groups
    intervals = [*whole_contigs(genome)[:2], Interval(1, "chr2", 100, 300, strand="-"), Interval(0, "chr1", 0, 20)]
    windows = make_windows(genome, intervals, 64, 32)
    assert windows.dropped == {"interval shorter than 64": 1}
    for row in range(len(windows)):
        one = intervals[windows.interval[row]]
        a, b = int(windows.start[row]), int(windows.end[row])
        assert one.start <= a < b <= one.end
        assert b - a == 64
        plain = SEQUENCES[one.chrom][a:b].upper()
        known = sum(plain.count(sign) for sign in "ACGT")
        assert windows.gc[row] == pytest.approx((plain.count("G") + plain.count("C")) / known)
        assert windows.n_fraction[row] == pytest.approx(1 - known / 64)
        sequence = windows.sequence(genome, row).upper().decode()
        assert sequence == (reverse_complement(plain.encode()).decode() if one.strand == "-" else plain)


def test_windows_of_n_are_dropped_and_counted(genome):
    every = make_windows(genome, whole_contigs(genome), 50)
    assert np.isnan(every.gc[-1])
    assert every.n_fraction[-1] == 1
    few = make_windows(genome, whole_contigs(genome), 50, max_n=0.2)
    assert len(few) == (every.n_fraction <= 0.2).sum()
    assert sum(few.dropped.values()) == len(every) - len(few) > 0
    assert "more than 0.2 of the letters are N" in few.report()[0]


def test_windows_of_any_length_at_the_end(genome):
    windows = make_windows(genome, whole_contigs(genome), 256, partial=True)
    assert (windows.end - windows.start).tolist() == [256, 256, 256, 232, 256, 44, 50]
    overlapping = make_windows(genome, whole_contigs(genome)[:1], 256)
    assert overlapping.start.tolist() == [0, 256, 512, 744]


def test_options_out_of_range(genome):
    for size, step, most in ((0, 1, 1.0), (5, 0, 1.0), (5, 5, 1.5)):
        with pytest.raises(InputError):
            make_windows(genome, whole_contigs(genome), size, step, most)


def test_n_fraction():
    assert n_fraction(b"ANRT") == 0.5
    assert np.isnan(n_fraction(b""))


@pytest.mark.parametrize(
    "line",
    [
        "chr1\thavana\tgene\t11\t500\t.\t+\t.\tID=gene1",
        'chr1\thavana\texon\t11\t500\t0.5\t-\t0\tgene_id "x"; transcript_id "y";',
    ],
)
def test_gff_is_no_bed(write, genome, line):
    with pytest.raises(InputError, match="line 2: is GFF or GTF, whose start and end are columns 4 and 5, from 1"):
        read_bed(write(f"##gff-version 3\n{line}\n", "a.bed"), genome)
