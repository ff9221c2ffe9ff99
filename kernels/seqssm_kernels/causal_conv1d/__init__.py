"""The causal depthwise convolution: the public functions and one module per engine."""

from seqssm_kernels.causal_conv1d.public import causal_conv1d, causal_conv1d_step

__all__ = ["causal_conv1d", "causal_conv1d_step"]
