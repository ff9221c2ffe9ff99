"""Files as users have them: other formats, truncated files, byte-order marks, names in use, classes without records."""

from __future__ import annotations

import gzip
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from seqssm_dna.labelled import read_labelled
from seqssm_dna.records import read_records
from seqssm_dna.scan import scan
from seqssm_dna.sequences import SequenceData
from seqssm_dna.vcf import read_vcf, require_scorable, write_scores

from seqssm.errors import InputError

from .conftest import fasta, letters
from .predicting import causal, predict, predictor
from .test_effects import LABELS, classifier
from .test_variants import HEAD

GENBANK = """LOCUS       X1                        30 bp    DNA     linear   UNK 01-JAN-1980
DEFINITION  x.
ACCESSION   X1
VERSION     X1.1
ORIGIN
        1 acgtacgtac gtacgtacgt acgtacgtac
//
"""


def test_a_truncated_genbank_file_is_an_error(write):
    assert [len(one.sequence) for one in read_records(write(GENBANK + GENBANK.replace("X1", "X2"), "a.gb"))] == [30, 30]
    for end in (GENBANK.index("//"), GENBANK.index("gtac\n")):
        with pytest.raises(InputError, match=r"record 1 'X1.1': is truncated \(Premature end of file"):
            list(read_records(write(GENBANK[:end], "cut.gb")))
    with pytest.raises(InputError, match="has no sequence"):
        list(read_records(write(GENBANK.replace("        1 acgtacgtac gtacgtacgt acgtacgtac\n", ""), "empty.gb")))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.sam", b"@HD\tVN:1.6\n@SQ\tSN:chr1\tLN:20\nr1\t0\tchr1\t1\t60\t4M\t*\t0\t0\tACGT\tIIII\n", "is a SAM file"),
        ("x.bcf", gzip.compress(b"BCF\2\2" + bytes(60), mtime=0), "is a BCF file"),
        ("x.gff3", b"##gff-version 3\nchr1\tx\tgene\t5\t50\t.\t+\t.\tID=1\n", "is a GFF file"),
        ("x.gtf", b"chr1\tx\tgene\t5\t50\t.\t+\t.\tID=1\n", "neither their suffix nor a VCF header"),
    ],
)
def test_other_formats_are_named_with_a_reference_too(write, name, content, message):
    genome = write(fasta([("chr1", letters(200))]))
    with pytest.raises(InputError, match=message):
        predict(causal(), write(content, name), reference=str(genome))


@pytest.mark.parametrize("head", [HEAD, HEAD[HEAD.index("#CHROM") :]])
def test_a_byte_order_mark_before_a_vcf_header(write, tmp_path, head):
    content = b"\xef\xbb\xbf" + (head + "chr1\t10\t.\tA\tC\t.\t.\tDP=1\n").encode()
    path = write(content, "in.vcf")
    assert [(one.pos, one.ref) for one in read_vcf(path)] == [(10, "A")]
    write_scores(path, tmp_path / "out.vcf", [[1.5]], "LLR")
    lines = (tmp_path / "out.vcf").read_bytes().splitlines()
    assert lines[0].startswith(b"\xef\xbb\xbf##")
    assert lines[-3].removeprefix(b"\xef\xbb\xbf").startswith(b"##INFO=<ID=LLR")
    assert lines[-2] == head.encode().splitlines()[-1]
    assert lines[-1].endswith(b"DP=1;LLR=1.5")


def test_a_field_that_a_line_has_without_a_header_is_in_use(write, tmp_path):
    path = write(HEAD + "chr1\t10\t.\tA\tC\t.\t.\tAC=1;DB\n", "in.vcf")
    for field in ("AC", "DB"):
        with pytest.raises(InputError, match=f"line 4: already has an INFO field {field}"):
            write_scores(path, tmp_path / "out.vcf", [[1.0]], field)
        with pytest.raises(InputError, match="line 4"):
            require_scorable(path, tmp_path / "out.vcf", field)
    assert not (tmp_path / "out.vcf").exists()


def test_a_track_that_other_programs_reject_is_reported(write, tmp_path, capsys):
    track = str(tmp_path / "t.bedgraph")
    predict(causal(), write(fasta([("a", letters(40)), ("b", letters(40, 1))]), "good.fa"), track=track)
    assert "warning" not in capsys.readouterr().err
    predict(causal(), write(fasta([("a", letters(40)), ("a", letters(40, 1)), ("track", letters(9))])), track=track)
    printed = capsys.readouterr().err
    assert "warning: --track: 1 contigs have overlapping intervals or several records (first: 'a')" in printed
    assert "warning: --track: records named 'track' are not valid in bedGraph" in printed
    genome = str(write(fasta([("c", letters(200))]), "g.fa"))
    predict(causal(), write("c\t0\t50\nc\t50\t90\n", "apart.bed"), reference=genome, track=track)
    assert "warning" not in capsys.readouterr().err
    predict(causal(), write("c\t0\t50\nc\t49\t90\n", "over.bed"), reference=genome, track=track)
    assert "overlapping intervals" in capsys.readouterr().err


