"""Order tables and packing: valid values, and their check on the CPU.

An order is a table of position indices, `(1 or B, 1 or R, S)`. Besides indices in `[0, L)` it may hold `ABSENT` (no
step: state and window are unchanged, nothing is read or written) and `RESET` (state and window are set to zero, no
position is visited). A route visits a position at most once; otherwise two steps would write the same output.
"""

from __future__ import annotations

import itertools
import os
from typing import TypeVar

import torch
from torch import Tensor

from seqssm_kernels.contract.calls import ConvCall, ScanCall, ScanInt8Call, SsdCall, SsdInt8Call

ABSENT = -1
RESET = -2

INTEGER_DTYPES = (torch.int32, torch.int64, torch.int16, torch.int8, torch.uint8)
_INT32_MAX = 2**31 - 1

Call = TypeVar("Call", ScanCall, ConvCall, SsdCall, ScanInt8Call, SsdInt8Call)


def check_order(order: Tensor, length: int) -> None:
    """Raise ValueError unless every row of `order` visits positions in `[0, length)`, each at most once.

    Args:
        order: integer table `(1 or B, 1 or R, S)` on the CPU.
        length: number of positions `L`.
    """
    if order.numel() == 0:
        return
    low, high = (int(v) for v in torch.aminmax(order))
    if low < RESET or high >= length:
        ids = order.to(torch.int64)  # small integer dtypes cannot represent every length
        row = ((ids < RESET) | (ids >= length)).nonzero()[0].tolist()
        raise ValueError(
            f"order[{', '.join(map(str, row))}] is {int(order[tuple(row)])}: a position index must be in [0, {length}) "
            f"or {ABSENT} (no step) or {RESET} (state set to zero)"
        )
    # One flag per position of each row, preceded by two flags for the indices -2 and -1: a row without duplicates sets
    # as many flags as it has visits.
    seen = torch.zeros((*order.shape[:-1], length + 2), dtype=torch.bool, device=order.device)
    seen.scatter_(-1, order.to(torch.int64) - RESET, True)
    if int(seen[..., 2:].sum()) != int((order >= 0).sum()):
        batch, route, place = _first_duplicate(order, seen[..., 2:])
        raise ValueError(
            f"order visits position {place} twice in row [{batch}, {route}]: a route visits a position at most once"
        )


def _first_duplicate(order: Tensor, seen: Tensor) -> tuple[int, int, int]:
    rows = (seen.sum(-1) != (order >= 0).sum(-1)).nonzero()[0].tolist()
    ids, counts = torch.unique(order[tuple(rows)], return_counts=True)
    return rows[0], rows[1], int(ids[(counts > 1) & (ids >= 0)][0])


def check_cu_seqlens(cu_seqlens: Tensor, steps: int) -> None:
    """Raise ValueError unless `cu_seqlens` starts at 0, is non-decreasing, and ends at the number of steps.

    Args:
        cu_seqlens: integer boundaries `(n + 1,)` on the CPU; sequence `i` holds the steps `cu_seqlens[i]` to
            `cu_seqlens[i + 1] - 1`.
        steps: number of steps `S`.
    """
    values = cu_seqlens.tolist()
    if values[0] != 0:
        raise ValueError(f"cu_seqlens starts at {values[0]}: it must start at 0")
    for i, (start, stop) in enumerate(itertools.pairwise(values)):
        if stop < start:
            raise ValueError(f"cu_seqlens decreases from {start} to {stop} at index {i + 1}: it must be non-decreasing")
    if values[-1] != steps:
        raise ValueError(f"cu_seqlens ends at {values[-1]}: it must end at the number of steps, {steps}")


def prepare(call: Call) -> Call:
    """Convert both tables to the contiguous int32 that engines read, after checking tables on the CPU.

    Values are checked before the conversion, so that a 64-bit index cannot wrap around into a valid one. Tables on
    other devices are not read, and out-of-range indices there are absent steps. SEQSSM_CHECK=1 enables the check on
    every device, which synchronises with the device.

    Args:
        call: call in canonical form, with tables of any integer dtype.

    Raises:
        ValueError: an index out of range, a position visited twice by a route, or invalid sequence boundaries.
    """
    order, cu_seqlens, length = call.order, call.cu_seqlens, call.x.shape[1]
    if order is None and cu_seqlens is None:
        return call
    if order is not None:
        if order.device.type == "cpu" or _checks_everywhere():
            check_order(order.cpu(), length)
        elif order.dtype == torch.int64:
            order = order.clamp(RESET - 1, _INT32_MAX)
        order = order.to(torch.int32).contiguous()
    if cu_seqlens is not None:
        if cu_seqlens.device.type == "cpu" or _checks_everywhere():
            check_cu_seqlens(cu_seqlens.cpu(), length if order is None else order.shape[-1])
        cu_seqlens = cu_seqlens.to(torch.int32).contiguous()
    return call._replace(order=order, cu_seqlens=cu_seqlens)


def _checks_everywhere() -> bool:
    return os.environ.get("SEQSSM_CHECK") == "1"


def check_sizes(length: int, steps: int) -> None:
    """Raise ValueError if the length or the number of steps does not fit 32-bit indices."""
    if length > _INT32_MAX or steps > _INT32_MAX:
        raise ValueError(f"lengths up to {_INT32_MAX} are supported, got {max(length, steps)}")
