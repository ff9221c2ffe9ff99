"""Whether other paths of a test name the records of the run: data that were moved or copied are not other data."""

from __future__ import annotations

import contextlib
import copy
import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seqssm.errors import InputError
from seqssm.files import fingerprint
from seqssm.files.notes import quiet
from seqssm.training import origin
from seqssm.training.checkpoint import Summary
from seqssm.training.data import DataModule
from seqssm.training.external import differing
from seqssm.training.run_folder import RunFolder
from seqssm.training.unchanged import changes, is_recorded

SPLIT_OF = {"test": "test", "validate": "val"}  # of a command


def data_options(
    entry: Mapping[str, Any], checkpoint: Path, config: Mapping[str, Any], cls: type[DataModule]
) -> dict[str, Any]:
    """Return the data options of a run, with paths seen from the current folder: those it was continued with last.

    Args:
        entry: the ``"seqssm"`` entry of the checkpoint.
        checkpoint: the checkpoint, in the run's folder.
        config: content of the run's `config.yaml`.
        cls: class of the data module.
    """
    base = origin.folder_of(RunFolder(checkpoint.parent))
    later = (config.get("data") or {}).get("init_args") or {}
    return origin.located(origin.current(entry["data_hparams"], later, cls.paths, base), cls.paths, base)


def moved_sources(data: DataModule, entry: Mapping[str, Any], checkpoint: Path, command: str) -> list[str]:
    """Return the options of a test that name the run's own records at another path.

    The split that the command reads must have the records that the run recorded, with equal targets and inputs. It is
    read for this only if the run's own files are gone, or equal to the given ones.

    Args:
        data: the data module of the test, not yet set up.
        entry: the ``"seqssm"`` entry of the checkpoint, with paths seen from the current folder.
        checkpoint: the checkpoint, in the run's folder.
        command: ``"test"`` or ``"validate"``.
    """
    run, kept = RunFolder(checkpoint.parent), entry["data_hparams"]
    others = differing(data, kept)
    names = [name for group in data.sources for name in group if name in others]
    if not names or any(name not in data.paths or not origin.all_exist(others[name]) for name in names):
        return []
    before = [kept.get(name) for name in names]
    if not is_recorded(run) or any(value is None for value in before):
        return []
    if all(map(origin.all_exist, before)) and not all(_may_equal(others[name], kept[name]) for name in names):
        return []
    options = {name: value for name, value in data.hparams.items() if not name.startswith("_")}
    probe = type(data)(**copy.deepcopy(options))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), quiet():
        try:
            probe.use_summary(Summary(entry["data"], checkpoint), False)
            probe.prepare_data()
            probe.setup(command)
            if changes(run, probe, (SPLIT_OF[command],)):
                return []
        except InputError:  # other data, perhaps without splits
            return []
    listed = ", ".join(f"--data.{name} {others[name]}" for name in names)
    print(f"{listed}: the data of the run, at another path", file=sys.stderr)
    return names


def _may_equal(value: Any, kept: Any) -> bool:
    """Whether files are equal to those of the run; of folders, the names in them are compared."""
    new, old = _paths(value), _paths(kept)
    if len(new) != len(old) or any(one.is_dir() != other.is_dir() for one, other in zip(new, old)):
        return False
    folders = [(one, other) for one, other in zip(new, old) if one.is_dir()]
    files = [[path for path in paths if not path.is_dir()] for paths in (new, old)]
    return all(_names(one) <= _names(other) for one, other in folders) and (
        fingerprint.of_files(files[0]) == fingerprint.of_files(files[1])
    )


def _names(folder: Path) -> set[str]:
    return {one.name for one in folder.iterdir()}


def _paths(value: Any) -> list[Path]:
    """Paths of an option, in order."""
    if isinstance(value, Mapping):
        return [path for one in value.values() for path in _paths(one)]
    if isinstance(value, list | tuple):
        return [path for one in value for path in _paths(one)]
    return [Path(value)]
