"""Readers of recordings: WFDB (`.hea` with `.mat` or `.dat`), arrays (`.npy`, `.csv`), and the folders they lie in."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from seqssm.errors import InputError
from seqssm.files.disk import atomic
from seqssm_ecg.headers import FORMATS, RATES, UNITS, Header, Signal, read_header
from seqssm_ecg.leads import LEADS, canonical, check_lead_map

ARRAYS = (".npy", ".csv")
MISSING = {
    "16": -(2**15),
    "212": -(2**11),
    "61": -(2**15),
    "160": -(2**15),
    "24": -(2**23),
    "32": -(2**31),
    "80": -(2**7),
}
LONGEST_S = 48 * 3600.0  # a Holter of two days; longer, a header is taken for damaged


@dataclass
class Recording:
    """A recording in millivolts, as the file has it.

    Attributes:
        path: of its header or array.
        rate_hz: sampling rate.
        values: standard lead name -> (n,) float32, mV; NaN where a sample is missing.
        codes: diagnoses of the header; None where it has no such line.
        notes: what a user should know about the reading.
    """

    path: Path
    rate_hz: float
    values: dict[str, np.ndarray]
    codes: list[str] | None = None
    age: float | None = None
    sex: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def samples(self) -> int:
        return len(next(iter(self.values.values())))


@dataclass(frozen=True)
class ArraySpec:
    """What a plain array does not say about itself.

    Attributes:
        rate_hz: sampling rate, None when it was not given.
        leads: lead names in the array's order; a `.csv` has them in its first line.
        unit: of the values: "mV", "uV", "V".
    """

    rate_hz: float | None = None
    leads: tuple[str, ...] | None = None
    unit: str = "mV"


def read_recording(
    path: Path, lead_map: Mapping[str, str] | None = None, array: ArraySpec | None = None, checksums: bool = True
) -> Recording:
    """Reads one recording.

    Args:
        path: a `.hea` file, a record's name without suffix, a `.mat` or `.dat` with its header beside it, or an array
            (`.npy`, `.csv`).
        lead_map: names in the file -> standard names.
        array: rate, leads and unit of arrays.
        checksums: whether samples that do not fit the header's checksums are an error.

    Raises:
        InputError: it cannot be read, or what it says of itself cannot be right.
    """
    check_lead_map(lead_map)
    if path.suffix.lower() in ARRAYS:
        return _read_array(path, lead_map, array or ArraySpec())
    return read_wfdb(header_of(path), lead_map, checksums)


def header_of(path: Path) -> Path:
    """The header of a record given by any of its names."""
    if path.suffix.lower() == ".hea":
        return path
    if path.suffix in (".mat", ".dat"):
        return path.with_suffix(".hea")
    return path.with_name(path.name + ".hea")


# -- WFDB ------------------------------------------------------------------------------------------------------------


def read_wfdb(path: Path, lead_map: Mapping[str, str] | None = None, checksums: bool = True) -> Recording:
    """Reads a WFDB record with the signals that are among the twelve leads; errors as in `read_recording`."""
    header = read_header(path)
    named = [(canonical(signal.name, lead_map), signal) for signal in header.signals]
    leads = [name for name, _ in named if name is not None]
    for name in leads:
        if leads.count(name) > 1:
            raise InputError(f"has the lead {name} twice", file=path)
    if not leads:
        raise InputError(
            f"has none of the twelve leads, only {', '.join(s.name or '(no name)' for s in header.signals[:6])}",
            file=path,
        )
    values: dict[str, np.ndarray] = {}
    notes: list[str] = []
    trust = checksums and any(signal.checksum for _, signal in named)  # all zero: the writer did not compute them
    for file in dict.fromkeys(signal.file for signal in header.signals):
        group = [(name, signal) for name, signal in named if signal.file == file]
        if all(name is None for name, _ in group):
            continue
        table = _samples(header, file, [signal for _, signal in group], notes)
        for column, (name, signal) in enumerate(group):
            if name is not None:
                values[name] = _millivolts(header, table[:, column], signal, trust)
    lengths = {len(value) for value in values.values()}
    if len(lengths) > 1:
        raise InputError("its signal files differ in length", file=path)
    return Recording(path, header.rate_hz, values, header.codes, header.age, header.sex, notes)


def _samples(header: Header, name: str, signals: Sequence[Signal], notes: list[str]) -> np.ndarray:
    """(n, signals) integers of one signal file."""
    path = header.path.with_name(name)
    kinds = {(signal.format, signal.offset) for signal in signals}
    if len(kinds) > 1:
        raise InputError(f"the signals of {name} differ in format, which is not read", file=header.path)
    kind, offset = kinds.pop()
    frame = FORMATS[kind] * len(signals)
    try:
        size = path.stat().st_size - offset
    except FileNotFoundError:
        raise InputError(f"its signal file {name} is not there", file=header.path) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path) from None
    samples = header.samples if header.samples is not None else int(max(0, size) // frame)
    if samples < 1:
        raise InputError("holds no samples", file=path)
    if samples > LONGEST_S * header.rate_hz:
        raise InputError(
            f"{samples} samples are more than {LONGEST_S / 3600:g} hours", file=header.path, place="line 1"
        )
    need = math.ceil(samples * frame)
    if size < need:
        raise InputError(
            f"is cut off: {max(0, size) + offset} bytes, {need + offset} are needed for {samples} samples of "
            f"{len(signals)} signals",
            file=path,
        )
    if size > need + 1:  # a byte of padding is common
        notes.append(f"{name} is longer than its header says")
    try:
        with open(path, "rb") as file:
            head = file.read(offset)
            raw = file.read(need)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path) from None
    if path.suffix == ".mat":
        _check_mat(path, head, samples, len(signals))
    return _decode(raw, kind)[: samples * len(signals)].reshape(samples, len(signals))


def _check_mat(path: Path, head: bytes, samples: int, signals: int) -> None:
    """Compares the 20 numbers before the samples (MATLAB v4: type, rows, columns, imaginary, length of the name)."""
    if len(head) < 20:
        return
    kind, rows, columns, imaginary, _ = struct.unpack("<5i", head[:20])
    if head.startswith(b"MATLAB"):
        raise InputError("is a MATLAB v5 file; WFDB records are v4 (int16, one matrix)", file=path)
    if kind != 30 or imaginary != 0 or (rows, columns) != (signals, samples):
        raise InputError(
            f"is damaged: its first bytes tell of {rows} x {columns} numbers of type {kind}, the header of "
            f"{signals} x {samples} of type 30",
            file=path,
        )


def _decode(raw: bytes, kind: str) -> np.ndarray:
    if kind == "16":
        return np.frombuffer(raw, "<i2")
    if kind == "61":
        return np.frombuffer(raw, ">i2")
    if kind == "160":
        return (np.frombuffer(raw, "<u2").astype(np.int32)) - 2**15
    if kind == "80":
        return np.frombuffer(raw, "u1").astype(np.int32) - 2**7
    if kind == "32":
        return np.frombuffer(raw, "<i4")
    if kind == "212":  # two samples of 12 bits in three bytes
        whole = np.frombuffer(raw + b"\0" * (-len(raw) % 3), "u1").reshape(-1, 3).astype(np.int32)
        pairs = np.stack([whole[:, 0] | (whole[:, 1] & 0x0F) << 8, whole[:, 2] | (whole[:, 1] & 0xF0) << 4], axis=1)
        return ((pairs ^ 0x800) - 0x800).ravel()
    parts = np.frombuffer(raw, "u1").reshape(-1, 3).astype(np.int32)  # 24: three bytes, the last one signed
    return parts[:, 0] | (parts[:, 1] << 8) | ((parts[:, 2] ^ 0x80) - 0x80 << 16)


def _millivolts(header: Header, samples: np.ndarray, signal: Signal, trust: bool) -> np.ndarray:
    """(adc - baseline) / gain in mV, float32; NaN where the sample is missing."""
    place = f"line {signal.line}, lead {signal.name}"
    if signal.gain is None:
        raise InputError("gives no gain", file=header.path, place=place)
    factor = UNITS.get(signal.unit.casefold())
    if factor is None:
        raise InputError(f"the unit {signal.unit!r} is not mV, uV or V", file=header.path, place=place)
    if trust and signal.checksum is not None:
        found = int(samples.sum(dtype=np.int64)) & 0xFFFF
        if found != signal.checksum:
            raise InputError(
                f"the samples do not fit the checksum ({found}, not {signal.checksum}): the file is damaged",
                file=header.path,
                place=place,
            )
    values = (samples.astype(np.float64) - signal.baseline) * (factor / signal.gain)
    values[samples == MISSING[signal.format]] = np.nan
    return values.astype(np.float32)


# -- arrays ----------------------------------------------------------------------------------------------------------


def _read_array(path: Path, lead_map: Mapping[str, str] | None, spec: ArraySpec) -> Recording:
    names = spec.leads
    try:
        if path.suffix.lower() == ".npy":
            table = np.load(path, allow_pickle=False)
        else:
            header, table = _read_csv(path)
            names = names or header
    except FileNotFoundError:
        raise InputError("no such file", file=path) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", file=path) from None
    except (ValueError, EOFError, MemoryError, SyntaxError) as error:
        if isinstance(error, InputError):
            raise
        why = " ".join(str(error).split())[:120]
        if "pickle" in why:  # numpy's text advises to run what is in the file
            why = "no numbers, or damaged"
        raise InputError(f"is not an array that can be read: {why}", file=path) from None
    if table.ndim != 2 or table.dtype.kind not in "fiu" or 0 in table.shape:
        raise InputError(f"a table of numbers is needed, not {table.dtype} of shape {table.shape}", file=path)
    if spec.rate_hz is None:
        raise InputError(
            "an array has no sampling rate of its own: give it (--array-rate-hz, or the column rate_hz)", file=path
        )
    if not RATES[0] <= spec.rate_hz <= RATES[1]:
        raise InputError(
            f"the sampling rate {spec.rate_hz:g} is not between {RATES[0]:g} and {RATES[1]:g} Hz", file=path
        )
    if names is None:
        if 12 not in table.shape:
            raise InputError(
                f"is {table.shape[0]} x {table.shape[1]}: give its leads (--array-leads I II V2)", file=path
            )
        names = LEADS
    if len(names) not in table.shape:
        raise InputError(f"is {table.shape[0]} x {table.shape[1]}, and {len(names)} leads were given", file=path)
    if table.shape[1] == len(names):  # samples x leads
        table = table.T
    factor = UNITS.get(spec.unit.casefold())
    if factor is None:
        raise InputError(f"the unit {spec.unit!r} is not mV, uV or V", file=path)
    values: dict[str, np.ndarray] = {}
    for name, row in zip(names, table):
        lead = canonical(name, lead_map)
        if lead is None:
            continue
        if lead in values:
            raise InputError(f"has the lead {lead} twice", file=path)
        values[lead] = (row.astype(np.float64) * factor).astype(np.float32)
        values[lead][~np.isfinite(values[lead])] = np.nan
    if not values:
        raise InputError(f"has none of the twelve leads, only {', '.join(names[:6])}", file=path)
    return Recording(path, spec.rate_hz, values)


def _read_csv(path: Path) -> tuple[tuple[str, ...] | None, np.ndarray]:
    """(lead names of the first line, or None where it holds numbers, the table)."""
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        first = [word.strip() for word in file.readline().split(",")]
    try:
        [float(word) for word in first]
        names = None
    except ValueError:
        names = tuple(first)
    table = np.genfromtxt(path, delimiter=",", skip_header=names is not None, encoding="utf-8-sig", ndmin=2)
    return names, table


# -- folders ---------------------------------------------------------------------------------------------------------


def find_recordings(folder: Path, arrays: bool = False) -> list[Path]:
    """The headers below a folder, sorted; with `arrays` the `.npy` files too (a `.csv` may be anything: name it)."""
    suffixes = {".hea", ".npy"} if arrays else {".hea"}
    return sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in suffixes and not path.name.startswith(".")
    )


def inputs(paths: Iterable[Path]) -> Iterator[Path]:
    """The recordings that a command line names: files, record names, folders.

    Raises:
        InputError: a path that is not there, or a folder without recordings.
    """
    for path in paths:
        if path.is_dir():
            found = find_recordings(path, arrays=True)
            if not found:
                raise InputError("holds no recordings (.hea with .mat or .dat, or .npy)", file=path)
            yield from found
        elif path.is_file() or header_of(path).is_file():
            if path.suffix.lower() not in (".hea", ".mat", ".dat", *ARRAYS) and not header_of(path).is_file():
                raise InputError("is no recording (.hea, .mat, .dat, .npy, .csv) nor a folder of them", file=path)
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
    """Writes a record in the challenge's layout: 16 bits, 1000 units a millivolt.

    Args:
        folder: made when it is not there.
        name: of the record.
        values: lead name -> (n,) mV; NaN becomes "missing".
        rate_hz: sampling rate.
        comments: ``{"Dx": "426783006"}`` becomes the line ``#Dx: 426783006``.
        suffix: ``".mat"`` (MATLAB v4) or ``".dat"``.

    Returns:
        The header's path.
    """
    table = np.stack([np.asarray(row, dtype=np.float64) for row in values.values()], axis=1)
    bad = np.isnan(table)
    counts = np.clip(np.round(np.where(bad, 0, table) * 1000), -(2**15) + 1, 2**15 - 1)
    samples = np.where(bad, MISSING["16"], counts).astype("<i2")
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
