"""A slide that openslide reads: a tiled TIFF."""

from __future__ import annotations

import struct
import zlib

import numpy as np

TILE = 16


def write_tiff(path, pixels: np.ndarray) -> None:
    """A tiled RGB TIFF: (H, W, 3) uint8, sides multiples of 16."""
    height, width, _ = pixels.shape
    tiles = [
        zlib.compress(pixels[y : y + TILE, x : x + TILE].tobytes())
        for y in range(0, height, TILE)
        for x in range(0, width, TILE)
    ]
    start = 8
    offsets = [start, *np.cumsum([start + len(tiles[0]), *map(len, tiles[1:-1])]).tolist()]
    content = b"".join(tiles)
    content += b"\0" * (-len(content) % 8)
    extra = start + len(content)
    count = len(tiles)
    bits, places, sizes = extra, extra + 8, extra + 8 + 4 * count
    tail = struct.pack("<4H", 8, 8, 8, 0) + struct.pack(f"<{count}I", *offsets)
    tail += struct.pack(f"<{count}I", *[len(one) for one in tiles])
    entries = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, bits), (259, 3, 1, 8), (262, 3, 1, 2), (277, 3, 1, 3),
        (284, 3, 1, 1), (322, 4, 1, TILE), (323, 4, 1, TILE), (324, 4, count, places), (325, 4, count, sizes),
    ]  # fmt: skip
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    path.write_bytes(b"II*\0" + struct.pack("<I", extra + len(tail)) + content + tail + directory + b"\0\0\0\0")
