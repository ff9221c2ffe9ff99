"""HL7 annotated ECG (aECG, the format of submissions to the FDA): the first series of rhythm leads."""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from seqssm.errors import InputError
from seqssm_ecg.headers import parse_sex
from seqssm_ecg.hospital.common import age_at, age_in, factor_of, identity, known, number, readable, stacked
from seqssm_ecg.hospital.tree import read_tree, text_of, value_of
from seqssm_ecg.leads import match_leads
from seqssm_ecg.recording import InMemory, Reading, Recording

LEAD = "MDC_ECG_LEAD_"
BEAT = "REPRESENTATIVE"  # code of a series that contains one averaged beat, not the recording
SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
PERSON = "componentOf/timepointEvent/componentOf/subjectAssignment/subject/trialSubject"


def open_aecg(path: Path, reading: Reading) -> Recording:
    """Read an annotated ECG; representative beats (derived series) and annotations are ignored.

    Args:
        path: the file.
        reading: options; only `lead_map` is used.

    Raises:
        InputError: the file is corrupt, or contains no leads.
    """
    root = read_tree(path)
    with readable(path, "HL7 aECG"):
        whole = [one for one in root.findall("component/series") if BEAT not in value_of(one, "code", "code").upper()]
        sets = [found for one in whole for found in one.findall("component/sequenceSet")]
        leads_of = [(found, leads) for found in sets if (leads := _leads(found))]
        if not leads_of:
            raise InputError("contains no series with leads", file=path)
        sequence_set, sequences = max(leads_of, key=lambda one: _extent(one[1]))
        names = [code.removeprefix(LEAD) for code, _ in sequences]
        matched = match_leads(names, reading.lead_map, path)
        rate_hz = _rate(sequence_set, path)
        rows = [_samples(sequences[row][1], path, names[row]) for row in matched.rows]
        table = stacked(rows, matched.leads, path)
        age, sex, who = _patient(root)
    others = len(leads_of) - 1
    notes = [*matched.notes, *([f"{others} further series not used"] if others else [])]
    return Recording(path, rate_hz, table.shape[1], matched.leads, InMemory(table), None, age, sex, notes, who)


def _leads(sequence_set: Element) -> list[tuple[str, Element]]:
    """Return (code, sequence) of each lead."""
    found = [(value_of(one, "code", "code"), one) for one in sequence_set.findall("component/sequence")]
    return [(code, one) for code, one in found if code.startswith(LEAD)]


def _extent(leads: list[tuple[str, Element]]) -> tuple[int, int]:
    """Return (number of leads, length of the text of the samples)."""
    return len(leads), max(len(text_of(sequence, "value/digits")) for _, sequence in leads)


def _rate(sequence_set: Element, path: Path) -> float:
    """Return the sampling rate, from the increment of the time sequence."""
    for sequence in sequence_set.findall("component/sequence"):
        if not value_of(sequence, "code", "code").startswith("TIME_"):
            continue
        unit = value_of(sequence, "value/increment", "unit") or "s"
        step = number(value_of(sequence, "value/increment"), path, "time increment") * SECONDS.get(unit, np.nan)
        if np.isfinite(step) and step > 0:
            return round(1 / step, 6)
    raise InputError("has no usable time increment, so its sampling rate is unknown", file=path)


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
