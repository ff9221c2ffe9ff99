"""Tokens: encoding, policies, complements, vocabularies."""

from __future__ import annotations

import numpy as np
import pytest
from seqssm_dna.lengths import uneven_lengths
from seqssm_dna.letters import BASES, IUPAC, NUCLEOTIDES, reverse_complement
from seqssm_dna.tokens import (
    FIXED,
    MASK,
    N,
    Vocabulary,
    complement_ids,
    decode,
    encode,
    is_base,
    is_lower,
    reverse_complement_ids,
)

from seqssm.errors import InputError

from .conftest import letters


def test_one_very_long_sequence_is_reported():
    assert uneven_lengths([100] * 9 + [2000], list("abcdefghij")) == []
    (line,) = uneven_lengths([100] * 9 + [2001], list("abcdefghij"))
    assert line.startswith("j has 2,001 letters, the median is 100")


def test_ids_are_the_published_ones():
    assert FIXED == ("[CLS]", "[SEP]", "[BOS]", "[MASK]", "[PAD]", "[RESERVED]", "[UNK]", "A", "C", "G", "T", "N")
    assert encode("ACGTN").tolist() == [7, 8, 9, 10, 11]
    assert MASK == 3


def test_every_letter_has_an_id():
    everything = NUCLEOTIDES.decode()
    wanted = "".join(sign if sign in BASES else "T" if sign == "U" else "N" for sign in everything.upper())
    assert decode(encode(everything)) == wanted
    lower = "".join("N" if raw.islower() else sign for raw, sign in zip(everything, wanted))
    assert decode(encode(everything, lower="mask")) == lower
    assert encode(b"").dtype == np.uint8


@pytest.mark.parametrize("sign", sorted(set(map(chr, range(256))) - set(NUCLEOTIDES.decode())))
def test_other_letters_are_refused(sign):
    with pytest.raises(InputError, match=r"row 7: position 3: "):
        encode("AC" + sign, place="row 7")


def test_ambiguity_codes_can_be_refused():
    assert decode(encode("ANnT", ambiguous="error")) == "ANNT"
    for sign in (*set(IUPAC) - {"N"}, "-", "r"):
        with pytest.raises(InputError, match=r"position 2: ambiguity code"):
            encode("A" + sign, ambiguous="error")


def test_lower_case_and_bases():
    assert is_lower(b"aCg-N").tolist() == [True, False, True, False, False]
    assert is_base(encode("ACGTNR")).tolist() == [True] * 4 + [False] * 2


@pytest.mark.parametrize("seed", range(4))
def test_complement_of_ids_is_that_of_letters(seed):
    sequence = letters(97, seed, "ACGTNRYWacgtun").encode()
    turned = reverse_complement_ids(encode(sequence))
    assert (turned == encode(reverse_complement(sequence))).all()
    assert (reverse_complement_ids(turned) == encode(sequence)).all()
    batch = np.stack([encode(sequence), turned])
    assert (reverse_complement_ids(batch)[0] == turned).all()
    assert batch.dtype == reverse_complement_ids(batch).dtype


def test_complement_table():
    table = complement_ids(15)
    assert table[[7, 8, 9, 10, 11]].tolist() == [10, 9, 8, 7, 11]
    assert (table[table] == np.arange(15)).all()
    assert table[[0, 3, 12, 14]].tolist() == [0, 3, 12, 14]


def test_decoding_refuses_special_tokens():
    with pytest.raises(ValueError, match="id 2 at position 1"):
        decode([7, 2])
    with pytest.raises(ValueError, match="id 12"):
        decode([12])


def test_vocabularies():
    words = Vocabulary(("expression=0", "expression=1"))
    assert len(words) == 14
    assert words.prefix("expression=1") == 13
    assert words.show([2, 13, 7, 8, N]) == "[BOS]<expression=1>ACN"
    assert Vocabulary.from_dict(words.to_dict()) == words
    assert words.to_dict()["complement"][13] == 13
    with pytest.raises(InputError, match="no prefix token 'high'; the model has expression=0, expression=1"):
        words.prefix("high")
    for double in (("a", "a"), ("A",), ("[BOS]",)):
        with pytest.raises(InputError, match="appears twice"):
            Vocabulary(double)
    with pytest.raises(InputError, match="its vocabulary begins with"):
        Vocabulary.from_dict({"tokens": ["A", "C"]})
