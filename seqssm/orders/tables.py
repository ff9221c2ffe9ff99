"""Order tables: the position that each route visits at each step, for whole, padded and packed sequences.

A table has shape (R, S), or (B, R, S) with one table per sample: R routes of S steps, int32 position ids, -1 for an
absent step, -2 for a reset of the state. Scan and causal convolution use it as an index
(`seqssm_kernels.selective_scan`): nothing is copied, and outputs are returned by position, so that no order needs an
inverse.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import _disable_current_modes

from seqssm.orders.geometry import DESCRIBED, OF_VALUES, Geometry, Grid, Length, describe_geometry
from seqssm.orders.registry import Order, Orders
from seqssm.orders.spec import Spec, routes

ABSENT = -1
RESET = -2
CACHED_TABLES = 64

GeometryOrMany = Geometry | Sequence[Geometry] | None
"""One geometry for all sequences, one per sequence, or None for plain lengths."""


class Walk(NamedTuple):
    """Arguments of a layer's scan.

    Attributes:
        order: order table, int32, or None for plain forward routes.
        cu_seqlens: ends of packed sequences counted in steps of the table, or None.
    """

    order: Tensor | None
    cu_seqlens: Tensor | None


def build(spec: Spec, geometry: Geometry | int, device: torch.device | str | None = None) -> Tensor | None:
    """Build the table of an ordering for whole sequences.

    Args:
        spec: name of the ordering.
        geometry: geometry of the positions; an integer is a plain length.
        device: device of the table; None for the CPU, or the device of the geometry's tensors.

    Returns:
        Order table, int32 (R, S), or (B, R, S) if the geometry differs between samples. For a length or a grid, the
        same object (not to be modified) is returned for the same arguments. None for plain `forward`, which needs no
        table. Routes of unequal length are padded with -1.

    Raises:
        ValueError: as `routes`, an order that is not defined on `geometry`, or a route that visits a position twice.
    """
    parsed = routes(spec)
    if len(parsed) == 1 and parsed[0].is_forward:
        return None
    described = geometry if isinstance(geometry, (*DESCRIBED, *OF_VALUES)) else Length(geometry)
    if isinstance(described, OF_VALUES):
        return _table(parsed, described).to(device or described.values.device)
    if torch.compiler.is_compiling():  # a traced table must not outlive its trace
        if all(order.closed_form for order in parsed):
            return _table(parsed, described, device)
        sizes = described.shape if isinstance(described, Grid) else (described.positions,)
        sizes = tuple(operator.index(size) for size in sizes)  # one trace per size
        plain = tuple(order.to_plain() for order in parsed)
        return _constant(plain, type(described).__name__, sizes).to(device or "cpu")
    return _cached(parsed, described, torch.device(device or "cpu"))


@lru_cache(maxsize=CACHED_TABLES)
def _cached(parsed: Orders, geometry: Geometry, device: torch.device) -> Tensor:
    # real tensors even while tracing, and usable in later calls with gradients
    with torch.inference_mode(False), _disable_current_modes():
        table = _table(parsed, geometry)
        check(table, geometry.positions)
        return table.to(device)


@torch.compiler.assume_constant_result
def _constant(parsed: tuple[Any, ...], kind: str, sizes: tuple[int, ...]) -> Tensor:
    """Build a table that a traced program stores as a constant, because formulas need values that traces lack.

    Orders and geometry are passed as plain tuples, the only form that a trace can pass on.
    """
    geometry = {"Grid": Grid, "Length": Length}[kind](*sizes)
    with _disable_current_modes():  # formulas run on real tensors
        rows = _table(tuple(Order.from_plain(plain) for plain in parsed), geometry).tolist()
    return torch.tensor(rows, dtype=torch.int32, device="cpu")


def _table(parsed: Orders, geometry: Geometry, device: torch.device | str | None = "cpu") -> Tensor:
    return _stacked([visit(order, geometry, device) for order in parsed])


def visit(order: Order, geometry: Geometry, device: torch.device | str | None = "cpu") -> Tensor:
    """Compute the positions of one route in order of visit.

    Args:
        order: the route.
        geometry: geometry of the positions.
        device: device on which closed-form orders are computed.

    Returns:
        Positions, int64 (S,), or (B, S) if the geometry differs between samples; -1 and -2 as in a table.

    Raises:
        ValueError: the order is not defined on `geometry`.
    """
    if order.along is not None:
        base = visit(order.along, geometry, device)
        own = visit(replace(order, along=None), Length(base.shape[-1]), device)
        return follow(own.to(base.device), base)
    entry, arguments = order.entry, dict(order.arguments)
    own_geometry = entry.require(geometry)
    if entry.visit is None:
        position = torch.arange(own_geometry.positions, device=device)
        row = _invert(entry.step(position, own_geometry.positions, **arguments), position)  # type: ignore[misc]
    elif isinstance(own_geometry, OF_VALUES) and own_geometry.samples is not None and not entry.pointwise:
        samples = [own_geometry.sample(index) for index in range(own_geometry.samples)]
        row = _joined([entry.visit(sample, **arguments) for sample in samples])
    else:
        row = entry.visit(own_geometry, **arguments)
        row = row if isinstance(own_geometry, OF_VALUES) or device is None else row.to(device)
    return row.flip(-1) if order.backward else row


def follow(table: Tensor, order: Tensor) -> Tensor:
    """Replace step s of a table of steps by step ``table[s]`` of `order`; negative ids are unchanged.

    Args:
        table: table of steps, integers (..., S).
        order: positions in forward order, (..., N) or (N,) int64.
    """
    table = table.long()
    return torch.where(table >= 0, order[..., table.clamp(min=0)], table)


def relabel(table: Tensor, order: Tensor) -> Tensor:
    """Walk an ordering's table over `order` instead of 0, 1, 2, ...: step s visits ``order[table[s]]``.

    Args:
        table: order table, (R, S) integers; negative ids stay unchanged.
        order: positions in forward order, (N,).

    Returns:
        Order table, int32 (R, S).
    """
    return follow(table, order).to(torch.int32)


def from_mask(mask: Tensor, spec: Spec = "forward", geometry: GeometryOrMany = None) -> Tensor:
    """Build the table of an ordering over the valid positions of padded sequences.

    Padding may be on the left, on the right or in between: the states, and the outputs at valid positions, are those of
    the sequence without it. On one grid for all samples the masked positions are hidden cells, and the route is that of
    the grid without them.

    Args:
        mask: valid positions, (B, L) bool.
        spec: name of the ordering. Pads of ``stride`` are omitted, as they do not change the result.
        geometry: None for plain lengths; one geometry of all L positions; or the geometry of each sample's valid
            positions, one for all samples or a list with one per sample.

    Returns:
        Order table, int32 (B, R, S), on the device of the mask. Closed-form orders are computed there without
        synchronisation: first the valid positions in the route's order, then -1.

    Raises:
        ValueError: a mask that is not (B, L), a geometry of another size, or as `build`.
    """
    if mask.ndim != 2:
        raise ValueError(f"mask must have shape (batch, positions), not {tuple(mask.shape)}")
    real, geometry = mask.bool(), by_sample(geometry, mask)
    rows = [_masked_row(order, real, geometry) for order in routes(spec)]
    return _stacked(rows)


def by_sample(geometry: GeometryOrMany, mask: Tensor) -> GeometryOrMany:
    """Geometry of padded sequences: of all L positions, or a list with one per sample of its valid positions.

    Args:
        geometry: argument of `from_mask`.
        mask: valid positions, (B, L) bool.

    Raises:
        ValueError: a list of another length, or values for another number of samples.
    """
    samples = mask.shape[0]
    if isinstance(geometry, Sequence):
        _require_number(len(geometry), samples, "samples")
        return geometry
    if geometry is None:
        return None
    if isinstance(geometry, OF_VALUES) and geometry.samples is not None:
        _require_number(geometry.samples, samples, "samples")
    if geometry.positions == mask.shape[1]:
        return geometry
    return [geometry.sample(b) if isinstance(geometry, OF_VALUES) else geometry for b in range(samples)]


def _masked_row(order: Order, real: Tensor, geometry: GeometryOrMany) -> Tensor:
    """Compute one route over the valid positions, (B, S)."""
    if order.closed_form:
        return _masked_steps(order, real)
    if isinstance(geometry, Grid) or _pointwise(order, geometry):
        row = visit(order, geometry).to(real.device).expand(real.shape[0], -1)  # type: ignore[arg-type]
        hidden = ~real.gather(1, row.clamp(min=0)) & (row >= 0)
        return row.masked_fill(hidden, ABSENT)
    found = []
    for number, own in enumerate(real):
        index = own.nonzero().flatten()
        part = _part(geometry, number, index)
        if part.positions != len(index):
            raise ValueError(
                f"sample {number} has {len(index)} real positions, its geometry is {describe_geometry(part)}"
            )
        found.append(follow(visit(order, part).to(real.device), index))
    return _joined(found) if found else real.new_zeros((0, 0), dtype=torch.int64)


def _masked_steps(order: Order, real: Tensor) -> Tensor:
    count = real.sum(-1, keepdim=True)
    rank = (real.cumsum(-1) - 1).clamp(min=0)
    # padded positions take the steps after the valid ones, so that each step is written exactly once
    behind = count + (~real).cumsum(-1) - 1
    position = torch.arange(real.shape[1], device=real.device)
    step = torch.where(real, _step(order, rank, count), behind)
    return _invert(step, torch.where(real, position, ABSENT))


def pack(cu_seqlens: Tensor, length: int, spec: Spec, geometry: GeometryOrMany = None) -> Tensor | None:
    """Build the table of an ordering inside each of several packed sequences.

    Args:
        cu_seqlens: start offsets of the n packed sequences and the total `length`, (n + 1,) integers. Sequences may be
            empty.
        length: total number of positions of all sequences.
        spec: name of the ordering. Pads of ``stride`` are omitted, so that `cu_seqlens` counts the steps of the table
            too.
        geometry: argument of `pack_steps`.

    Returns:
        Order table, int32 (R, length), on the device of `cu_seqlens`, or None for plain `forward`.

    Raises:
        ValueError: as `pack_steps`, or an ordering whose steps differ from its positions in number, e.g. due to resets.
    """
    table, steps = pack_steps(cu_seqlens, length, spec, geometry)
    if steps is not cu_seqlens:
        raise ValueError("this ordering has other steps than positions: use pack_steps, which counts them")
    return table


def pack_steps(cu_seqlens: Tensor, length: int, spec: Spec, geometry: GeometryOrMany = None) -> Walk:
    """Like `pack`, for all orderings: with resets or disjoint routes steps and positions may differ in number.

    Closed-form and pointwise orders are computed on the device of `cu_seqlens` without synchronisation; others read it
    on the host if the geometry does not determine the lengths.

    Args:
        cu_seqlens: argument of `pack`.
        length: argument of `pack`.
        spec: argument of `pack`.
        geometry: None for plain lengths; a grid, which is that of every sequence; coordinates, degrees or scores of all
            `length` positions; or a list with one geometry per sequence.

    Returns:
        The table, and the ends of the sequences in steps: `cu_seqlens` itself if they equal those in positions.

    Raises:
        ValueError: `cu_seqlens` is not a vector, a geometry has another size, or as `build`.
    """
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 1:
        raise ValueError(f"cu_seqlens must have shape (sequences + 1,), not {tuple(cu_seqlens.shape)}")
    parsed = routes(spec)
    if len(parsed) == 1 and parsed[0].is_forward:
        return Walk(None, cu_seqlens)
    if cu_seqlens.shape[0] == 1:  # no sequences
        return Walk(torch.empty(len(parsed), 0, dtype=torch.int32, device=cu_seqlens.device), cu_seqlens)
    if isinstance(geometry, OF_VALUES):
        require_positions(geometry, length)
    if all(order.closed_form or _pointwise(order, geometry) for order in parsed):
        return Walk(_stacked([_packed_row(order, cu_seqlens, length, geometry) for order in parsed]), cu_seqlens)
    ends = _ends(cu_seqlens, length, geometry)
    blocks = []
    for number, (start, end) in enumerate(pairwise(ends)):
        index = torch.arange(start, end, device=cu_seqlens.device)
        part = _part(geometry, number, index)
        rows = [visit(order, part).to(cu_seqlens.device) for order in parsed]
        blocks.append(_stacked([follow(row[row != ABSENT], index) for row in rows]))
    table = torch.cat(blocks, dim=1)
    counts = [block.shape[1] for block in blocks]
    if counts == [end - start for start, end in pairwise(ends)]:
        return Walk(table, cu_seqlens)
    steps = torch.tensor([0, *counts], device="cpu").cumsum(0)
    return Walk(table, steps.to(cu_seqlens.device, cu_seqlens.dtype))


def _packed_row(order: Order, cu_seqlens: Tensor, length: int, geometry: GeometryOrMany) -> Tensor:
    """Compute one closed-form or pointwise route inside every sequence, (length,)."""
    position = torch.arange(length, device=cu_seqlens.device)
    ends = cu_seqlens.to(torch.int64)
    sequence = torch.searchsorted(ends[1:], position, right=True).clamp(max=ends.shape[0] - 2)
    if not order.closed_form:
        row = visit(order, geometry).to(cu_seqlens.device)  # type: ignore[arg-type]
        return row[torch.argsort(sequence[row], stable=True)]
    start, count = ends[sequence], ends[sequence + 1] - ends[sequence]
    return _invert(start + _step(order, position - start, count), position)


def walk(
    parsed: Orders,
    length: int,
    *,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    geometry: GeometryOrMany = None,
    device: torch.device | str | None = None,
) -> Walk:
    """Compute the arguments of a layer's scan for a call: the table, and the ends of packed sequences in its steps.

    Args:
        parsed: routes of the layer.
        length: number of positions of a sequence, or of all packed sequences, L.
        mask: valid positions, (B, L) bool.
        cu_seqlens: start offsets of packed sequences and the total length, (n + 1,).
        geometry: geometry of the positions, see `from_mask` and `pack_steps`.
        device: device of the table if neither a mask nor packing determines it.

    Raises:
        ValueError: `mask` with `cu_seqlens`, or as `build`, `from_mask` and `pack_steps`.
    """
    if cu_seqlens is not None:
        if mask is not None:
            raise ValueError("packed sequences have no padding: give mask or cu_seqlens, not both")
        return pack_steps(cu_seqlens, length, parsed, geometry)
    if mask is not None:
        return Walk(from_mask(mask, parsed, geometry), None)
    if isinstance(geometry, Sequence):
        raise ValueError("a list of geometries, one per sequence, needs a mask or cu_seqlens")
    if geometry is not None:
        require_positions(geometry, length)
    return Walk(build(parsed, length if geometry is None else geometry, device), None)


def require_positions(geometry: Geometry, length: int) -> None:
    """Raise ValueError unless a geometry has as many positions as the sequences."""
    if geometry.positions != length:
        raise ValueError(f"the geometry is {describe_geometry(geometry)}, the sequences have {length} positions")


def check(table: Tensor, length: int) -> None:
    """Reject a table with a route that visits a position twice or one that does not exist. Synchronises the device.

    Args:
        table: order table, integers (R, S) or (B, R, S); -1 (absent step) and -2 (reset) are allowed anywhere.
        length: number of positions.

    Raises:
        ValueError: the table is invalid; the message has the first such id.
    """
    if table.numel() == 0:
        return
    low, high = int(table.min()), int(table.max())
    if low < RESET or high >= length:
        raise ValueError(f"an order names position {low if low < RESET else high}; there are {length}, from 0")
    ordered = table.sort(-1).values
    twice = (ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)
    if bool(twice.any()):
        raise ValueError(f"an order visits position {int(ordered[..., 1:][twice][0])} twice in one route")


def _part(geometry: GeometryOrMany, number: int, index: Tensor) -> Geometry:
    """Return the geometry of one sample or sequence with the positions `index` of the whole."""
    if isinstance(geometry, Sequence):
        return geometry[number]
    if isinstance(geometry, OF_VALUES):
        return geometry.sample(number).select(index)
    return geometry if geometry is not None and not isinstance(geometry, Length) else Length(len(index))


def _pointwise(order: Order, geometry: GeometryOrMany) -> bool:
    return isinstance(geometry, OF_VALUES) and order.along is None and order.entry.pointwise


def _ends(cu_seqlens: Tensor, length: int, geometry: GeometryOrMany) -> list[int]:
    """Return the ends of packed sequences on the host."""
    if geometry is None or isinstance(geometry, (Length, *OF_VALUES)):
        return cu_seqlens.tolist()
    count = cu_seqlens.shape[0] - 1
    if isinstance(geometry, Sequence):
        _require_number(len(geometry), count, "sequences")
    sizes = [one.positions for one in (geometry if isinstance(geometry, Sequence) else [geometry] * count)]
    ends = [0, *torch.tensor(sizes, device="cpu").cumsum(0).tolist()]
    if ends[-1] != length or (cu_seqlens.device.type == "cpu" and cu_seqlens.tolist() != ends):
        raise ValueError(f"the geometries have {sizes} positions; cu_seqlens and {length} positions do not match them")
    return ends


def _require_number(given: int, needed: int, what: str) -> None:
    if given != needed:
        raise ValueError(f"{given} geometries for {needed} {what}")


def _step(order: Order, position: Tensor, length: Tensor) -> Tensor:
    """Compute the steps of a closed-form order; `length` is a tensor."""
    step = order.entry.step(position, length, **dict(order.arguments))  # type: ignore[misc]
    return length - 1 - step if order.backward else step


def _invert(step: Tensor, position: Tensor) -> Tensor:
    """Invert steps by position to positions by step, both (..., L)."""
    return torch.empty_like(step).scatter_(-1, step, position.expand_as(step))


def _joined(rows: list[Tensor]) -> Tensor:
    """Pad rows (..., S) of unequal length with -1, and stack them along a new first axis."""
    steps = max(row.shape[-1] for row in rows)
    return torch.stack([F.pad(row, (0, steps - row.shape[-1]), value=ABSENT) for row in rows])


def _stacked(rows: list[Tensor]) -> Tensor:
    """Stack the routes' rows (S,) or (B, S) to a table (R, S) or (B, R, S)."""
    if any(row.ndim == 2 for row in rows):
        batch = next(row.shape[0] for row in rows if row.ndim == 2)
        rows = [row if row.ndim == 2 else row.expand(batch, -1) for row in rows]
    device = rows[0].device if all(row.device == rows[0].device for row in rows) else None
    if device is None:  # closed-form orders combined with those of values on another device
        device = next(row.device for row in rows if row.device.type != "cpu")
    return _joined([row.to(device) for row in rows]).movedim(0, -2).to(torch.int32)
