"""Outputs of a teacher in the terms of a student."""

from __future__ import annotations

import numpy as np
import torch
from seqssm_pathology.heads import ClassHead, NumberHead, SurvivalHead, curves_of
from seqssm_pathology.soft import converted
from seqssm_pathology.survival import survival_at


def test_numbers_keep_their_value():
    """A student learned the standardised value of a teacher with another mean and scale."""
    theirs, own = NumberHead("pct", mean=60.0, scale=20.0), NumberHead("pct", mean=70.0, scale=8.0)
    logits = torch.tensor([[0.0], [1.5], [-2.0]])
    np.testing.assert_allclose(own.values(converted(logits, theirs, own)), theirs.values(logits), rtol=1e-6)


def test_survival_is_the_teachers_curve_at_the_students_ends():
    theirs = SurvivalHead("months", edges=(0.0, 5.0, 10.0, 30.0, 100.0), unit="months")
    own = SurvivalHead("months", edges=(0.0, 3.0, 12.0, 40.0, 110.0), unit="months")
    logits = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    found = curves_of(converted(logits, theirs, own)).numpy()
    wanted = survival_at(curves_of(logits).numpy(), list(theirs.edges), np.array(own.edges[1:]))
    np.testing.assert_allclose(found, wanted, atol=2e-5)
    assert torch.equal(converted(logits, theirs, theirs), logits)


def test_classes_are_as_they_are():
    head = ClassHead("label", classes=("a", "b"))
    logits = torch.randn(3, 2)
    assert converted(logits, head, head) is logits
