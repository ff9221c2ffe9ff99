"""Multi-segment records: each segment is a record, and gaps between segments are missing samples.

`wfdb` fails on gaps in fixed layouts and on excerpts, so the segments are assembled here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from seqssm.errors import InputError
from seqssm_ecg.formats import BLOCK
from seqssm_ecg.headers import Header, read_header


class Part(Protocol):
    """Protocol of an opened segment, e.g. `seqssm_ecg.recording.Recording`."""

    leads: tuple[str, ...]

    def blocks(self, size: int) -> Iterator[np.ndarray]:
        """Yield (leads, n) float32 in mV."""


@dataclass
class Segments:
    """Samples of a multi-segment record.

    Attributes:
        header: header of the record.
        parts: segments in order, as (opened segment or None for a gap, number of samples).
        leads: leads of the record.
    """

    header: Header
    parts: list[tuple[Part | None, int]]
    leads: tuple[str, ...]

    def blocks(self, size: int = BLOCK) -> Iterator[np.ndarray]:
        """Yield (leads, n) float32 in mV; gaps and leads missing from a segment are NaN."""
        for part, samples in self.parts:
            if part is None:
                for start in range(0, samples, size):
                    yield np.full((len(self.leads), min(size, samples - start)), np.nan, np.float32)
                continue
            rows = [self.leads.index(lead) for lead in part.leads]
            for block in part.blocks(size):
                whole = np.full((len(self.leads), block.shape[1]), np.nan, np.float32)
                whole[rows] = block
                yield whole


def segment_headers(header: Header) -> list[tuple[Header | None, int]]:
    """Read the headers of the segments as (header or None for a gap, frames), without layout headers.

    Raises:
        InputError: a segment is missing, has segments itself, or differs in length from the declaration.
    """
    found: list[tuple[Header | None, int]] = []
    for name, frames in header.segments:
        if frames == 0:  # a layout header names the signals of all segments and has no samples
            continue
        if name == "~":
            found.append((None, frames))
            continue
        own = read_header(header.path.with_name(f"{name}.hea"))
        if own.segments:
            raise InputError(f"segment {name} itself has segments", file=header.path)
        if own.samples is not None and own.samples != frames:
            raise InputError(
                f"segment {name} has {own.samples} samples, but the header declares {frames}", file=header.path
            )
        found.append((own, frames))
    total = sum(frames for _, frames in found)
    if not total:
        raise InputError("has no samples", file=header.path)
    if header.samples is not None and header.samples != total:
        raise InputError(f"declares {header.samples} samples, but the segments have {total}", file=header.path)
    return found
