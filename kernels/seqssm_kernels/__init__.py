"""Recurrences of state-space models: the scans of Mamba and Mamba-2, the causal convolution in
front of them, and their engines.

This package knows nothing of models, files or training. Importing it imports torch and nothing else; engines are
loaded, and compiled, on first use.
"""

from seqssm_kernels.causal_conv1d.public import causal_conv1d, causal_conv1d_step
from seqssm_kernels.cpu.memory import empty_cache
from seqssm_kernels.selective_scan.public import selective_scan, selective_scan_step
from seqssm_kernels.ssd_scan.public import ssd_scan, ssd_step

__all__ = [
    "causal_conv1d",
    "causal_conv1d_step",
    "empty_cache",
    "selective_scan",
    "selective_scan_step",
    "ssd_scan",
    "ssd_step",
]
