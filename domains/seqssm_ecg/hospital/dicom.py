"""DICOM waveforms (12-lead, general and ambulatory ECG), parsed by the package `pydicom`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from seqssm.errors import InputError
from seqssm_ecg.formats import HEAD, bare_dicom
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
    readable,
    required,
    stacked,
)
from seqssm_ecg.leads import Matched, canonical, match_leads
from seqssm_ecg.recording import InMemory, Reading, Recording

CODES = {"1": "I", "2": "II", "61": "III", "62": "aVR", "63": "aVL", "64": "aVF"}
CODES |= {str(number + 2): f"V{number}" for number in range(1, 7)}
"""Leads by the last number of their code in the schemes MDC (``2:61``) and SCPECG (``5.6.3-9-61``), ISO 11073-91064."""
DTYPES = {"SB": "i1", "UB": "u1", "SS": "i2", "US": "u2", "SL": "i4", "UL": "u4"}
"""Sample interpretations, DICOM PS3.3 C.10.9.1.5."""
BEATS = ("MEDIAN", "AVERAGE", "TEMPLATE", "REPRESENTATIVE")  # labels of groups that contain one beat, not the recording


@dataclass(frozen=True)
class Group:
    """A multiplex group: channels with one sampling rate.

    Attributes:
        item: item of the waveform sequence.
        found: its channels that are standard leads.
    """

    item: Any
    found: Matched

    @property
    def rate_hz(self) -> float:
        """Sampling rate."""
        return float(self.item.SamplingFrequency)

    @property
    def samples(self) -> int:
        """Samples per lead."""
        return int(self.item.NumberOfWaveformSamples)

    @property
    def start(self) -> float:
        """Time of the first sample, seconds."""
        return float(self.item.get("MultiplexGroupTimeOffset", 0) or 0) / 1000


def open_dicom(path: Path, reading: Reading) -> Recording:
    """Read a DICOM file with waveforms.

    Args:
        path: the file.
        reading: options; only `lead_map` is used.

    Raises:
        InputError: the file is corrupt, or contains no ECG.
    """
    pydicom = required("pydicom", path)
    with readable(path, "DICOM"):
        with open(path, "rb") as file:
            bare = bare_dicom(file.read(HEAD))
        dataset = pydicom.dcmread(path, stop_before_pixels=True, force=bare)
        if "WaveformSequence" not in dataset or not len(dataset.WaveformSequence):
            raise InputError(
                f"is a DICOM file without waveforms (modality {_short(dataset.get('Modality'))}); an ECG that was "
                "stored as an image or PDF cannot be read",
                file=path,
            )
        groups, notes = _groups(dataset.WaveformSequence, reading, path)
        little = dataset.original_encoding[1] is not False
        values: dict[str, np.ndarray] = {}
        for group in groups:
            for lead, row in zip(group.found.leads, _samples(group, little, path)):
                values.setdefault(lead, row)
        table = stacked(list(values.values()), list(values), path)
        age, sex, who = _patient(dataset)
        rate_hz = groups[0].rate_hz
    leads, source = tuple(values), InMemory(table)
    return Recording(path, rate_hz, table.shape[1], leads, source, None, age, sex, notes, who, by_time(groups))


def _short(value: Any) -> str:
    """Return a code value for a message; anything else could be a patient's data in a damaged file."""
    text = str(value or "")
    return text if re.fullmatch(r"[A-Z]{2,16}", text) else "unknown"


def _groups(items: Sequence[Any], reading: Reading, path: Path) -> tuple[list[Group], list[str]]:
    """Select the groups of the recording (`joined`)."""
    whole = [item for item in items if not any(word in _label(item) for word in BEATS)]
    used = joined(matching(lambda item: Group(item, match_leads(_names(item), reading.lead_map, path)), whole or items))
    unused = [name for group in used for name in group.found.unused]
    notes = [f"unused signals: {' '.join(unused)}"] if unused else []
    if by_time(used):
        notes.append(SUCCESSIVE)
    if len(items) > len(used):
        notes.append(f"{len(items) - len(used)} of {len(items)} waveform groups not used")
    return used, notes


