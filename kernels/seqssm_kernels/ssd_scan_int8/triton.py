"""The GPU engine of the Mamba-2 scan of 8-bit integers: the kernels of the float scan.

They convert integers in registers, where they load them, and multiply them by their scales: there is no copy of x.
"""

from __future__ import annotations

from torch import Tensor

from seqssm_kernels.contract.calls import SsdInt8Call
from seqssm_kernels.ssd_scan import triton as float_engine


def forward(call: SsdInt8Call) -> tuple[Tensor, Tensor]:
    """Run the scan; see `engines` for the contract."""
    return float_engine.forward(call.integers(), False, call.scales())[:2]
