"""Scan orders as integer tables: which place a route visits at each step.

A table has shape (R, S), or (B, R, S) when every sample has its own: R routes of S steps, int32 place ids, -1 for a
step that does not happen. The scan and the causal convolution read it as an index (`seqssm_kernels.selective_scan`);
nothing is copied, and outputs come back by place, so no order needs an inverse.

An ordering is named, in a config as in Python, by a string (``"reverse"``), by a mapping with options
(``{"stride": 5}``, ``{"stride": 5, "pads": True}``), or by a list of those, whose routes are put side by side
(``["forward", {"stride": 5}]`` is MambaMIL's SR-Mamba).

Each order is one formula, `place -> step`, for a sequence of any length. Whole sequences (`build`), samples with
padding (`from_mask`) and sequences that lie one behind the other (`pack`) are the same formula with other counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

ABSENT = -1
CACHED_TABLES = 64


@dataclass(frozen=True)
class Route:
    """One route of an ordering.

    Attributes:
        name: ``"forward"``, ``"reverse"`` or ``"stride"``.
        rate: of ``stride``; 1 elsewhere.
        pads: whether the steps that fill the last row up (``stride``) are kept as absent ones.
    """

    name: str
    rate: int = 1
    pads: bool = False

    @property
    def is_forward(self) -> bool:
        """Whether places are visited from the first to the last."""
        return self.name == "forward" or (self.name == "stride" and self.rate == 1)

    def step(self, place: Tensor, length: Tensor | int) -> Tensor:
        """The step at which each place of a sequence of `length` places is visited; pads are not counted."""
        if self.name == "reverse":
            return length - 1 - place
        if self.name == "stride":
            column, row = place % self.rate, place // self.rate
            longer = length % self.rate  # the first columns have one place more than the others
            earlier = torch.minimum(column, longer) if isinstance(longer, Tensor) else column.clamp(max=longer)
            return column * (length // self.rate) + earlier + row
        return place


Spec = str | Mapping[str, Any] | Route | Sequence[Any]
"""How an ordering is named; `routes` gives the tuple of `Route` behind it, which is a name of it too."""


def forward(length: int, device: torch.device | str | None = None) -> Tensor:
    """(1, length): places from the first to the last."""
    return _table((Route("forward"),), length, device)


def reverse(length: int, device: torch.device | str | None = None) -> Tensor:
    """(1, length): places from the last to the first."""
    return _table((Route("reverse"),), length, device)


def bidirectional(length: int, device: torch.device | str | None = None) -> Tensor:
    """(2, length): forward, and reverse."""
    return _table(routes("bidirectional"), length, device)


def stride(length: int, rate: int, pads: bool = False, device: torch.device | str | None = None) -> Tensor:
    """(1, S): every `rate`-th place from the first one on, then every `rate`-th from the second one, and so on.

    This is MambaMIL's reordering (arXiv 2403.06800; in its code: pad, view as rows of `rate`, transpose,
    flatten). Length 7 at rate 2 gives 0 2 4 6 1 3 5.

    Args:
        length: places.
        rate: distance of consecutive steps; 1 is `forward`.
        pads: keeps the padded positions of the published sequence as absent steps, 0 2 4 6 1 3 5 -1, so that
            S = ceil(length / rate) * rate. An absent step changes no state: the scan's result is the same as without.
            (The published code runs over rows of zeros there, by which the state decays.)
        device: where the table lies.

    Raises:
        ValueError: `rate` is not a positive integer.
    """
    return _table(routes({"stride": rate, "pads": pads}), length, device)


def routes(spec: Spec) -> tuple[Route, ...]:
    """The routes that an ordering's name stands for.

    Raises:
        ValueError: an unknown name, with the nearest one; a wrong option.
    """
    if isinstance(spec, Route):
        return (spec,)
    if isinstance(spec, str):
        if spec == "bidirectional":
            return Route("forward"), Route("reverse")
        if spec in ("forward", "reverse"):
            return (Route(spec),)
        if spec == "stride":
            raise ValueError('the ordering stride needs its rate: {"stride": 5}')
        raise ValueError(_unknown(spec))
    if isinstance(spec, Mapping):
        return (_stride_route(spec),)
    if isinstance(spec, Sequence) and spec:
        return tuple(route for part in spec for route in routes(part))
    raise ValueError(f"an ordering is a name, a mapping like {{'stride': 5}} or a list of those, not {spec!r}")


def _stride_route(spec: Mapping[str, Any]) -> Route:
    if "stride" not in spec:
        name = next((str(key) for key in spec if key != "pads"), "pads")
        if name in NAMES:
            raise ValueError(f"the ordering {name} takes no options: write it as {name!r}")
        raise ValueError(_unknown(name))
    wrong = [key for key in spec if key not in ("stride", "pads")]
    if wrong:
        raise ValueError(f"the ordering stride takes pads, not {wrong[0]!r}")
    rate, pads = spec["stride"], spec.get("pads", False)
    if isinstance(rate, bool) or not isinstance(rate, int) or rate < 1:
        raise ValueError(f"the rate of stride must be a positive integer, not {rate!r}")
    if not isinstance(pads, bool):
        raise ValueError(f"pads of stride must be true or false, not {pads!r}")
    return Route("stride", rate, pads)


NAMES = ("forward", "reverse", "bidirectional", "stride")


def _unknown(name: str) -> str:
    found = get_close_matches(name, NAMES, n=1, cutoff=0.5)
    hint = f"; did you mean {found[0]}?" if found else f"; there are {', '.join(NAMES)}"
    return f"unknown ordering {name!r}{hint}"


def build(spec: Spec, length: int, device: torch.device | str | None = None) -> Tensor | None:
    """The table of an ordering for whole sequences of `length` places.

    Args:
        spec: the ordering.
        length: places of a sequence.
        device: where the table lies.

    Returns:
        int32 (R, S), the same object for the same arguments (not to be written to), or None for plain `forward`, which
        needs no table. Routes of unequal length are filled up with -1.

    Raises:
        ValueError: as `routes`; a route that visits a place twice.
    """
    parsed = routes(spec)
    if len(parsed) == 1 and parsed[0].is_forward:
        return None
    if torch.compiler.is_compiling():  # a traced table must not outlive its trace
        return _table(parsed, length, device)
    return _cached(parsed, length, torch.device(device or "cpu"))


@lru_cache(maxsize=CACHED_TABLES)
def _cached(parsed: tuple[Route, ...], length: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # or the table would be of no use to a later call with gradients
        table = _table(parsed, length, None)
        check(table, length)
        return table.to(device)


def _table(parsed: tuple[Route, ...], length: int, device: torch.device | str | None) -> Tensor:
    place = torch.arange(length, device=device)
    rows = []
    for route in parsed:
        row = _invert(route.step(place, length), place)
        if route.pads:
            row = _with_pads(row, length, route.rate)
        rows.append(row)
    steps = max(row.shape[0] for row in rows)
    filled = [torch.nn.functional.pad(row, (0, steps - row.shape[0]), value=ABSENT) for row in rows]
    return torch.stack(filled).to(torch.int32)


def _with_pads(row: Tensor, length: int, rate: int) -> Tensor:
    """The strided sequence with an absent step at the end of each column that the last, partial row does not reach."""
    longest = -(-length // rate)
    step = torch.arange(longest * rate, device=row.device)
    place = step // longest + (step % longest) * rate if longest else step
    return torch.where(place < length, place, ABSENT)


def _invert(step: Tensor, place: Tensor) -> Tensor:
    """The places by step, from the steps by place; both (..., L)."""
    return torch.empty_like(step).scatter_(-1, step, place.expand_as(step))


def from_mask(mask: Tensor, spec: Spec = "forward") -> Tensor:
    """The table of an ordering over the real places of padded sequences.

    The order is built over the real places alone, wherever the padding lies: padding on the left, on the right and in
    between gives the same states and, at the real places, the same outputs as no padding.

    Args:
        mask: (B, L), true at real places.
        spec: the ordering. Pads of ``stride`` are left out; they would change nothing.

    Returns:
        int32 (B, R, L): first the real places in the route's order, then -1. Made on the mask's device, which is not
        waited for.

    Raises:
        ValueError: a mask that is not (B, L); as `routes`.
    """
    if mask.ndim != 2:
        raise ValueError(f"a mask has shape (batch, places), not {tuple(mask.shape)}")
    parsed = routes(spec)
    real = mask.bool()
    count = real.sum(-1, keepdim=True)
    rank = real.cumsum(-1) - 1
    # padded places take the steps behind the real ones, so that every step is written exactly once
    behind = count + (~real).cumsum(-1) - 1
    place = torch.arange(mask.shape[1], device=mask.device)
    visited = torch.where(real, place, ABSENT)
    rows = []
    for route in parsed:
        step = torch.where(real, route.step(rank.clamp(min=0), count), behind)
        rows.append(_invert(step, visited))
    return torch.stack(rows, dim=1).to(torch.int32)


def pack(cu_seqlens: Tensor, length: int, spec: Spec) -> Tensor | None:
    """The table of an ordering inside each of several sequences that lie one behind the other.

    Args:
        cu_seqlens: (n + 1,) integers, 0 and the ends of the n sequences; the last one is `length`. Sequences may be
            empty. Not waited for when it lies on another device.
        length: places of all sequences together.
        spec: the ordering. Pads of ``stride`` are left out, so that `cu_seqlens` counts the steps of
            the table too.

    Returns:
        int32 (R, length), on the device of `cu_seqlens`, or None for plain `forward`.

    Raises:
        ValueError: `cu_seqlens` is not a vector; as `routes`.
    """
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 1:
        raise ValueError(f"cu_seqlens has shape (sequences + 1,), not {tuple(cu_seqlens.shape)}")
    parsed = routes(spec)
    if len(parsed) == 1 and parsed[0].is_forward:
        return None
    place = torch.arange(length, device=cu_seqlens.device)
    ends = cu_seqlens.to(torch.int64)
    if ends.shape[0] == 1:  # no sequence
        return torch.empty(len(parsed), 0, dtype=torch.int32, device=cu_seqlens.device)
    sequence = torch.searchsorted(ends[1:], place, right=True).clamp(max=ends.shape[0] - 2)
    start, count = ends[sequence], ends[sequence + 1] - ends[sequence]
    rows = [_invert(start + route.step(place - start, count), place) for route in parsed]
    return torch.stack(rows).to(torch.int32)


def check(table: Tensor, length: int) -> None:
    """Refuses a table by which a route visits a place twice or one that does not exist. Waits for the device.

    Args:
        table: integer (R, S) or (B, R, S); -1 (absent step) and -2 (reset) are fine anywhere.
        length: places.

    Raises:
        ValueError: with the first such id.
    """
    if table.numel() == 0:
        return
    low, high = int(table.min()), int(table.max())
    if low < -2 or high >= length:
        raise ValueError(f"an order names the place {low if low < -2 else high}; there are {length}, from 0")
    ordered = table.sort(-1).values
    twice = (ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)
    if bool(twice.any()):
        raise ValueError(f"an order visits the place {int(ordered[..., 1:][twice][0])} twice in one route")


def describe(parsed: tuple[Route, ...]) -> str:
    """The routes in words, for messages: ``"forward, stride(5)"``."""
    return ", ".join(f"stride({route.rate})" if route.name == "stride" else route.name for route in parsed)
