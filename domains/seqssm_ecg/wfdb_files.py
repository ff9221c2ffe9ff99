"""Recordings of WFDB: a header (`.hea`) with its signal files, in one segment or several; a writer."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seqssm.errors import InputError
from seqssm.files.disk import atomic
from seqssm_ecg.formats import FORMATS
from seqssm_ecg.headers import Header, read_header
from seqssm_ecg.leads import canonical, match_leads
from seqssm_ecg.limits import RATES
from seqssm_ecg.recording import LONGEST_S, Reading, Recording
from seqssm_ecg.segments import Segments, segment_headers
from seqssm_ecg.signals import Reader, Used, make_reader


@dataclass(frozen=True)
class WfdbSource:
    """Samples of a single-segment record.

    Attributes:
        reader: reader of its signal files.
        checksums: whether a checksum mismatch is an error.
    """

    reader: Reader
    checksums: bool

    def blocks(self, size: int) -> Iterator[np.ndarray]:
        """Yield the blocks of the reader."""
        return self.reader.blocks(size, self.checksums)


def header_of(path: Path) -> Path:
    """Return the path of a record's header, given any of its names."""
    if path.suffix.lower() == ".hea":
        return path
    if path.suffix in (".mat", ".dat"):
        return path.with_suffix(".hea")
    return path.with_name(path.name + ".hea")


def open_wfdb(path: Path, reading: Reading) -> Recording:
    """Open a WFDB record: check headers and file sizes without reading samples.

    Args:
        path: any name of the record (see `header_of`).
        reading: options.

    Raises:
        InputError: the record cannot be read, or its header is invalid.
    """
    header = read_header(header_of(path))
    return _open_segments(header, reading) if header.segments else _open_single(header, reading)


def _open_single(header: Header, reading: Reading) -> Recording:
    """Open a single-segment record."""
    path, wfdb_defaults = header.path, reading.wfdb_defaults
    found = match_leads([signal.name for signal in header.signals], reading.lead_map, path)
    used = [Used(lead, n, header.signals[n].checked(path, wfdb_defaults)) for lead, n in zip(found.leads, found.rows)]
    rate_hz = header.rate_hz(wfdb_defaults)
    reader = make_reader(header, used, rate_hz, LONGEST_S)
    factor = reader.per_frame
    if rate_hz * factor < RATES[0]:
        raise InputError(
            f"sampling rate {rate_hz * factor:g} Hz is not between {RATES[0]:g} and {RATES[1]:g} Hz",
            file=path,
            place="line 1",
        )
    notes = found.notes
    if wfdb_defaults and any(not header.signals[one.channel].gain for one in used):
        notes.append("WFDB's default gain of 200 per mV")
    if wfdb_defaults and header.rate.split("/")[0] in ("", "0"):
        notes.append("WFDB's default sampling rate of 250 Hz")
    if reader.stretched:
        notes.append(f"interpolated to {rate_hz * factor:g} Hz: {' '.join(reader.stretched)}")
    return Recording(
        path,
        rate_hz * factor,
        reader.frames * factor,
        tuple(one.lead for one in used),
        WfdbSource(reader, reading.checksums),
        header.codes,
        header.age,
        header.sex,
        notes,
    )


def _open_segments(header: Header, reading: Reading) -> Recording:
    """Open a multi-segment record."""
    opened: list[tuple[Recording | None, int]] = []
    for own, frames in segment_headers(header):
        has_lead = own is not None and any(canonical(signal.name, reading.lead_map) for signal in own.signals)
        part = _open_single(own, reading) if own is not None and has_lead else None
        opened.append((part, frames))
    parts = [part for part, _ in opened if part is not None]
    if not parts:
        raise InputError("contains none of the 12 standard leads in any segment", file=header.path)
    rates = sorted({part.rate_hz for part in parts})
    if len(rates) > 1:
        raise InputError(f"segments have different sampling rates ({rates})", file=header.path)
    frame_rate = header.rate_hz(reading.wfdb_defaults)
    factor = round(rates[0] / frame_rate)
    leads = tuple(dict.fromkeys(lead for part in parts for lead in part.leads))
    source = Segments(header, [(part, frames * factor) for part, frames in opened], leads)
    gaps = sum(frames for part, frames in opened if part is None) / frame_rate
    notes = list(dict.fromkeys(note for part in parts for note in part.notes))
    if gaps:
        notes.append(f"gaps between segments: {gaps:g} s")
    samples = sum(samples for _, samples in source.parts)
    return Recording(header.path, rates[0], samples, leads, source, header.codes, header.age, header.sex, notes)


def segments_of(headers: Iterable[Path]) -> set[Path]:
    """Return the headers of segments, in the same folder, of the multi-segment records among `headers`."""
    return {path.with_name(f"{name}.hea") for path in headers if _has_segments(path) for name in _segment_names(path)}


def _has_segments(path: Path) -> bool:
    """Return whether the first line of a header declares segments."""
    if path.suffix.lower() != ".hea":
        return False
    try:
        with open(path, "rb") as file:
            start = file.read(4096)
    except OSError:
        return False  # reported when the record is read
    line = next(
        (line for line in start.splitlines() if line.strip() and not line.lstrip(b"\xef\xbb\xbf").startswith(b"#")), b""
    )
    return b"/" in (line.split() or [b""])[0]


def _segment_names(path: Path) -> list[str]:
    try:
        return [name for name, _ in read_header(path).segments]
    except InputError:  # reported when the record is read
        return []


def write_wfdb(
    folder: Path,
    name: str,
    values: Mapping[str, np.ndarray],
    rate_hz: float,
    comments: Mapping[str, str] | None = None,
    suffix: str = ".mat",
) -> Path:
    """Write a record in the challenge's layout: 16-bit samples, 1000 units per millivolt.

    Args:
        folder: output folder, created if missing.
        name: name of the record.
        values: samples by lead name, (n,) each, mV; NaN becomes a missing sample.
        rate_hz: sampling rate.
        comments: header comments; ``{"Dx": "426783006"}`` becomes the line ``#Dx: 426783006``.
        suffix: suffix of the signal file, ``".mat"`` (MATLAB level 4) or ``".dat"``.

    Returns:
        Path of the header.
    """
    table = np.stack([np.asarray(row, dtype=np.float64) for row in values.values()], axis=1)
    bad = np.isnan(table)
    counts = np.clip(np.round(np.where(bad, 0, table) * 1000), -(2**15) + 1, 2**15 - 1)
    samples = np.where(bad, FORMATS["16"].missing, counts).astype("<i2")
    kind = "16+24" if suffix == ".mat" else "16"
    lines = [f"{name} {len(values)} {rate_hz:g} {len(samples)}"]
    for lead, column in zip(values, samples.T):
        checksum = int(np.int16(np.uint16(int(column.sum(dtype=np.int64)) & 0xFFFF).astype(np.int16)))
        lines.append(f"{name}{suffix} {kind} 1000.0(0)/mV 16 0 {column[0]} {checksum} 0 {lead}")
    lines += [f"#{key}: {value}" for key, value in (comments or {}).items()]
    with atomic(folder / f"{name}{suffix}") as file:
        if suffix == ".mat":
            file.write(struct.pack("<5i", 30, samples.shape[1], samples.shape[0], 0, 4) + b"val\0")
        file.write(samples.tobytes())
    path = folder / f"{name}.hea"
    with atomic(path, "w") as file:
        file.write("\n".join(lines) + "\n")
    return path
