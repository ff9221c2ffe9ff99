"""The Python entry points: `fit`, `load` and `find`."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqssm.domain import Domain, find_domain, resolve
from seqssm.errors import InputError, require_type
from seqssm.files.datasets import find
from seqssm.files.frames import as_pandas, is_frame
from seqssm.prediction.model import Model, load
from seqssm.training import presets, run
from seqssm.training.data import DataModule
from seqssm.training.lists import option_types, plain_options
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
        data: the user's file; a data frame (pandas, polars, pyarrow; not of genomes); options of the data module
            (``{"file": "my.csv", "horizon": 24}``), of which the file may be a data frame; or a data module.
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
    _require_types(preset, model, trainer, output, overwrite)
    chosen = preset or one.own_preset or one.example_preset
    sections: dict[str, Any] = {}
    options = run.Options(sections=sections)
    if isinstance(data, DataModule):
        options.data = data
    elif isinstance(data, Mapping):
        sections["data"] = plain_options("data", {name: value for name, value in data.items() if not is_frame(value)})
        frames = [name for name in data if name not in sections["data"]]
        file = _file_option(one, chosen, data) if frames else ""
        if other := [name for name in frames if name != file]:
            message = f"data: {other[0]} cannot be a DataFrame; with the preset {chosen}, only {file} can be one"
            raise InputError(message)
        options.frame = as_pandas(data[frames[0]]) if frames else None
    elif isinstance(data, str | Path):
        sections["data"] = {_file_option(one, chosen): str(data)}
    elif data is not None:
        options.frame = as_pandas(data, "data: expected a file, a data frame, a dict of options or a data module")
        _file_option(one, chosen)
    if isinstance(model, Task):
        options.task = model
    elif model is not None:
        sections["model"] = plain_options("model", model)
    given = plain_options("trainer", trainer or {})
    for name in ("early_stopping", "seed_everything"):
        if name in given:
            sections[name] = given.pop(name)
    if "early_stopping" in sections:
        sections["early_stopping"] = plain_options("trainer, early_stopping", sections["early_stopping"])
    sections["trainer"] = given
    keep: Any = None
    if output is None:
        keep = tempfile.TemporaryDirectory(prefix="seqssm-")
        output, options.hints = Path(keep.name) / "run", False  # the folder is removed at the end
    finished = run.fit(one, [chosen], options, output=output, overwrite=overwrite)
    trained = load(finished.folder.path / BEST)
    trained.run, trained.data, trained.keep = finished.folder.path, finished.cli.datamodule, keep
    return trained


def _require_types(preset: Any, model: Any, trainer: Any, output: Any, overwrite: Any) -> None:
    """Raise InputError for arguments of `fit` that are of another type, before anything is read."""
    path, options = (str, Path), "a dict of options"
    require_type("preset", preset, path, "the name of a preset or a YAML file")
    network = f', as in {{"network": "{model}"}},' if isinstance(model, str) else ""
    require_type("model", model, (Mapping, Task), f"{options}{network} or a task")
    require_type("trainer", trainer, Mapping, f'{options}, as in {{"max_epochs": 5}}')
    require_type("output", output, path, "a folder")
    require_type("overwrite", overwrite, bool, "True or False")


def _file_option(domain: Domain, preset: str | Path, data: Mapping[str, Any] | None = None) -> str:
    """Return the option of the data module that takes the user's file.

    Args:
        domain: the domain.
        preset: the preset, whose data module it is.
        data: further options of the data module, perhaps with another class.

    Raises:
        InputError: the data module reads no file of the user.
    """
    if domain.data_argument is None:
        raise InputError(f"data: the domain {domain.name} expects a data module or a dict of its options")
    contents = [*presets.read_presets([presets.find_preset(domain, preset)], domain), {"data": data or {}}]
    paths = [part["class_path"] for one in contents if "class_path" in (part := one.get("data") or {})]
    path = str([domain.data, *paths][-1])
    try:
        cls = resolve(path if ":" in path else ":".join(path.rsplit(".", 1)))
    except (ImportError, AttributeError, ValueError):
        return domain.data_argument  # the class is reported when it is built
    option = getattr(cls, "labelled_argument", None) or domain.data_argument
    if option not in option_types(cls):
        known = ", ".join(name for group in getattr(cls, "sources", ()) for name in group)
        raise InputError(f"data: {cls.__name__} of the preset {preset} expects a dict of its options ({known}, ...)")
    return str(option)
