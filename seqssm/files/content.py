"""Decoding of users' files to UTF-8: gzip, byte-order marks, UTF-16 and legacy encodings."""

from __future__ import annotations

import codecs
import gzip
import lzma
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from seqssm.errors import InputError, no_such_file

BOMS = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"), (codecs.BOM_UTF8, "utf-8-sig"))  # fmt: skip
FOREIGN = (  # magic numbers of non-text formats, and the message for each
    (b"PK\x03\x04", "is a zip archive or an Excel workbook, not text; a workbook needs the suffix .xlsx"),
    (b"PAR1", "is a Parquet file, not text; give it the suffix .parquet"),
    (b"\xd0\xcf\x11\xe0", "is an old Excel workbook (.xls); save it as .xlsx or CSV"),
    (b"\x89HDF", "is an HDF5 file, not text"),
    (b"%PDF", "is a PDF, not text"),
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself; fetch it with git lfs pull"),
)
HTML = (b"<!doctype html", b"<html")  # an error page saved as a table
CHUNK = 1 << 20
DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    tokenize.TokenError,  # of the header of an .npy file
    SyntaxError,  # of that header, and of XML
    LookupError,
    AttributeError,
    ValueError,  # also UnicodeDecodeError: names of members
    TypeError,
    OverflowError,
    EOFError,
    RuntimeError,  # an encrypted member, or NotImplementedError: a compression
)
"""What readers of archives, workbooks and arrays raise for damaged files, besides OSError and `InputError`, which is a
ValueError: re-raise it first."""


