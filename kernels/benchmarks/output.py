"""Printing the rows of a benchmark."""

from __future__ import annotations

from typing import Any


def show(row: dict[str, Any]) -> None:
    """Print the entries of a row on one line, floats with three digits."""
    print("  ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)
