"""The scan of Mamba-2 of 8-bit integers with PyTorch operations: the float scan on a copy of the values."""

from __future__ import annotations

from torch import Tensor

from seqssm_kernels.contract.calls import SsdInt8Call
from seqssm_kernels.ssd_scan import torch as float_engine


def forward(call: SsdInt8Call) -> tuple[Tensor, Tensor]:
    """Run the scan; see `engines` for the contract."""
    out, final_state, _ = float_engine.forward(call.dequantised(), False)
    return out.to(call.dt.dtype), final_state
