"""Readers of WFDB signal files in blocks: a native one, and one based on the package `wfdb`.

| what | reader |
| --- | --- |
| formats with a decoder in `seqssm_ecg.formats.FORMATS` | `OwnReader` |
| other formats | `WfdbReader` |
| multi-segment records | `seqssm_ecg.segments`, with one reader per segment |

The native reader is faster, and accepts headers that `wfdb` rejects (early Georgia). Skew is removed here for both,
because `wfdb` fails on signals of one file with different skews. Tests compare the two.
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
    """A signal that is a standard lead.

    Attributes:
        lead: standard lead name.
        channel: index among the header's signals.
        signal: validated signal line.
    """

    lead: str
    channel: int
    signal: Signal


def make_reader(header: Header, used: list[Used], rate_hz: float, longest_s: float) -> OwnReader | WfdbReader:
    """Select the reader of a record by the table above.

    Args:
        header: header of a single-segment record.
        used: leads to read.
        rate_hz: frame rate, hertz.
        longest_s: maximum duration, seconds; a longer record is rejected as corrupt.

    Raises:
        InputError: a signal file is missing, truncated or inconsistent with the header.
    """
    formats = {signal.format for signal in _in_files_of(header, used)}
    own = all(FORMATS[code].decode is not None for code in formats if code in FORMATS)
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
    """Group all signals by file, including unused ones, which are interleaved with the used ones."""
    files = {one.signal.file for one in used}
    return [signal for signal in header.signals if signal.file in files]


@dataclass(frozen=True)
class SignalFile:
    """A signal file of interleaved signals.

    Attributes:
        path: path of the file.
        kind: format code, shared by all signals.
        offset: offset of the first sample, in bytes (compressed files: samples).
        per_frame: samples per frame of each signal.
    """

    path: Path
    kind: str
    offset: int
    per_frame: tuple[int, ...]

    @property
    def frame_bytes(self) -> float | None:
        """Bytes per frame; None for a compressed file."""
        size = FORMATS[self.kind].sample_bytes
        return None if size is None else float(size * sum(self.per_frame))

    def size(self, header: Path) -> int:
        """Return the file size in bytes.

        Raises:
            InputError: the file does not exist.
        """
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            raise InputError(f"signal file {self.path.name} is missing", file=header) from None
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", file=self.path) from None


class Reader(ABC):
    """Base class of the readers: signal files, number of frames, conversion to millivolts.

    Args:
        header: header of a single-segment record.
        used: leads to read.
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
        """Return the number of frames, from the header or the size of the signal files."""
        if self.header.samples is not None:
            return self.header.samples
        found = set()
        for file in self.files:
            if file.frame_bytes is None:
                raise InputError("has compressed signals but no number of samples", file=self.header.path)
            found.add(int(max(0, file.size(self.header.path) - file.offset) // file.frame_bytes))
        if len(found) > 1:
            raise InputError("signal files differ in length", file=self.header.path)
        return found.pop()

    def check_sizes(self) -> None:
        """Raise InputError if a file is shorter than declared, or a skew longer than the record."""
        for one in self.used:
            if one.signal.skew >= self.frames:
                message = f"the skew of {one.signal.skew} frames is not shorter than the record of {self.frames} frames"
                raise InputError(message, file=self.header.path, place=one.signal.place)
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
        """Maximum number of samples per frame of the leads."""
        return max(one.signal.per_frame for one in self.used)

    @property
    def stretched(self) -> list[str]:
        """Leads with fewer samples per frame than `per_frame`, which are interpolated."""
        return [one.lead for one in self.used if one.signal.per_frame < self.per_frame]

    def blocks(self, frames: int = BLOCK, checksums: bool = True) -> Iterator[np.ndarray]:
        """Yield the leads in millivolts, (leads, n) float32; missing samples are NaN.

        Skewed signals are shifted back and end with missing samples. Leads with fewer samples per frame are
        interpolated, also over the edges of blocks; the values do not depend on `frames`.

        Args:
            frames: frames per block, a multiple of 6.
            checksums: whether a checksum mismatch is an error, raised after the last block.

        Raises:
            InputError: a file cannot be read, or its checksum does not match.
        """
        sums = [0] * len(self.used)
        held = [np.empty(0, np.float32) for _ in self.used]
        skip = [one.signal.skew * one.signal.per_frame for one in self.used]
        sent = 0
        for raw in self.raw_blocks(frames):
            for turn, (row, one) in enumerate(zip(raw, self.used)):
                sums[turn] += int(row.sum(dtype=np.int64))
                dropped = min(skip[turn], len(row))
                skip[turn] -= dropped
                held[turn] = np.concatenate([held[turn], _millivolts(row[dropped:], one.signal)])
            while all(len(row) >= self._needed(one, frames) for row, one in zip(held, self.used)):
                yield self._cut(held, frames)
                sent += frames
        for turn, one in enumerate(self.used):
            lacking = (self.frames - sent) * one.signal.per_frame - len(held[turn])
            held[turn] = np.concatenate([held[turn], np.full(lacking, np.nan, np.float32)])
        for start in range(sent, self.frames, frames):
            yield self._cut(held, min(frames, self.frames - start))
        # all checksums are zero: not computed by the writer
        if checksums and any(one.signal.checksum for one in self.used):
            self._check_sums(sums)

    def _needed(self, one: Used, frames: int) -> int:
        """Samples of a lead that a block needs: interpolation needs the first one behind it too."""
        return frames * one.signal.per_frame + (one.signal.per_frame < self.per_frame)

    def _cut(self, held: list[np.ndarray], frames: int) -> np.ndarray:
        """Remove the next frames from the held samples of the leads, and return them as a block."""
        rows = []
        for turn, one in enumerate(self.used):
            count = frames * one.signal.per_frame
            row, held[turn] = held[turn][:count], held[turn][count:]
            rows.append(row if one.signal.per_frame == self.per_frame else self._stretched(row, held[turn], frames))
        return np.stack(rows)

    def _stretched(self, row: np.ndarray, behind: np.ndarray, frames: int) -> np.ndarray:
        """Interpolate a lead linearly to `per_frame` samples per frame; after its last sample, hold that one.

        Args:
            row: samples of a block, (n,) float32.
            behind: samples behind the block.
            frames: frames of the block.
        """
        length = frames * self.per_frame
        at, rest = np.divmod(np.arange(length) * len(row), length)
        values = np.append(row, behind[:1] if len(behind) else row[-1:]).astype(np.float64)
        between = values[at] + (values[at + 1] - values[at]) * (rest / length)
        return np.where(rest == 0, values[at], between).astype(np.float32)  # a missing neighbour changes no sample

    def _check_sums(self, sums: list[int]) -> None:
        """Compare the sums of the samples with the header's checksums."""
        for one, total in zip(self.used, sums):
            signal = one.signal
            if signal.checksum is not None and total & 0xFFFF != signal.checksum:
                raise InputError(
                    f"the samples do not match the checksum ({total & 0xFFFF} instead of {signal.checksum}): the file "
                    "is corrupt",
                    file=self.header.path,
                    place=signal.place,
                )

    @abstractmethod
    def raw_blocks(self, frames: int) -> Iterator[list[np.ndarray]]:
        """Yield the raw integers of each used signal, all samples per frame, with its skew."""


class OwnReader(Reader):
    """Native reader of formats with a decoder."""

    def check_sizes(self) -> None:
        super().check_sizes()
        for file in self.files:
            if file.path.suffix == ".mat":
                head = self._bytes(file, 0, file.offset)
                check_matlab(file.path, head, file.kind, sum(file.per_frame), self.frames)

    def raw_blocks(self, frames: int) -> Iterator[list[np.ndarray]]:
        columns = [
            (self.files.index(next(f for f in self.files if f.path.name == one.signal.file)), self._column(one))
            for one in self.used
        ]
        for start in range(0, self.frames, frames):
            count = min(frames, self.frames - start)
            tables = [self._table(file, start, count) for file in self.files]
            yield [tables[number][:, column].ravel() for number, column in columns]

    def _column(self, one: Used) -> slice:
        before = self.header.signals[: one.channel]
        first = sum(signal.per_frame for signal in before if signal.file == one.signal.file)
        return slice(first, first + one.signal.per_frame)

    def _table(self, file: SignalFile, start: int, count: int) -> np.ndarray:
        """Read (count, samples per frame of all signals) raw integers."""
        size = file.frame_bytes
        assert size is not None
        width = sum(file.per_frame)
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
    """Reader of all other records, based on the package `wfdb`; absolute local paths only."""

    def __init__(self, header: Header, used: list[Used]) -> None:
        super().__init__(header, used)
        for signal in header.signals:  # wfdb appends these names to the folder, and opens URLs
            check_file_name(signal, header.path)
        self.record = str(header.path.absolute().with_suffix(""))
        if "::" in self.record or "://" in self.record:
            raise InputError("the path looks like a URL; only local files are read", file=header.path)

    def raw_blocks(self, frames: int) -> Iterator[list[np.ndarray]]:
        last: list[int] = []
        for start in range(0, self.frames, frames):
            signals = self._read(start, min(start + frames, self.frames))
            if start and last:  # each call to wfdb starts a difference format from the header's initial value
                signals = [
                    row + (before - one.signal.first) if FORMATS[one.signal.format].differences else row
                    for row, before, one in zip(signals, last, self.used)
                ]
            last = [int(row[-1]) for row in signals]
            yield signals

    def _read(self, start: int, stop: int) -> list[np.ndarray]:
        """Read the raw integers of the leads in frames start .. stop, all samples per frame."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # pandas warns about calls inside wfdb
                import wfdb

                found = wfdb.rdrecord(
                    self.record,
                    sampfrom=start,
                    sampto=stop,
                    channels=[one.channel for one in self.used],
                    physical=False,
                    smooth_frames=False,
                    ignore_skew=True,
                ).e_d_signal
        except ImportError:
            raise InputError(
                "reading this record requires the package wfdb: pip install 'seqssm[ecg]'", file=self.header.path
            ) from None
        except MemoryError:
            raise
        except Exception as error:  # wfdb passes on any exception of its parsers and of soundfile
            why = " ".join(str(error).split())[:150]
            raise InputError(f"wfdb cannot read it ({type(error).__name__}: {why})", file=self.header.path) from None
        wrong = [one.lead for row, one in zip(found, self.used) if len(row) != (stop - start) * one.signal.per_frame]
        if wrong:
            raise InputError(f"contains too few samples of {' '.join(wrong)}", file=self.header.path)
        return found


def _millivolts(samples: np.ndarray, signal: Signal) -> np.ndarray:
    """Compute (adc - baseline) / gain in mV, float32; missing samples become NaN."""
    assert signal.gain
    factor = UNITS[signal.unit.casefold()]
    values = (samples.astype(np.float64) - signal.baseline) * (factor / signal.gain)
    missing = FORMATS[signal.format].missing
    if missing is not None:
        values[samples == missing] = np.nan
    return values.astype(np.float32)
