"""EDF, EDF+ and BDF, read by the package `edfio`; recordings with pauses (EDF+D) are rejected."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from seqssm.errors import InputError
from seqssm_ecg.formats import BDF, BLOCK
from seqssm_ecg.headers import parse_sex
from seqssm_ecg.hospital.common import age_at, factor_of, identity, readable, required
from seqssm_ecg.leads import match_leads
from seqssm_ecg.recording import Reading, Recording

RECORDS = slice(236, 244)  # bytes of the number of data records, EDF specification


@dataclass(frozen=True)
class EdfSource:
    """Samples of an EDF file, which is reopened for each pass.

    Attributes:
        path: the file.
        rows: indices of the leads among the signals.
        factors: millivolts per physical unit of each lead.
        records: number of data records.
        per_record: samples per data record of the fastest lead.
        seconds: duration of a data record.
    """

    path: Path
    rows: tuple[int, ...]
    factors: tuple[float, ...]
    records: int
    per_record: int
    seconds: float

    def blocks(self, size: int = BLOCK) -> Iterator[np.ndarray]:
        """Yield (leads, n) float32 in mV, whole data records at a time."""
        step = max(1, size // self.per_record)
        with readable(self.path, "EDF"):
            signals = _opened(self.path).signals
        for start in range(0, self.records, step):
            stop = min(start + step, self.records)
            with readable(self.path, "EDF"):
                rows = [
                    self._row(signals[row], start, stop).astype(np.float32) * np.float32(factor)
                    for row, factor in zip(self.rows, self.factors)
                ]
                block = np.stack(rows)
            yield block

    def _row(self, signal: Any, start: int, stop: int) -> np.ndarray:
        """Read the data records start .. stop of a signal, (n,); a slower one is interpolated up to the next record."""
        count, length = (stop - start) * signal.samples_per_data_record, (stop - start) * self.per_record
        more = 0 if count == length or stop == self.records else self.seconds / signal.samples_per_data_record
        values = signal.get_data_slice(start * self.seconds, stop * self.seconds + more)
        if count == length:
            return values
        return np.interp(np.arange(length) * (count / length), np.arange(len(values)), values)


def open_edf(path: Path, reading: Reading) -> Recording:
    """Open an EDF, EDF+C or BDF file; samples are read in blocks.

    Args:
        path: the file.
        reading: options; only `lead_map` is used.

    Raises:
        InputError: the file is corrupt or has pauses, or a lead has no unit of voltage.
    """
    with readable(path, "EDF"):
        with open(path, "rb") as file:
            declared = int(file.read(RECORDS.stop)[RECORDS].decode("ascii"))
        edf = _opened(path)
        signals = edf.signals
        found = match_leads([signal.label for signal in signals], reading.lead_map, path)
        used = [signals[row] for row in found.rows]
        seconds, records = float(edf.data_record_duration), int(edf.num_data_records)
        if declared > records or records < 1:
            raise InputError(f"is truncated: {records} of {declared} data records", file=path)
        if str(edf.reserved).startswith(("EDF+D", "BDF+D")) and not edf.is_continuous:
            raise InputError(
                "is discontinuous (EDF+D); export it as continuous EDF+, or each segment as a file", file=path
            )
        per_record = max(signal.samples_per_data_record for signal in used)
        rate_hz = per_record / seconds
        factors = [factor_of(one.physical_dimension, path, lead) for lead, one in zip(found.leads, used)]
        for lead, one in zip(found.leads, used):
            if one.physical_min == one.physical_max or one.digital_min >= one.digital_max:
                raise InputError("minimum and maximum are equal: the header is corrupt", file=path, place=lead)
        slower = [lead for lead, one in zip(found.leads, used) if one.samples_per_data_record < per_record]
        age, sex, who = _patient(edf)
    extra = [f"the header states {declared} data records, the file has {records}"] if 0 < declared < records else []
    notes = [*found.notes, *extra, *([f"interpolated to {rate_hz:g} Hz: {' '.join(slower)}"] if slower else [])]
    source = EdfSource(path, found.rows, tuple(factors), records, per_record, seconds)
    return Recording(path, rate_hz, records * per_record, found.leads, source, None, age, sex, notes, who)


def _opened(path: Path) -> Any:
    edfio = required("edfio", path)
    with open(path, "rb") as file:
        is_bdf = file.read(len(BDF)) == BDF
    if is_bdf:
        return edfio.read_bdf(path, header_encoding="latin-1")
    return edfio.read_edf(path, lazy_load_data=True, header_encoding="latin-1")


def _patient(edf: Any) -> tuple[float | None, str | None, dict[str, str]]:
    """Return (age, sex, identity) from the fields ``code sex birthdate name`` of EDF+; plain EDF has free text."""
    words = [*str(edf.local_patient_identification).split(" "), "X", "X", "X", "X"]
    code, sex, birth, name = ("" if word == "X" else word for word in words[:4])
    if not re.fullmatch(r"\d{2}-[A-Za-z]{3}-\d{4}|", birth):  # plain EDF
        return None, None, identity(str(edf.local_patient_identification))
    when = re.search(r"Startdate (\S+)", str(edf.local_recording_identification))
    age = age_at(birth, when[1]) if when else None
    return age, parse_sex(sex), identity(code, [name.replace("_", " ")], birth)
