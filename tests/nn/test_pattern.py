"""Layer patterns: the published hybrids, periods, and rejected patterns."""

from __future__ import annotations

import pytest

from seqssm.nn.backbone import ARGUMENTS, MIXERS
from seqssm.nn.pattern import SYMBOLS, check_pattern, hybrid_pattern, periodic_pattern

PUBLISHED = "M-M-M--M-M*-M-M-M-M--M*-M-M-M-M-M*--M-M-M-M-M*-M--M-M-M-"  # the 8B model of arXiv 2406.07887


@pytest.mark.parametrize(
    ("layers", "attention", "mlp", "expected"),
    [
        (56, 0.08, 0.5, PUBLISHED),
        (56, 0.07, 0.5, PUBLISHED),
        (56, 4 / 56, 0.5, PUBLISHED),
        (48, 0.08, 0.5, "M-M-M--M-*M-M-M-M--*M-M-M-M-*M--M-M-M-*M-M--M-M-"),  # the 800M model
        (24, 0.08, 0.5, "M-M-M--*M-M-M-M-*M--M-M-"),
        (12, 0.08, 0.5, "M-M-M-*-M-M-"),
        (10, 0.3, 0.3, "M-*MM*-*M-"),
        (12, 0.1, 0.3, "MM-MM-*M-MM-"),
        (4, 0, 0, "MMMM"),
        (5, 0.5, 0, "M*M*M"),  # 2.5 rounds to 2, to the even number
    ],
)
def test_allocations_of_published_hybrids(layers, attention, mlp, expected):
    assert hybrid_pattern(layers, attention, mlp) == expected


def test_an_allocation_of_another_layer():
    assert hybrid_pattern(12, 0.08, 0.5, base="m") == "m-m-m-*-m-m-"


@pytest.mark.parametrize("layers", range(1, 60))
def test_counts_are_kept_and_ends_are_not_attention(layers):
    for attention in (0.0, 0.05, 0.125, 0.25):
        for mlp in (0.0, 0.25, 0.5):
            pattern = hybrid_pattern(layers, attention, mlp)
            assert len(pattern) == layers
            assert pattern.count("*") == round(layers * attention)
            assert pattern.count("-") == round(layers * mlp)
            assert pattern[0] != "*"
            assert pattern[-1] != "*" or layers == 1


def test_periods():
    assert periodic_pattern(9, 8, 4) == "MMMM*MMMM"
    assert periodic_pattern(6, 3, 2, symbol="-", base="m") == "mm-mm-"
    assert periodic_pattern(3, 1) == "***"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hybrid_pattern(0, 0, 0), "at least one layer"),
        (lambda: hybrid_pattern(4, 0.7, 0.5), "sum to at most 1"),
        (lambda: hybrid_pattern(4, -0.1, 0.5), "at least 0"),
        (lambda: hybrid_pattern(27, 0.5, 0.5), "no room for 14 attention"),
        (lambda: periodic_pattern(4, 2, 2), "offset < period"),
        (lambda: periodic_pattern(4, 0), "at least 1"),
        (lambda: check_pattern("MM*q"), "layer 4 of the pattern"),
    ],
)
def test_rejected_patterns(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_every_symbol_is_a_layer():
    assert set(SYMBOLS) == set(MIXERS) == set(ARGUMENTS)
