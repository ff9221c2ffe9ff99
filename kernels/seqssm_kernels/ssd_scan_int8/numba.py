"""The CPU engine of the Mamba-2 scan of 8-bit integers: the kernels of the float scan.

They convert integers in registers, where a row is loaded, and multiply them by their scales: there is no copy of x, B
or C. The operations that follow are those of the float scan, so results have the bits of the float scan of the values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from seqssm_kernels.contract.calls import Scales, SsdInt8Call
from seqssm_kernels.ssd_scan import numba as float_engine


def kernels() -> dict[str, Callable[[], Any]]:
    """Return no kernels: those of the float scan are used."""
    return {}


def forward(call: SsdInt8Call) -> tuple[Tensor, Tensor]:
    """Run the scan; see `engines` for the contract."""
    return float_engine.forward(call.integers(), False, call.scales())[:2]


def step(call: tuple[Any, ...], scales: Scales) -> tuple[Tensor, Tensor] | None:
    """One step; None for calls that the kernel does not support.

    Args:
        call: arguments of `ssd_step`, in order, with integer x, B and C.
        scales: scales of x, B and C.
    """
    return float_engine.step(*call, scales=scales)
