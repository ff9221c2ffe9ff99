"""Orders on a plain length, and orders composed of others: reversal, walks along another order, one path per layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from seqssm.orders.geometry import Grid, Length
from seqssm.orders.registry import Count, Order, Orders, Seed, register, register_composite, register_step

FORWARD = (Order("forward"),)


@register_step("forward", example=("forward", Length(4), [[0, 1, 2, 3]]), forward=lambda: True)
def forward(position: Tensor, length: Tensor | int) -> Tensor:
    """From the first position to the last.

    Args:
        position: positions, from 0.
        length: number of positions.
    """
    return position


def _with_pads(geometry: Length, rate: int, pads: bool) -> Tensor:
    """The strided sequence; with `pads`, columns that the last, partial row does not reach end with an absent step."""
    length, longest = geometry.positions, -(-geometry.positions // rate)
    if not pads:  # without a selection by value, which a traced program of any length cannot have
        position = torch.arange(length, device="cpu")
        return torch.empty_like(position).scatter_(0, stride(position, length, rate), position)
    step = torch.arange(longest * rate, device="cpu")
    position = step // longest + (step % longest) * rate if longest else step
    return torch.where(position < length, position, -1)


@register_step(
    "stride",
    example=({"stride": 2, "pads": True}, Length(7), [[0, 2, 4, 6, 1, 3, 5, -1]]),
    forward=lambda rate, pads: rate == 1,
    visit=_with_pads,
)
def stride(position: Tensor, length: Tensor | int, rate: Count, pads: bool = False) -> Tensor:
    """Every `rate`-th position from the first, then from the second, ...: MambaMIL's transpose (arXiv 2403.06800).

    Args:
        position: positions, from 0.
        length: number of positions.
        rate: distance between consecutive steps; 1 is `forward`.
        pads: whether the table of a whole sequence keeps the padded steps of the published sequence as absent steps,
            which do not change the state. (The published code scans zero rows there, which decay the state.)
    """
    column, row = position % rate, position // rate
    longer = length % rate  # the first columns have one more position than the others
    earlier = torch.minimum(column, longer) if isinstance(longer, Tensor) else column.clamp(max=longer)
    return column * (length // rate) + earlier + row


@register_step(
    "inter_slice",
    example=({"inter_slice": 3}, Length(12), [[0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]]),
    forward=lambda slices: slices == 1,
)
def inter_slice(position: Tensor, length: Tensor | int, slices: Count) -> Tensor:
    """One position of each of `slices` equal slices, then the next one of each: the third route of SegMamba.

    Args:
        position: positions, from 0.
        length: number of positions.
        slices: number of slices, of ceil(length / slices) positions each; the last ones are shorter if the length is
            not a multiple.
    """
    size = -(-length // slices)
    size = size.clamp(min=1) if isinstance(size, Tensor) else max(size, 1)
    number, offset = position // size, position % size
    longer = length % size  # the first offsets occur in one more slice than the others
    earlier = torch.minimum(offset, longer) if isinstance(longer, Tensor) else offset.clamp(max=longer)
    return offset * (length // size) + earlier + number


@register("random", on=Length, example=({"random": 0}, Length(6), [[2, 5, 3, 0, 1, 4]]))
def random(geometry: Length, seed: Seed) -> Tensor:
    """A random permutation determined by the seed: the negative control of all other orders.

    Args:
        geometry: the length.
        seed: random seed of the permutation.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randperm(geometry.positions, generator=generator, device="cpu")


@register_composite("reverse", example=("reverse", Length(4), [[3, 2, 1, 0]]))
def reverse(of: Orders = FORWARD) -> Sequence[Order]:
    """Each route of another ordering, walked backward.

    Args:
        of: the other ordering.
    """
    return [order.reversed() for order in of]


@register_composite("bidirectional", example=("bidirectional", Length(3), [[0, 1, 2], [2, 1, 0]]))
def bidirectional(of: Orders = FORWARD) -> Sequence[Order]:
    """Another ordering and its reverse.

    Args:
        of: the other ordering.
    """
    return [*of, *(order.reversed() for order in of)]


@register_composite(
    "along",
    example=(
        {"along": "hilbert", "walk": ["forward", {"stride": 2}]},
        Grid(2, 4),
        [[0, 4, 5, 1, 2, 6, 7, 3], [0, 5, 2, 7, 4, 1, 6, 3]],
    ),
)
def along(base: Orders, walk: Orders) -> Sequence[Order]:
    """Orders on a length, walked over the steps of another order instead of the positions 0, 1, 2, ...

    Args:
        base: the other order, with one route.
        walk: orders on a length.

    Raises:
        ValueError: `base` has several routes, or an order in `walk` is not defined on a length.
    """
    if len(base) != 1:
        raise ValueError(f"base must be one route, not {len(base)}")
    for order in walk:
        if Length not in order.entry.on or (order.along is not None and Length not in order.along.entry.on):
            raise ValueError(f"walk must be orders on a length, as forward and stride are, not {order.name}")
    return [order.walked_along(base[0]) for order in walk]


@register_composite(
    "alternate", example=({"alternate": ["row", "column"], "layer": 3}, Grid(2, 3), [[0, 3, 1, 4, 2, 5]])
)
def alternate(of: Orders, layer: Seed = 0) -> Sequence[Order]:
    """One route per layer (ZigMa), without merging: layer l uses route l mod K of an ordering with K routes.

    Args:
        of: the ordering.
        layer: index of the layer, from 0.
    """
    return [of[layer % len(of)]]
