"""Floating point operations of networks: formulas of the layers, and a counter for whole networks.

A multiplication and an addition count as two operations. As in PyTorch's counter, elementwise operations, norms and
biases are left out, except for those of the scans:

- selective scan: 9 N per channel and step (the usual count of the recurrence), and 2 for D x;
- scan of Mamba-2 and Mamba-3: 5 N per channel and step (input, decay, sum and readout), and 3 for dt x and D x;
- causal convolution: 2 W per channel and step.

A route takes one step per position.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from seqssm.nn.attention import Attention
from seqssm.nn.binary import PackedBinaryLinear
from seqssm.nn.mamba import Mamba
from seqssm.nn.mamba2 import Mamba2
from seqssm.nn.mamba3 import Mamba3
from seqssm.nn.mlp import MLP
from seqssm.nn.routed import RoutedMixer


def scan_flops(layer: RoutedMixer, positions: int) -> int:
    """Return the operations of a layer's convolutions and scans, without its projections.

    Args:
        layer: a Mamba, Mamba-2 or Mamba-3 layer.
        positions: number of positions of all sequences together.

    Raises:
        TypeError: another layer.
    """
    steps = positions * len(layer.ordering)
    own = layer.width // layer.groups  # channels of a route
    if isinstance(layer, Mamba):
        return steps * own * (2 * layer.settings.d_conv + 9 * layer.settings.d_state + 2)
    if isinstance(layer, Mamba2):
        return steps * (2 * layer.d_conv * layer.conv_width + own * (5 * layer.d_state + 3))
    if isinstance(layer, Mamba3):
        return steps * own * (5 * layer.d_state + 3)
    raise TypeError(f"there is no formula for {type(layer).__name__}")


def layer_flops(layer: nn.Module, batch: int, length: int) -> int:
    """Return the operations of one call of a layer, without routes over grids that skip positions.

    Args:
        layer: a linear layer, `Mamba`, `Mamba2`, `Mamba3`, `Attention` or `MLP`.
        batch: number of sequences.
        length: length of each.

    Raises:
        TypeError: another layer.
    """
    positions = batch * length
    if isinstance(layer, nn.Linear | PackedBinaryLinear):
        return 2 * positions * layer.in_features * layer.out_features
    if isinstance(layer, MLP):
        return sum(layer_flops(part, batch, length) for part in (layer.fc1, layer.fc2))
    if isinstance(layer, Attention):
        keys = length if layer.window is None else min(length, layer.window)
        products = 4 * positions * keys * layer.n_heads * layer.head_dim  # all pairs, of which causality masks half
        return products + sum(layer_flops(part, batch, length) for part in (layer.in_proj, layer.out_proj))
    if isinstance(layer, RoutedMixer):
        parts: list[Any] = [layer.in_proj, layer.out_proj]
        if isinstance(layer, Mamba):
            parts += [part for branch in layer.branches for part in (branch.x_proj, branch.dt_proj)]
        return scan_flops(layer, positions) + sum(layer_flops(part, batch, length) for part in parts)
    raise TypeError(f"there is no formula for {type(layer).__name__}")


def _attention_on_cpu(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    """Count PyTorch's attention kernel for CPUs, which its counter does not know."""
    batch, heads, rows, width = query
    return 2 * batch * heads * rows * key[-2] * (width + value[-1])


def count_flops(network: nn.Module, run: Callable[[], Any]) -> int:
    """Count the operations of a float network: PyTorch's counter, and formulas for the scans.

    Args:
        network: the network.
        run: calls it.
    """
    found = 0

    def add(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal found
        assert isinstance(layer, RoutedMixer)
        found += scan_flops(layer, inputs[0].shape[0] * inputs[0].shape[1])

    handles = [layer.register_forward_hook(add) for layer in network.modules() if isinstance(layer, RoutedMixer)]
    more = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_on_cpu}
    try:
        with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=more) as counter:
            run()
    finally:
        for handle in handles:
            handle.remove()
    return counter.get_total_flops() + found
