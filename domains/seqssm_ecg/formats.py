"""Signal formats of WFDB: one table row per format, with a decoder for those read natively.

To add a format, write a decoder and a row of `FORMATS`. Formats without a decoder are read by the package `wfdb`.
Definitions: the WFDB applications guide, signal(5).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

BLOCK = 48 * 1024
"""Frames per block of a streamed recording: a multiple of 2 and 3, so that a block is whole bytes in any format."""


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
"""Formats by code."""
