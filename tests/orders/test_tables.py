"""Order tables: the published vectors, one step per position, padding and packing against single sequences."""

from __future__ import annotations

import pytest
import torch

from seqssm import orders

SPECS = ["forward", "reverse", "bidirectional", {"stride": 2}, {"stride": 5}, ["forward", {"stride": 3}]]


def table(spec, length):
    """The full table, `forward` included."""
    found = orders.build(spec, length)
    return orders.forward(length) if found is None else found


@pytest.mark.parametrize(
    ("length", "rate", "expected"),
    [
        (7, 2, [0, 2, 4, 6, 1, 3, 5]),
        (7, 3, [0, 3, 6, 1, 4, 2, 5]),
        (12, 5, [0, 5, 10, 1, 6, 11, 2, 7, 3, 8, 4, 9]),
        (12, 4, [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]),
        (3, 8, [0, 1, 2]),
        (5, 1, [0, 1, 2, 3, 4]),
        (1, 4, [0]),
        (0, 4, []),
    ],
)
def test_stride_visits_every_rate_th_position(length, rate, expected):
    assert orders.stride(length, rate).tolist() == [expected]


@pytest.mark.parametrize(
    ("length", "rate", "expected"),
    [
        (7, 2, [0, 2, 4, 6, 1, 3, 5, -1]),
        (7, 3, [0, 3, 6, 1, 4, -1, 2, 5, -1]),
        (12, 5, [0, 5, 10, 1, 6, 11, 2, 7, -1, 3, 8, -1, 4, 9, -1]),
        (2, 4, [0, 1, -1, -1]),
        (6, 3, [0, 3, 1, 4, 2, 5]),
        (0, 4, []),
    ],
)
def test_stride_with_pads_is_the_published_sequence(length, rate, expected):
    assert orders.stride(length, rate, pads=True).tolist() == [expected]


@pytest.mark.parametrize("length", range(40))
@pytest.mark.parametrize("rate", [1, 2, 3, 5, 10])
def test_pads_only_add_pads(length, rate):
    padded = orders.stride(length, rate, pads=True)[0]
    rows = -(-length // rate)
    grid = torch.cat([torch.arange(length), torch.full((rows * rate - length,), -1)]).view(rows, rate)
    assert padded.tolist() == grid.T.flatten().tolist()
    assert padded[padded >= 0].tolist() == orders.stride(length, rate)[0].tolist()


def test_named_tables():
    assert orders.forward(3).tolist() == [[0, 1, 2]]
    assert orders.reverse(3).tolist() == [[2, 1, 0]]
    assert orders.bidirectional(3).tolist() == [[0, 1, 2], [2, 1, 0]]
    assert orders.build(["reverse", {"stride": 2}], 4).tolist() == [[3, 2, 1, 0], [0, 2, 1, 3]]


@pytest.mark.parametrize("length", [0, 1, 2, 7, 63, 64])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_every_route_visits_every_position_once(spec, length):
    rows = table(spec, length)
    assert rows.dtype == torch.int32
    for row in rows:
        assert sorted(row.tolist()) == list(range(length))


def test_routes_of_unequal_length_are_padded():
    rows = orders.build(["forward", {"stride": 2, "pads": True}], 3)
    assert rows.tolist() == [[0, 1, 2, -1], [0, 2, 1, -1]]


def test_plain_forward_needs_no_table():
    assert orders.build("forward", 9) is None
    assert orders.build([{"stride": 1}], 9) is None
    assert orders.build(["forward", "forward"], 2).tolist() == [[0, 1], [0, 1]]


def test_tables_are_cached_and_usable_in_training_after_inference():
    with torch.inference_mode():
        first = orders.build("reverse", 31)
    assert orders.build("reverse", 31, "cpu") is first
    assert orders.build("reverse", 32) is not first
    assert not first.is_inference()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("revers", "did you mean reverse"),
        ("xyzzy", "there are raster, row, column"),
        ("hilbrt", "did you mean hilbert"),
        ("stride", "needs its rate"),
        ({"strde": 5}, "did you mean stride"),
        ({"reverse": 2}, "an ordering must be a name"),
        ({"forward": 2}, "takes no arguments: write it as 'forward'"),
        ({"stride": 5, "pad": True}, "takes pads, not 'pad'"),
        ({"stride": 0}, "positive integer, not 0"),
        ({"stride": True}, "positive integer"),
        ({"stride": 2.0}, "positive integer"),
        ({"stride": 2, "pads": 1}, "true or false"),
        (["forward", "bidrectional"], "did you mean bidirectional"),
        ([], "an ordering must be a name"),
        (3, "an ordering must be a name"),
        ({}, "an ordering must be a name"),
        ({"pads": True}, "unknown ordering 'pads'"),
        ({"stride": 2, "window": 3}, "names the orders stride and window"),
    ],
)
def test_wrong_names_are_named(spec, message):
    with pytest.raises(ValueError, match=message):
        orders.build(spec, 4)


def test_check_refuses_duplicate_and_missing_positions():
    orders.check(torch.tensor([[0, -1, 1, -2, -1, -2]]), 2)
    with pytest.raises(ValueError, match="position 1 twice"):
        orders.check(torch.tensor([[0, 1], [1, 1]]), 2)
    with pytest.raises(ValueError, match="position 2;"):
        orders.check(torch.tensor([[[0, 2]]]), 2)
    with pytest.raises(ValueError, match="position -3;"):
        orders.check(torch.tensor([[0, -3]]), 2)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_from_mask_is_the_order_of_the_real_positions(spec):
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(9, 17, generator=generator) < 0.6
    mask[0], mask[1] = False, True
    mask[2] = torch.arange(17) < 6
    mask[3] = torch.arange(17) >= 11
    rows = orders.from_mask(mask, spec)
    orders.check(rows, 17)
    for sample, real in enumerate(mask):
        places = real.nonzero().flatten()
        alone = table(spec, len(places))
        expected = torch.where(alone < 0, -1, places[alone.clamp(min=0).long()]) if len(places) else alone
        assert rows[sample, :, : len(places)].tolist() == expected.tolist()
        assert (rows[sample, :, len(places) :] == -1).all()


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("lengths", [[3, 0, 5, 1], [8], [0, 0], [0, 4], [4, 0, 0], []])
def test_pack_is_the_order_inside_each_sequence(spec, lengths):
    ends = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    total = sum(lengths)
    rows = orders.pack(ends, total, spec)
    if spec == "forward":
        assert rows is None
        return
    expected = [table(spec, length) + int(start) for length, start in zip(lengths, ends, strict=False)]
    joined = torch.cat(expected, dim=1) if expected else torch.empty(len(rows), 0)
    assert rows.tolist() == joined.tolist()
    assert rows.dtype == torch.int32


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"\(batch, positions\)"):
        orders.from_mask(torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="sequences"):
        orders.pack(torch.zeros(2, 2), 3, "reverse")


def test_tables_are_built_inside_a_compiled_function():
    stride = orders.routes({"stride": 3})

    @torch.compile(fullgraph=True, backend="eager")
    def place(x):
        return x + orders.build(stride, x.shape[0])[0]

    x = torch.zeros(7)
    assert place(x).tolist() == [0, 3, 6, 1, 4, 2, 5]
