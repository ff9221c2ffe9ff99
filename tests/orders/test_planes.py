"""Orders from coordinates and scores: published vectors, bijections, and their use in a layer."""

from __future__ import annotations

import pytest
import torch

from seqssm import orders
from seqssm.nn.mamba import Mamba

NAMES = ["row", "column", "serpentine", "hilbert"]


def grid(rows: int, columns: int, step: int = 1) -> torch.Tensor:
    """x, y of a full grid, row by row, (rows * columns, 2)."""
    place = torch.arange(rows * columns)
    return torch.stack([place % columns, place // columns], dim=1) * step


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("row", (3, 4), list(range(12))),
        ("column", (3, 4), [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]),
        ("serpentine", (3, 4), [0, 1, 2, 3, 7, 6, 5, 4, 8, 9, 10, 11]),
        ("hilbert", (4, 4), [0, 1, 5, 4, 8, 12, 13, 9, 10, 14, 15, 11, 7, 6, 2, 3]),
        ("hilbert", (2, 2), [0, 1, 3, 2]),
    ],
)
def test_vectors(name, shape, expected):
    assert orders.by_lattice(grid(*shape), name).tolist() == expected
    assert orders.by_lattice(grid(*shape, step=512) + 77, name).tolist() == expected


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1), (5, 3), (13, 6)])
def test_every_position_is_visited_once(name, shape):
    order = orders.by_lattice(grid(*shape), name)
    assert sorted(order.tolist()) == list(range(shape[0] * shape[1]))


@pytest.mark.parametrize("side", [2, 4, 8, 16, 32])
def test_hilbert_steps_to_neighbours(side):
    path = grid(side, side)[orders.hilbert(grid(side, side))]
    assert (path[1:] - path[:-1]).abs().sum(1).eq(1).all()


@pytest.mark.parametrize("name", NAMES)
def test_shuffled_positions_are_visited_in_the_same_order(name):
    coords = grid(6, 5, step=256)
    shuffle = orders.random(30, 3)
    plain, shuffled = orders.by_lattice(coords, name), orders.by_lattice(coords[shuffle], name)
    assert torch.equal(coords[shuffle][shuffled], coords[plain])


def test_positions_off_a_grid_and_no_positions():
    coords = torch.tensor([[5, 9], [1, 2], [7, 2], [2**40, 3]])
    for name in NAMES:
        assert sorted(orders.by_lattice(coords, name).tolist()) == [0, 1, 2, 3]
        assert orders.by_lattice(torch.empty(0, 2), name).tolist() == []
    with pytest.raises(ValueError, match="unknown order"):
        orders.by_lattice(coords, "spiral")
    with pytest.raises(ValueError, match="shape"):
        orders.row_major(torch.zeros(4, 3))


def test_scores_sort_inside_each_sequence():
    scores = torch.tensor([3.0, 1.0, 2.0, 0.5, 0.5, -1.0, 9.0])
    assert orders.by_score(scores).tolist() == [5, 3, 4, 1, 2, 0, 6]
    cu = torch.tensor([0, 3, 3, 7], dtype=torch.int32)
    assert orders.by_score(scores, cu).tolist() == [1, 2, 0, 5, 3, 4, 6]
    two = torch.stack([scores, -scores])
    assert orders.by_score(two, cu).tolist() == [[1, 2, 0, 5, 3, 4, 6], [0, 2, 1, 6, 3, 4, 5]]


def test_random_depends_on_the_seed_alone():
    assert torch.equal(orders.random(50, 1), orders.random(50, 1))
    assert not torch.equal(orders.random(50, 1), orders.random(50, 2))


@pytest.mark.parametrize(
    "spec", ["bidirectional", ["forward", {"stride": 3}], ["forward", {"stride": 3, "pads": True}]]
)
def test_an_order_by_coordinates_equals_that_of_the_sorted_sequence(spec):
    torch.manual_seed(0)
    layer = Mamba(8, d_state=4, ordering=spec, engine="reference").double()
    x, order = torch.randn(1, 11, 8, dtype=torch.float64), orders.random(11, 4)
    table = orders.relabel(orders.build(spec, 11), order)
    walked, sorted_ = layer(x, order=table), layer(x[:, order])
    torch.testing.assert_close(walked[:, order], sorted_, rtol=0, atol=1e-12)


def test_the_layer_refuses_an_order_of_other_routes():
    layer = Mamba(8, ordering="bidirectional")
    x = torch.randn(1, 5, 8)
    with pytest.raises(ValueError, match="2 routes"):
        layer(x, order=torch.zeros(3, 5, dtype=torch.int32))
    with pytest.raises(ValueError, match="not both"):
        layer(x, order=orders.build("bidirectional", 5), mask=torch.ones(1, 5))
