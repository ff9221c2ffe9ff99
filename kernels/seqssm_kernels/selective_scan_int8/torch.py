"""The selective scan of 8-bit integers with PyTorch operations: the float scan on a copy of the values."""

from __future__ import annotations

from torch import Tensor

from seqssm_kernels.contract.calls import ScanInt8Call
from seqssm_kernels.selective_scan import torch as float_engine


def forward(call: ScanInt8Call) -> tuple[Tensor, Tensor]:
    """Run the scan; see `engines` for the contract."""
    out, final_state, _ = float_engine.forward(call.dequantised(), False)
    return out.to(call.dt.dtype), final_state
