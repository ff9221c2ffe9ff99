"""Recurrences of state-space models: the scans of Mamba and Mamba-2, and the causal convolution that precedes them.

This package does not depend on models, files or training. Importing it imports torch only; engines are imported and
compiled on first use.
"""

from seqssm_kernels.causal_conv1d.public import causal_conv1d, causal_conv1d_step
from seqssm_kernels.cpu.dropout import dropout
from seqssm_kernels.cpu.memory import empty_cache
from seqssm_kernels.mamba_step.public import MambaWeights, mamba_step
from seqssm_kernels.selective_scan.public import selective_scan, selective_scan_step
from seqssm_kernels.selective_scan_int8.public import selective_scan_int8, selective_scan_int8_step
from seqssm_kernels.ssd_scan.public import ssd_scan, ssd_step
from seqssm_kernels.ssd_scan_int8.public import ssd_int8_step, ssd_scan_int8

__all__ = [
    "MambaWeights",
    "causal_conv1d",
    "causal_conv1d_step",
    "dropout",
    "empty_cache",
    "mamba_step",
    "selective_scan",
    "selective_scan_int8",
    "selective_scan_int8_step",
    "selective_scan_step",
    "ssd_int8_step",
    "ssd_scan",
    "ssd_scan_int8",
    "ssd_step",
]
