"""Readers of recordings: WFDB (`.hea` with its signal files), arrays (`.npy`, `.csv`), and folders of them."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from seqssm.errors import InputError
from seqssm.files.disk import atomic
from seqssm_ecg.arrays import ARRAYS, ArraySpec, open_array
from seqssm_ecg.formats import BLOCK, FORMATS
from seqssm_ecg.headers import RATES, Header, read_header
from seqssm_ecg.leads import canonical, check_lead_map
from seqssm_ecg.segments import Segments, segment_headers
from seqssm_ecg.signals import Reader, Used, make_reader

LONGEST_S = 32 * 24 * 3600.0  # the longest patch recordings have 30 days; a longer duration indicates a corrupt header


class Source(Protocol):
    """Protocol of an object that supplies the samples of a recording."""

    def blocks(self, size: int) -> Iterator[np.ndarray]:
        """Yield (leads, n) float32 in mV from the first sample to the last; can be called repeatedly."""


@dataclass
class Recording:
    """An opened recording. Samples are read on access to `blocks` or `values`.

    Attributes:
        path: path of the header or array.
        rate_hz: sampling rate of the leads.
        samples: samples per lead.
        leads: standard lead names, in the order of the file.
        source: object that supplies the samples.
        codes: diagnosis codes of the header; None without a Dx line.
        age: age in years, or None.
        sex: ``"male"``, ``"female"`` or None.
        notes: remarks for the user on how the file was read.
    """

    path: Path
    rate_hz: float
    samples: int
    leads: tuple[str, ...]
    source: Source
    codes: list[str] | None = None
    age: float | None = None
    sex: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return self.samples / self.rate_hz

    def blocks(self, size: int = BLOCK) -> Iterator[np.ndarray]:
        """Yield the samples from first to last, (leads, n) float32 in mV; missing samples are NaN.

        Args:
            size: frames per block, a multiple of 6.

        Raises:
            InputError: a file cannot be read, or its samples do not match the header's checksums.
        """
        if "values" in self.__dict__:  # already read
            return InMemory(np.stack(list(self.values.values()))).blocks(size)
        return self.source.blocks(size)

    def head(self, seconds: float) -> dict[str, np.ndarray]:
        """Return the first samples as a mapping from lead name to (n,) float32, mV.

        Args:
            seconds: maximum duration, seconds.
        """
        block = next(self.blocks())[:, : round(seconds * self.rate_hz)]
        return dict(zip(self.leads, block))

    @cached_property
    def values(self) -> dict[str, np.ndarray]:
        """All samples as a mapping from lead name to (n,) float32, mV; missing samples are NaN."""
        table = np.concatenate(list(self.source.blocks(BLOCK)), axis=1)
        return dict(zip(self.leads, table))

    @classmethod
    def of_arrays(cls, path: Path, rate_hz: float, values: Mapping[str, np.ndarray]) -> Recording:
        """A recording in memory.

        Args:
            path: path used in error messages.
            rate_hz: sampling rate.
            values: samples by standard lead name, (n,) each, mV.
        """
        table = np.stack([np.asarray(row, np.float32) for row in values.values()])
        return cls(path, rate_hz, table.shape[1], tuple(values), InMemory(table))


@dataclass(frozen=True)
class InMemory:
    """Samples in memory.

    Attributes:
        table: samples, (leads, n) float32, mV.
    """

    table: np.ndarray

    def blocks(self, size: int) -> Iterator[np.ndarray]:
        """Yield slices of the table."""
        for start in range(0, self.table.shape[1], size):
            yield self.table[:, start : start + size]


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


def open_recording(
    path: Path,
    lead_map: Mapping[str, str] | None = None,
    array: ArraySpec | None = None,
    checksums: bool = True,
    wfdb_defaults: bool = False,
) -> Recording:
    """Open a recording: check headers and file sizes without reading samples.

    Args:
        path: a `.hea` file, a record name without suffix, a `.mat` or `.dat` with its header beside it, or an array
            (`.npy`, `.csv`).
        lead_map: mapping from lead names in the file to standard names.
        array: sampling rate, leads and unit of arrays.
        checksums: whether samples that do not match the header's checksums are an error.
        wfdb_defaults: whether to assume WFDB's 200 per mV and 250 Hz for a missing gain and sampling rate.

    Raises:
        InputError: the recording cannot be read, or its header is invalid.
    """
    check_lead_map(lead_map)
    check_local(path)
    if path.suffix.lower() in ARRAYS:
        found = open_array(path, lead_map, array or ArraySpec())
        notes = [f"unused signals: {' '.join(found.unused)}"] if found.unused else []
        return Recording(path, found.rate_hz, found.samples, found.leads, found, notes=notes)
    header = read_header(header_of(path))
    if header.segments:
        return _open_segments(header, lead_map, checksums, wfdb_defaults)
    return _open_wfdb(header, lead_map, checksums, wfdb_defaults)


def read_recording(
    path: Path,
    lead_map: Mapping[str, str] | None = None,
    array: ArraySpec | None = None,
    checksums: bool = True,
    wfdb_defaults: bool = False,
) -> Recording:
    """Open a recording and read all its samples.

    Args:
        path: argument of `open_recording`.
        lead_map: argument of `open_recording`.
        array: argument of `open_recording`.
        checksums: argument of `open_recording`.
        wfdb_defaults: argument of `open_recording`.

    Raises:
        InputError: the recording cannot be read, or its header is invalid.
    """
    recording = open_recording(path, lead_map, array, checksums, wfdb_defaults)
    recording.values  # noqa: B018 (reads now, so that errors are raised here)
    return recording


def header_of(path: Path) -> Path:
    """Return the path of a record's header, given any of its names."""
    if path.suffix.lower() == ".hea":
        return path
    if path.suffix in (".mat", ".dat"):
        return path.with_suffix(".hea")
    return path.with_name(path.name + ".hea")


