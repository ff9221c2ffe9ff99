"""Tables in memory: pandas frames, and those of other libraries through Arrow's stream interface."""

from __future__ import annotations

from typing import Any

import pandas as pd

from seqssm.errors import InputError


def is_frame(value: Any) -> bool:
    """Whether `value` is a table in memory: a pandas, polars or pyarrow one, or any with ``__arrow_c_stream__``."""
    return isinstance(value, pd.DataFrame) or hasattr(value, "__arrow_c_stream__")


def as_pandas(value: Any, expected: str = "expected a path or a data frame") -> pd.DataFrame:
    """Convert a table in memory to pandas.

    Args:
        value: a table for which `is_frame` is true.
        expected: what is accepted, for the message about another object.

    Raises:
        InputError: it is no table, has a single column without others (a series), or columns that pandas cannot hold.
    """
    if isinstance(value, pd.DataFrame):
        return value
    if not is_frame(value):
        raise InputError(f"{expected}, not {type(value).__name__}")
    if isinstance(value, pd.Series):
        raise InputError("expected a data frame, not Series; series.to_frame() is one, with the dates as its index")
    import pyarrow as pa

    try:
        return pa.table(value).to_pandas(date_as_object=False)
    except (TypeError, ValueError, pa.ArrowException) as error:  # of another library: any kind of object
        words = " ".join(str(error).split())[:200]
        raise InputError(f"this {type(value).__name__} cannot be converted to a pandas DataFrame: {words}") from None
