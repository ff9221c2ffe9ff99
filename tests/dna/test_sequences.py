"""Sequence files: every layout and compression gives the same records; errors are one line."""

from __future__ import annotations

import gzip

import pytest
from seqssm_dna.fasta import Layout, stream_fasta
from seqssm_dna.letters import Findings, reverse_complement
from seqssm_dna.records import read_records, stream_pieces

from seqssm.errors import InputError

from .conftest import COMPRESSIONS, fasta, letters

RECORDS = [
    ("chr1 the first one", letters(1000, 1)),
    ("gi|12|ref|NC_7.1| second", letters(59, 2, "ACGTNRYacgtn")),
    ("empty", ""),
    ("chr1", letters(60, 3)),
    ("last", letters(121, 4, "acgu")),
]


def joined(pieces):
    """(name, description, sequence) of each record, and a check of the pieces' positions."""
    found, open_ = [], False
    for piece in pieces:
        if not open_:
            assert piece.start == 0
            assert piece.record == len(found)
            found.append([piece.name, piece.description, b""])
        assert piece.start == len(found[-1][2])
        found[-1][2] += piece.sequence
        assert piece.end == len(found[-1][2])
        open_ = not piece.last
    assert not open_
    return [tuple(one) for one in found]


WANTED = [(header.split()[0], header, sequence.encode()) for header, sequence in RECORDS]


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("width", [60, 7, None])
def test_every_layout_gives_the_same_records(write, compression, end, width):
    path = write(fasta(RECORDS, width, end), compression=compression)
    assert joined(stream_pieces(path)) == WANTED
    assert [(one.name, one.description, one.sequence) for one in read_records(path)] == WANTED


@pytest.mark.parametrize("size", [1, 2, 3, 17, 64, 10_000])
def test_pieces_do_not_depend_on_the_block_size(write, size):
    for end, final in (("\n", "\n"), ("\r\n", ""), ("\n\n", "\n \n")):
        text = "\ufeff\n" + fasta(RECORDS, 50, end).strip() + final
        assert joined(stream_fasta(write(text), size=size)) == WANTED
    pieces = list(stream_fasta(write(fasta(RECORDS)), size=size))
    assert max(len(piece.sequence) for piece in pieces) <= size


def test_memory_is_that_of_a_piece(write):
    import tracemalloc

    path = write(">long\n" + letters(1000) * 20_000)
    tracemalloc.start()
    total = sum(len(piece.sequence) for piece in stream_fasta(path, size=1 << 16))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 20_000_000
    assert peak < 3_000_000


def test_what_was_read_is_counted(write):
    for read in (read_records, stream_pieces):
        findings = Findings()
        list(read(write(fasta(RECORDS)), findings))
        assert findings.records == 5
        assert findings.bases == sum(len(sequence) for _, sequence in RECORDS)
        assert findings.repeated == {"chr1": 2}
        assert findings.lower == sum(sign.islower() for _, sequence in RECORDS for sign in sequence)
        everything = "".join(sequence for _, sequence in RECORDS).upper()
        assert findings.ambiguous == {sign: everything.count(sign) for sign in "RYN"}
        report = " ".join(findings.report())
        assert "2 records share 1 names" in report
        assert f"R {everything.count('R')}" in report
        assert f"{everything.count('U')} U read as T" in report


def test_uneven_lines_are_detected(write):
    def uneven(text):
        layout = Layout()
        list(stream_fasta(write(text), size=5, layout=layout))
        return layout.uneven is not None

    assert not uneven(">a\nACGT\nACGT\nAC\n>b\nA\n\n\n>c\n\n>d\nACGTACGT")
    assert not uneven(">a\r\nACGT\r\nACGT\r\nAC\r\n\r\n>b\r\nACGTTT")
    assert uneven(">a\nACGT\nAC\nACGT\n")
    assert uneven(">a\nACGT\n\nACGT\n")
    assert uneven(">a\nACGT\nACGTA\n")
    assert uneven(">a\nACGT\nACGTA")
    assert uneven(">a\nAC GT\nACGTA\n")
    assert uneven(">a\n\nACGT\n")


ERRORS = {
    "": "is empty",
    "  \n\n": "is empty",
    "ACGT\nACGT\n": "line 1: expected a FASTA header line that begins with '>', found 'ACGT'",
    "\n\nACGT\n": "line 3: expected a FASTA header",
    ">p\nMKVLAAGIV\n": "line 2, record 1 'p', position 4: 'L' is not a nucleotide but an amino acid: is this protein?",
    ">a\nACGT\n>b x\nACGT\nAC7T\n": "line 5, record 2 'b', position 7: '7' is not a nucleotide",
    ">a\nAC\x01GT\n": "byte 0x01 is not a nucleotide: binary or corrupt",
    ">a\nAC\0GT\n": "is a binary file",
    "##fileformat=VCFv4.2\n": "is a VCF file",
    "; old\n>a\nACGT\n": "';' comment lines",
    "PK\x03\x04abc": "is a zip archive",
}


