"""The selective scan: the public functions and one module per engine."""

from seqssm_kernels.selective_scan.public import selective_scan, selective_scan_step

__all__ = ["selective_scan", "selective_scan_step"]
