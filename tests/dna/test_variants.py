"""VCF files: one row per allele with its status, windows of equal length, scores written back byte for byte."""

from __future__ import annotations

import gzip
import random

import pytest
from seqssm_dna.genome import Genome
from seqssm_dna.variants import STATUSES, Allele, Variants, allele_window, trimmed
from seqssm_dna.vcf import read_vcf, write_scores

from seqssm.errors import InputError

from .conftest import fasta, letters

CHR1 = letters(400, 1)
CHR1 = CHR1[:99] + "ACGTRNACGT" + CHR1[109:]  # 1-based 100 to 109
CHR2 = letters(120, 2).lower()
HEAD = (
    "##fileformat=VCFv4.2\n##INFO=<ID=DP,Number=1,Type=Integer,Description=\"Depth\">\n"
    "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
)  # fmt: skip


@pytest.fixture
def genome(write):
    return Genome(write(fasta([("chr1", CHR1), ("chr2", CHR2)])))


def row(chrom, pos, ref, alt, info=".", name="."):
    return f"{chrom}\t{pos}\t{name}\t{ref}\t{alt}\t.\tPASS\t{info}\n"


def other(base):
    return "ACGT"[("ACGT".index(base.upper()) + 1) % 4]


R10, R2 = CHR1[9], CHR2[29].upper()
CASES = [  # (row, status of each allele)
    (row("chr1", 10, R10, other(R10)), ["ok"]),
    (row("1", 10, R10, f"{other(R10)},{R10}TT"), ["ok", "ok"]),
    (row("chr1", 10, R10.lower(), other(R10).lower()), ["ok"]),
    (row("chr2", 30, R2, other(R2)), ["ok"]),
    (row("chr1", 10, CHR1[9:19], CHR1[9]), ["ok"]),
    (row("chr1", 10, CHR1[9:12], "GGGA"), ["ok"]),
    (row("chr1", 104, "A", "C"), ["ok"]),  # R in the genome is A or G
    (row("chr1", 104, "C", "A"), ["ref_mismatch"]),
    (row("chr1", 105, "T", "A"), ["ok"]),  # N in the genome
    (row("chr1", 103, "TRNA", "T"), ["ok"]),
    (row("chr1", 105, "N", "A"), ["invalid_allele"]),
    (row("chr1", 10, other(R10), R10), ["ref_mismatch"]),
    (row("chr1", 10, R10, f"<DEL>,*,{other(R10)}"), ["symbolic_allele", "symbolic_allele", "ok"]),
    (row("chr1", 10, R10, f"{R10}[chr2:5["), ["symbolic_allele"]),
    (row("chr1", 10, R10, f".{R10}"), ["symbolic_allele"]),
    (row("chr1", 10, R10, "<NON_REF>", "END=50"), ["reference_block"]),
    (row("chr1", 10, R10, f"{other(R10)},<NON_REF>"), ["ok", "reference_block"]),
    (row("chr1", 10, R10, "."), ["no_alternate"]),
    (row("chr1", 10, R10, R10), ["invalid_allele"]),
    (row("chr1", 10, R10, "AX"), ["invalid_allele"]),
    (row("chr1", 10, "", "A"), ["invalid_allele"]),
    (row("chr9", 10, "A", "C"), ["unknown_contig"]),
    (row("chr9", 10, "A", "<DUP>"), ["symbolic_allele"]),
    (row("chr1", 401, "A", "C"), ["beyond_end"]),
    (row("chr1", 400, CHR1[399] + "A", "C"), ["beyond_end"]),
    (row("chr1", 0, "A", "C"), ["beyond_end"]),
    (row("chr1", 10, CHR1[9:110], CHR1[9]), ["too_long"]),
    (row("chr1", 10, R10, R10 + "A" * 64), ["too_long"]),
    (row("chr1", 395, CHR1[394:400], CHR1[394]), ["too_long"]),  # five letters less, and none behind
    (row("chr1", 400, CHR1[399], other(CHR1[399])), ["ok"]),
    (row("chr1", 1, CHR1[0], other(CHR1[0])), ["ok"]),
]


