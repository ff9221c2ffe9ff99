"""Digests by which changed inputs are noticed: of contents, never of names, locations or modification times.

A small input is read whole. Of a large one the sizes and a sample at fixed offsets are read, so that a check takes at
most about a second; a change between the samples that changes no size is not noticed.
"""

from __future__ import annotations

import hashlib
import itertools
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seqssm.errors import no_such_file

WHOLE = 1 << 25  # files up to this total size are read whole, bytes
FILES = 256  # and up to this number of them
BLOCKS, BLOCK = 64, 1 << 16  # number and size of the samples of larger ones, bytes


def of_parts(parts: Iterable[Any]) -> str:
    """Return the digest of arrays, bytes and texts, one after another.

    Args:
        parts: the contents, in an order that does not depend on the order of the records in a file.
    """
    digest = hashlib.sha256()
    for part in parts:
        head = ""
        if isinstance(part, np.ndarray):
            head = f"{part.dtype.str} {part.shape} "
            part = np.ascontiguousarray(part).tobytes()
        content = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(f"{head}{len(content)}:".encode() + content)
    return digest.hexdigest()[:32]


def of_files(paths: Sequence[Path]) -> str:
    """Return the digest of the sizes of files, and of their bytes or a sample of them.

    Args:
        paths: the files; their order matters, their names do not.

    Raises:
        InputError: a file is missing.
    """
    sizes = [_size(path) for path in paths]
    total = sum(sizes)
    if total <= WHOLE and len(sizes) <= FILES:
        return of_parts(path.read_bytes() for path in paths)
    return of_parts([" ".join(map(str, sizes)), *_samples(paths, spread(sizes, BLOCKS))])


def spread(sizes: Sequence[int], count: int) -> list[tuple[int, int]]:
    """Return positions at equal distances in the concatenation of items, as (index of the item, offset in it).

    Args:
        sizes: size of each item.
        count: number of positions, at least 1.
    """
    ends = list(itertools.accumulate(sizes))
    total = ends[-1] if ends else 0
    found = []
    for position in sorted({k * total // count for k in range(count)}) if total else []:
        item = bisect_right(ends, position)
        found.append((item, position - ends[item] + sizes[item]))
    return found


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        raise no_such_file(path) from None


def _samples(paths: Sequence[Path], places: Sequence[tuple[int, int]]) -> Iterable[bytes]:
    for item, offset in places:
        with open(paths[item], "rb") as file:
            file.seek(offset)
            yield file.read(BLOCK)
