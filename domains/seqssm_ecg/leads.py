"""The twelve leads: their names in any spelling, the challenge's reduced sets, and limb leads computed from others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from seqssm.errors import InputError

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
LEAD_SETS = {
    12: LEADS,
    6: LEADS[:6],
    4: ("I", "II", "III", "V2"),
    3: ("I", "II", "V2"),
    2: ("I", "II"),
}
"""The lead sets of the 2021 challenge, by their size."""
_KNOWN = {lead.casefold(): lead for lead in LEADS}


def canonical(name: str, lead_map: Mapping[str, str] | None = None) -> str | None:
    """The standard name of a lead written in any case; None for another signal (vx, resp, ...).

    Args:
        name: as in the file.
        lead_map: names in the file -> standard names, for those that are not guessed: ``{"MLII": "II"}``.
    """
    key = name.strip().casefold()
    for own, standard in (lead_map or {}).items():
        if own.strip().casefold() == key:
            return _KNOWN[standard.casefold()]
    return _KNOWN.get(key)


def check_lead_map(lead_map: Mapping[str, str] | None) -> None:
    """Raises InputError unless every target is one of the twelve leads."""
    for own, standard in (lead_map or {}).items():
        if standard.casefold() not in _KNOWN:
            raise InputError(f"lead map {own}={standard}: {standard} is none of {', '.join(LEADS)}")


def select(
    values: Mapping[str, np.ndarray], wanted: Sequence[str], missing: str, file: Path
) -> tuple[np.ndarray, list[str]]:
    """Puts leads into the wanted order, computing limb leads and filling what is not there.

    From any two of I, II, III the third one follows, and from these aVR = -(I + II) / 2, aVL = I - II / 2,
    aVF = II - I / 2 (Einthoven, Goldberger).

    Args:
        values: standard name -> (n,) millivolts.
        wanted: standard names.
        missing: ``"zero"`` puts zeros where a lead cannot be had; ``"refuse"`` raises.
        file: named in errors.

    Returns:
        (leads, n) float32, and notes on what was computed or filled.

    Raises:
        InputError: none of the wanted leads is there; a lead is missing and `missing` is ``"refuse"``.
    """
    have = dict(values)
    if not any(name in have for name in wanted):
        raise InputError(f"has none of the leads {', '.join(wanted)}", file=file)
    limb = {"I": ("II", "III", -1.0), "II": ("I", "III", 1.0), "III": ("II", "I", -1.0)}
    for name, (first, second, sign) in limb.items():
        if name not in have and first in have and second in have:
            have[name] = have[first] + sign * have[second]
    if "I" in have and "II" in have:
        one, two = have["I"], have["II"]
        for name, made in (("aVR", -(one + two) / 2), ("aVL", one - two / 2), ("aVF", two - one / 2)):
            have.setdefault(name, made)
    computed = [name for name in wanted if name in have and name not in values]
    absent = [name for name in wanted if name not in have]
    if absent and missing == "refuse":
        raise InputError(f"lacks the lead{'s' * (len(absent) > 1)} {', '.join(absent)}", file=file)
    length = len(next(iter(values.values())))
    zeros = np.zeros(length, dtype=np.float32)
    table = np.stack([np.asarray(have.get(name, zeros), dtype=np.float32) for name in wanted])
    notes = [f"computed {' '.join(computed)}"] if computed else []
    notes += [f"missing, set to 0: {' '.join(absent)}"] if absent else []
    return table, notes
