"""GE MUSE XML (`RestingECG`): the rhythm waveform, base64 of 16-bit integers; median beats are ignored."""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from seqssm.errors import InputError
from seqssm_ecg.headers import parse_sex
from seqssm_ecg.hospital.common import (
    age_at,
    age_in,
    decode_base64,
    factor_of,
    identity,
    known,
    number,
    readable,
    stacked,
)
from seqssm_ecg.hospital.tree import read_tree, text_of
from seqssm_ecg.leads import match_leads
from seqssm_ecg.recording import InMemory, Reading, Recording


def open_muse(path: Path, reading: Reading) -> Recording:
    """Read a MUSE export; the limb leads that it does not store are computed later, as for any recording.

    Args:
        path: the file.
        reading: options; only `lead_map` is used.

    Raises:
        InputError: the file is corrupt, or contains no rhythm waveform.
    """
    root = read_tree(path)
    with readable(path, "GE MUSE XML"):
        waves = [one for one in root.findall("Waveform") if text_of(one, "WaveformType").casefold() != "median"]
        waves = [one for one in waves if one.find("LeadData") is not None]
        if not waves:
            raise InputError("contains no rhythm waveform", file=path)
        wave = max(waves, key=_extent)  # without a type, median beats are the shorter waveform
        rate_hz = number(text_of(wave, "SampleBase"), path, "SampleBase")
        rate_hz *= 10.0 ** int(number(text_of(wave, "SampleExponent") or "0", path, "SampleExponent"))
        stored = wave.findall("LeadData")
        found = match_leads([text_of(one, "LeadID") for one in stored], reading.lead_map, path)
        rows = [_samples(stored[row], path, lead) for lead, row in zip(found.leads, found.rows)]
        table = stacked(rows, found.leads, path)
        age, sex, who = _patient(root)
    notes = [*found.notes, *([f"{len(waves) - 1} further waveforms not used"] if len(waves) > 1 else [])]
    return Recording(path, rate_hz, table.shape[1], found.leads, InMemory(table), None, age, sex, notes, who)


def _extent(wave: Element) -> tuple[int, int]:
    """Return (number of leads, length of the encoded samples)."""
    leads = wave.findall("LeadData")
    return len(leads), max(len(text_of(one, "WaveFormData")) for one in leads)


def _samples(lead_data: Element, path: Path, lead: str) -> np.ndarray:
    """Return the samples of a lead in millivolts, (n,)."""
    width = int(number(text_of(lead_data, "LeadSampleSize") or "2", path, lead))
    if width not in (2, 4):
        raise InputError(f"LeadSampleSize {width} is not supported", file=path, place=lead)
    raw = decode_base64(text_of(lead_data, "WaveFormData"), path, lead)
    declared = text_of(lead_data, "LeadSampleCountTotal")
    if len(raw) % width or (declared and number(declared, path, lead) != len(raw) // width):
        raise InputError(
            f"is corrupt: {len(raw) // width} samples instead of {declared or 'a whole number'}", file=path, place=lead
        )
    per_bit = number(text_of(lead_data, "LeadAmplitudeUnitsPerBit"), path, f"{lead}, LeadAmplitudeUnitsPerBit")
    if per_bit == 0:
        raise InputError("LeadAmplitudeUnitsPerBit is 0", file=path, place=lead)
    factor = factor_of(text_of(lead_data, "LeadAmplitudeUnits") or "MICROVOLTS", path, lead)
    return known(np.frombuffer(raw, f"<i{width}")) * (per_bit * factor)


def _patient(root: Element) -> tuple[float | None, str | None, dict[str, str]]:
    """Return (age, sex, identity)."""
    person = root.find("PatientDemographics")
    age = age_in(text_of(person, "PatientAge"), text_of(person, "AgeUnits") or "years")
    birth = text_of(person, "DateofBirth")
    if age is None:
        age = age_at(birth, text_of(root, "TestDemographics/AcquisitionDate"))
    names = [text_of(person, "PatientFirstName"), text_of(person, "PatientLastName")]
    return age, parse_sex(text_of(person, "Gender")), identity(text_of(person, "PatientID"), names, birth)
