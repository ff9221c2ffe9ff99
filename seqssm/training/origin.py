"""Relative paths in the options of a run: they are relative to the folder in which the run was started.

`about.json` records that folder and the way to it from the run; checkpoints and `config.yaml` keep the paths as
typed. A project that was moved or copied with its runs is where its runs are, so that a copy never reads the data of
the original. Where a command runs in another folder, the paths are rewritten for it; a file that is no longer there
is looked for in the current folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seqssm.domain import resolve
from seqssm.errors import InputError, no_such_file
from seqssm.training.run_folder import ABOUT, RunFolder

FOLDER, WAY = "folder", "way"  # entries of `about.json`: the folder, and the way to it from the run's folder


def entries(run: Path, base: Path) -> dict[str, str]:
    """Return the entries of a run that was started in a folder.

    Args:
        run: the run's folder.
        base: the folder.
    """
    run, base = run.resolve(), base.resolve()
    try:
        return {FOLDER: str(base), WAY: os.path.relpath(base, run)}
    except ValueError:  # on another drive
        return {FOLDER: str(base)}


def base_of(kept: Mapping[str, Any], run: Path) -> Path | None:
    """Return the folder in which a run was started, or the one that has its place after a move or a copy.

    Args:
        kept: the entries of the run.
        run: where the run is now.

    Returns:
        The folder; None if it is unknown or gone.
    """
    folder, way = kept.get(FOLDER), kept.get(WAY)
    found = [(run.resolve() / way).resolve()] if isinstance(way, str) else []
    found += [Path(folder)] if isinstance(folder, str) else []
    return next((one for one in found if one.is_dir()), None)


def folder_of(run: RunFolder) -> Path:
    """Return the folder that the relative paths of a run belong to, `base_of`, or the current one.

    Args:
        run: the run's folder.
    """
    return base_of(run.read_json(ABOUT), run.path) or Path.cwd()


def located(options: Mapping[str, Any], names: Sequence[str], base: Path) -> dict[str, Any]:
    """Return options whose relative paths are those of the same files seen from the current folder.

    Args:
        options: options of a data module or a task.
        names: those that name files; their other values, such as a number of folds, do not change.
        base: the folder that the paths are relative to.
    """
    return {name: _seen(value, base) if name in names else value for name, value in options.items()}


def _seen(value: Any, base: Path) -> Any:
    if isinstance(value, Mapping):
        return {name: _seen(one, base) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_seen(one, base) for one in value]
    if not isinstance(value, str) or os.path.isabs(value) or base == Path.cwd() or not _exists(base / value):
        return value
    try:
        return os.path.relpath(base / value)
    except ValueError:  # on another drive
        return str(base / value)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def recorded(options: Mapping[str, Any], kept: Mapping[str, Any], names: Sequence[str], base: Path) -> dict[str, Any]:
    """Return the values as a run keeps them, by name, of options that name the same files in other words.

    Args:
        options: current options; relative paths are relative to the current folder.
        kept: options of the run.
        names: those that name files.
        base: the folder that the run's paths are relative to.
    """
    names = [name for name in names if name in kept and options.get(name) != kept[name]]
    return {name: kept[name] for name in names if same(options.get(name), kept[name], base)}


def moved(options: Mapping[str, Any], kept: Mapping[str, Any], names: Sequence[str], base: Path) -> dict[str, Any]:
    """Return the values as a run keeps them, by name, of options that name other files than those of the run.

    Args:
        options: current options; relative paths are relative to the current folder.
        kept: options of the run.
        names: those that name files; other values, such as a number of folds, are left out.
        base: the folder that the run's paths are relative to.
    """
    names = [name for name in names if name in kept and not same(options.get(name), kept[name], base)]
    return {name: _kept(options[name], base) for name in names if all_exist(options.get(name))}


def current(options: Mapping[str, Any], later: Mapping[str, Any], names: Sequence[str], base: Path) -> dict[str, Any]:
    """Return the options of a checkpoint, of whose files some are gone, with the paths that its run was continued with.

    Args:
        options: options of the checkpoint.
        later: options of the run.
        names: those that name files.
        base: the folder that the paths of both are relative to.
    """
    both = [name for name in names if name in options and name in later]
    if all(all_exist(options[name], base) for name in both):
        return dict(options)
    return {**options, **{name: later[name] for name in both if all_exist(later[name], base)}}  # they belong together


def with_option(error: InputError, options: Mapping[str, Any]) -> InputError:
    """Return the error about a file of a run that is gone with the option that gives its new path.

    Args:
        error: the error.
        options: options of the run's data, with paths seen from the current folder.
    """
    named = [name for name, value in options.items() if isinstance(value, str) and error.file == str(Path(value))]
    if error.message != no_such_file("").message or not named:
        return error
    hint = f"if it was moved, give its new path as --data.{named[0]}"
    return InputError(f"{error.message}; {hint}", file=error.file, place=error.place)


def all_exist(value: Any, base: Path = Path()) -> bool:
    """Whether a value names files, and all of them exist.

    Args:
        value: a path, or a list or mapping of paths.
        base: folder that relative paths are relative to.
    """
    if isinstance(value, Mapping):
        return bool(value) and all(all_exist(one, base) for one in value.values())
    if isinstance(value, list | tuple):
        return bool(value) and all(all_exist(one, base) for one in value)
    return isinstance(value, str) and _exists(base / value)


def _kept(value: Any, base: Path) -> Any:
    """Return paths seen from the current folder as those of a run whose paths are relative to `base`."""
    if isinstance(value, Mapping):
        return {name: _kept(one, base) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_kept(one, base) for one in value]
    if os.path.isabs(value) or base == Path.cwd():
        return value
    path = Path(os.path.abspath(value))
    return str(path.relative_to(base)) if path.is_relative_to(base) else str(path)


def same(value: Any, kept: Any, base: Path) -> bool:
    """Return whether two values are equal or name the same files.

    Args:
        value: value whose relative paths are relative to the current folder.
        kept: value whose relative paths are relative to `base`.
        base: folder of `kept`.
    """
    if isinstance(kept, Mapping) and isinstance(value, Mapping):
        return value.keys() == kept.keys() and all(same(value[name], kept[name], base) for name in kept)
    if isinstance(kept, list | tuple) and isinstance(value, list | tuple):
        return len(value) == len(kept) and all(same(one, other, base) for one, other in zip(value, kept))
    if not (isinstance(kept, str) and isinstance(value, str)):
        return value == kept
    if value == kept == _seen(kept, base):
        return True
    try:
        return Path(value).samefile(base / kept)
    except (OSError, ValueError):
        return os.path.abspath(value) == os.path.abspath(base / kept)


def other_options(theirs: Mapping[str, Any], data: Any, base: Path) -> list[str]:
    """Return the names of the options of another run's data module that a data module has with another effect.

    Args:
        theirs: options of the other run.
        data: the data module.
        base: the folder that the paths of the other run are relative to.
    """
    ours = data.hparams
    differing = [name for name in theirs if name in ours and theirs[name] != ours[name] and name not in data.neutral]
    return [name for name in differing if name not in data.paths or not same(ours[name], theirs[name], base)]


def flags_of_files(contents: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the flags of a data module that name files.

    Args:
        contents: configs, the last one with the class of the data module in force.
    """
    classes = [part["class_path"] for content in contents if (part := content.get("data")) and "class_path" in part]
    return [f"--data.{name}" for path in classes[-1:] for name in resolve(":".join(path.rsplit(".", 1))).paths]


def words(value: Any) -> Any:
    """Split ``--a=1`` into its two words, in lists of options."""
    return [part for word in value for part in word.split("=", 1)] if isinstance(value, list) else value


def moved_flags(options: list[str], kept: list[str], base: Path, names: Sequence[str]) -> list[str] | None:
    """Return the flags that name other files than before, as words; None if anything else differs.

    Args:
        options: current options; relative paths are relative to the current folder.
        kept: options before.
        base: the folder that the paths of `kept` are relative to.
        names: flags that name files.
    """
    new, old = words(options), words(kept)
    found: list[str] = []
    if len(new) != len(old):
        return None
    for flag, one, other in zip(["", *new], new, old):
        if not same(one, other, base):
            if flag not in names or not all_exist(one):
                return None
            found += [flag, one]
    return found
