"""The scan of Mamba-2 of 8-bit integers, for inference: the public functions and one module per engine."""

from seqssm_kernels.ssd_scan_int8.public import ssd_int8_step, ssd_scan_int8

__all__ = ["ssd_int8_step", "ssd_scan_int8"]
