"""The report of a test: scores and tables, printed and written under the same names."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class Report:
    """The result of a test.

    Attributes:
        metrics: values by printed name: ``{"mse": 0.386, "mae": 0.405}``. `kfold` averages these.
        tables: (title, frame) pairs, with the baselines as rows.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    tables: list[tuple[str, pd.DataFrame]] = field(default_factory=list)

    def text(self) -> str:
        """Format the report for printing: one line per metric, then the tables."""
        width = max((len(name) for name in self.metrics), default=0)
        blocks = ["\n".join(f"{name:<{width}}  {number(value)}" for name, value in self.metrics.items())]
        blocks += [
            f"{title}\n{frame.to_string(index=False, float_format=number, na_rep='-')}" for title, frame in self.tables
        ]
        return "\n\n".join(block for block in blocks if block)

    def to_dict(self) -> dict[str, Any]:
        """Convert the report for `metrics.json`: values by printed name; NaN becomes None."""
        return {
            "metrics": {name: to_builtin(value) for name, value in self.metrics.items()},
            "tables": [
                {
                    "title": title,
                    "rows": [{str(k): to_builtin(v) for k, v in row.items()} for row in frame.to_dict("records")],
                }
                for title, frame in self.tables
            ],
        }


def number(value: float) -> str:
    """Format a number for tables: four decimals; scientific notation for very large and very small values."""
    if not math.isfinite(value):
        return str(value)
    if value != 0 and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.3e}"
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.1f}"


def to_builtin(value: Any) -> Any:
    """Convert NumPy and torch scalars to Python's for JSON; NaN becomes None."""
    if hasattr(value, "item") and not isinstance(value, str):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)
