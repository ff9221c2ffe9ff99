"""HL7 annotated ECG (aECG, the format of submissions to the FDA): rhythm leads, in one set or several."""

from __future__ import annotations

import contextlib
import datetime
import re
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from seqssm.errors import InputError
from seqssm_ecg.headers import parse_sex
from seqssm_ecg.hospital.common import (
    SUCCESSIVE,
    age_at,
    age_in,
    by_time,
    factor_of,
    identity,
    joined,
    known,
    matching,
    number,
    readable,
    stacked,
)
from seqssm_ecg.hospital.tree import read_tree, text_of, value_of
from seqssm_ecg.leads import Matched, match_leads
from seqssm_ecg.recording import InMemory, Reading, Recording

LEAD = "MDC_ECG_LEAD_"
BEAT = "REPRESENTATIVE"  # code of a series that contains one averaged beat, not the recording
SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
PERSON = "componentOf/timepointEvent/componentOf/subjectAssignment/subject/trialSubject"


def open_aecg(path: Path, reading: Reading) -> Recording:
    """Read an annotated ECG; representative beats (derived series) and annotations are ignored.

    Of several sets of leads, the first one with the most leads and samples is read, and those with other leads and its
    sampling rate and length that were recorded at the same time or next to it, as in a print of 3 x 4 leads.

    Args:
        path: the file.
        reading: options; only `lead_map` is used.

    Raises:
        InputError: the file is corrupt, or contains no leads.
    """
    root = read_tree(path)
    with readable(path, "HL7 aECG"):
        whole = [one for one in root.findall("component/series") if BEAT not in value_of(one, "code", "code").upper()]
        sets = [(found, one) for one in whole for found in one.findall("component/sequenceSet")]
        leads_of = [(found, leads, series) for found, series in sets if (leads := _leads(found))]
        if not leads_of:
            raise InputError("contains no series with leads", file=path)
        used = joined(matching(lambda one: LeadSet.of(*one, reading, path), leads_of))
        rate_hz = used[0].rate_hz
        if not rate_hz:
            raise InputError("has no usable time increment, so its sampling rate is unknown", file=path)
        values: dict[str, np.ndarray] = {}
        for one in used:
            for lead, row in one.values(path).items():
                values.setdefault(lead, row)
        table = stacked(list(values.values()), list(values), path)
        age, sex, who = _patient(root)
    unused = [name for one in used for name in one.found.unused]
    notes = [f"unused signals: {' '.join(unused)}"] if unused else []
    if by_time(used):
        notes.append(SUCCESSIVE)
    if len(leads_of) > len(used):
        notes.append(f"{len(leads_of) - len(used)} further series not used")
    leads, source = tuple(values), InMemory(table)
    return Recording(path, rate_hz, table.shape[1], leads, source, None, age, sex, notes, who, by_time(used))


@dataclass(frozen=True)
class LeadSet:
    """A sequence set: leads recorded at the same time.

    Attributes:
        element: its element.
        sequences: sequences of the leads.
        found: those that are standard leads.
        rate_hz: sampling rate; 0 if unknown.
        samples: samples of the longest lead.
        start: time of the first sample, seconds; NaN if the file does not have it.
    """

    element: Element
    sequences: list[Element]
    found: Matched
    rate_hz: float
    samples: int
    start: float

    @classmethod
    def of(
        cls, element: Element, leads: list[tuple[str, Element]], series: Element, reading: Reading, path: Path
    ) -> LeadSet:
        """Match the leads of a sequence set.

        Args:
            element: its element.
            leads: code and sequence of each lead.
            series: the series that it is a part of.
            reading: options.
            path: path for error messages.

        Raises:
            InputError: none of them is a standard lead, or two are the same.
        """
        names = [code.removeprefix(LEAD) for code, _ in leads]
        found = match_leads(names, reading.lead_map, path)
        samples = max(len(text_of(leads[row][1], "value/digits").split()) for row in found.rows)
        return cls(element, [one for _, one in leads], found, _rate(element, path), samples, _start(element, series))

    def values(self, path: Path) -> dict[str, np.ndarray]:
        """Return the samples of each lead in millivolts, (n,)."""
        found = self.found
        return {lead: _samples(self.sequences[row], path, lead) for lead, row in zip(found.leads, found.rows)}


