"""Manifests in memory: a data frame with the columns of a manifest file, and the bags that it names."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from seqssm.errors import InputError
from seqssm.files.tables import Table, table_of_frame
from seqssm_pathology.answers import Columns
from seqssm_pathology.files import BAG_SUFFIXES, slide_id

PATH = "path"
"""Column with the paths of the bags, relative to the current folder."""


def read_frame(frame: pd.DataFrame, columns: Columns) -> tuple[Table, dict[str, Path] | None]:
    """Read a manifest from a data frame, and find the bags that it names.

    Bags are named by a column ``path``, or by slide ids that are paths of bags. Without a column of slide ids, the file
    names are the slide ids.

    Args:
        frame: the manifest.
        columns: names of its columns.

    Returns:
        (table, bag file by slide id); None instead of the bags if the frame does not name any.

    Raises:
        InputError: a bag does not exist, a slide has two bags, or the frame is not a table.
    """
    table = table_of_frame(frame, text=True)
    cells = table.frame
    source = PATH if PATH in cells else columns.slide
    if source not in cells or (source != PATH and not cells[source].str.lower().str.endswith(BAG_SUFFIXES).all()):
        return table, None
    files = [Path(cell) for cell in cells[source]]
    if source == columns.slide or columns.slide not in cells:
        cells[columns.slide] = [file.name for file in files]
    bags: dict[str, Path] = {}
    for row, (name, file) in enumerate(zip(cells[columns.slide], files)):
        if not file.is_file():
            raise InputError(f"no such file: {file}", file=table.path, place=table.place(row, source))
        if bags.setdefault(slide_id(name), file) != file:
            raise InputError(
                f"duplicate bags of the slide {slide_id(name)}", file=table.path, place=table.place(row, source)
            )
    return table, bags
