"""The twelve standard leads: spelling variants, reduced lead sets of the challenge, and derived limb leads."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seqssm.errors import InputError
from seqssm_ecg.clock import places_of

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
LEAD_SETS = {
    12: LEADS,
    6: LEADS[:6],
    4: ("I", "II", "III", "V2"),
    3: ("I", "II", "V2"),
    2: ("I", "II"),
}
"""Lead sets of the 2021 challenge by size."""
_KNOWN = {lead.casefold(): lead for lead in LEADS}
_SPELLINGS = {"di": "I", "dii": "II", "diii": "III", "d1": "I", "d2": "II", "d3": "III", **_KNOWN}
_NUMBERS = {"1": "I", "2": "II", "3": "III"}  # only in "Lead 1": "ECG1" is the first channel of a monitor
_PREFIX = re.compile(
    r"(mdc_ecg_lead|(?:(?:ecg|ekg)[\s_.:-]+)?lead|ecg|ekg)(?:[\s_.:]+|-(?!avr$))?"
)  # "Lead -aVR" is the inverted lead
_VOLTS = "(?:milli|micro|[mnuµμ])?v(?:olts?)?"
_WITH_UNIT = re.compile(
    rf"(.*?)[\s,]*(?:\(({_VOLTS})\)|\[({_VOLTS})\]|[\s_/,]((?:milli|micro|[muµμ])v(?:olts?)?))", re.I
)


def canonical(name: str, lead_map: Mapping[str, str] | None = None) -> str | None:
    """Return the standard name of a lead, or None for any other signal (vx, RESP, MLII, ...).

    Case, quotes, a final full stop and a unit (`split_unit`) are ignored. Recognised variants are ``DI DII DIII``,
    ``D1 D2 D3`` (Romance languages) and a prefix as in ``Lead I``, ``Lead-I``, ``ECG V1`` (EDF), ``Lead 2``,
    ``MDC_ECG_LEAD_I`` (ISO 11073-10102).
    Similar but different leads (``MLII``, ``-aVR``) are not recognised unless `lead_map` maps them.

    Args:
        name: signal name in the file.
        lead_map: mapping from names in the file to standard names, ``{"MLII": "II"}``.
    """
    whole, bare = _unquoted(name), split_unit(name)[0].casefold()
    mapped = {_unquoted(own).casefold(): standard for own, standard in (lead_map or {}).items()}
    for key in (whole.casefold(), bare):
        if key in mapped:
            return _KNOWN[mapped[key].casefold()]
    key = bare.rstrip(".").rstrip()
    prefix = _PREFIX.match(key)
    if prefix is None:
        return _SPELLINGS.get(key)
    rest = key[prefix.end() :]
    return _SPELLINGS.get(rest) or (_NUMBERS.get(rest) if prefix[1] not in ("mdc_ecg_lead", "ecg", "ekg") else None)


def split_unit(name: str) -> tuple[str, str]:
    """Split the name of a signal into the name without quotes and its unit: ``I`` and ``mV`` of ``I (mV)``, ``I_mV``.

    Args:
        name: signal name in the file.

    Returns:
        Name and unit; the unit is ``""`` if the name has none.
    """
    plain = _unquoted(name)
    found = _WITH_UNIT.fullmatch(plain)
    return (found[1], found[2] or found[3] or found[4]) if found else (plain, "")


def _unquoted(name: str) -> str:
    return name.strip().strip("'\"").strip()


def check_lead_map(lead_map: Mapping[str, str] | None) -> None:
    """Raise InputError unless every target is a standard lead."""
    for own, standard in (lead_map or {}).items():
        if standard.casefold() not in _KNOWN:
            raise InputError(f"lead map {own}={standard}: {standard} is not one of {', '.join(LEADS)}")


@dataclass(frozen=True)
class Matched:
    """The signals of a file that are standard leads.

    Attributes:
        leads: standard names, in the order of the file.
        rows: indices of these leads among the file's signals.
        unused: names of the other signals.
    """

    leads: tuple[str, ...]
    rows: tuple[int, ...]
    unused: tuple[str, ...]

    @property
    def notes(self) -> list[str]:
        return [f"unused signals: {' '.join(self.unused)}"] if self.unused else []


def match_leads(names: Sequence[str], lead_map: Mapping[str, str] | None, file: Path) -> Matched:
    """Find the standard leads among the signals of a file.

    Args:
        names: signal names in the file; empty if a signal has none.
        lead_map: mapping from names in the file to standard names.
        file: path for error messages.

    Raises:
        InputError: none of the signals is a standard lead, or two of them are the same.
    """
    found = [canonical(name, lead_map) for name in names]
    leads = tuple(lead for lead in found if lead is not None)
    shown = [name or "(no name)" for name in names]
    for lead in leads:
        if leads.count(lead) > 1:
            raise InputError(f"duplicate lead {lead}", file=file)
    if not leads:
        times = places_of(names)
        signals = (name for place, name in enumerate(names) if name.strip() and place not in times)
        named = next((name for name in signals if "time" not in name.casefold()), "NAME")  # "Phone timestamp"
        raise InputError(
            f"contains none of the 12 standard leads, only {', '.join(shown[:6])}; name the lead of a signal by "
            f"predict --lead-map {shlex.quote(named + '=LEAD')}, or fit --data.lead_map; LEAD is one of "
            f"{', '.join(LEADS)}",
            file=file,
        )
    rows = tuple(number for number, lead in enumerate(found) if lead is not None)
    return Matched(leads, rows, tuple(name for name, lead in zip(shown, found) if lead is None))


def obtainable(given: Iterable[str], wanted: Sequence[str], apart: Collection[str] = ()) -> list[str]:
    """Return the wanted leads that are given or can be derived from given limb leads, in the order of `wanted`.

    Args:
        given: standard names of the given leads.
        wanted: standard names.
        apart: argument of `select`.
    """
    have = set(given)
    if len((have & {"I", "II", "III"}).difference(apart)) >= 2:
        have |= set(LEADS[:6])
    return [lead for lead in wanted if lead in have]


def select(
    values: Mapping[str, np.ndarray], wanted: Sequence[str], missing: str, file: Path, apart: Collection[str] = ()
) -> tuple[np.ndarray, list[str]]:
    """Arrange leads in the wanted order, deriving limb leads and filling in missing leads.

    Any two of I, II and III give the third one, and these give aVR = -(I + II) / 2, aVL = I - II / 2,
    aVF = II - I / 2 (Einthoven, Goldberger).

    Args:
        values: samples by standard name, (n,) each, millivolts.
        wanted: standard names of the leads to return.
        missing: treatment of leads that cannot be derived: ``"zero"`` fills with zeros, ``"refuse"`` raises.
        file: path for error messages.
        apart: leads that were recorded at another time than the other limb leads; none is derived from them.

    Returns:
        Samples (leads, n) float32, and notes on computed and filled leads.

    Raises:
        InputError: none of the wanted leads is available, or a lead is missing and `missing` is ``"refuse"``.
    """
    if not any(name in values for name in wanted):
        raise InputError(f"contains none of the leads {', '.join(wanted)}", file=file)
    have = {name: row for name, row in values.items() if name not in apart}
    limb = {"I": ("II", "III", -1.0), "II": ("I", "III", 1.0), "III": ("II", "I", -1.0)}
    for name, (first, second, sign) in limb.items():
        if name not in have and first in have and second in have:
            have[name] = have[first] + sign * have[second]
    if "I" in have and "II" in have:
        one, two = have["I"], have["II"]
        for name, made in (("aVR", -(one + two) / 2), ("aVL", one - two / 2), ("aVF", two - one / 2)):
            have.setdefault(name, made)
    have.update(values)
    computed = [name for name in wanted if name in have and name not in values]
    absent = [name for name in wanted if name not in have]
    if absent and missing == "refuse":
        raise InputError(f"missing lead{'s' * (len(absent) > 1)} {', '.join(absent)}", file=file)
    length = len(next(iter(values.values())))
    zeros = np.zeros(length, dtype=np.float32)
    table = np.stack([np.asarray(have.get(name, zeros), dtype=np.float32) for name in wanted])
    notes = [f"computed {' '.join(computed)}"] if computed else []
    notes += [f"missing, set to 0: {' '.join(absent)}"] if absent else []
    return table, notes
