"""Recordings from arrays: `.npy` and `.csv` files, with sampling rate, leads and unit given separately."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from seqssm.errors import InputError, no_such_file
from seqssm.files.content import DAMAGED
from seqssm_ecg.clock import MOST, Clock, agreed, places_of, timed
from seqssm_ecg.csv_tables import Head, csv_blocks, read_head, text_line
from seqssm_ecg.formats import BLOCK
from seqssm_ecg.hospital.common import factor_of
from seqssm_ecg.leads import LEADS, Matched, canonical, match_leads, split_unit
from seqssm_ecg.limits import RATES
from seqssm_ecg.recording import ArraySpec, Reading, Recording


@dataclass(frozen=True)
class ArraySource:
    """An array on disk, read in blocks.

    Attributes:
        path: path of the file.
        rate_hz: sampling rate.
        samples: samples per lead.
        leads: standard names of the leads that are used.
        rows: indices of these leads among the array's signals.
        factor: conversion factor, millivolts per unit.
        turned: whether the array has a column per signal, not a row.
        head: lines before the samples of a `.csv` file.
    """

    path: Path
    rate_hz: float
    samples: int
    leads: tuple[str, ...]
    rows: tuple[int, ...]
    factor: float
    turned: bool
    head: Head | None = None

    def blocks(self, size: int = BLOCK) -> Iterator[np.ndarray]:
        """Yield (leads, n) float32 in mV; non-finite values become NaN."""
        if self.head is None:
            tables = _npy_blocks(self.path, size, self.turned)
        else:
            tables = _csv_signals(self.path, self.head, size, self.turned)
        with np.errstate(over="ignore"):
            for table in tables:
                block = (table[list(self.rows)].astype(np.float64) * self.factor).astype(np.float32)
                block[~np.isfinite(block)] = np.nan
                yield block


def open_array(path: Path, reading: Reading) -> Recording:
    """Open an array without reading its values.

    Args:
        path: a `.npy` or `.csv` file.
        reading: options; only `lead_map` and `array` are used.

    Raises:
        InputError: the file is not a table of numbers, or its rate, leads or unit are missing or wrong.
    """
    shape, head, clocks = _described(path)
    spec, notes = timed(clocks, reading.array, path)
    if head is not None and head.rate_hz is not None:
        spec = replace(spec, rate_hz=agreed(head.rate_hz, spec.rate_hz, "header block", path))
    if head is not None and head.names is not None and spec.leads is None and len(head.names) != shape[1]:
        raise _unequal(shape[1], head, path, head.lines + 1)
    if head is not None and head.counted:
        notes.append(f"line {head.lines} numbers the columns, and is not a sample")
    found = Layout.of(shape, None if head is None else head.names, reading.lead_map, spec, path)
    source = ArraySource(path, found.rate_hz, found.samples, found.leads, found.rows, found.factor, found.turned, head)
    return Recording(path, found.rate_hz, found.samples, found.leads, source, notes=[*found.notes, *notes])


@dataclass(frozen=True)
class Layout:
    """Interpretation of the values of an array.

    Attributes:
        rate_hz: sampling rate.
        samples: samples per lead.
        turned: whether the array is transposed, (samples, leads).
        leads: standard names of the leads that are used.
        rows: indices of these leads among the array's signals.
        factor: conversion factor, millivolts per unit.
        notes: remarks for the user on unused signals.
    """

    rate_hz: float
    samples: int
    turned: bool
    leads: tuple[str, ...]
    rows: tuple[int, ...]
    factor: float
    notes: list[str]

    @classmethod
    def of(
        cls,
        shape: tuple[int, ...],
        names: tuple[str, ...] | None,
        lead_map: Mapping[str, str] | None,
        spec: ArraySpec,
        path: Path,
    ) -> Layout:
        """Match the shape of an array with its metadata.

        Args:
            shape: shape of the array, (leads, samples) or (samples, leads).
            names: lead names of the array itself, or None.
            lead_map: names in the array -> standard names.
            spec: sampling rate, leads and unit.
            path: path used in error messages.

        Raises:
            InputError: the rate, leads or unit are missing or wrong.
        """
        if spec.rate_hz is None:
            raise InputError(
                "arrays need a sampling rate: add a column rate_hz, or pass it "
                "(predict --array-rate-hz, fit --data.array_rate_hz)",
                file=path,
            )
        used = _names(shape, spec.leads or names, path)
        matched = match_leads(used, lead_map, path)
        factor = _checked_factor(_with_unit(spec, used if names is None else names, matched, path), path)
        turned = shape[1] == len(used)
        return cls(
            spec.rate_hz, shape[0] if turned else shape[1], turned, matched.leads, matched.rows, factor, matched.notes
        )


def _with_unit(spec: ArraySpec, names: tuple[str, ...], matched: Matched, path: Path) -> ArraySpec:
    """Return the specification with the unit that the names of the leads have, as in ``I (uV)``."""
    units = {split_unit(names[row])[1] for row in matched.rows if row < len(names)}
    factors = {unit and factor_of(unit, path, "unit") for unit in units}
    if len(factors) > 1:
        shown = ", ".join(sorted(unit or "none" for unit in units))
        raise InputError(f"leads differ in unit ({shown}), which is not supported", file=path)
    unit = next(iter(units), "")
    if unit and spec.unit != ArraySpec.unit and factor_of(unit, path, "unit") != factor_of(spec.unit, path, "unit"):
        raise InputError(f"the unit is {unit} in the file, but is given as {spec.unit}", file=path)
    return replace(spec, unit=unit) if unit else spec


def _checked_factor(spec: ArraySpec, path: Path) -> float:
    """Check rate and unit, and return millivolts per unit."""
    assert spec.rate_hz is not None
    if not RATES[0] <= spec.rate_hz <= RATES[1]:
        raise InputError(
            f"sampling rate {spec.rate_hz:g} Hz is not between {RATES[0]:g} and {RATES[1]:g} Hz", file=path
        )
    return factor_of(spec.unit, path, "")


def _names(shape: tuple[int, ...], names: tuple[str, ...] | None, path: Path) -> tuple[str, ...]:
    """Return the names of the signals; by default the standard leads if there are twelve."""
    if names is None:
        if 12 not in shape:
            how = "pass its leads (predict --array-leads I II V2, fit --data.array_leads)"
            raise InputError(f"shape is {shape[0]} x {shape[1]}: {how}", file=path)
        names = LEADS
    if len(names) not in shape:
        raise InputError(f"shape is {shape[0]} x {shape[1]}, but {len(names)} leads were given", file=path)
    return names


def _described(path: Path) -> tuple[tuple[int, int], Head | None, list[Clock]]:
    """Return (shape of the table, lines before its samples or None, its columns of times).

    A cell of a table may be a person's name or date of birth, and appears in no message.
    """
    head, names, clocks = None, None, []
    try:
        if path.suffix.lower() == ".npy":
            table = np.load(path, mmap_mode="r", allow_pickle=False)
            shape, dtype = table.shape, table.dtype
        else:
            head = read_head(path)
            names = head.names
            places, samples, columns = places_of(names), 0, 0
            times: list[np.ndarray] = []
            for block in csv_blocks(path, head, BLOCK):
                if samples < MOST:
                    times.append(block[[place for place in places if place < len(block)]])
                columns, samples = block.shape[0], samples + block.shape[1]
            shape, dtype = (samples, columns), np.dtype(float)
            if names is not None and times:
                values = np.concatenate(times, axis=1)[:, :MOST]
                clocks = [
                    Clock(names[place], own, place in head.clocks, place in head.dates)
                    for place, own in zip(places, values)
                ]
    except FileNotFoundError:
        raise no_such_file(path) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", file=path) from None
    except (MemoryError, *DAMAGED) as error:
        if isinstance(error, InputError):
            raise
        why = " ".join(str(error).split())[:120]
        if "pickle" in why:  # numpy's message advises to unpickle the file, which would run its code
            why = "no numbers, or corrupt"
        longer = re.search(r"Expected \d+ fields in line (\d+), saw (\d+)", why)
        if head is not None and head.names is not None and longer is not None:
            raise _unequal(int(longer[2]), head, path, int(longer[1])) from None
        if head is not None and "convert" in why:
            if names is not None and not any(canonical(name) for name in names):
                advice = "pass the recordings that it lists, or their folder"
                raise InputError(f"is a table with text, not a signal; {advice}", file=path) from None
            line = text_line(path, head)
            why = (
                f"{'a line' if line is None else f'line {line}'} has text instead of a number, or another decimal mark"
            )
            if places_of(names):
                why += "; if the column of times has text, leave it out and give the sampling rate"
        raise InputError(f"is not a readable array: {why}", file=path) from None
    if len(shape) != 2 or dtype.kind not in "fiu" or 0 in shape:
        how = "; one lead is stored as (1, samples)" if len(shape) == 1 else ""
        raise InputError(f"expected a table of numbers, found {dtype} of shape {shape}{how}", file=path)
    return shape, head, clocks


def _unequal(values: int, head: Head, path: Path, line: int) -> InputError:
    """Return the error of a line with more or fewer values than the table has names."""
    names = len(head.names or ())
    message = f"{values} values for {names} named column{'s' if names > 1 else ''}"
    if head.separator == "," and values > names and not head.trailing:
        message += "; numbers with decimal commas need quotes"
    return InputError(message, file=path, place=f"line {line}")


def _npy_blocks(path: Path, size: int, turned: bool) -> Iterator[np.ndarray]:
    """Yield (signals, n) blocks, mapping the file anew for each to free its memory."""
    samples = np.load(path, mmap_mode="r").shape[0 if turned else 1]
    for start in range(0, samples, size):
        table = np.load(path, mmap_mode="r")
        yield np.array(table[start : start + size].T if turned else table[:, start : start + size])


def _csv_signals(path: Path, head: Head, size: int, turned: bool) -> Iterator[np.ndarray]:
    """Yield (signals, n) blocks; a file with a line per signal is read whole."""
    blocks = csv_blocks(path, head, size)
    yield from blocks if turned else [np.concatenate(list(blocks), axis=1).T]
