"""Patch sizes, grids with several origins, covered area, and their effect on heat maps and orders."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from seqssm_pathology import grids
from seqssm_pathology.files import Bag, read_bag, write_bag
from seqssm_pathology.items import instance_order

import seqssm


def grid(columns: int, rows: int, origin: tuple[int, int], step: int = 256) -> np.ndarray:
    x, y = np.meshgrid(np.arange(columns), np.arange(rows))
    return np.stack([x.ravel(), y.ravel()], axis=1) * step + origin


TWO_PIECES = np.concatenate([grid(7, 5, (5000, 3000)), grid(6, 4, (12348, 7778))])
SIDE_BY_SIDE = np.concatenate([grid(7, 5, (5000, 3000)), grid(6, 4, (12345, 3003))])


@pytest.mark.parametrize(
    ("attributes", "side"),
    [
        ({"patch_size": 256, "patch_level": 1, "downsample": np.array([4.0, 4.0])}, 1024),  # CLAM
        ({"patch_size": 256, "patch_level": 0, "downsample": np.array([1.0, 1.0])}, 256),
        ({"patch_size": 512, "patch_level": 2, "downsample": 16.0}, 8192),
        ({"patch_size": 256, "patch_level": 1}, None),  # the level, but not its downsampling factor
        ({"patch_size": 256, "patch_level": 0}, 256),
        ({"patch_size": 256, "level0_magnification": 40, "target_magnification": 10}, 1024),  # TRIDENT
        ({"patch_size": 256, "patch_size_level0": 300, "downsample": np.array([4.0, 4.0])}, 300),
        ({}, None),
    ],
)
def test_the_side_of_a_patch_by_attributes(attributes, side, bag, tmp_path):
    path = tmp_path / "a.h5"
    write_bag(path, Bag("a", bag.features, bag.coords), "test")
    with h5py.File(path, "a") as file:
        file["coords"].attrs.update(attributes)
    assert read_bag(path).patch == side


@pytest.mark.parametrize(
    ("coords", "side"),
    [
        (TWO_PIECES, 256),
        (SIDE_BY_SIDE, 256),
        (grid(5, 4, (4000, 4000), 1024), 1024),
        (np.array([[0, 0], [512, 0], [1536, 0]]), 512),
        (np.array([[7, 0], [7, 100], [7, 200]]), 100),  # one column
    ],
)
def test_the_side_of_a_patch_by_the_most_common_gap(coords, side):
    shuffled = np.random.default_rng(0).permutation(coords)
    assert grids.side_of(shuffled, None) == (side, True)
    assert grids.side_of(shuffled, 300) == (300, True)


def test_patches_without_neighbours_have_no_side():
    assert grids.side_of(np.array([[0, 0], [700, 300]]), None) == (256, False)


def test_rows_of_each_grid_are_visited_in_serpentine_order():
    coords = SIDE_BY_SIDE[np.random.default_rng(3).permutation(len(SIDE_BY_SIDE))]
    order = instance_order(Bag("a", np.zeros((len(coords), 2)), coords), "serpentine")
    assert sorted(order) == list(range(len(coords)))
    walked = coords[order]
    for own, columns in ((walked[:35], 7), (walked[35:], 6)):
        lines = own.reshape(-1, columns, 2)
        assert (np.diff(lines[:, 0, 1]) == 256).all()
        for number, line in enumerate(lines):
            assert (np.diff(line[:, 0]) == (-256 if number % 2 else 256)).all()
    assert walked[0].tolist() == [5000, 3000]
    assert walked[35].tolist() == [12345, 3003]


def test_a_single_grid_stays_one():
    for coords in (grid(7, 5, (10, 20)), grid(4, 6, (0, 0), 507), grid(3, 3, (0, 0))[[0, 4, 8]]):
        assert len(grids.row_grids(coords)) == 1
    fractional = np.round(grid(9, 40, (0, 0), 1) * 507.3).astype(np.int64)  # of a resampled slide
    assert len(grids.row_grids(fractional)) == 1
    overlapping = grid(9, 9, (0, 0), 64)  # patches of 256 at a stride of 64
    assert len(grids.row_grids(overlapping)) == 1


def test_covered_fraction():
    assert grids.covered(grid(5, 4, (3, 7)), 256) == pytest.approx(1, abs=0.02)
    assert grids.covered(grid(5, 4, (0, 0), 512), 256) == pytest.approx(0.31, abs=0.03)
    assert grids.covered(SIDE_BY_SIDE, 3) < 0.01


def heat(run, tmp_path, name: str, coords: np.ndarray, attributes: dict):
    """The heat map of a bag, and the reports."""
    features = np.random.default_rng(0).normal(size=(len(coords), 6)).astype(np.float32)
    write_bag(tmp_path / f"{name}.h5", Bag(name, features, coords, attributes=attributes), "test")
    figures = tmp_path / "figures"
    frame = seqssm.load(run, accelerator="cpu").predict(tmp_path / f"{name}.h5", figures=figures)
    assert list(frame["status"]) == ["ok"]
    return next(figures.glob("*_heat.png"))


def coloured(path) -> float:
    """The fraction of a figure's pixels that have a colour."""
    from PIL import Image

    image = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return float(((image.max(-1) - image.min(-1)) > 15).mean())


def test_a_map_without_attributes_is_covered(run, tmp_path, capsys):
    assert coloured(heat(run, tmp_path, "pieces", TWO_PIECES, {})) > 0.03
    assert "cover" not in capsys.readouterr().err


def test_a_nearly_blank_map_is_reported(run, tmp_path, capsys):
    heat(run, tmp_path, "blank", TWO_PIECES, {"patch_size_level0": 32})
    assert "blank: patches of 32 level-0 pixels cover 0.1% of the area that they span" in capsys.readouterr().err


def test_units_are_micrometres_where_the_resolution_is_known(bag):
    assert Bag("a", bag.features).mpp is None
    assert Bag("a", bag.features, attributes={"level0_magnification": 40}).mpp == 0.25
    assert Bag("a", bag.features, attributes={"mpp": 0.2456, "level0_magnification": 40}).mpp == 0.2456
    assert Bag("a", bag.features, attributes={"mpp": 0.0}).mpp is None
