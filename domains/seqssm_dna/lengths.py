"""Token ids of labelled sequences, and what is reported of their lengths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from seqssm.errors import InputError
from seqssm_dna.labelled import Labelled
from seqssm_dna.tokens import Lower, encode, known_ends

UNEVEN = 20  # times the median length, above which a sequence is reported


def encode_all(found: Labelled, lower: Lower, trim_n: bool, limit: int | None) -> tuple[list[np.ndarray], list[str]]:
    """Return the token ids of all sequences, and lines to print about their lengths.

    Args:
        found: the sequences.
        lower: what lower case means, as in `seqssm_dna.tokens.encode`.
        trim_n: whether N at both ends are dropped.
        limit: maximum length; longer sequences are truncated. None: no limit.

    Raises:
        InputError: a sequence with invalid letters, or with N only; the message has its line.
    """
    cut, rows = 0, []
    for letters, place in zip(found.sequences, found.places):
        ids = encode(letters, lower, place=f"{found.path}: {place}")
        if trim_n:
            first, last = known_ends(ids)
            ids = ids[first:last]
        if not len(ids):
            raise InputError("the sequence contains only N", file=found.path, place=place)
        if limit is not None and len(ids) > limit:
            ids, cut = ids[:limit], cut + 1
        rows.append(ids)
    notes = [f"{cut} sequences truncated to {limit} letters"] if cut else []
    return rows, notes + uneven_lengths([len(ids) for ids in rows], found.places)


def uneven_lengths(lengths: Sequence[int], places: Sequence[str]) -> list[str]:
    """Describe a sequence that is far longer than most others; its batch has the memory and time of its length.

    Args:
        lengths: number of tokens of each sequence.
        places: locations of the sequences in their file.
    """
    middle, longest = float(np.median(lengths)), int(np.argmax(lengths))
    if lengths[longest] <= UNEVEN * middle:
        return []
    return [
        f"{places[longest]} has {lengths[longest]:,} letters, the median is {middle:,.0f}: the other sequences of its "
        "batch are padded to this length (--data.max_length truncates)"
    ]
