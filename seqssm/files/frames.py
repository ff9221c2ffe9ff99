"""Tables in memory: pandas frames, and those of other libraries through Arrow's stream interface."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from seqssm.errors import InputError


def is_frame(value: Any) -> bool:
    """Whether `value` is a table in memory: a pandas, polars or pyarrow one, or any with ``__arrow_c_stream__``."""
    return isinstance(value, pd.DataFrame) or hasattr(value, "__arrow_c_stream__")


def with_index(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Make columns of an index of names, dates or several levels, or with a name; drop row numbers. Rows count from 0.

    Args:
        frame: the frame; not modified.
        path: its file, for messages.

    Raises:
        InputError: a column has the name of the index.
    """
    index = frame.index
    for name in index.names:
        if name is not None and name in frame.columns:
            raise InputError(f"the index and a column are both named {name}; rename one", file=path)
    numbers = index.nlevels == 1 and index.name is None and pd.api.types.is_integer_dtype(index)
    return frame.reset_index(drop=numbers)


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
