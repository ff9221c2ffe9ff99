"""Bags unlike those of the training, by the means, sizes, norms and spreads of their features."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from seqssm_pathology.files import Bag, join, read_bag
from seqssm_pathology.ranges import Profile, Ranges

NORM = "the features of every patch have norm 1, those of the training bags do not"


def fitted(bags):
    return Ranges.of_summary(Ranges.fit([Profile.of(bag) for bag in bags]).summary())


def made(bags=60, patches=200, width=32, level=0.0, seed=0):
    """Bags of features about the level of their slide."""
    rng = np.random.default_rng(seed)
    slides = level + 0.1 * rng.normal(size=(bags, 1, width))
    return list((slides + rng.normal(size=(bags, patches, width))).astype(np.float32))


def unit(bag):
    return bag / np.linalg.norm(bag, axis=1, keepdims=True)


def test_bags_of_small_features_are_unusual_although_0_is_inside_of_every_range():
    """Only larger features were noticed."""
    bags = np.random.default_rng(0).normal(size=(60, 32))
    ranges = fitted(bags[:40])
    assert not any(ranges.remark(Profile.of(bag)) for bag in bags[40:])
    assert all("far smaller" in ranges.remark(Profile.of(0.01 * bag)) for bag in bags)
    assert ranges.remark(Profile.of(np.zeros(32))) == "all features are 0"
    for names in (("low", "high", "bags"), ("low", "high", "bags", "size")):
        earlier = {name: value for name, value in ranges.summary().items() if name in names}
        assert Ranges.of_summary(earlier).remark(Profile.of(np.zeros(32))) == "", "a checkpoint without sizes"


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_bags_of_other_numbers_of_patches_are_usual(level):
    """Large bags of centred features were noted as too small, and small bags as outside of the ranges."""
    ranges = fitted(made(level=level))
    for patches in (1, 2, 5, 20, 20_000):
        bags = made(20, patches, level=level, seed=1)
        assert not any(ranges.remark(Profile.of(bag)) for bag in bags), patches
        small = [ranges.remark(Profile.of(0.01 * bag)) for bag in bags if patches > 1]
        assert all(small), patches


@pytest.mark.parametrize("level", [0.0, 1.0])
@pytest.mark.parametrize("width", [8, 32])
def test_normalised_bags(level, width):
    """Of features about 0 they are inside of every range, and not much smaller than those of the training."""
    bags = made(level=level, width=width)
    ranges = fitted(bags[:40])
    for bag in bags[40:]:
        assert ranges.remark(Profile.of(unit(bag))) == NORM
        assert ranges.remark(Profile.of(unit(bag).astype(np.float16).astype(np.float32))) == NORM
    normalised = fitted([unit(bag) for bag in bags[:40]])
    assert not any(normalised.remark(Profile.of(unit(bag))) for bag in bags[40:])
    assert all(normalised.remark(Profile.of(bag)) for bag in bags[40:])
    other = "the features of the patches do not have norm 1, those of the training bags do"
    assert normalised.remark(Profile.of(0.97 * unit(bags[40]))) == other


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_bags_of_equal_patches(level):
    bags = made(level=level)
    ranges = fitted(bags[:40])
    for bag in bags[40:]:
        assert ranges.remark(Profile.of(np.repeat(bag.mean(0)[None], 50, axis=0))) == "all patches are equal"
        alike = bag.mean(0) + 0.01 * (bag - bag.mean(0))
        assert ranges.remark(Profile.of(alike)) == "patches far more alike than those of the training bags"
    constant = [np.repeat(bag[:1], 50, axis=0) for bag in bags]
    assert not any(fitted(constant[:40]).remark(Profile.of(bag)) for bag in constant[40:])


def test_bags_of_another_magnification_are_unusual(tmp_path):
    """Features of one encoder at 10x and at 20x have the same ranges; TRIDENT writes the magnification."""
    bags = made()
    ranges = Ranges.of_summary(Ranges.fit([Profile.of(bag, {20.0}) for bag in bags[:40]]).summary())
    assert ranges.remark(Profile.of(bags[50], {20.0})) == ranges.remark(Profile.of(bags[50])) == ""
    assert ranges.remark(Profile.of(bags[50], {19.7})) == "", "of scanners with other pixels"
    assert ranges.remark(Profile.of(bags[50], {10.0, 20.0})) == (
        "patches at 10x, those of the training bags are at 20x"
    )
    assert fitted(bags[:40]).remark(Profile.of(bags[50], {10.0})) == "", "unknown in the training"
    for name, power in (("a", 20), ("b", 10)):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["features"], file["coords"] = bags[0], np.zeros((len(bags[0]), 2))
            file["coords"].attrs.update({"patch_size": 256, "level0_magnification": 40, "target_magnification": power})
    slides = [read_bag(tmp_path / f"{name}.h5") for name in "ab"]
    assert [slide.powers for slide in slides] == [{20.0}, {10.0}]
    assert join(slides, "case")[0].powers == {10.0, 20.0}
    assert Bag("x", bags[0]).powers == set()
