"""Formats of recordings: which reader opens which file, and the signal formats within WFDB; one table row per format.

To add a file format, write a reader ``open_x(path, reading) -> Recording`` and a row of `FILES`. To add a signal format
of WFDB, write a decoder and a row of `FORMATS`; formats without a decoder are read by the package `wfdb`. Definitions:
the WFDB applications guide, signal(5).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

BLOCK = 48 * 1024
"""Frames per block of a streamed recording: a multiple of 2 and 3, so that a block is whole bytes in any format."""


HEAD = 8192
"""Bytes of a file by which its format is recognised."""
BDF = b"\xffBIOSEMI"
"""First bytes of a BDF file, which is EDF with samples of 24 bits."""


@dataclass(frozen=True)
class FileFormat:
    """A file format of recordings.

    Attributes:
        name: name in messages.
        suffixes: lower-case suffixes of such files.
        reader: ``"module:function"``, called with (path, `seqssm_ecg.recording.Reading`) and returning a
            `seqssm_ecg.recording.Recording`; None if the format is recognised but not read.
        listed: suffixes that are searched for in folders.
        recognised: whether the first `HEAD` bytes are those of such a file; None: by suffix only.
        entries: ``"module:function"`` that lists the names of the recordings in a file, ``[""]`` for a single one; None
            if a file is one recording.
        advice: what to do with a format that is not read.
    """

    name: str
    suffixes: tuple[str, ...]
    reader: str | None
    listed: tuple[str, ...] = ()
    recognised: Callable[[bytes], bool] | None = None
    entries: str | None = None
    advice: str = ""


def _root(name: str) -> Callable[[bytes], bool]:
    """Recognise an XML file by its root element, in any encoding in which ASCII letters keep their bytes."""
    pattern = re.compile(rb"<(?:[\w.-]+:)?" + name.encode() + rb"[\s/>]")
    return lambda head: pattern.search(head.replace(b"\0", b"")) is not None


def _starts(*magic: bytes, offset: int = 0) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(magic, offset)


def bare_dicom(head: bytes) -> bool:
    """Whether a file is DICOM without preamble: a UID of DICOM after an element of group 2, or 8 in either byte order.

    Args:
        head: the first `HEAD` bytes.
    """
    return head[:2] in (b"\2\0", b"\x08\0", b"\0\x08") and b"1.2.840.10008." in head


FILES = (
    FileFormat("WFDB", (".hea", ".mat", ".dat"), "seqssm_ecg.wfdb_files:open_wfdb", (".hea",)),
    FileFormat("array", (".npy", ".csv"), "seqssm_ecg.arrays:open_array", (".npy",)),
    FileFormat(
        "EDF",
        (".edf", ".bdf"),
        "seqssm_ecg.hospital.edf:open_edf",
        (".edf", ".bdf"),
        _starts(b"0       ", BDF),
    ),
    FileFormat(
        "DICOM",
        (".dcm", ".dicom"),
        "seqssm_ecg.hospital.dicom:open_dicom",
        (".dcm", ".dicom", ""),
        lambda head: head.startswith(b"DICM", 128) or bare_dicom(head),
    ),
    FileFormat("HL7 aECG", (".xml",), "seqssm_ecg.hospital.aecg:open_aecg", (".xml",), _root("AnnotatedECG")),
    FileFormat("GE MUSE XML", (".xml",), "seqssm_ecg.hospital.muse:open_muse", (".xml",), _root("RestingECG")),
    FileFormat(
        "Philips XML", (".xml",), "seqssm_ecg.hospital.philips:open_philips", (".xml",), _root("restingecgdata")
    ),
    FileFormat(
        "HDF5",
        (".h5", ".hdf5"),
        "seqssm_ecg.hospital.hdf5:open_hdf5",
        (".h5", ".hdf5"),
        _starts(b"\x89HDF\r\n\x1a\n"),
        "seqssm_ecg.hospital.hdf5:entries",
    ),
    FileFormat(
        "SCP-ECG",
        (".scp",),
        None,
        (".scp",),
        _starts(b"SCPECG", offset=16),
        advice="export it as DICOM, HL7 aECG or EDF, e.g. with BioSig's `save2gdf -f=EDF in.scp out.edf`",
    ),
    FileFormat("gzip", (".gz",), None, (), _starts(b"\x1f\x8b"), advice="decompress it first"),
)
"""File formats of recordings. `seqssm_ecg.files` opens, lists and recognises files by this table."""


@dataclass(frozen=True)
class Format:
    """A WFDB signal format.

    Attributes:
        code: format code in the header.
        sample_bytes: bytes per sample; None for compressed files.
        missing: value that marks a missing sample; None if the format has none.
        decode: function from bytes to (n,) integers; None if the format is read by `wfdb`.
        matlab: type code of a MATLAB v4 matrix of such samples, or None.
        differences: whether the file stores differences of successive samples.
    """

    code: str
    sample_bytes: Fraction | None
    missing: int | None
    decode: Callable[[bytes], np.ndarray] | None = None
    matlab: int | None = None
    differences: bool = False


def _plain(dtype: str) -> Callable[[bytes], np.ndarray]:
    return lambda raw: np.frombuffer(raw, dtype)


def _offset(dtype: str, zero: int) -> Callable[[bytes], np.ndarray]:
    """Decode offset binary, in which `zero` represents 0."""
    return lambda raw: np.frombuffer(raw, dtype).astype(np.int32) - zero


def _decode_212(raw: bytes) -> np.ndarray:
    """Decode two 12-bit samples per three bytes."""
    triples = np.frombuffer(raw + b"\0" * (-len(raw) % 3), "u1").reshape(-1, 3).astype(np.int32)
    low, middle, high = triples.T
    pairs = np.stack([low | (middle & 0x0F) << 8, high | (middle & 0xF0) << 4], axis=1)
    return ((pairs ^ 0x800) - 0x800).ravel()


def _decode_24(raw: bytes) -> np.ndarray:
    """Decode three-byte little-endian integers."""
    low, middle, high = np.frombuffer(raw, "u1").reshape(-1, 3).astype(np.int32).T
    return low | (middle << 8) | ((high ^ 0x80) - 0x80 << 16)


FORMATS = {
    row.code: row
    for row in (
        Format("16", Fraction(2), -(2**15), _plain("<i2"), matlab=30),
        Format("212", Fraction(3, 2), -(2**11), _decode_212),
        Format("61", Fraction(2), -(2**15), _plain(">i2")),
        Format("160", Fraction(2), -(2**15), _offset("<u2", 2**15)),
        Format("24", Fraction(3), -(2**23), _decode_24),
        Format("32", Fraction(4), -(2**31), _plain("<i4"), matlab=20),
        Format("80", Fraction(1), -(2**7), _offset("u1", 2**7), matlab=50),
        Format("8", Fraction(1), None, differences=True),
        Format("310", Fraction(4, 3), -(2**9)),
        Format("311", Fraction(4, 3), -(2**9)),
        Format("508", None, -(2**7)),
        Format("516", None, -(2**15)),
        Format("524", None, -(2**23)),
    )
}
"""Signal formats of WFDB by code."""