@pytest.mark.parametrize("compression", ["plain", "gzip", "bgzf"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_one_row_per_allele_with_its_status(write, genome, compression, end):
    text = (HEAD + "".join(line for line, _ in CASES)).replace("\n", end)
    variants = Variants(write(text, "calls.vcf", compression), genome, 64)
    rows = list(variants)
    assert [one.index for one in rows] == list(range(len(rows)))
    for record, (line, wanted) in enumerate(CASES):
        own = [one for one in rows if one.record == record]
        assert [one.status for one in own] == wanted, line
        cells = line.split("\t")
        alts = cells[4].split(",")
        for one, alt in zip(own, alts):
            assert (one.chrom, str(one.pos), one.ref, one.alt, one.line) == (
                cells[0],
                cells[1],
                cells[3],
                alt,
                record + 4,
            )
            assert bool(one.reason) == (one.status != "ok")
    assert variants.counts == {status: sum(one.status == status for one in rows) for status in STATUSES}
    assert all(variants.counts.values())
    assert "contig 1 read as chr1" in variants.report()


def test_the_reasons_name_both_sides(write, genome):
    text = HEAD + row("chr1", 10, other(R10), R10) + row("chr9", 1, "A", "C") + row("chr1", 500, "A", "C")
    reasons = [one.reason for one in Variants(write(text, "calls.vcf"), genome, 64)]
    assert reasons[0] == f"REF is {other(R10)}, the FASTA file has {R10}"
    assert reasons[1] == "no contig 'chr9' in the FASTA file, which has 'chr1', 'chr2'; did you mean chr1 or chr2?"
    assert reasons[2] == "REF covers 500 to 500 of 'chr1', which has 400 letters"


@pytest.mark.parametrize("size", [1, 2, 8, 64, 399, 400, 401, 5000])
def test_both_windows_have_the_same_start_and_length(genome, size):
    draw = random.Random(size)
    fitting = 0
    for _ in range(400):
        start, r = draw.randint(0, 399), draw.choice([1, 1, 2, 5, 30])
        ref = CHR1[start : start + r]
        alt = "".join(draw.choice("acgt") for _ in range(draw.choice([1, 1, 2, 5, 30])))
        allele = Allele(0, 0, 1, 1, "chr1", start + 1, ".", ref, alt, 0, "ok")
        changed = CHR1[:start] + alt.upper() + CHR1[start + len(ref) :]
        try:
            found = allele_window(genome, allele, size)
        except InputError:
            behind = len(CHR1) - start - len(ref)
            assert max(len(ref), len(alt)) > size or behind < abs(len(ref) - len(alt))
            continue
        fitting += 1
        width = len(found.ref)
        assert width == len(found.alt) == found.end - found.start
        assert width == min(size, len(CHR1), len(changed))
        assert found.ref == CHR1[found.start : found.end].encode()
        assert found.alt == changed[found.start : found.start + width].encode()
        assert found.start + found.offset == start
        assert found.ref[found.offset :].startswith(ref.encode())
        assert found.alt[found.offset :].startswith(alt.upper().encode())
        left, right = found.offset, width - found.offset - max(len(ref), len(alt))
        if found.start > 0 and found.start + width < min(len(CHR1), len(changed)):
            assert abs(left - right) <= 1
    assert fitting > 50


def test_the_ref_window_holds_the_vcfs_letters(genome):
    allele = Allele(0, 0, 1, 1, "chr1", 105, ".", "T", "A", 0, "ok")
    found = allele_window(genome, allele, 9)
    assert found.ref == b"CGTRTACGT"[: len(found.ref)]
    assert found.ref.replace(b"RT", b"RA") == found.alt
    lower = allele_window(genome, Allele(0, 0, 1, 1, "chr2", 30, ".", R2, other(R2), 1, "ok"), 5)
    assert lower.ref == (CHR2[27:29] + R2 + CHR2[30:32]).encode()


def test_shifted_and_swapped_files_are_recognised(write, genome):
    def report(rows):
        variants = Variants(write(HEAD + "".join(rows), "calls.vcf"), genome, 64)
        list(variants)
        return " ".join(variants.report())

    places = range(20, 90)
    zero_based = [row("chr1", k, CHR1[k], other(CHR1[k])) for k in places]
    assert "positions look shifted by one" in report(zero_based)
    two_based = [row("chr1", k + 2, CHR1[k], other(CHR1[k])) for k in places]
    assert "positions look shifted by one" in report(two_based)
    swapped = [row("chr1", k + 1, other(CHR1[k]), CHR1[k]) for k in places]
    assert "REF and ALT look swapped" in report(swapped)
    build = [row("chr1", k + 1, letters(400, 9)[k], "A" if letters(400, 9)[k] != "A" else "C") for k in places]
    assert "same genome build" in report(build)
    right = [row("chr1", k + 1, CHR1[k], other(CHR1[k])) for k in places]
    assert "disagree" not in report(right)


def test_trimming():
    assert trimmed(10, "TGC", "TTGG") == (11, "GC", "TGG")
    assert trimmed(10, "CAG", "CTG") == (11, "A", "T")
    assert trimmed(10, "CAAA", "CA") == (10, "CAA", "C")
    assert trimmed(10, "A", "AT") == (10, "A", "AT")
    assert trimmed(10, "A", "C") == (10, "A", "C")


ERRORS = {
    "": "is empty",
    "chr1\t1\t2\n": "line 1: expected a VCF file",
    ">a\nACGT\n": "line 1: expected a VCF file",
    "##fileformat=VCFv4.2\nchr1\t10\t.\tA\tC\n": "line 2: a line before the header line",
    "##fileformat=VCFv4.2\n": "has no header line",
    "##fileformat=VCFv4.2\n#CHROM POS ID REF ALT\n": "line 2: expected the columns CHROM POS ID REF ALT",
    HEAD + "chr1\t10\t.\tA\n": "line 4: 4 columns; expected at least CHROM POS ID REF ALT",
    HEAD + row("chr1", "ten", "A", "C"): "line 4: POS 'ten' is not a position",
    HEAD + row("chr1", "-3", "A", "C"): "line 4: POS '-3' is not a position",
    HEAD + row("chr1", "99999999999", "A", "C"): "line 4: POS '99999999999' is not a position",
    "BCF\x02\x02": "is a BCF file",
    "PK\x03\x04": "is a zip archive",
}


@pytest.mark.parametrize("text", ERRORS)
def test_errors_are_one_line(write, text):
    for compression in ("plain", "gzip"):
        path = write(text, "calls.vcf", compression)
        with pytest.raises(InputError) as caught:
            list(read_vcf(path))
        assert ERRORS[text] in str(caught.value)
        assert str(caught.value).startswith(str(path))


def test_a_file_without_variants_is_fine(write, genome):
    assert list(Variants(write(HEAD, "calls.vcf"), genome, 64)) == []
    with pytest.raises(InputError, match="window of 0"):
        Variants(write(HEAD, "calls.vcf"), genome, 0)


# -- writing -----------------------------------------------------------------------------------------------------------

SAMPLES = (
    "##fileformat=VCFv4.2\n##contig=<ID=chr1>\n##FORMAT=<ID=GT,Number=1,Type=String,Description=\"x\">\n"
    "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tS 1\n"
    "chr1\t10\trs1\tA\tC\t50\tPASS\tDP=3\tGT\t0/1\n"
    "chr1\t11\t.\tA\tC,G,<DEL>\t.\t.\t.\tGT\t1/2\n"
    "chr1\t12\t.\tA\t.\t.\t.\tDP=1;\tGT\t0/0\n"
    "chr1\t13\t.\tA\tT\t.\t.\tDB;DP=1;\tGT\t0/0"
)  # fmt: skip
SCORES = [[-1.25], [0.5, None, float("nan")], [], [1 / 3]]
WANTED = ["DP=3;LLR=-1.25", "LLR=0.5,.,.", "DP=1;", "DB;DP=1;LLR=0.333333"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("target", ["out.vcf", "out.vcf.gz"])
def test_everything_else_is_kept(write, tmp_path, end, target):
    text = SAMPLES.replace("\n", end)
    path = write(text, "in.vcf", "gzip")
    assert write_scores(path, tmp_path / target, SCORES, "LLR", "a score") == 4
    content = (tmp_path / target).read_bytes()
    content = gzip.decompress(content) if target.endswith("gz") else content
    before, after = text.encode().splitlines(keepends=True), content.splitlines(keepends=True)
    added = f'##INFO=<ID=LLR,Number=A,Type=Float,Description="a score">{end}'.encode()
    assert after[:5] == [*before[:3], added, before[3]]
    for old, new, info in zip(before[4:], after[5:], WANTED, strict=True):
        cells = old.split(b"\t")
        cells[7] = info.encode()
        assert new == b"\t".join(cells)


def test_a_written_file_is_read_again(write, tmp_path, genome):
    path = write(SAMPLES, "in.vcf")
    write_scores(path, tmp_path / "out.vcf.gz", SCORES)
    a, b = (list(Variants(one, genome, 64)) for one in (path, tmp_path / "out.vcf.gz"))
    assert [(one.pos, one.alt, one.status) for one in a] == [(one.pos, one.alt, one.status) for one in b]


def test_what_cannot_be_written(write, tmp_path):
    path, target = write(SAMPLES, "in.vcf"), tmp_path / "out.vcf"
    bad = [
        (SCORES[:3], "LLR", "more variant lines than there are scores"),
        ([*SCORES, [1.0]], "LLR", "fewer than there are scores"),
        ([[1.0, 2.0], *SCORES[1:]], "LLR", "line 5: 2 scores for 1 ALT alleles"),
        (SCORES, "1x", "INFO field '1x'"),
        (SCORES, "A B", "INFO field 'A B'"),
    ]
    for scores, field, message in bad:
        with pytest.raises(InputError, match=message):
            write_scores(path, target, scores, field)
        assert not target.exists()
    with pytest.raises(InputError, match="is also the input"):
        write_scores(path, path, SCORES)
    write_scores(path, target, SCORES, "LLR")
    with pytest.raises(InputError, match="already has an INFO field LLR"):
        write_scores(target, tmp_path / "twice.vcf", SCORES, "LLR")
    short = write(HEAD + "chr1\t10\t.\tA\tC\n", "short.vcf")
    with pytest.raises(InputError, match="line 4: 5 columns; scores require the column INFO"):
        write_scores(short, target, [[1.0]])