def read_bytes(path: Path) -> bytes:
    """Read a file, decompressed if it is gzip (suffix ``.gz`` or gzip's magic number).

    Args:
        path: the file.

    Raises:
        InputError: the file is missing, a folder, unreadable, or a truncated gzip file.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise no_such_file(path) from None
    except IsADirectoryError:
        raise InputError("is a folder; give the file", file=path) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", file=path) from None
    if path.suffix.lower() == ".gz" or data.startswith(b"\x1f\x8b"):
        try:
            return gzip.decompress(data)
        except (OSError, EOFError, zlib.error):
            raise InputError("is not a complete gzip file", file=path) from None
    return data


def require_encoding(name: str, flag: str = "encoding") -> None:
    """Check the name of a text encoding.

    Args:
        name: name known to Python's codecs.
        flag: option named in the message.

    Raises:
        InputError: the name is unknown or is not a text encoding.
    """
    try:
        codecs.lookup(name)
        "".encode(name)
    except (LookupError, UnicodeError, TypeError):
        raise InputError(f"{flag} {name}: unknown encoding (utf-8, utf-16, cp1252, latin-1, ...)") from None


def as_utf8(
    data: bytes, path: Path, encoding: str | None = None, flags: Mapping[str, str] | None = None
) -> tuple[bytes, str, list[str]]:
    """Convert the bytes of a text file to UTF-8 with ``\\n`` line ends.

    Without `encoding`, a byte-order mark decides, then UTF-8, then UTF-16 (recognised by its zero bytes), then
    Windows-1252, the superset of Latin-1 written by Excel. The last two are reported.

    Args:
        data: content of the file, bytes.
        path: path used in error messages.
        encoding: encoding of the text; None to detect it.
        flags: option names for error messages; ``encoding`` is used.

    Returns:
        (UTF-8 bytes without byte-order mark, name of the encoding, notes to report).

    Raises:
        InputError: the data is binary or not valid in the encoding; the message has the line.
    """
    for magic, message in FOREIGN:
        if data.startswith(magic):
            raise InputError(message, file=path)
    if data[:1000].removeprefix(codecs.BOM_UTF8).lstrip().lower().startswith(HTML):
        raise InputError("is a web page, not a table; download the file itself", file=path)
    marked = _marked(data)
    name = encoding or marked or "utf-8"
    notes = [f"read as {name}"] if encoding or marked not in (None, "utf-8-sig") else []
    if encoding is None and marked is None and (wide := _utf16(data)) is not None:
        name, notes = wide, [f"read as {wide}, without a byte-order mark"]
    text: bytes
    if name in ("utf-8", "utf-8-sig"):
        text = data[3:] if data.startswith(codecs.BOM_UTF8) else data
        wrong = _first_invalid(text)
        if wrong is not None:
            if encoding is not None or b"\0" in text:
                raise _not_text(path, text, wrong, name, flags)
            text, name = _windows(text, path, wrong, flags), "cp1252"
            how = f"; {flags['encoding']} names another encoding" if flags and "encoding" in flags else ""
            line = data.count(b"\n", 0, wrong) + 1
            notes.append(f"not UTF-8 (line {line}), read as Windows-1252{how}")
    else:
        try:
            text = data.decode(name).removeprefix("\ufeff").encode("utf-8")
        except UnicodeDecodeError as error:
            raise _not_text(path, data, error.start, name, flags) from None
        except UnicodeEncodeError:  # lone surrogates
            raise _not_text(path, data, 0, name, flags) from None
    if b"\0" in text:
        line = text.count(b"\n", 0, text.index(b"\0")) + 1
        raise InputError("contains a zero byte; not a text table", file=path, place=f"line {line}")
    if b"\r" in text:
        text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return text, name.removesuffix("-sig"), notes


def encoding_of(path: Path) -> str:
    """Detect the encoding of a text file that is read in pieces, from its first 64 KiB.

    As for `as_utf8`; but text with characters of UTF-8 remains UTF-8 if single bytes are damaged.

    Args:
        path: the file.

    Returns:
        Name for `open`; ``"utf-8-sig"`` if nothing speaks against it.
    """
    with open(path, "rb") as file:
        data = file.read(2**16)
    if found := _marked(data) or _utf16(data):
        return found
    return "utf-8-sig" if data.isascii() or not data.decode("utf-8", "ignore").isascii() else "cp1252"


def _marked(data: bytes) -> str | None:
    """Return the encoding that a byte-order mark names."""
    return next((name for mark, name in BOMS if data.startswith(mark)), None)


def _utf16(data: bytes) -> str | None:
    """Detect UTF-16 without a byte-order mark: in mostly Western text every second byte is zero."""
    sample = data[: 4096 // 2 * 2]
    if len(sample) < 8 or len(data) % 2:
        return None
    half = len(sample) // 2
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    if odd > 0.7 * half and not even:
        return "utf-16-le"
    return "utf-16-be" if even > 0.7 * half and not odd else None


def _first_invalid(data: bytes) -> int | None:
    """Find the offset of the first byte that is not UTF-8, in chunks to avoid a second copy of the text."""
    if data.isascii():
        return None
    decoder, start = codecs.getincrementaldecoder("utf-8")(), 0
    while True:
        chunk = data[start : start + CHUNK]
        pending = len(decoder.getstate()[0])
        try:
            decoder.decode(chunk, final=start + CHUNK >= len(data))
        except UnicodeDecodeError as error:
            return start - pending + error.start
        start += CHUNK
        if start >= len(data):
            return None


def _windows(data: bytes, path: Path, wrong: int, flags: Mapping[str, str] | None) -> bytes:
    try:
        return data.decode("cp1252").encode("utf-8")
    except UnicodeDecodeError:
        raise _not_text(path, data, wrong, "utf-8", flags) from None


def _not_text(path: Path, data: bytes, start: int, name: str, flags: Mapping[str, str] | None) -> InputError:
    line = data.count(b"\n", 0, start) + 1
    hint = f"give {flags['encoding']} (cp1252, utf-16, ...), or " if flags and "encoding" in flags else ""
    label = name.removesuffix("-sig").upper()
    return InputError(f"is not {label} text; {hint}save it as UTF-8", file=path, place=f"line {line}")
