"""The scan of Mamba-2 (SSD), with one decay per head: the public functions and one module per engine."""

from seqssm_kernels.ssd_scan.public import ssd_scan, ssd_step

__all__ = ["ssd_scan", "ssd_step"]