@pytest.mark.parametrize("text", ERRORS)
def test_errors_are_one_line(write, text):
    path = write(text)
    for compression in ("plain", "gzip", "xz"):
        path = write(text, compression=compression)
        with pytest.raises(InputError) as caught:
            list(stream_pieces(path))
        assert ERRORS[text] in str(caught.value)
        assert str(caught.value).startswith(str(path))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [text for text in ERRORS if text.startswith(">") and "\0" not in text])
def test_both_readers_name_the_same_position(write, text):
    path = write(text)
    messages = []
    for read in (stream_pieces, read_records):
        with pytest.raises(InputError) as caught:
            list(read(path))
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_position_in_a_later_block(write):
    path = write(">a\n" + "ACGTACGT\n" * 50 + "ACGE\n")
    with pytest.raises(InputError, match=r"line 52, record 1 'a', position 404: 'E'"):
        list(stream_fasta(path, size=16))


@pytest.mark.parametrize("compression", ["gzip", "bgzf", "xz", "bzip2"])
def test_truncated_archives(write, compression):
    path = write(fasta([("a", letters(20_000))]), compression=compression)
    content = path.read_bytes()
    for size in (20, len(content) // 2, len(content) - 5):
        path.write_bytes(content[:size])
        for read in (stream_pieces, read_records):
            with pytest.raises(InputError, match="truncated"):
                list(read(path))


def test_a_bgzf_file_cut_between_blocks(write):
    path = write(fasta([("a", letters(2000))]), compression="bgzf")
    path.write_bytes(path.read_bytes()[:-28])
    assert gzip.decompress(path.read_bytes()).startswith(b">a")  # gzip does not detect it
    with pytest.raises(InputError, match="end-of-file block is missing"):
        list(stream_pieces(path))


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        list(stream_pieces(tmp_path / "nothing.fa"))
    with pytest.raises(InputError, match="is a folder"):
        list(stream_pieces(tmp_path))
    (tmp_path / "plain.fa.gz").write_text(">a\nACGT\n")
    with pytest.raises(InputError, match="not compressed"):
        list(stream_pieces(tmp_path / "plain.fa.gz"))


def test_fastq_gives_sequences_only(write):
    text = "".join(f"@read{k} x\n{letters(30, k)}\n+\n{'I' * 30}\n" for k in range(3))
    path = write(text, "reads.fastq", "gzip")
    findings = Findings()
    found = list(read_records(path, findings))
    assert [(one.name, one.sequence.decode()) for one in found] == [(f"read{k}", letters(30, k)) for k in range(3)]
    assert any("qualities are ignored" in note for note in findings.report())
    assert [one[2] for one in joined(stream_pieces(path, size=7))] == [one.sequence for one in found]
    with pytest.raises(InputError, match=r"line \d+: is not readable as fastq"):
        list(read_records(write(text[:-8], "short.fastq")))


def genbank(sequence: str = "acgtacgtac", length: int = 10) -> str:
    return (
        f"LOCUS       AB000001 {length:>18} bp    DNA     linear   BCT 01-JAN-2000\n"
        "DEFINITION  Made record.\nACCESSION   AB000001\nVERSION     AB000001.1\nFEATURES             Location\n"
        f"     source          1..{length}\nORIGIN\n        1 {sequence}\n//\n"
    )


def test_genbank(write):
    path = write(genbank(), "record.gb")
    (found,) = read_records(path)
    assert (found.name, found.description, found.sequence) == ("AB000001.1", "Made record", b"ACGTACGTAC")
    with pytest.raises(InputError, match=r"record 1 'AB000001.1'.*amino acid"):
        list(read_records(write(genbank("acgtlcgtac"), "protein.gb")))
    without = genbank().replace("ORIGIN\n        1 acgtacgtac\n", "CONTIG      join(AB000002.1:1..10)\n")
    with pytest.raises(InputError, match="has no sequence"):
        list(read_records(write(without, "contig.gb")))


def test_warnings_of_a_parser_are_notes(write):
    import warnings

    findings = Findings()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        records = list(read_records(write(genbank(length=12), "record.gb"), findings))
    assert records[0].sequence == b"ACGTACGTAC"
    assert any("Biopython" in note for note in findings.report())
    assert not caught


def test_without_biopython(write, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "Bio", None)
    with pytest.raises(InputError, match=r"pip install 'seqssm\[dna\]'"):
        list(read_records(write(">a\nACGT\n")))


def test_reverse_complement_of_letters():
    assert reverse_complement(b"AACGTN") == b"NACGTT"
    assert reverse_complement(b"RYKMSWBDHVacgu-") == b"-acgtBDHVWSKMRY"
    for seed in range(5):
        sequence = letters(50, seed, "ACGTRYKMSWBDHVNacgtn-").encode()
        assert reverse_complement(reverse_complement(sequence)) == sequence