@pytest.mark.parametrize("strand", ["+", "-"])
def test_a_scan_of_a_classifier_reads_the_window_that_is_asked_for(write, strand):
    sequence = letters(300)
    genome, at = write(fasta([("chr1", sequence)])), 150
    own = predictor(classifier(), LABELS, reference=str(genome), window=50)
    frame, _ = scan(own, f"chr1:{at}-{at + 1}", strand)
    other = next(base for base in "ACGT" if base != sequence[at - 1])
    vcf = write(HEAD + f"chr1\t{at}\t.\t{sequence[at - 1]}\t{other}\t.\t.\t.\n", "one.vcf")
    wanted = predict(classifier(), vcf, summary=LABELS, reference=str(genome), window=50).iloc[0]
    found = frame[(frame["pos"] == at) & (frame["alt"] == other)].iloc[0]
    assert len(frame) == 6
    assert np.isclose(found["p_promoter_ref"], wanted["p_promoter_ref"], atol=1e-6) == (strand == "+")
    region, _ = scan(predictor(classifier(), LABELS, reference=str(genome)), f"chr1:{at}-{at + 1}", strand)
    assert not np.allclose(region["p_promoter_ref"], frame["p_promoter_ref"], atol=1e-6)


def _data(frame: pd.DataFrame, **options) -> tuple[SequenceData, list[str]]:
    data, said = SequenceData(**options), []
    data.print_line = said.append  # type: ignore[method-assign]
    data.use_frame(frame)
    data.setup("fit")
    return data, said


def test_classes_without_records_in_a_split_are_reported():
    rows = [(letters(20, k), "ab"[k % 2], "train") for k in range(8)]
    rows += [(letters(20, 20), "a", "valid"), (letters(20, 21), "c", "test")]
    frame = pd.DataFrame(rows, columns=["sequence", "label", "split"])
    _, said = _data(frame)
    assert "  warning: no train or val record of class c: never learned" in said
    assert "  warning: no val or test record of class b: neither validated nor tested" in said
    assert not any("test record of class a" in line for line in said[1:] if "class b" in line)
    _, said = _data(frame.replace({"label": {"c": "c, odd"}}))
    assert '  warning: no train or val record of class "c, odd": never learned' in said
    assert any('classes a, b, "c, odd";' in line for line in said)
    _, said = _data(frame.replace({"label": {"b": "a;b", "c": "a;b"}}), target="labels")
    assert not any("never learned" in line for line in said)
    assert any("no val record of class b: not validated" in line for line in said)


@pytest.mark.parametrize("value", [0, 1])
def test_a_label_without_variety_is_one_line(value):
    """Also without warnings of NumPy, which compared 32-bit numbers with the largest allowed one."""
    rows = [(letters(20, k), value, k % 2, ("train", "valid", "test")[k // 2 % 3]) for k in range(24)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, said = _data(
            pd.DataFrame(rows, columns=["sequence", "a", "b", "split"]), target="labels", label_columns=["a", "b"]
        )
    lines = [line for line in said if "warning" in line]
    words = (
        "every training record has the label a" if value else "no train, val or test record of class a: never learned"
    )
    assert len(lines) == 1
    assert words in lines[0]


def test_classes_that_differ_in_case_are_reported(write):
    rows = "".join(f"{letters(20, k)},{('A', 'a', 'b')[k % 3]}\n" for k in range(12))
    found = read_labelled(write("sequence,label\n" + rows, "a.csv"))
    assert "warning: classes that differ in case only: A, a" in found.notes


def test_a_fasta_file_instead_of_a_table_is_named(write):
    data = SequenceData(train=str(write(fasta([("a", letters(20))]), "a.fa")))
    with pytest.raises(
        InputError, match=r"a\.fa: has no labels; give a table of sequences and labels, or one such file"
    ):
        data.setup("fit")


def test_bases_of_a_larger_vocabulary_are_kept():
    from seqssm_dna.resizing import resized

    weights = {"network.embedding.weight": torch.arange(34.0).reshape(17, 2), "lm_head.weight": torch.ones(17, 2)}
    found = resized(weights, 12)
    assert torch.equal(found["network.embedding.weight"], weights["network.embedding.weight"][:12])
    assert found["lm_head.weight"].shape == (12, 2)


def test_several_files_of_which_one_is_not_named_in_utf8(write, tmp_path):
    one = write(fasta([("a", letters(40))]), "a.fa")
    other = tmp_path / b"b\xff.fa".decode("utf-8", "surrogateescape")
    other.write_bytes(one.read_bytes())
    for options in ({}, {"per_window": True, "window": 10}):
        found = predict(causal(), one, other, **options)
        assert set(found["file"]) == {"a.fa", "b\\udcff.fa"}


def test_sequences_in_memory_instead_of_files():
    with pytest.raises(InputError, match="ACGTT: no such file; sequences in memory are a dict of names and sequences"):
        predict(causal(), "ACGTT")
    with pytest.raises(InputError, match=r"no such file or folder$"):
        predict(causal(), "missing.fa")
    with pytest.raises(InputError, match=r"it has x, y$"):
        predict(causal(), data=pd.DataFrame({"x": ["ACGT"], "y": [1]}))


def test_sequences_in_memory_are_text_bytes_or_of_biopython():
    from Bio.Seq import Seq
    from seqssm_dna.sources import of_data

    found = dict(of_data({"a": "acgt", "b": b"ACGT", "c": Seq("ACGT")}, print))
    assert [item.letters.upper() for item in found.values()] == [b"ACGT"] * 3
    with pytest.raises(InputError, match="sequence 'a' is a int, not text"):
        list(of_data({"a": 5}, print))