def check_local(path: Path) -> None:
    """Raise InputError for a URL (``s3://...``); only local files are read."""
    text = path.as_posix()
    if "://" in text or text.split("/")[0].casefold() in ("s3:", "gs:", "http:", "https:", "azureml:", "file:"):
        raise InputError("is a URL; download it first, only local files are read", file=path)


def _open_wfdb(header: Header, lead_map: Mapping[str, str] | None, checksums: bool, wfdb_defaults: bool) -> Recording:
    """Open a single-segment record."""
    path = header.path
    named = [(canonical(signal.name, lead_map), number) for number, signal in enumerate(header.signals)]
    leads = [lead for lead, _ in named if lead is not None]
    for lead in leads:
        if leads.count(lead) > 1:
            raise InputError(f"duplicate lead {lead}", file=path)
    if not leads:
        names = ", ".join(signal.name or "(no name)" for signal in header.signals[:6])
        raise InputError(f"contains none of the 12 standard leads, only {names}", file=path)
    used = [Used(lead, n, header.signals[n].checked(path, wfdb_defaults)) for lead, n in named if lead is not None]
    rate_hz = header.rate_hz(wfdb_defaults)
    reader = make_reader(header, used, rate_hz, LONGEST_S)
    factor = reader.per_frame
    if rate_hz * factor < RATES[0]:
        raise InputError(
            f"sampling rate {rate_hz * factor:g} Hz is not between {RATES[0]:g} and {RATES[1]:g} Hz",
            file=path,
            place="line 1",
        )
    unused = [header.signals[n].name or "(no name)" for lead, n in named if lead is None]
    notes = [f"unused signals: {' '.join(unused)}"] if unused else []
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
        WfdbSource(reader, checksums),
        header.codes,
        header.age,
        header.sex,
        notes,
    )


def _open_segments(
    header: Header, lead_map: Mapping[str, str] | None, checksums: bool, wfdb_defaults: bool
) -> Recording:
    """Open a multi-segment record."""
    opened: list[tuple[Recording | None, int]] = []
    for own, frames in segment_headers(header):
        has_lead = own is not None and any(canonical(signal.name, lead_map) for signal in own.signals)
        part = _open_wfdb(own, lead_map, checksums, wfdb_defaults) if own is not None and has_lead else None
        opened.append((part, frames))
    parts = [part for part, _ in opened if part is not None]
    if not parts:
        raise InputError("contains none of the 12 standard leads in any segment", file=header.path)
    rates = sorted({part.rate_hz for part in parts})
    if len(rates) > 1:
        raise InputError(f"segments have different sampling rates ({rates})", file=header.path)
    frame_rate = header.rate_hz(wfdb_defaults)
    factor = round(rates[0] / frame_rate)
    leads = tuple(dict.fromkeys(lead for part in parts for lead in part.leads))
    source = Segments(header, [(part, frames * factor) for part, frames in opened], leads)
    gaps = sum(frames for part, frames in opened if part is None) / frame_rate
    notes = list(dict.fromkeys(note for part in parts for note in part.notes))
    if gaps:
        notes.append(f"gaps between segments: {gaps:g} s")
    samples = sum(samples for _, samples in source.parts)
    return Recording(header.path, rates[0], samples, leads, source, header.codes, header.age, header.sex, notes)


# -- folders ---------------------------------------------------------------------------------------------------------


def find_recordings(folder: Path, arrays: bool = False) -> list[Path]:
    """List the headers below a folder, sorted; segments of a record in the same folder are excluded.

    Args:
        folder: folder to search, including its subfolders.
        arrays: whether to list `.npy` files too; a `.csv` file, which may hold anything, is read only if named
            explicitly.
    """
    suffixes = {".hea", ".npy"} if arrays else {".hea"}
    found = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in suffixes and not path.name.startswith(".")
    )
    segments = {path.with_name(f"{name}.hea") for path in found if _has_segments(path) for name in _segment_names(path)}
    return [path for path in found if path not in segments] if segments else found


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


def inputs(paths: Iterable[Path]) -> Iterator[Path]:
    """List the recordings given on the command line: files, record names, folders.

    Raises:
        InputError: a path does not exist, or a folder has no recordings.
    """
    for path in paths:
        check_local(path)
        if path.is_dir():
            found = find_recordings(path, arrays=True)
            if not found:
                raise InputError("contains no recordings (.hea with .mat or .dat, or .npy)", file=path)
            yield from found
        elif path.is_file() or header_of(path).is_file():
            if path.suffix.lower() not in (".hea", ".mat", ".dat", *ARRAYS) and not header_of(path).is_file():
                raise InputError("is not a recording (.hea, .mat, .dat, .npy, .csv) or a folder of them", file=path)
            yield path
        else:
            raise InputError("no such file, record or folder", file=path)


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
