"""Names of orders: arguments, errors, composition, and adding an order by one entry."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from seqssm import Mamba, orders
from seqssm.errors import InputError
from seqssm.orders import Grid, Order, routes

sys.path.insert(0, str(Path(__file__).parent))
from order_cases import NAMES, spec_of


@pytest.fixture
def toy():
    """A new order: one formula under one decorator."""
    name = "even_columns_first"

    @orders.register(name, on=Grid, axes=(2,), example=(name, Grid(2, 3), [[0, 2, 3, 5, 1, 4]]))
    def even_columns_first(grid: Grid, start: orders.Seed = 0) -> torch.Tensor:
        """Columns with an even index first, row by row."""
        column = grid.cells()[1]
        return torch.argsort((column + start) % 2, stable=True)

    yield name
    del orders.ENTRIES[name]


def test_an_order_is_added_by_one_entry(toy):
    example = orders.ENTRIES[toy].example
    assert orders.build(toy, example.geometry).tolist() == example.rows
    torch.manual_seed(0)
    layer = Mamba(6, d_state=4, ordering=["forward", toy, {"reverse": {toy: 1}}])
    grids, x = [Grid(2, 3), Grid(3, 2)], torch.randn(1, 12, 6)
    alone = [layer(part, geometry=grid) for part, grid in zip(x.split(6, 1), grids, strict=True)]
    packed = layer(x, cu_seqlens=torch.tensor([0, 6, 12], dtype=torch.int32), geometry=grids)
    torch.testing.assert_close(packed, torch.cat(alone, 1))
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[0, 3:], mask[1, :6] = True, True
    padded = torch.full((2, 9, 6), float("nan"))
    padded[mask] = x[0]
    torch.testing.assert_close(layer(padded, mask=mask, geometry=grids)[mask], torch.cat(alone, 1)[0])
    with pytest.raises(InputError, match="did you mean even_columns_first"):
        routes("even_column_first")
    with pytest.raises(ValueError, match="already registered"):
        orders.register(toy, on=Grid, example=(toy, Grid(1, 1), [[0]]))(lambda grid: grid.cells()[0])


@pytest.mark.parametrize("name", NAMES)
def test_names_can_be_restored_from_plain_tuples(name):
    for order in routes(spec_of(name)):
        assert Order.from_plain(order.to_plain()) == order
        assert hash(order) == hash(Order.from_plain(order.to_plain()))
        assert order.name in orders.format_orders((order,)) or order.name == "forward"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("bidirectional", "forward, reverse"),
        (["forward", {"stride": 5}], "forward, stride(5)"),
        ({"stride": 5, "pads": True}, "stride(5, pads=True)"),
        ({"reverse": "hilbert"}, "reverse(hilbert)"),
        ({"along": "hilbert", "walk": "bidirectional"}, "hilbert, reverse(hilbert)"),
        ({"along": "hilbert", "walk": {"stride": 2}}, "stride(2) along hilbert"),
        ({"window": 2, "separate": True}, "window(2, separate=True)"),
        ({"atrous": 1}, "phase((0, 0), size=1)"),
        ("cross", "row, column, reverse(row), reverse(column)"),
    ],
)
def test_routes_in_words(spec, words):
    assert orders.format_orders(routes(spec)) == words


def test_the_documentation_lists_every_order():
    page = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert [name for name in NAMES if f"`{name}`" not in page] == []


def test_reversal_along_an_order_equals_its_reverse():
    assert routes({"along": "hilbert", "walk": "reverse"}) == routes({"reverse": "hilbert"})
    nested = routes({"along": {"along": "hilbert", "walk": {"stride": 2}}, "walk": "reverse"})
    expected = orders.relabel(orders.stride(12, 2), orders.visit(Order("hilbert"), Grid(3, 4)))
    assert torch.equal(orders.build(nested, Grid(3, 4)), expected.flip(-1))


def test_arguments_in_the_types_of_a_config():
    assert routes({"raster": [1, 0]}) == routes({"raster": (1, 0)})
    assert routes({"raster": None}) == routes("raster")
    assert routes({"degree": 3}) != routes("degree")
    assert routes({"pads": True, "stride": 3}) == routes({"stride": 3, "pads": True})
    assert routes(routes("cross")) == routes("cross")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("stride", "needs its rate, as in"),
        ("window", "needs its size, as in"),
        ({"window": 0}, "size of window must be a positive integer, not 0"),
        ({"random": -1}, "seed of random must be an integer of at least 0, not -1"),
        ({"degree": "x"}, "seed of degree must be an integer of at least 0 or null, not 'x'"),
        ({"video": "colour"}, "first of video must be 'space' or 'time', not 'colour'"),
        ({"raster": 1}, "axes of raster must be a list of axes, from 0 or null, not 1"),
        ({"shear": "down", "seperate": True}, "takes no further arguments, not 'seperate'"),
        ({"along": "cross", "walk": "forward"}, "base must be one route, not 4"),
        ({"along": "hilbert", "walk": "cross"}, "walk must be orders on a length"),
        ({"along": "hilbert"}, "needs its walk"),
        ({"reverse": "hilbrt"}, "did you mean hilbert"),
        (["forward", None], "an ordering must be a name"),
    ],
)
def test_errors_are_named(spec, message):
    with pytest.raises(InputError, match=message):
        routes(spec)
    with pytest.raises(InputError, match=message):
        Mamba(4, ordering=spec)


@pytest.mark.parametrize(
    ("spec", "merge", "message"),
    [
        ("bidirectional", "union", "exactly one route; of the 2 routes forward, reverse, 2 visit"),
        ({"atrous": 2}, "mean", "every route; of the 4 routes"),
        ({"atrous": 2}, "gate", "every route"),
        ({"atrous": 2}, "concat", "every route"),
        ({"phase": [0, 0], "size": 2}, "sum", "at least one route"),
        ("cross", "max", "merge must be one of sum, mean, concat, union, gate"),
        (["hilbert", "importance"], "sum", "no geometry is valid for all"),
    ],
)
def test_merges_must_fit_the_coverage(spec, merge, message):
    with pytest.raises(ValueError, match=message):
        orders.require_coverage(routes(spec), merge)


def test_valid_merges():
    for spec, merge in [("cross", "gate"), ({"atrous": 3}, "union"), ({"atrous": 3}, "sum"), ("forward", "union")]:
        orders.require_coverage(routes(spec), merge)
    assert orders.coverage(torch.tensor([[0, -1, 2], [-2, 0, 1]]), 4).tolist() == [2, 1, 1, 0]
