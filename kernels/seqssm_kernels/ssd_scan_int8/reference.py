"""The executable definition of the Mamba-2 scan of 8-bit integers: the float loop on integers times scales."""

from __future__ import annotations

from torch import Tensor

from seqssm_kernels.contract.calls import SsdInt8Call
from seqssm_kernels.ssd_scan import reference


def forward(call: SsdInt8Call) -> tuple[Tensor, Tensor]:
    """Run the recurrence step by step; see `ssd_scan.reference`."""
    out, final_state = reference.forward(call.dequantised())
    return out.to(call.dt.dtype), final_state
