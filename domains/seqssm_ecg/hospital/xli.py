"""XLI, the compression of Philips XML: per lead an LZW stream of second differences.

A chunk per lead: 4 bytes of size, 2 unused, 2 with the first second difference (all little-endian), then LZW codes of
10 bits, most significant bit first, without control codes; the table grows to `LAST` and is then fixed. The decoded
bytes are the high bytes of all 16-bit values, then their low bytes. The first two values are samples, the others
negative second differences d[i], biased by 64 and used one step later: x[2] = 2 x[1] - x[0] - first,
x[i] = 2 x[i-1] - x[i-2] - (d[i-1] - 64). The format is known from public descriptions, not from its vendor.
"""

from __future__ import annotations

import numpy as np

BITS = 10
LAST = (1 << BITS) - 2
BIAS = 64
LONGEST = 1 << 22  # samples per lead; more indicates a damaged file


def decode_xli(data: bytes, leads: int) -> list[np.ndarray]:
    """Decode the first `leads` chunks to samples, (n,) int64 each.

    Raises:
        ValueError: a chunk is truncated or corrupt.
    """
    found = []
    for _ in range(leads):
        size = int.from_bytes(data[:4], "little", signed=True)
        if len(data) < 8 or size < 1 or size > len(data) - 8:
            raise ValueError("truncated chunk")
        first = int.from_bytes(data[6:8], "little", signed=True)
        found.append(_integrated(_joined(_expanded(data[8 : 8 + size])), first))
        data = data[8 + size :]
    return found


def _expanded(packed: bytes) -> bytes:
    """Decode LZW."""
    bits = np.unpackbits(np.frombuffer(packed, np.uint8))
    count = len(bits) // BITS
    codes = bits[: count * BITS].reshape(count, BITS) @ (1 << np.arange(BITS)[::-1])
    table = [bytes([value]) for value in range(256)]
    parts: list[bytes] = []
    before, length = b"", 0
    for code in codes.tolist():
        if code > LAST:  # padding after the last code
            break
        if code < len(table):
            entry = table[code]
        elif code == len(table) and before:
            entry = before + before[:1]
        else:
            raise ValueError("invalid code")
        if before and len(table) <= LAST:
            table.append(before + entry[:1])
        parts.append(entry)
        before, length = entry, length + len(entry)
        if length > 2 * LONGEST:
            raise ValueError("too many samples")
    return b"".join(parts)


def _joined(raw: bytes) -> np.ndarray:
    """Join high and low bytes to signed 16-bit values."""
    half = len(raw) // 2
    if half < 2:
        raise ValueError("too few samples")
    values = np.frombuffer(raw, np.uint8).astype(np.int64)
    joined = values[:half] << 8 | values[half : 2 * half]
    return (joined ^ 0x8000) - 0x8000


def _integrated(values: np.ndarray, first: int) -> np.ndarray:
    """Integrate second differences; sums wrap at 16 bits, as they do in the recorder."""
    steps = -np.concatenate([[first], values[2:-1] - BIAS])[: len(values) - 2]
    slopes = values[1] - values[0] + np.cumsum(steps)
    samples = np.concatenate([values[:2], values[1] + np.cumsum(slopes)])
    return ((samples + 0x8000) & 0xFFFF) - 0x8000
