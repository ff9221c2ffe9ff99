"""Class names that users may have misspelt, and classes with too few records to be learned or tested."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches

RARE = 5  # records; a class with fewer cannot be learned or tested


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
        found.append(f"{name} {count}" + (f" (did you mean {close[0]}?)" if close else ""))
    return f"classes with fewer than {RARE} records, or possibly misspelt: {', '.join(found)}" if found else ""


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold()) or name
