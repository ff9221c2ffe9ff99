"""Orders on grids: neighbours, published claims, and known errors of published code."""

from __future__ import annotations

import pytest
import torch

from seqssm import orders
from seqssm.orders import Coordinates, Grid
from seqssm.orders.curves import generalised_hilbert


def visit(spec, *shape):
    (order,) = orders.routes(spec)
    return orders.visit(order, Grid(*shape))


def steps(path, width):
    """Distances of consecutive cells along both axes, (2, S - 1)."""
    return torch.stack([(path // width).diff().abs(), (path % width).diff().abs()])


def test_the_generalised_hilbert_curve_steps_to_neighbours():
    for height in range(1, 14):
        for width in range(1, 14):
            path = torch.tensor(generalised_hilbert(height, width))
            assert path.sort().values.tolist() == list(range(height * width))
            if height * width == 1:
                continue
            taken = steps(path, width)
            assert taken.max() == 1
            longer, shorter = max(height, width), min(height, width)
            diagonal = longer % 2 == 1 and shorter % 2 == 0 and shorter >= 4
            assert int((taken.sum(0) == 2).sum()) == diagonal


@pytest.mark.parametrize("shape", [(2, 2), (4, 4), (8, 8), (16, 16)])
def test_a_square_of_two_to_the_k_has_the_hilbert_curve_of_its_coordinates(shape):
    position = torch.arange(shape[0] * shape[1])
    coordinates = torch.stack([position % shape[1], position // shape[1]], dim=1)
    assert torch.equal(visit("hilbert", *shape), orders.hilbert(coordinates))


@pytest.mark.parametrize("name", ["row", "column", "zigzag", "serpentine", "morton", {"window": 2}])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (6, 4), (1, 7)])
def test_a_full_grid_by_coordinates_equals_the_grid(name, shape):
    position = torch.arange(shape[0] * shape[1])
    coordinates = Coordinates(torch.stack([position % shape[1], position // shape[1]], dim=1) * 256 + 7)
    assert torch.equal(visit(name, *shape), orders.visit(orders.routes(name)[0], coordinates))


@pytest.mark.parametrize("axes", [[0, 1], [1, 0]])
@pytest.mark.parametrize("flip", [[], [0], [1], [0, 1]])
def test_the_eight_serpentines_start_in_a_corner_and_step_to_neighbours(axes, flip):
    path = visit({"serpentine": axes, "flip": flip}, 3, 5)
    assert steps(path, 5).sum(0).eq(1).all()
    corner = (2 if 0 in flip else 0) * 5 + (4 if 1 in flip else 0)
    assert path[0] == corner
    assert steps(path[:2], 5).tolist() == [[0 if axes == [0, 1] else 1], [1 if axes == [0, 1] else 0]]


def test_the_serpentine_of_three_axes_steps_to_neighbours():
    path = visit("serpentine", 3, 4, 5)
    assert path.sort().values.tolist() == list(range(60))
    cells = torch.stack([path // 20, path // 5 % 4, path % 5])
    assert cells.diff(dim=1).abs().sum(0).eq(1).all()


def test_shears_wrap_around_and_are_not_diagonals():
    path = visit("shear", 4, 4)
    assert path[:4].tolist() == [0, 5, 10, 15]
    assert path[4:8].tolist() == [1, 6, 11, 12]  # leaves on the right, continues at the left
    assert visit({"shear": "up"}, 4, 4)[:4].tolist() == [0, 7, 10, 13]


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (6, 6), (2, 9)])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_windows_need_not_divide_the_grid(shape, size):
    path = visit({"window": size}, *shape)
    window = path // shape[1] // size * 100 + path % shape[1] // size
    assert window.diff().ge(0).all()  # window after window
    separate = visit({"window": size, "separate": True}, *shape)
    assert torch.equal(separate[separate >= 0], path)
    assert int((separate == orders.RESET).sum()) == len(window.unique()) - 1
    if shape[0] % size == 0 and shape[1] % size == 0:
        cells = torch.arange(shape[0] * shape[1]).view(shape[0] // size, size, shape[1] // size, size)
        assert torch.equal(path, cells.transpose(1, 2).flatten())


@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (4, 6), (5, 7)])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_atrous_routes_are_the_phases_of_the_padded_grid(shape, size):
    rows = orders.build({"atrous": size}, Grid(*shape))
    height, width = (-(-side // size) * size for side in shape)
    padded = torch.full((height, width), -1)
    padded[: shape[0], : shape[1]] = torch.arange(shape[0] * shape[1]).view(shape)
    for number, row in enumerate(rows):
        phase = padded[number % size :: size, number // size :: size]
        assert row.tolist() == (phase.T if number % size % 2 else phase).flatten().tolist()


def test_subspaces_are_separate_scans():
    shape = (2, 3, 2, 4)  # u, v, h, w
    for axes in ([0, 2], [1, 3], [2, 3], [0, 1], [3, 0]):
        path = visit({"subspace": axes}, *shape)
        cells = torch.arange(48).view(shape)
        rest = [axis for axis in range(4) if axis not in axes]
        expected = cells.permute(*rest, *axes).flatten(2).flatten(0, 1)
        assert torch.equal(path[path >= 0].view_as(expected), expected)
        assert (path == orders.RESET).nonzero().flatten().tolist() == [
            (number + 1) * (expected.shape[1] + 1) - 1 for number in range(expected.shape[0] - 1)
        ]


def test_video_orders_and_paths_per_layer():
    clip = torch.arange(2 * 3 * 4).view(2, 3, 4)
    space, time = (orders.build(spec, Grid(2, 3, 4)) for spec in ("video", {"video": "time"}))
    assert torch.equal(space[0].long(), clip.flatten())
    assert torch.equal(time[0].long(), clip.permute(1, 2, 0).flatten())
    assert torch.equal(time[1], time[0].flip(0))
    layers = [orders.routes({"alternate": "cross", "layer": layer}) for layer in range(6)]
    assert [layer[0] for layer in layers] == [*orders.routes("cross"), *orders.routes("cross")[:2]]


@pytest.mark.parametrize("length", range(1, 30))
@pytest.mark.parametrize("slices", [1, 2, 3, 7])
def test_inter_slice_takes_one_position_of_each_slice(length, slices):
    row = orders.build({"inter_slice": slices}, length)
    row = orders.forward(length)[0] if row is None else row[0]
    size = -(-length // slices)
    padded = torch.cat([torch.arange(length), torch.full((size * slices - length,), -1)]).view(slices, size)
    assert row.tolist() == [position for position in padded.T.flatten().tolist() if position >= 0]


def test_high_degrees_are_last_with_the_chosen_ties():
    degrees = torch.tensor([2, 5, 2, 2, 1])
    walked = orders.build("degree", orders.Degrees(degrees))[0].tolist()
    assert walked == [4, 0, 2, 3, 1]
    ties = orders.Degrees(degrees, ties=torch.tensor([0.3, 0, 0.1, 0.2, 0]))
    assert orders.build("degree", ties)[0].tolist() == [4, 2, 3, 0, 1]
    seeded = [orders.build({"degree": seed}, orders.Degrees(degrees))[0] for seed in range(6)]
    assert all(torch.equal(degrees[row.long()], degrees.sort().values) for row in seeded)
    assert len({tuple(row.tolist()) for row in seeded}) > 1
    again = orders.build({"degree": 3}, orders.Degrees(degrees))[0]
    assert torch.equal(again, seeded[3])


def test_values_of_a_sample_are_never_cached():
    scores = torch.tensor([3.0, 1.0, 2.0])
    geometry = orders.Scores(scores)
    first = orders.build("importance", geometry)
    scores.neg_()
    assert orders.build("importance", geometry).tolist() == [[0, 2, 1]]
    assert first.tolist() == [[1, 2, 0]]
    assert orders.build("hilbert", Grid(3, 4)) is orders.build("hilbert", Grid(3, 4), "cpu")


@pytest.mark.parametrize(
    ("spec", "geometry", "message"),
    [
        ("hilbert", orders.Length(12), r"needs a grid of 2 axes or coordinates, not a length of 12.*geometry=Grid"),
        ("hilbert", Grid(2, 3, 4), r"needs a grid of 2 axes or coordinates, not Grid\(2, 3, 4\)"),
        ("importance", Grid(3, 4), r"needs scores, not Grid\(3, 4\).*geometry=Scores"),
        ("degree", orders.Scores(torch.zeros(3)), "needs degrees, not 3 scores"),
        ({"raster": [0, 0]}, Grid(3, 4), "axes of a grid of 2"),
        ("video", Grid(3, 4), "axes of a grid of 2"),
        ({"subspace": [0, 4]}, Grid(2, 2, 2), "some of those of Grid"),
        ({"serpentine": [0, 1], "flip": [2]}, Grid(2, 2), "no axis 2 to flip"),
        ({"phase": [2, 0], "size": 2}, Grid(2, 2), "two remainders below its size 2"),
    ],
)
def test_orders_refuse_what_they_are_not_defined_on(spec, geometry, message):
    with pytest.raises(ValueError, match=message):
        orders.build(spec, geometry)


@pytest.mark.parametrize("wrong", [(), (0,), (3, -1), (2.0, 2), (True, 3)])
def test_grids_have_positive_sizes(wrong):
    with pytest.raises(ValueError, match="positive integers"):
        Grid(*wrong)


def test_values_must_have_one_entry_per_position():
    for kind in (orders.Degrees, orders.Scores):
        with pytest.raises(ValueError, match="have shape"):
            kind(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match="ties have shape"):
        orders.Degrees(torch.zeros(4), ties=torch.zeros(3))
    with pytest.raises(ValueError, match="coordinates must have shape"):
        Coordinates(torch.zeros(4, 3))
