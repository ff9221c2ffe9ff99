"""The selective scan of 8-bit integers, for inference: the public functions and one module per engine."""

from seqssm_kernels.selective_scan_int8.public import selective_scan_int8, selective_scan_int8_step

__all__ = ["selective_scan_int8", "selective_scan_int8_step"]