def _leads(sequence_set: Element) -> list[tuple[str, Element]]:
    """Return (code, sequence) of each lead."""
    found = [(value_of(one, "code", "code"), one) for one in sequence_set.findall("component/sequence")]
    return [(code, one) for code, one in found if code.startswith(LEAD)]


def _times(sequence_set: Element) -> list[Element]:
    return [one for one in sequence_set.findall("component/sequence") if value_of(one, "code", "code")[:5] == "TIME_"]


def _start(sequence_set: Element, series: Element) -> float:
    """Return the time of the first sample in seconds; NaN without one. Relative times count from that of the series."""
    begin = _moment(value_of(series, "effectiveTime/low") or value_of(series, "effectiveTime/center"))
    for times in _times(sequence_set):
        written, unit = value_of(times, "value/head"), value_of(times, "value/head", "unit")
        found = _moment(written)
        if unit in SECONDS:
            with contextlib.suppress(ValueError):
                found = begin + float(written) * SECONDS[unit]
        if np.isfinite(found):
            return found
    return np.nan


def _moment(written: str) -> float:
    """Convert YYYYMMDDHHMMSS.ffff, perhaps with a time zone, to seconds; NaN for anything else."""
    found = re.match(r"(\d{8,14})(\.\d+)?", written)
    try:
        whole = datetime.datetime.strptime(found[1].ljust(14, "0"), "%Y%m%d%H%M%S") if found else None
    except ValueError:
        whole = None
    if found is None or whole is None:
        return np.nan
    return (whole - datetime.datetime(1970, 1, 1)).total_seconds() + float(found[2] or 0)


def _rate(sequence_set: Element, path: Path) -> float:
    """Return the sampling rate, from the increment of the time sequence; 0 if it has none."""
    for sequence in _times(sequence_set):
        unit = value_of(sequence, "value/increment", "unit") or "s"
        step = number(value_of(sequence, "value/increment"), path, "time increment") * SECONDS.get(unit, np.nan)
        if np.isfinite(step) and step > 0:
            return round(1 / step, 6)
    return 0.0


def _samples(sequence: Element, path: Path, lead: str) -> np.ndarray:
    """Return origin + scale * digits in millivolts, (n,)."""
    value = sequence.find("value")
    origin, scale = value_of(value, "origin") or "0", value_of(value, "scale")
    if not scale:
        raise InputError("has no scale: the samples are not calibrated", file=path, place=lead)
    to_mv = factor_of(value_of(value, "scale", "unit"), path, lead)
    zero_to_mv = factor_of(value_of(value, "origin", "unit") or value_of(value, "scale", "unit"), path, lead)
    try:
        digits = np.array(text_of(value, "digits").split(), dtype=np.float64)
    except ValueError:
        raise InputError("samples are not numbers: the file is corrupt", file=path, place=lead) from None
    return number(origin, path, lead) * zero_to_mv + number(scale, path, lead) * to_mv * known(digits)


def _patient(root: Element) -> tuple[float | None, str | None, dict[str, str]]:
    """Return (age, sex, identity)."""
    subject = root.find(PERSON)
    person = "subjectDemographicPerson"
    birth = value_of(subject, f"{person}/birthTime")
    sex = parse_sex(value_of(subject, f"{person}/administrativeGenderCode", "code"))
    age = None
    for observation in root.findall("controlVariable/relatedObservation"):
        if value_of(observation, "code", "code") == "21612-7":  # LOINC: reported age
            age = age_in(value_of(observation, "value"), value_of(observation, "value", "unit").replace("a", "y"))
    if age is None:
        age = age_at(birth, value_of(root, "effectiveTime/low") or value_of(root, "effectiveTime/center"))
    name = subject.find(f"{person}/name") if subject is not None else None
    written = list(name.itertext()) if name is not None else []
    return age, sex, identity(value_of(subject, "id", "extension"), written, birth)
