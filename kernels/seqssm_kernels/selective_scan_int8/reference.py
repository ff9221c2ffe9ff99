"""The executable definition of the selective scan of 8-bit integers: the float loop on integers times scales."""

from __future__ import annotations

from torch import Tensor

from seqssm_kernels.contract.calls import ScanInt8Call
from seqssm_kernels.selective_scan import reference


def forward(call: ScanInt8Call) -> tuple[Tensor, Tensor]:
    """Run the recurrence step by step; see `selective_scan.reference`."""
    out, final_state = reference.forward(call.dequantised())
    return out.to(call.dt.dtype), final_state
