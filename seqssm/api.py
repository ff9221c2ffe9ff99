"""The Python entry points: `fit`, `load` and `find`."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqssm.domain import find_domain
from seqssm.errors import InputError
from seqssm.files.datasets import find
from seqssm.files.frames import as_pandas, is_frame
from seqssm.prediction.model import Model, load
from seqssm.training import run
from seqssm.training.data import DataModule
from seqssm.training.lists import plain_options
from seqssm.training.run_folder import BEST
from seqssm.training.task import Task

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["find", "fit", "load"]


def fit(
    domain: str,
    *,
    preset: str | Path | None = None,
    data: str | Path | pd.DataFrame | Mapping[str, Any] | DataModule | None = None,
    model: Mapping[str, Any] | Task | None = None,
    trainer: Mapping[str, Any] | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
) -> Model:
    """Train a model, as ``seqssm <domain> fit`` does.

    Args:
        domain: ``"ecg"``, ``"forecasting"``, ``"pathology"``, ...
        preset: name of a preset, or a YAML file; by default the domain's preset for the user's own files.
        data: the user's file; a data frame (pandas, polars, pyarrow); options of the data module (``{"file": "my.csv",
            "horizon": 24}``), of which the file may be a data frame; or a data module.
        model: options of the task (``{"d_model": 64}``), or a task.
        trainer: options of Lightning's Trainer (``{"max_epochs": 5}``); also ``early_stopping`` and
            ``seed_everything``.
        output: folder of the run; by default a temporary one, removed when Python exits.
        overwrite: whether to replace a run in that folder.

    Returns:
        The trained model, loaded from the run's best checkpoint: ``fit(...).test()``, ``.predict(files)``.

    Raises:
        InputError: as for the command.
    """
    one = find_domain(domain)
    sections: dict[str, Any] = {}
    options = run.Options(sections=sections)
    if isinstance(data, DataModule):
        options.data = data
    elif isinstance(data, Mapping):
        sections["data"] = plain_options("data", {name: value for name, value in data.items() if not is_frame(value)})
        frames = [name for name in data if name not in sections["data"]]
        if frames and frames != [one.data_argument]:
            raise InputError(f"data: {frames[0]} cannot be a DataFrame")
        options.frame = as_pandas(data[frames[0]]) if frames else None
    elif isinstance(data, str | Path):
        sections["data"] = {_file_option(one): str(data)}
    elif data is not None:
        _file_option(one)
        options.frame = as_pandas(data)
    if isinstance(model, Task):
        options.task = model
    elif model is not None:
        sections["model"] = plain_options("model", model)
    given = dict(trainer or {})
    for name in ("early_stopping", "seed_everything"):
        if name in given:
            sections[name] = given.pop(name)
    sections["trainer"] = given
    keep: Any = None
    if output is None:
        keep = tempfile.TemporaryDirectory(prefix="seqssm-")
        output = Path(keep.name) / "run"
    chosen = [preset or one.own_preset or one.example_preset]
    finished = run.fit(one, chosen, options, output=output, overwrite=overwrite)
    trained = load(finished.folder.path / BEST)
    trained.run, trained.data, trained.keep = finished.folder.path, finished.cli.datamodule, keep
    return trained


def _file_option(domain: Any) -> str:
    if domain.data_argument is None:
        raise InputError(f"data: the domain {domain.name} expects a data module or a dict of its options")
    return domain.data_argument
