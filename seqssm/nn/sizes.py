"""Checks of layer arguments."""

from __future__ import annotations

from typing import Any


def require_positive(**sizes: int) -> None:
    """Raise ValueError for the first size below 1.

    Args:
        **sizes: sizes by argument name.
    """
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, not {size}")


def require_head_sizes(layer: Any) -> None:
    """Check the sizes shared by layers with heads and groups of heads.

    Args:
        layer: a layer with `d_model`, `width`, `groups` (of routes), `d_state`, `head_dim`, `n_groups` and `dt_range`.

    Raises:
        ValueError: a size below 1, sizes that are not divisible, or a range that is not positive and ascending.
    """
    require_positive(d_model=layer.d_model, d_state=layer.d_state, head_dim=layer.head_dim, n_groups=layer.n_groups)
    if layer.width < 1:
        raise ValueError(f"expand * d_model must be at least 1, not {layer.width}")
    if layer.width % (layer.head_dim * layer.groups):
        raise ValueError(
            f"expand * d_model = {layer.width} channels do not divide into heads of {layer.head_dim}"
            + (f" for {layer.groups} groups of routes" if layer.groups > 1 else "")
        )
    heads = layer.width // layer.head_dim // layer.groups
    if heads % layer.n_groups:
        raise ValueError(f"{heads} heads do not divide into n_groups = {layer.n_groups}")
    require_range("dt_min and dt_max", *layer.dt_range)


def require_range(name: str, low: float, high: float) -> None:
    """Raise ValueError unless ``0 < low <= high``.

    Args:
        name: name of the range, or of its two ends.
        low: lower end.
        high: upper end.
    """
    if not 0 < low <= high:
        raise ValueError(f"{name} must be positive and ascending, not {low} and {high}")
