"""Tokens: one base per token, special tokens, prefix tokens of classes, and the reverse complement of tokens.

Ids are those of HyenaDNA and Caduceus, used by most DNA models: seven special tokens, then A, C, G, T and N; prefix
tokens have ids from 12. Tables are NumPy arrays; `complement_ids` returns the table for a buffer of a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from seqssm.errors import InputError
from seqssm_dna.letters import BASES, GAPS, IUPAC, require_nucleotides

Lower = Literal["upper", "mask"]
Ambiguous = Literal["n", "error"]

SPECIAL = ("[CLS]", "[SEP]", "[BOS]", "[MASK]", "[PAD]", "[RESERVED]", "[UNK]")
CLS, SEP, BOS, MASK, PAD, RESERVED, UNK = range(7)
A, C, G, T, N = range(7, 12)
FIRST_BASE, BASE_COUNT = A, 4
FIXED = (*SPECIAL, *BASES, "N")
"""Tokens of every vocabulary, by id."""
_FOREIGN = 255


def _table(lower: Lower) -> np.ndarray:
    """Return the id of each byte, (256,); 255 for bytes that are not nucleotides."""
    table = np.full(256, _FOREIGN, dtype=np.uint8)
    for sign in (*IUPAC, *GAPS):
        table[[ord(sign), ord(sign.lower())]] = N
    for number, sign in enumerate(BASES, FIRST_BASE):
        table[ord(sign)] = number
        table[ord(sign.lower())] = N if lower == "mask" else number
    table[ord("U")] = T
    table[ord("u")] = table[ord("t")]
    return table


_TABLES: dict[str, np.ndarray] = {"upper": _table("upper"), "mask": _table("mask")}
_LETTERS = np.frombuffer(b"?" * FIRST_BASE + BASES.encode() + b"N", dtype=np.uint8)


def encode(
    sequence: str | bytes, lower: Lower = "upper", ambiguous: Ambiguous = "n", place: str = "sequence"
) -> np.ndarray:
    """Encode the letters of a sequence.

    Args:
        sequence: letters; U is read as T.
        lower: policy for lower-case letters: ``"upper"`` reads them as upper case, ``"mask"`` as N (soft-masked repeats
            are then neither targets nor inputs).
        ambiguous: policy for IUPAC codes and gaps other than N: ``"n"`` reads them as N, ``"error"`` rejects them.
        place: location used in error messages.

    Returns:
        Ids of A, C, G, T or N, (L,) uint8.

    Raises:
        InputError: a letter is not a nucleotide, or is a rejected ambiguity code.
    """
    letters = sequence.encode("utf-8", "surrogateescape") if isinstance(sequence, str) else sequence
    codes = np.frombuffer(letters, dtype=np.uint8)
    ids = _TABLES[lower][codes]
    if (ids == _FOREIGN).any():
        require_nucleotides(letters, place, "")
    if ambiguous == "error":
        wrong = (_TABLES["upper"][codes] == N) & (codes != ord("N")) & (codes != ord("n"))
        if wrong.any():
            position = int(wrong.argmax())
            message = f"ambiguity code {chr(codes[position])!r}, rejected by ambiguous='error'"
            raise InputError(message, file=place, place=f"position {position + 1}")
    return ids


def is_lower(sequence: bytes) -> np.ndarray:
    """Return a mask of lower-case (soft-masked) letters, (L,) bool, for separate weights in a loss.

    Args:
        sequence: letters as in the file.
    """
    codes = np.frombuffer(sequence, dtype=np.uint8)
    return (codes >= ord("a")) & (codes <= ord("z"))


def is_base(ids: np.ndarray) -> np.ndarray:
    """Return whether ids are A, C, G or T, the only targets of losses and scores.

    Args:
        ids: token ids of any shape.
    """
    return (ids >= FIRST_BASE) & (ids < FIRST_BASE + BASE_COUNT)


def known_ends(ids: np.ndarray) -> tuple[int, int]:
    """(first, end) of the part of a sequence without N at both ends; (0, 0) if there is no A, C, G or T.

    Args:
        ids: (L,) ids of bases and N.
    """
    known = np.flatnonzero(is_base(ids))
    return (int(known[0]), int(known[-1]) + 1) if len(known) else (0, 0)


def padded(rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """((B, L) int64 ids with ``[PAD]`` behind shorter sequences, (B, L) bool mask of real positions).

    Args:
        rows: (L,) ids of each sequence, at least one.
    """
    longest = max(map(len, rows))
    ids = np.full((len(rows), longest), PAD, dtype=np.int64)
    for row, own in enumerate(rows):
        ids[row, : len(own)] = own
    return ids, np.arange(longest) < np.array([[len(own)] for own in rows])


def decode(ids: Sequence[int] | np.ndarray) -> str:
    """Decode base tokens to letters.

    Args:
        ids: ids of A, C, G, T or N, (L,).

    Raises:
        ValueError: there is a special or prefix token; `Vocabulary.show` formats those.
    """
    ids = np.asarray(ids, dtype=np.int64)
    wrong = (ids < FIRST_BASE) | (ids > N)
    if wrong.any():
        raise ValueError(f"id {ids[wrong][0]} at position {int(wrong.argmax())} is not a base")
    return _LETTERS[ids].tobytes().decode()


def complement_ids(size: int = len(FIXED)) -> np.ndarray:
    """Return the complement of each id, (size,) int64; special, N and prefix tokens are their own complement.

    Args:
        size: size of the vocabulary.
    """
    table = np.arange(size)
    table[[A, C, G, T]] = [T, G, C, A]
    return table


def reverse_complement_ids(ids: np.ndarray) -> np.ndarray:
    """Return the reverse complement of token ids.

    Args:
        ids: ids of bases without special tokens, (..., L); the last axis is reversed.
    """
    size = max(len(FIXED), int(ids.max(initial=0)) + 1)
    return complement_ids(size)[ids[..., ::-1]].astype(ids.dtype)


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a model.

    Attributes:
        prefixes: prefix tokens of properties and classes, with ids from 12: ``("expression=0", "expression=1")``.
    """

    prefixes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = [*FIXED, *self.prefixes]
        double = next((name for name in known if known.count(name) > 1), None)
        if double is not None:
            raise InputError(f"prefix token {double!r} appears twice or is one of {', '.join(FIXED)}")

    def __len__(self) -> int:
        return len(FIXED) + len(self.prefixes)

    @property
    def tokens(self) -> tuple[str, ...]:
        """All tokens by id."""
        return (*FIXED, *self.prefixes)

    def prefix(self, name: str) -> int:
        """Return the id of a prefix token.

        Args:
            name: name of the token.

        Raises:
            InputError: there is no such token.
        """
        if name not in self.prefixes:
            known = ", ".join(self.prefixes) or "none"
            raise InputError(f"no prefix token {name!r}; the model has {known}")
        return len(FIXED) + self.prefixes.index(name)

    def show(self, ids: Sequence[int] | np.ndarray) -> str:
        """Format ids as text, with special and prefix tokens by name.

        Args:
            ids: token ids, (L,).
        """
        tokens = self.tokens
        shown = [tokens[int(number)] for number in np.asarray(ids)]
        return "".join(name if len(name) == 1 or name.startswith("[") else f"<{name}>" for name in shown)

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain Python, for a checkpoint."""
        return {"tokens": list(self.tokens), "complement": [int(number) for number in complement_ids(len(self))]}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Vocabulary:
        """Create the vocabulary of a checkpoint.

        Args:
            content: result of `to_dict`.

        Raises:
            InputError: its fixed tokens differ from those of this version.
        """
        tokens = [str(name) for name in content.get("tokens", ())]
        if tuple(tokens[: len(FIXED)]) != FIXED:
            raise InputError(f"its vocabulary begins with {', '.join(tokens[:12])}; expected {', '.join(FIXED)}")
        return cls(tuple(tokens[len(FIXED) :]))
