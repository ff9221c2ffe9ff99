"""Bags unlike those of the training, by the ranges of their mean features."""

from __future__ import annotations

import numpy as np
from seqssm_pathology.fitted import Ranges


def test_bags_of_small_features_are_unusual_although_0_is_inside_of_every_range():
    """Only larger features were noticed."""
    rng = np.random.default_rng(0)
    bags = rng.normal(size=(60, 32))
    ranges = Ranges.of_summary(Ranges.fit(list(bags[:40])).summary())
    assert not any(ranges.remark(bag) for bag in bags[40:])
    assert all("far smaller" in ranges.remark(0.01 * bag) for bag in bags)
    assert ranges.remark(np.zeros(32)) == "all features are 0"
    earlier = {name: value for name, value in ranges.summary().items() if name != "size"}
    assert Ranges.of_summary(earlier).remark(np.zeros(32)) == "", "a checkpoint without sizes"