def _label(item: Any) -> str:
    return str(item.get("MultiplexGroupLabel", "") or "").upper()


def _names(item: Any) -> list[str]:
    """Return the lead names of the channels, from their meaning, label or code."""
    names = []
    for channel in item.ChannelDefinitionSequence:
        source = (channel.get("ChannelSourceSequence") or [None])[0]
        meaning = str(source.get("CodeMeaning", "") or "") if source is not None else ""
        code = re.split(r"[:-]", str(source.get("CodeValue", "") or ""))[-1] if source is not None else ""
        written = [re.sub(r"\s*\(.*", "", meaning), str(channel.get("ChannelLabel", "") or ""), CODES.get(code, "")]
        known = [name for name in written if canonical(name) is not None]
        names.append((known or [name for name in written if name] or [""])[0])
    return names


def _samples(group: Group, little: bool, path: Path) -> list[np.ndarray]:
    """Return the leads of a group in millivolts, (n,) each; padding is NaN."""
    item = group.item
    kind = str(item.WaveformSampleInterpretation)
    if kind not in DTYPES:
        raise InputError(f"sample interpretation {_short(kind)} is not supported", file=path)
    dtype = np.dtype(DTYPES[kind]).newbyteorder("<" if little else ">")
    channels, samples = int(item.NumberOfWaveformChannels), int(item.NumberOfWaveformSamples)
    if channels != len(item.ChannelDefinitionSequence):
        raise InputError("is corrupt: the number of channels contradicts their definitions", file=path)
    data = bytes(item.WaveformData)
    if len(data) < channels * samples * dtype.itemsize or samples < 1 or channels < 1:
        raise InputError(
            f"is truncated: {len(data)} bytes of samples instead of {channels * samples * dtype.itemsize}", file=path
        )
    raw = np.frombuffer(data, dtype, channels * samples).reshape(samples, channels)
    padding = item.get("WaveformPaddingValue")
    if isinstance(padding, bytes):
        padding = np.frombuffer(padding[: dtype.itemsize], dtype)[0] if len(padding) >= dtype.itemsize else None
    rows = []
    for lead, column in zip(group.found.leads, group.found.rows):
        values = known(raw[:, column]) * _scale(item.ChannelDefinitionSequence[column], path, lead)[0]
        values += _scale(item.ChannelDefinitionSequence[column], path, lead)[1]
        if padding is not None:
            values[raw[:, column] == padding] = np.nan
        rows.append(values)
    return rows


def _scale(channel: Any, path: Path, lead: str) -> tuple[float, float]:
    """Return (millivolts per sample value, offset in millivolts) of a channel, PS3.3 C.10.9.1.4."""
    if channel.get("ChannelSensitivity") is None:
        raise InputError("has no sensitivity: the samples are not calibrated", file=path, place=lead)
    units = channel.get("ChannelSensitivityUnitsSequence") or []
    factor = factor_of(str(units[0].CodeValue) if len(units) else "", path, lead)
    correction = channel.get("ChannelSensitivityCorrectionFactor")
    sensitivity = float(channel.ChannelSensitivity) * (1.0 if correction is None else float(correction))
    if not sensitivity:
        raise InputError("sensitivity is 0", file=path, place=lead)
    return sensitivity * factor, float(channel.get("ChannelBaseline") or 0) * factor


def _patient(dataset: Any) -> tuple[float | None, str | None, dict[str, str]]:
    """Return (age, sex, identity)."""
    written = str(dataset.get("PatientAge") or "")
    birth = str(dataset.get("PatientBirthDate") or "")
    when = next((str(dataset.get(name)) for name in ("AcquisitionDateTime", "StudyDate") if dataset.get(name)), "")
    age = age_in(written[:-1], written[-1]) if written else age_at(birth, when)
    name = str(dataset.get("PatientName") or "").replace("^", " ")
    return (
        age,
        parse_sex(str(dataset.get("PatientSex") or "")),
        identity(str(dataset.get("PatientID") or ""), [name], birth),
    )
