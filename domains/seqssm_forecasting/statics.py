"""Static properties of the series (a region, a capacity): a table with one row per series.

Numbers are standardised over the series of the training file, words are one-hot encoded. The network reads them as an
additional token per series.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from seqssm.errors import InputError, no_column
from seqssm.files.notation import is_number
from seqssm.files.numbers import MISSING, NO_WORD, numbers
from seqssm.files.tables import read_table
from seqssm_forecasting.series import listed


def read_static_features(path: str | Path, ids: list[str], rules: Sequence[Mapping[str, Any]] = ()) -> pd.DataFrame:
    """Read the rows of `ids`, in this order, with cells as text; the first column holds the ids.

    Args:
        path: the table.
        ids: names of the series.
        rules: encoding of the properties of a trained model (`learn`), in which ``none`` may be a word.

    Raises:
        InputError: an id is missing or duplicate, or a cell is empty; the message lists all missing ids.
    """
    path = Path(path)
    table = read_table(path)
    if len(table.columns) < 2:
        raise InputError("has only one column; expected series names, then their properties", file=path)
    key, *names = table.columns
    worded = {rule["name"] for rule in rules if "words" in rule}
    for name in names:
        cells = table.frame[name].str.lower()
        words = name in worded or not all(is_number(cell) for cell in cells[~cells.isin(MISSING)])
        empty = cells.isin(NO_WORD if words else MISSING).to_numpy()
        if empty.any():
            raise InputError("no value", file=path, place=table.place(int(empty.argmax()), name))
    twice = table.frame[key].duplicated().to_numpy()
    if twice.any():
        row = int(twice.argmax())
        raise InputError(f"duplicate series {table.frame[key][row]}", file=path, place=table.place(row))
    frame = table.frame.set_index(key)
    absent = [name for name in ids if name not in frame.index]
    if absent:
        raise InputError(f"has no row for the series {listed(absent, len(absent))}", file=path)
    for name in names:  # 1.234,5 is a number too, not a word
        cells = frame[name]
        if pd.to_numeric(cells, errors="coerce").isna().any() and all(is_number(cell) for cell in cells):
            frame[name] = numbers(table, [name])[0][:, 0]
    return frame.loc[ids].astype(object)


def learn(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Fit the encoding of each property, as plain Python: mean and standard deviation, or the words."""
    rules: list[dict[str, Any]] = []
    for name in frame.columns:
        try:
            values = frame[name].astype(np.float64).to_numpy()
        except ValueError:
            rules.append({"name": str(name), "words": sorted(set(frame[name]))})
            continue
        if not np.isfinite(values).all():
            raise InputError(f"the property {name} has a value that is not finite")
        std = float(values.std())
        rules.append({"name": str(name), "mean": float(values.mean()), "std": std if std > 0 else 1.0})
    return rules


def features(frame: pd.DataFrame, rules: list[dict[str, Any]], path: str | Path) -> Tensor:
    """Encode properties as features (series, features), float32.

    Raises:
        InputError: a property is missing, a word is unknown, or a numeric property contains text.
    """
    columns = []
    for rule in rules:
        name = rule["name"]
        if name not in frame.columns:
            raise no_column(name, frame.columns, option="a property the model was trained with", file=Path(path))
        if "words" in rule:
            unknown = [f"{key}: {word}" for key, word in frame[name].items() if word not in rule["words"]]
            if unknown:
                raise InputError(
                    f"unknown words in {name} ({listed(unknown)}); known: {listed(rule['words'])}",
                    file=Path(path),
                )
            columns += [(frame[name] == word).to_numpy(dtype=np.float64) for word in rule["words"]]
        else:
            try:
                values = frame[name].astype(np.float64).to_numpy()
            except ValueError:
                raise InputError(f"{name} contains text; the model was trained with numbers", file=Path(path)) from None
            columns.append((values - rule["mean"]) / rule["std"])
    return torch.from_numpy(np.stack(columns, axis=1).astype(np.float32))


def names(rules: list[dict[str, Any]]) -> list[str]:
    """List the names of the features in order: ``capacity``, ``region=north``, ..."""
    found: list[str] = []
    for rule in rules:
        found += [f"{rule['name']}={word}" for word in rule["words"]] if "words" in rule else [rule["name"]]
    return found
