"""Line-based VCF files: parsing, and writing of scores into a copy that keeps all other bytes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from seqssm.errors import InputError
from seqssm.files.disk import atomic
from seqssm_dna.compression import Writer, opened, require_text, writer_for

COLUMNS = ("CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO")
FIELD = re.compile(r"[A-Za-z_][0-9A-Za-z_.]*")  # VCF 4.3, section 1.6.1
LONGEST_POSITION = 2**31 - 1
MARK = b"\xef\xbb\xbf"  # byte-order mark, kept in copies


@dataclass(frozen=True)
class VcfLine:
    """A variant line.

    Attributes:
        record: index among the variant lines, from 0.
        line: number of the line in the file, from 1.
        chrom, id, ref: fields as in the file.
        pos: position, 1-based.
        alts: alternate alleles as in the file; empty if the file has ``.``.
        end: END in INFO, the last position of a block; None if there is none.
    """

    record: int
    line: int
    chrom: str
    pos: int
    id: str
    ref: str
    alts: tuple[str, ...]
    end: int | None = None


def read_vcf(path: Path) -> Iterator[VcfLine]:
    """Yield the variant lines of a VCF file.

    Args:
        path: path of the file, plain, gzip or BGZF.

    Raises:
        InputError: the file is not VCF or has no ``#CHROM`` line, or a line has too few columns or an invalid position;
            the message has the line.
    """
    for number, raw, record in _lines(path):
        if record is not None:
            yield _parsed(raw.rstrip(b"\r\n"), number, record, path)


def _lines(path: Path) -> Iterator[tuple[int, bytes, int | None]]:
    """Yield (line number, bytes with the line end, index of the variant); the index of header lines is None."""
    with opened(path) as file:
        ready, record, number = False, 0, 0
        for number, raw in enumerate(file, 1):
            if number == 1:
                _require_vcf(raw, file, path)
            line = raw.removeprefix(MARK) if number == 1 else raw
            if line.startswith(b"#") and not (ready and not line.startswith(b"##") and record):
                ready = ready or line.startswith(b"#CHROM")
                if line.startswith(b"#CHROM"):
                    _require_columns(line, number, path)
                yield number, raw, None
            elif not raw.strip():
                yield number, raw, None
            elif not ready:
                message = "a line before the header line '#CHROM POS ID REF ALT QUAL FILTER INFO'"
                raise InputError(message, file=path, place=f"line {number}")
            else:
                yield number, raw, record
                record += 1
        if not number:
            raise InputError("is empty; expected a VCF file", file=path)
        if not ready:
            raise InputError("has no header line '#CHROM POS ID REF ALT QUAL FILTER INFO'", file=path)


def _require_vcf(first: bytes, file: IO[bytes], path: Path) -> None:
    require_text(first[:4096] if first.strip() else first + file.readline(), path)
    if not first.removeprefix(MARK).startswith((b"##fileformat=VCF", b"#CHROM", b"##")):
        shown = first[:40].decode("utf-8", "backslashreplace").strip()
        raise InputError(f"expected a VCF file ('##fileformat=VCFv4.x'), found {shown!r}", file=path, place="line 1")


def _require_columns(raw: bytes, number: int, path: Path) -> None:
    names = raw.lstrip(b"#").rstrip(b"\r\n").split(b"\t")
    if [name.decode("latin-1") for name in names[:5]] != list(COLUMNS[:5]):
        message = f"expected the columns {' '.join(COLUMNS)}, separated by tabs"
        raise InputError(message, file=path, place=f"line {number}")


def _parsed(raw: bytes, number: int, record: int, path: Path) -> VcfLine:
    cells = raw.split(b"\t", 8)
    if len(cells) < 5:
        message = f"{len(cells)} columns; expected at least {' '.join(COLUMNS[:5])}, separated by tabs"
        raise InputError(message, file=path, place=f"line {number}")
    chrom, pos, name, ref, alt = (cell.decode("utf-8", "backslashreplace") for cell in cells[:5])
    if not re.fullmatch(r"[0-9]{1,12}", pos) or int(pos) > LONGEST_POSITION:
        message = f"POS {pos[:40]!r} is not a position (an integer up to {LONGEST_POSITION})"
        raise InputError(message, file=path, place=f"line {number}")
    alts = () if alt in (".", "") else tuple(alt.split(","))
    end = re.search(rb"(?:^|;)END=([0-9]{1,12})(?:;|$)", cells[7]) if len(cells) > 7 else None
    return VcfLine(record, number, chrom, int(pos), name, ref, alts, int(end[1]) if end else None)


def write_scores(
    source: str | Path,
    target: str | Path,
    scores: Iterable[Sequence[float | None]],
    field: str = "SEQSSM_LLR",
    description: str = "Log-likelihood of the ALT allele's window minus that of the REF allele's, nats",
) -> int:
    """Write a copy of a VCF file with one more INFO field, one value per ALT allele; all other bytes are kept.

    Args:
        source: path of the VCF file.
        target: path of the copy; compressed as BGZF if the suffix is ``.gz``.
        scores: values of each variant line, in file order, one per ALT allele; None or NaN if there is no score.
        field: name of the INFO field.
        description: description of the field, for the header.

    Returns:
        The number of variant lines.

    Raises:
        InputError: the field name is invalid or in use, a line has fewer than 8 columns, the numbers of lines and
            scores differ, or the target cannot be written.
    """
    source, target = Path(source), Path(target)
    _require_names(source, target, field)
    if any(sign in description for sign in '"\r\n'):
        raise InputError("the description of the field contains quotes or line breaks")
    text = f'##INFO=<ID={field},Number=A,Type=Float,Description="{description}">'
    with atomic(target) as out:
        return _copy(source, writer_for(out, target), iter(scores), field, text)


def require_scorable(source: Path, target: Path, field: str) -> None:
    """Check that `write_scores` can write its copy, before the scores are computed.

    Args:
        source: the VCF file.
        target: the copy.
        field: name of the INFO field.

    Raises:
        InputError: a bad or used field name, a variant line without the column INFO, or the target is the source.
    """
    _require_names(source, target, field)
    for number, raw, record in _lines(source):
        if record is None:
            _require_unused(raw, number, field, source)
        else:
            cells = raw.rstrip(b"\r\n").split(b"\t", 8)
            if len(cells) > 4 and cells[4] not in (b".", b""):
                _require_info(cells, number, field, source)


def _require_names(source: Path, target: Path, field: str) -> None:
    if not FIELD.fullmatch(field):
        raise InputError(f"INFO field {field!r}: expected letters, digits, _ and ., not beginning with a digit")
    if target.resolve() == source.resolve():
        raise InputError("is also the input; choose a different name for the copy", file=target)


def _require_unused(raw: bytes, number: int, field: str, path: Path) -> None:
    if raw.startswith(f"##INFO=<ID={field},".encode()):
        raise InputError(f"already has an INFO field {field}", file=path, place=f"line {number}")


def _require_info(cells: list[bytes], number: int, field: str, path: Path) -> None:
    if len(cells) < 8:
        message = f"{len(cells)} columns; scores require the column INFO (the eighth)"
        raise InputError(message, file=path, place=f"line {number}")
    if any(part.partition(b"=")[0] == field.encode() for part in cells[7].split(b";")):
        raise InputError(f"already has an INFO field {field}", file=path, place=f"line {number}")


def _copy(source: Path, out: Writer, scores: Iterator[Sequence[float | None]], field: str, header: str) -> int:
    count = 0
    for number, raw, record in _lines(source):
        if record is None:
            _require_unused(raw, number, field, source)
            mark = MARK if number == 1 and raw.startswith(MARK) else b""
            if raw.startswith(mark + b"#CHROM"):
                out.write(mark + header.encode() + (b"\r\n" if raw.endswith(b"\r\n") else b"\n"))
                raw = raw[len(mark) :]
            out.write(raw)
            continue
        values = next(scores, None)
        if values is None:
            raise InputError(f"has more variant lines than there are scores ({count})", file=source)
        out.write(_scored(raw, number, values, field, source))
        count += 1
    if next(scores, None) is not None:
        raise InputError(f"has {count} variant lines, fewer than there are scores", file=source)
    out.finish()
    return count


def _scored(raw: bytes, number: int, values: Sequence[float | None], field: str, path: Path) -> bytes:
    """Add values to INFO of a variant line; unchanged if it has no ALT allele."""
    if not values:
        return raw
    body = raw.rstrip(b"\r\n")
    end = raw[len(body) :]
    cells = body.split(b"\t", 8)
    _require_info(cells, number, field, path)
    if len(values) != cells[4].count(b",") + 1:
        message = f"{len(values)} scores for {cells[4].count(b',') + 1} ALT alleles"
        raise InputError(message, file=path, place=f"line {number}")
    shown = ",".join("." if value is None or value != value else f"{value:.6g}" for value in values)
    info = cells[7].rstrip(b";")
    cells[7] = (b"" if info in (b".", b"") else info + b";") + f"{field}={shown}".encode()
    return b"\t".join(cells) + end
