"""Convolution over the grid formed by the positions of a sequence."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqssm.orders import GeometryOrMany, Grid


class GridConv(nn.Module):
    """Depthwise convolution over a grid, GELU, and a projection: the local branch of EfficientVMamba's block.

    Args:
        d_model: width of the sequence, D.
        kernel_size: kernel size along each axis, in cells; must be odd.
        axes: number of axes of the grid, 2 or 3.

    Raises:
        ValueError: an even kernel size, or an unsupported number of axes.
    """

    def __init__(self, d_model: int, kernel_size: int, axes: int = 2) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"the kernel of a convolution over the grid must be odd, not {kernel_size}")
        if axes not in (2, 3):
            raise ValueError(f"a convolution over the grid has 2 or 3 axes, not {axes}")
        self.axes = axes
        kind = nn.Conv2d if axes == 2 else nn.Conv3d
        self.depthwise = kind(d_model, d_model, kernel_size, padding=kernel_size // 2, groups=d_model)
        self.project = nn.Linear(d_model, d_model)

    def reset_parameters(self) -> None:
        """Initialise all weights."""
        self.depthwise.reset_parameters()
        self.project.reset_parameters()

    def forward(self, x: Tensor, geometry: GeometryOrMany) -> Tensor:
        """Mix neighbouring cells.

        Args:
            x: input, (B, L, D), with one grid per sample, or packed grids in B = 1.
            geometry: one grid for all samples, or a list with one grid per packed sequence.

        Raises:
            ValueError: no grid, a wrong number of axes, or grids that do not match the L positions.
        """
        grids = list(geometry) if isinstance(geometry, Sequence) else [geometry]
        for grid in grids:
            if not isinstance(grid, Grid) or len(grid.shape) != self.axes:
                raise ValueError(
                    f"a convolution over the grid needs geometry=Grid(...) of {self.axes} axes, not {grid}"
                )
        sizes = [grid.positions for grid in grids]  # type: ignore[union-attr]
        if len(grids) == 1 and x.shape[1] % sizes[0] == 0:
            whole = x.reshape(-1, sizes[0], x.shape[2])
            return self._mixed(whole, grids[0].shape).reshape(x.shape)  # type: ignore[union-attr]
        if sum(sizes) != x.shape[1]:
            raise ValueError(f"the grids have {sizes} positions, the sequence {x.shape[1]}")
        parts = [self._mixed(part, grid.shape) for part, grid in zip(x.split(sizes, 1), grids)]  # type: ignore[union-attr]
        return torch.cat(parts, dim=1)

    def _mixed(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Convolve (b, positions, d) on grids of one shape."""
        cells = x.transpose(1, 2).unflatten(2, shape)
        return self.project(F.gelu(self.depthwise(cells).flatten(2).transpose(1, 2)))
