"""Samples of WFDB signal files, block by block: read here, or by the package `wfdb`.

| what | reader |
| --- | --- |
| formats with a decoder in `seqssm_ecg.formats.FORMATS` | `OwnReader` |
| the other formats, several samples per frame, skew | `WfdbReader` |
| records of several segments | `seqssm_ecg.segments`, each segment by its own reader |

The own reader is faster, and reads headers that `wfdb` refuses (early Georgia). Equality of the two is tested.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from seqssm.errors import InputError
from seqssm_ecg.formats import BLOCK, FORMATS
from seqssm_ecg.headers import UNITS, Header, Signal, check_file_name
from seqssm_ecg.matlab import check_matlab


@dataclass(frozen=True)
class Used:
    """A signal that is a lead.

    Attributes:
        lead: standard name.
        channel: index among the header's signals.
        signal: checked signal line.
    """

    lead: str
    channel: int
    signal: Signal


def make_reader(header: Header, used: list[Used], rate_hz: float, longest_s: float) -> OwnReader | WfdbReader:
    """Choose the reader of a record by the table above.

    Args:
        header: of a record of one segment.
        used: its leads.
        rate_hz: frames per second.
        longest_s: a longer record is refused as corrupt, seconds.

    Raises:
        InputError: a signal file is missing, truncated or not what the header says.
    """
    own = all(
        FORMATS[signal.format].decode is not None and signal.per_frame == 1 and signal.skew == 0
        for signal in _in_files_of(header, used)
        if signal.format in FORMATS
    )
    reader = OwnReader(header, used) if own else WfdbReader(header, used)
    if reader.frames < 1:
        raise InputError("has no samples", file=header.path)
    if reader.frames > longest_s * rate_hz:
        raise InputError(
            f"{reader.frames} samples are more than {longest_s / 3600:g} hours", file=header.path, place="line 1"
        )
    reader.check_sizes()
    return reader


def _in_files_of(header: Header, used: list[Used]) -> list[Signal]:
    """Every signal, used or not, in the files of the used ones: they are interleaved there."""
    files = {one.signal.file for one in used}
    return [signal for signal in header.signals if signal.file in files]


@dataclass(frozen=True)
class SignalFile:
    """A signal file with its interleaved signals.

    Attributes:
        path: path of the file.
        kind: format code of all its signals.
        offset: bytes (compressed files: samples) before the first sample.
        per_frame: samples per frame of each signal.
    """

    path: Path
    kind: str
    offset: int
    per_frame: tuple[int, ...]

    @property
    def frame_bytes(self) -> float | None:
        """Bytes per frame, None for a compressed file."""
        size = FORMATS[self.kind].sample_bytes
        return None if size is None else float(size * sum(self.per_frame))

    def size(self, header: Path) -> int:
        """Size of the file in bytes.

        Raises:
            InputError: there is no such file.
        """
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            raise InputError(f"signal file {self.path.name} is missing", file=header) from None
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", file=self.path) from None


class Reader(ABC):
    """What both readers share: the signal files, the number of frames, the conversion to millivolts.

    Args:
        header: of a record of one segment.
        used: its leads.
    """

    def __init__(self, header: Header, used: list[Used]) -> None:
        self.header, self.used = header, used
        self.files = [self._file(name) for name in dict.fromkeys(one.signal.file for one in used)]

    def _file(self, name: str) -> SignalFile:
        signals = [signal for signal in self.header.signals if signal.file == name]
        kinds = {(signal.format, signal.offset) for signal in signals}
        if len(kinds) > 1:
            raise InputError(f"the signals of {name} have different formats or offsets", file=self.header.path)
        kind, offset = kinds.pop()
        per_frame = tuple(signal.per_frame for signal in signals)
        return SignalFile(self.header.path.with_name(name), kind, offset, per_frame)

    @cached_property
    def frames(self) -> int:
        """Frames of the record, from the header or from the size of the signal files."""
        if self.header.samples is not None:
            return self.header.samples
        found = set()
        for file in self.files:
            if file.frame_bytes is None:
                raise InputError("compressed record without number of samples", file=self.header.path)
            found.add(int(max(0, file.size(self.header.path) - file.offset) // file.frame_bytes))
        if len(found) > 1:
            raise InputError("signal files differ in length", file=self.header.path)
        return found.pop()

    def check_sizes(self) -> None:
        """Raise InputError where a file is shorter than its header says."""
        for file in self.files:
            size = file.size(self.header.path)
            if file.frame_bytes is None:
                continue
            need = math.ceil(self.frames * file.frame_bytes) + file.offset
            if size < need:
                raise InputError(
                    f"is truncated: {size} bytes instead of {need} for {self.frames} frames of "
                    f"{len(file.per_frame)} signals",
                    file=file.path,
                )

    @property
    def per_frame(self) -> int:
        """Samples per frame of the leads; the largest number where they differ."""
        return max(one.signal.per_frame for one in self.used)

    @property
    def stretched(self) -> list[str]:
        """Leads with fewer samples per frame than the others; they are interpolated."""
        return [one.lead for one in self.used if one.signal.per_frame < self.per_frame]

    def blocks(self, frames: int = BLOCK, checksums: bool = True) -> Iterator[np.ndarray]:
        """Yield the leads in millivolts, (leads, n) float32; a missing sample is NaN.

        Args:
            frames: frames per block, a multiple of 6.
            checksums: whether samples that do not match the header's checksums are an error at the end.

        Raises:
            InputError: a file cannot be read, or does not match its checksum.
        """
        # all checksums zero: the writer did not compute them
        trust = checksums and any(one.signal.checksum for one in self.used)
        sums = [0] * len(self.used)
        for raw in self.raw_blocks(frames):
            for place, row in enumerate(raw):
                sums[place] += int(row.sum(dtype=np.int64))
            rows = [_millivolts(row, one.signal) for row, one in zip(raw, self.used)]
            length = max(len(row) for row in rows)
            yield np.stack([row if len(row) == length else _stretch(row, length) for row in rows])
        for one, total in zip(self.used, sums):
            signal = one.signal  # a skewed signal is not read from its first to its last sample
            if trust and signal.checksum is not None and not signal.skew and total & 0xFFFF != signal.checksum:
                raise InputError(
                    f"the samples do not match the checksum ({total & 0xFFFF} instead of {signal.checksum}): the file "
                    "is corrupt",
                    file=self.header.path,
                    place=signal.place,
                )

    @abstractmethod
    def raw_blocks(self, frames: int) -> Iterator[list[np.ndarray]]:
        """Yield the integers of each used signal."""


class OwnReader(Reader):
    """Reads formats with a decoder in the table, one sample per frame."""

    def check_sizes(self) -> None:
        super().check_sizes()
        for file in self.files:
            if file.path.suffix == ".mat":
                head = self._bytes(file, 0, file.offset)
                check_matlab(file.path, head, file.kind, len(file.per_frame), self.frames)

    def raw_blocks(self, frames: int) -> Iterator[list[np.ndarray]]:
        columns = [
            (self.files.index(next(f for f in self.files if f.path.name == one.signal.file)), self._column(one))
            for one in self.used
        ]
        for start in range(0, self.frames, frames):
            count = min(frames, self.frames - start)
            tables = [self._table(file, start, count) for file in self.files]
            yield [tables[number][:, column] for number, column in columns]

    def _column(self, one: Used) -> int:
        before = self.header.signals[: one.channel]
        return sum(signal.file == one.signal.file for signal in before)

    def _table(self, file: SignalFile, start: int, count: int) -> np.ndarray:
        """(count, signals) integers."""
        size = file.frame_bytes
        assert size is not None
        width = len(file.per_frame)
        raw = self._bytes(file, file.offset + int(start * size), math.ceil(count * size))
        decode = FORMATS[file.kind].decode
        assert decode is not None
        return decode(raw)[: count * width].reshape(count, width)

    def _bytes(self, file: SignalFile, start: int, count: int) -> bytes:
        try:
            with open(file.path, "rb") as stream:
                stream.seek(start)
                raw = stream.read(count)
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", file=file.path) from None
        if len(raw) < count:
            raise InputError("was truncated while it was read", file=file.path)
        return raw


class WfdbReader(Reader):
    """Reads everything else through the package `wfdb`, from an absolute local path only."""

    def __init__(self, header: Header, used: list[Used]) -> None:
        super().__init__(header, used)
        for signal in header.signals:  # wfdb joins these names to the folder, and opens URLs
            check_file_name(signal, header.path)
        self.record = str(header.path.absolute().with_suffix(""))
        if "::" in self.record or "://" in self.record:
            raise InputError("the path looks like a URL; only local files are read", file=header.path)

    def raw_blocks(self, frames: int) -> Iterator[list[np.ndarray]]:
        last: list[int] = []
        for start in range(0, self.frames, frames):
            signals = self._read(start, min(start + frames, self.frames))
            if start and last:  # in every call, wfdb starts a format of differences from the header's first value
                signals = [
                    row + (before - one.signal.first) if FORMATS[one.signal.format].differences else row
                    for row, before, one in zip(signals, last, self.used)
                ]
            last = [int(row[-1]) for row in signals]
            yield signals

    def _read(self, start: int, stop: int) -> list[np.ndarray]:
        """The integers of the leads in frames start .. stop, with every sample of a frame."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of pandas, about calls inside wfdb
                import wfdb

                found = wfdb.rdrecord(
                    self.record,
                    sampfrom=start,
                    sampto=stop,
                    channels=[one.channel for one in self.used],
                    physical=False,
                    smooth_frames=False,
                ).e_d_signal
        except ImportError:
            raise InputError(
                "reading this record requires the package wfdb: pip install 'seqssm[ecg]'", file=self.header.path
            ) from None
        except MemoryError:
            raise
        except Exception as error:  # wfdb raises whatever its parsers and soundfile raise
            why = " ".join(str(error).split())[:150]
            raise InputError(f"wfdb cannot read it ({type(error).__name__}: {why})", file=self.header.path) from None
        wrong = [one.lead for row, one in zip(found, self.used) if len(row) != (stop - start) * one.signal.per_frame]
        if wrong:
            raise InputError(f"contains too few samples of {' '.join(wrong)}", file=self.header.path)
        return found


def _millivolts(samples: np.ndarray, signal: Signal) -> np.ndarray:
    """(adc - baseline) / gain in mV, float32; NaN where the sample is missing."""
    assert signal.gain
    factor = UNITS[signal.unit.casefold()]
    values = (samples.astype(np.float64) - signal.baseline) * (factor / signal.gain)
    missing = FORMATS[signal.format].missing
    if missing is not None:
        values[samples == missing] = np.nan
    return values.astype(np.float32)


def _stretch(row: np.ndarray, length: int) -> np.ndarray:
    """`row` at more samples per frame, on straight lines between its own."""
    place = np.arange(length) * (len(row) / length)
    return np.interp(place, np.arange(len(row)), row).astype(np.float32)
