"""Validation of MATLAB files that hold WFDB samples: level 4 (one matrix), and level 5 as written by `wfdb`."""

from __future__ import annotations

import struct
from pathlib import Path

from seqssm.errors import InputError
from seqssm_ecg.formats import FORMATS

LEVEL_5_TYPES = {2: "80", 3: "16", 5: "32"}
"""Data types of a level 5 matrix (uint8, int16, int32) and the corresponding WFDB formats."""
FLOATS = {0: "float64", 10: "float32"}
"""Type codes of a level 4 matrix that no WFDB format has."""


def check_matlab(path: Path, head: bytes, kind: str, signals: int, frames: int) -> None:
    """Compare the bytes before the samples with the header.

    Args:
        path: the `.mat` file.
        head: bytes before the first sample.
        kind: WFDB format code.
        signals: number of signals in the file.
        frames: samples per signal.

    Raises:
        InputError: the file has different content, or is corrupt.
    """
    if head[:1] == b"\x89" or head.startswith(b"MATLAB 7.3"):
        raise InputError("is a MATLAB 7.3 file (HDF5); save it with -v4 or -v6", file=path)
    if head.startswith(b"MATLAB"):
        _check_level_5(path, head, kind, signals, frames)
        return
    if len(head) < 20:
        return
    code, rows, columns, imaginary, _ = struct.unpack("<5i", head[:20])
    expected = FORMATS[kind].matlab
    if code in FLOATS and expected is not None:
        raise InputError(
            f"contains {FLOATS[code]} numbers, the header says {8 * int(FORMATS[kind].sample_bytes or 0)}-bit integers "
            f"(format {kind}); convert them to this type",
            file=path,
        )
    if expected is not None and (code != expected or imaginary != 0 or (rows, columns) != (signals, frames)):
        raise InputError(
            f"is corrupt: its first bytes describe {rows} x {columns} numbers of type {code}, the header "
            f"{signals} x {frames} of type {expected}",
            file=path,
        )


def _check_level_5(path: Path, head: bytes, kind: str, signals: int, frames: int) -> None:
    """Validate a level 5 file: 128 bytes of text, then one uncompressed matrix at the offset given in the header."""
    # matrix tag, flags (16), dimensions (16), name (16), tag of the samples
    if len(head) < 176:
        raise InputError(
            "is a MATLAB level 5 file whose samples are not at the offset given in the header; save it with -v4",
            file=path,
        )
    if struct.unpack("<I", head[128:132])[0] == 15:
        raise InputError("is a compressed MATLAB file; save it with -v4 or -v6", file=path)
    rows, columns = struct.unpack("<2i", head[160:168])
    found = LEVEL_5_TYPES.get(struct.unpack("<I", head[len(head) - 8 : len(head) - 4])[0])
    if found != kind or (rows, columns) != (signals, frames):
        raise InputError(
            f"is corrupt: its first bytes describe {rows} x {columns} numbers of format {found}, the header "
            f"{signals} x {frames} of format {kind}",
            file=path,
        )
