"""Philips XML (`restingecgdata`, Sierra ECG 1.03 and 1.04): the parsed waveforms, plain or compressed by XLI."""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from seqssm.errors import InputError
from seqssm_ecg.headers import parse_sex
from seqssm_ecg.hospital.common import age_at, age_in, decode_base64, identity, number, readable, stacked
from seqssm_ecg.hospital.tree import read_tree, text_of, value_of
from seqssm_ecg.hospital.xli import decode_xli
from seqssm_ecg.leads import LEADS, canonical, match_leads
from seqssm_ecg.recording import InMemory, Reading, Recording


def open_philips(path: Path, reading: Reading) -> Recording:
    """Read a resting ECG.

    Args:
        path: the file.
        reading: options; only `lead_map` is used.

    Raises:
        InputError: the file is corrupt, or contains no waveforms.
    """
    root = read_tree(path)
    with readable(path, "Philips XML"):
        waves = root.find(".//parsedwaveforms")
        signal = root.find(".//signalcharacteristics")
        if waves is None or signal is None:
            raise InputError("contains no parsed waveforms", file=path)
        rate_hz = number(text_of(signal, "samplingrate"), path, "samplingrate")
        per_unit = text_of(signal, "resolution") or text_of(signal, "signalresolution")
        microvolts = number(per_unit, path, "resolution")
        if microvolts == 0:
            raise InputError("is 0", file=path, place="resolution")
        names = _names(waves, signal)
        samples = dict(zip(names, _samples(waves, names, path)))
        found = match_leads(names, reading.lead_map, path)
        rows = [samples[names[row]] * (microvolts * 1e-3) for row in found.rows]
        table = stacked(rows, found.leads, path)
        age, sex, who = _patient(root)
    return Recording(path, rate_hz, table.shape[1], found.leads, InMemory(table), None, age, sex, found.notes, who)


def _names(waves: Element, signal: Element) -> list[str]:
    """Return the labels of the stored leads; by default the standard leads, in their order."""
    labels = waves.get("leadlabels", "").split()
    count = waves.get("numberofleads", "") or text_of(signal, "numberchannelsvalid") or str(len(LEADS))
    return (labels or list(LEADS))[: max(1, int(count))]


def _samples(waves: Element, names: list[str], path: Path) -> list[np.ndarray]:
    """Return the samples of each lead, (n,), in units of the resolution."""
    if waves.get("dataencoding", "Base64").casefold() != "base64":
        raise InputError("has waveforms in an unknown encoding", file=path, place="parsedwaveforms")
    raw = decode_base64(waves.text or "", path, "parsedwaveforms")
    method = waves.get("compressmethod", "") or waves.get("compression", "") or "Uncompressed"
    if method.casefold() == "xli":
        try:
            rows = decode_xli(raw, len(names))
        except ValueError:
            raise InputError(
                "compressed samples are corrupt or truncated", file=path, place="parsedwaveforms"
            ) from None
        return _limb_leads(names, rows, residuals=True)
    if method.casefold() != "uncompressed":
        raise InputError("has waveforms in an unknown compression", file=path, place="parsedwaveforms")
    if len(raw) % (2 * len(names)):
        raise InputError(
            f"is corrupt: {len(raw)} bytes are not {len(names)} leads of equal length",
            file=path,
            place="parsedwaveforms",
        )
    rows = list(np.frombuffer(raw, "<i2").astype(np.int64).reshape(len(names), -1))
    return _limb_leads(names, rows, residuals=_are_residuals(names, rows))


def _are_residuals(names: list[str], rows: list[np.ndarray]) -> bool:
    """Return whether lead III contains its difference from II - I, which is nearly zero, instead of samples."""
    values = _by_lead(names, rows)
    if not {"I", "II", "III"} <= values.keys():
        return False
    expected = values["II"] - values["I"]
    return float(np.abs(values["III"]).sum()) < float(np.abs(expected - values["III"]).sum())


def _limb_leads(names: list[str], rows: list[np.ndarray], residuals: bool) -> list[np.ndarray]:
    """Restore III, aVR, aVL and aVF, which are stored as differences from their values by I, II and III."""
    values = _by_lead(names, rows)
    if not residuals or len({len(row) for row in rows}) > 1 or not {"I", "II"} <= values.keys():
        return rows
    one, two = values["I"], values["II"]
    if "III" in values:
        values["III"] = two - one - values["III"]
    three = values.get("III", two - one)
    for name, expected in (
        ("aVR", -((one + two) // 2)),
        ("aVL", (one - three) // 2),
        ("aVF", (two + three) // 2),
    ):
        if name in values:
            values[name] = expected - values[name]
    return list(values.values())


def _by_lead(names: list[str], rows: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Return rows by standard lead name, in their order; other labels keep their names."""
    return {canonical(name) or name: row for name, row in zip(names, rows)}


def _patient(root: Element) -> tuple[float | None, str | None, dict[str, str]]:
    """Return (age, sex, identity)."""
    person = root.find(".//generalpatientdata")
    birth = text_of(person, "age/dateofbirth")
    age = age_in(text_of(person, "age/years"))
    if age is None:
        age = age_at(birth, value_of(root, ".//dataacquisition", "date"))
    names = [text_of(person, "name/firstname"), text_of(person, "name/lastname")]
    return age, parse_sex(text_of(person, "sex")), identity(text_of(person, "patientid"), names, birth)
