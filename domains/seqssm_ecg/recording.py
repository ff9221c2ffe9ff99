"""An opened recording: metadata of the file, and its samples on access."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from seqssm.errors import InputError
from seqssm_ecg.formats import BLOCK
from seqssm_ecg.limits import RATES

LONGEST_S = 32 * 24 * 3600.0  # the longest patch recordings have 30 days; a longer duration indicates a corrupt header


@dataclass(frozen=True)
class ArraySpec:
    """Metadata that a plain array lacks.

    Attributes:
        rate_hz: sampling rate, Hz, or None if not given.
        leads: lead names in the order of the array; a `.csv` file may have them in its first line.
        unit: unit of the values: "mV", "uV" or "V".
    """

    rate_hz: float | None = None
    leads: tuple[str, ...] | None = None
    unit: str = "mV"


@dataclass(frozen=True)
class Reading:
    """Options for reading recordings; each reader uses those that apply to its format.

    Attributes:
        lead_map: mapping from lead names in the files to standard names.
        array: sampling rate, leads and unit of arrays.
        checksums: whether samples that do not match the header's checksums are an error.
        wfdb_defaults: whether to assume WFDB's 200 per mV and 250 Hz for a missing gain and sampling rate.
    """

    lead_map: Mapping[str, str] = field(default_factory=dict)
    array: ArraySpec = field(default_factory=ArraySpec)
    checksums: bool = True
    wfdb_defaults: bool = False


class Source(Protocol):
    """Protocol of an object that supplies the samples of a recording."""

    def blocks(self, size: int) -> Iterator[np.ndarray]:
        """Yield (leads, n) float32 in mV from the first sample to the last; can be called repeatedly."""


@dataclass
class Recording:
    """An opened recording. Samples are read on access to `blocks` or `values`.

    Attributes:
        path: path of the header, or of another format's file.
        rate_hz: sampling rate of the leads.
        samples: samples per lead.
        leads: standard lead names, in the order of the file.
        source: object that supplies the samples.
        codes: diagnosis codes of the header; None without a Dx line.
        age: age in years, or None.
        sex: ``"male"``, ``"female"`` or None.
        notes: remarks for the user on how the file was read.
        identity: ``patient_id``, ``patient_name`` and ``birth_date`` as far as the file has them. Written to a table
            only on request, and never to a message.
        groups: leads by the time at which they were recorded, if the file has leads that were recorded one after the
            other; empty if all were recorded together.
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
    identity: dict[str, str] = field(default_factory=dict, repr=False)
    groups: tuple[tuple[str, ...], ...] = ()

    def checked(self) -> Recording:
        """Return the recording if its sampling rate and duration are plausible.

        Raises:
            InputError: they are not, or there are no samples.
        """
        if not RATES[0] <= self.rate_hz <= RATES[1]:
            raise InputError(
                f"sampling rate {self.rate_hz:g} Hz is not between {RATES[0]:g} and {RATES[1]:g} Hz", file=self.path
            )
        if self.samples < 1:
            raise InputError("has no samples", file=self.path)
        if self.seconds > LONGEST_S:
            raise InputError(f"{self.samples} samples are more than {LONGEST_S / 3600:g} hours", file=self.path)
        return self

    @property
    def seconds(self) -> float:
        return self.samples / self.rate_hz

    @property
    def apart(self) -> frozenset[str]:
        """Those of the leads I, II and III that were recorded at another time than most of them.

        No lead is computed from them.
        """
        limb = [frozenset({"I", "II", "III"}.intersection(group)) for group in self.groups]
        return frozenset().union(*limb) - max(limb, key=len, default=frozenset())

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
