"""Checks of the files that commands write, before anything is computed. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from seqssm.errors import InputError
from seqssm.files.disk import require_new, require_no_folder, require_suffix

STUDENTS = "distill.json"
"""Name of the file in the folder of the students of ``distill`` from which it is continued."""
TABLES = (".csv", ".parquet")
"""Suffixes of the tables of ``predict``."""


def model_file(model: str | Path) -> Path:
    """Return the checkpoint of a run folder, or the checkpoint itself.

    Args:
        model: checkpoint or run folder.
    """
    return Path(model, "best.ckpt") if Path(model).is_dir() else Path(model)


def require_checkpoint(output: str | Path, overwrite: bool, source: str | Path) -> None:
    """Check that a checkpoint can be written.

    Args:
        output: the file to write.
        overwrite: whether an existing file is replaced.
        source: the checkpoint it is made from, or its run folder.

    Raises:
        InputError: the name does not end with .ckpt, or the file is a folder, the source, exists or cannot be written.
    """
    require_no_folder(output)
    if Path(output).suffix != ".ckpt":
        raise InputError(f"--output {output}: expected a name that ends with .ckpt")
    require_new(output, overwrite, [model_file(source)])


def require_students(output: str | Path, overwrite: bool, teacher: str | Path, resume: bool = False) -> Path:
    """Check that a set of students can be written, and return the folder of their runs, which is still to be made.

    Args:
        output: checkpoint of the set.
        overwrite: whether an earlier set is replaced.
        teacher: checkpoint or run folder of the teacher.
        resume: whether an interrupted distillation is continued, if there is one.

    Raises:
        InputError: as `require_checkpoint`; the folder holds the teacher or other files, or exists.
    """
    path, folder = model_file(teacher), Path(output).with_suffix("")
    for one in (Path(output), folder):
        if one.exists() and path.exists() and (one.samefile(path) or one.samefile(path.parent)):
            raise InputError("holds the teacher; choose a different --output", file=one)
    begun = (folder / STUDENTS).is_file()
    require_checkpoint(output, overwrite or begun, teacher)
    if folder.exists() and not (overwrite or (resume and begun)):
        how = "continue it with --resume, " if begun else ""
        raise InputError(f"already exists; {how}choose another --output or pass --overwrite", file=folder)
    if folder.exists() and overwrite:
        names = rf"(student-\d+|control)(\.yaml)?|{re.escape(STUDENTS)}"
        others = [one for one in folder.iterdir() if not re.fullmatch(names, one.name)]
        if others:
            raise InputError(
                f"contains {others[0].name}, which distill did not write, and would be replaced by the folder of the "
                "students; choose a different --output",
                file=folder,
            )
    return folder


def require_diagnosis(output: str | Path, overwrite: bool, inputs: Iterable[Any] = ()) -> Path:
    """Check the name of a table of ``diagnose``, and return that of its figure.

    Args:
        output: the CSV file.
        overwrite: whether to replace existing files.
        inputs: values of the other options, as for `seqssm.files.disk.require_new`.

    Raises:
        InputError: a name that does not end in ``.csv``, an input, or an existing file.
    """
    require_suffix(output, (".csv",))
    picture = Path(output).with_suffix(".png")
    inputs = list(inputs)
    for path in (output, picture):
        require_new(path, overwrite, inputs)
    return picture
