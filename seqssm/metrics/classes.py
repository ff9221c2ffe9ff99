"""Class names that users may have misspelt, and classes with too few records to be learned or tested."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches

RARE = 5  # records; a class with fewer cannot be learned or tested
UNKNOWN = {"unknown", "unk", "not known", "not evaluated", "not recorded", "not done", "not assessed", "not annotated",
           "missing", "indeterminate", "unlabelled", "unlabeled", "pending", "tbd"}  # fmt: skip
"""Missing flags, and labels that are present or absent, in lower case; a class can have such a name."""


def class_name(name: str) -> str:
    """Format a class name for a list separated by commas, as options read it: quoted as in CSV if it has a comma."""
    return '"' + name.replace('"', '""') + '"' if "," in name or name.startswith('"') else name


def class_list(names: Iterable[str]) -> str:
    """Format class names for a message: ``AF, "status 15, sinus"``."""
    return ", ".join(map(class_name, names))


def class_counts(counts: Mapping[str, float]) -> str:
    """Format the number of records per class: ``AF 12, "status 15, sinus" 40``."""
    return ", ".join(f"{class_name(name)} {int(count)}" for name, count in counts.items())


def unknown_classes(names: Iterable[str]) -> list[str]:
    """Return the classes whose names say that the label is unknown."""
    return [name for name in names if name.casefold() in UNKNOWN]


def rare_classes(counts: Mapping[str, int], hints: bool = True) -> str:
    """Describe classes with fewer than `RARE` records and names that differ only in case or punctuation; "" if none.

    Args:
        counts: number of records per class.
        hints: whether the names are the user's own, which may be misspelt; a similar name is then suggested.
    """
    found = []
    for name, count in counts.items():
        others = [other for other in counts if hints and counts[other] > count and not other.isdecimal()]
        alike = [
            other
            for other in counts
            if hints and (counts[other], other) > (count, name) and _plain(other) == _plain(name)
        ]
        if count >= RARE and not alike:
            continue
        close = alike or get_close_matches(name, others, n=1, cutoff=0.6)
        found.append(f"{class_name(name)} {count}" + (f" (did you mean {class_name(close[0])}?)" if close else ""))
    return f"classes with fewer than {RARE} records, or possibly misspelt: {', '.join(found)}" if found else ""


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold()) or name
