"""Checkpoints: metadata, atomic writing, loading without running code, and warm starts.

A checkpoint holds tensors and plain Python only, so it loads with ``weights_only=True``. Its ``"seqssm"`` entry holds
``format, version, domain, task, hparams, data`` (sufficient for prediction) and ``data_class, data_hparams`` (from
which `test` rebuilds the data module).
"""

from __future__ import annotations

import errno
import inspect
import os
import zipfile
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import lightning
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule

from seqssm.domain import domains, find_domain
from seqssm.errors import InputError, no_such_model
from seqssm.files.content import DAMAGED
from seqssm.files.disk import atomic
from seqssm.files.outputs import STUDENTS
from seqssm.nn import quantized
from seqssm.training import migration
from seqssm.training.averaging import TRAINED
from seqssm.training.networks import CHOICE, matches, report_dropped, without_foreign
from seqssm.training.run_folder import BEST, PLAN, STAGE
from seqssm.training.sizes import require_depth, require_fits
from seqssm.version import __version__

FORMAT = 1
FOREIGN = "is not a seqssm checkpoint"
COMPRESSION = "compression"  # entry of a compressed checkpoint
ENTRY = {"domain": str, "task": str, "hparams": dict, "data": dict, "data_hparams": dict}  # required entries


def checkpoint_metadata(task: Any) -> dict[str, Any]:
    """Build the ``"seqssm"`` entry of a checkpoint of `task`.

    Raises:
        TypeError: the task's arguments or the data summary hold anything but tensors and plain Python.
    """
    data = getattr(task.trainer, "datamodule", None)
    entry = {
        "format": FORMAT,
        "version": __version__,
        "domain": task.domain,
        "task": class_name(type(task)),
        "hparams": stored(task),
        "data": data.summary() if data is not None else {},
        "data_class": class_name(type(data)) if data is not None else None,
        "data_hparams": stored(data) if data is not None else {},
    }
    if task.stages:
        entry[STAGE] = len(task.stages) + 1
    require_plain(entry, "checkpoint")
    return entry


class Summary(dict[str, Any]):
    """The data summary of a checkpoint (`seqssm.training.data.DataModule.summary`).

    A missing entry raises an `InputError` that names the checkpoint, which was edited by hand or is corrupt.

    Args:
        entries: values by name.
        file: the checkpoint.
    """

    def __init__(self, entries: dict[str, Any], file: Path) -> None:
        super().__init__(entries)
        self.file = file

    def __missing__(self, name: str) -> Any:
        raise InputError(f"is corrupt: its 'seqssm' entry is incomplete (no data.{name})", file=self.file)


def class_name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def public(hparams: Mapping[str, Any]) -> dict[str, Any]:
    """Remove the entries that Lightning adds for itself."""
    return {name: value for name, value in hparams.items() if not name.startswith("_")}


def stored(one: Any) -> dict[str, Any]:
    """Return the options of a task or data module as a checkpoint stores them: paths as the run was given them."""
    return {**public(one.hparams), **one.kept_paths}


def restore_paths(task: Any, checkpoint: dict[str, Any]) -> None:
    """Replace paths in Lightning's entries of a checkpoint by those that the run was given."""
    for one in (task, getattr(task.trainer, "datamodule", None)):
        if one is not None and one.kept_paths:
            checkpoint[one.CHECKPOINT_HYPER_PARAMS_KEY] |= one.kept_paths


def require_plain(value: Any, name: str) -> None:
    """Raise a TypeError that names the entry unless `value` consists of tensors and plain Python only."""
    if isinstance(value, dict):
        for key, item in value.items():
            require_plain(key, f"{name}, a key")
            require_plain(item, f"{name}[{key!r}]")
    elif type(value) in (list, tuple):
        for position, item in enumerate(value):
            require_plain(item, f"{name}[{position}]")
    elif not (value is None or type(value) in (bool, int, float, str) or type(value) is torch.Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}; a checkpoint contains tensors and plain Python only")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        with atomic(Path(path)) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint; of a set of students, the last one."""
        content = super().load_checkpoint(path, *args, **kwargs)
        if "members" not in content:
            return content
        own = {"epoch": 0, "global_step": 0, "pytorch-lightning_version": lightning.__version__}
        return {**own, **content["members"][-1]}


def find_checkpoint(path: str | Path, prefer: str = "best.ckpt") -> Path:
    """Return the checkpoint file of `path`: the file itself, or `prefer` (else ``last.ckpt``) in a run folder.

    Raises:
        InputError: there is none.
    """
    path = Path(path)
    if path.is_dir():
        for name in (prefer, "best.ckpt", "last.ckpt"):
            if (path / name).is_file():
                return path / name
        runs = sorted(one.parent for one in path.glob(f"**/*seed-*/{BEST}"))
        if (path / PLAN).is_file() or (runs and (path.parent / PLAN).is_file()):
            which = f", such as {runs[0]}" if runs else "; none of them has a checkpoint yet"
            raise InputError(f"is a kfold study, and a single model is needed: give one of its runs{which}", file=path)
        if (path / STUDENTS).is_file():
            raise InputError(f"is the folder of a set of students; use {path}.ckpt", file=path)
        raise InputError("this folder contains no checkpoint (best.ckpt or last.ckpt)", file=path)
    if not path.exists():
        raise no_such_model(path)
    return path


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load the checkpoint at `path` (a file or a run folder) on the CPU, without running code from it.

    Raises:
        InputError: missing, truncated, corrupt (checksums are verified), or not written by this package.
    """
    path = find_checkpoint(path)
    content = checked(load_plain(path), path)
    content["seqssm"].pop(TRAINED, None)  # only a fit continues with them
    return content


def load_plain(path: Path) -> dict[str, Any]:
    """Load the content of a checkpoint file, or of an ensemble (`seqssm.training.ensemble`), without running code.

    Raises:
        InputError: missing, truncated, corrupt (checksums are verified), or not written by this package.
    """
    if not path.is_file():
        raise no_such_model(path)
    if not os.access(path, os.R_OK):
        raise InputError("cannot be read: permission denied", file=path)
    try:
        with zipfile.ZipFile(path) as archive:
            _require_uncompressed(archive, path)
            damaged = archive.testzip()
    except InputError:
        raise
    except DAMAGED:
        raise InputError(f"{FOREIGN}, or it is truncated", file=path) from None
    except OSError as error:
        if error.errno != errno.EINVAL:  # the archive's directory points in front of the file
            raise
        raise InputError(f"{FOREIGN}, or it is truncated", file=path) from None
    if damaged:
        raise InputError(f"is corrupt: wrong checksum of member {damaged}", file=path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise InputError(
            f"{FOREIGN}: it contains more than tensors and plain values, and was not opened", file=path
        ) from None
    except DAMAGED:
        raise InputError(f"{FOREIGN}, or it is corrupt", file=path) from None
    if not isinstance(checkpoint, dict):
        raise InputError(f"{FOREIGN}: it has no 'seqssm' entry", file=path)
    return checkpoint


def checked(checkpoint: dict[str, Any], path: Path) -> dict[str, Any]:
    """Check the content of a checkpoint, and migrate that of earlier versions.

    Args:
        checkpoint: the content of a file, or a member of an ensemble.
        path: the file, for messages.

    Raises:
        InputError: an ensemble, a newer format, or an incomplete entry.
    """
    entry = checkpoint.get("seqssm") if isinstance(checkpoint, dict) else None
    if not isinstance(entry, dict) or "state_dict" not in checkpoint:
        raise InputError(f"{FOREIGN}: it has no 'seqssm' entry", file=path)
    if "ensemble" in entry:
        summed = isinstance(entry["ensemble"], dict) and entry["ensemble"].get("output") == "sum"
        can = "set of students, which only predict, test, validate" if summed else "ensemble, which only predict"
        what = f"is {'a' if summed else 'an'} {can} and info can use"
        advice = "its first student alone is a complete model" if summed else "give one of its members"
        raise InputError(f"{what}; {advice}", file=path)
    if type(entry.get("format")) is not int:
        raise InputError("is corrupt: its 'seqssm' entry is incomplete", file=path)
    if entry["format"] != FORMAT:
        raise InputError(
            f"has checkpoint format {entry['format']}; seqssm {__version__} reads {FORMAT}: "
            f"use seqssm {entry.get('version')} or newer",
            file=path,
        )
    if not all(isinstance(entry.get(name), kind) for name, kind in ENTRY.items()):
        raise InputError("is corrupt: its 'seqssm' entry is incomplete", file=path)
    _require_tensors(checkpoint["state_dict"], path)
    domain = domains().get(entry["domain"])
    if domain is not None:
        domain.require(path)
    migrate(entry)
    if domain is not None:
        require_schema(entry["data"], domain.summary, path)
    return checkpoint


def _require_uncompressed(archive: zipfile.ZipFile, path: Path) -> None:
    """Reject members larger than the file: torch stores them uncompressed, and a few bytes could inflate widely."""
    declared, there = sum(part.file_size for part in archive.infolist()), path.stat().st_size
    if declared > there:
        raise InputError(
            f"is not a seqssm checkpoint: its members declare {declared} bytes, the file has {there}", file=path
        )


def _require_tensors(weights: Any, path: Path) -> None:
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise InputError("is corrupt: its 'state_dict' does not contain tensors only", file=path)


KINDS: dict[str, Callable[[Any], bool]] = {
    "str": lambda value: isinstance(value, str),
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "float": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "bool": lambda value: isinstance(value, bool),
    "strings": lambda value: isinstance(value, list | tuple) and all(isinstance(one, str) for one in value),
    "numbers": lambda value: isinstance(value, list | tuple) and all(KINDS["float"](one) for one in value),
    "list": lambda value: isinstance(value, list | tuple),
    "mapping": lambda value: isinstance(value, dict) and all(isinstance(name, str) for name in value),
    "tensor": lambda value: isinstance(value, torch.Tensor),
}
"""Kinds of values in a schema of `Domain.summary`."""


def require_schema(entries: Mapping[str, Any], schema: Mapping[str, Any], path: Path, name: str = "data") -> None:
    """Raise InputError if an entry of a checkpoint's summary does not have the type declared by the domain."""
    for key, kind in schema.items():
        if key not in entries:
            continue  # an error where it is used
        value, place = entries[key], f"{name}.{key}"
        if isinstance(kind, Mapping):
            if not KINDS["mapping"](value):
                raise InputError(f"is corrupt: its {place} is a {type(value).__name__}, expected mapping", file=path)
            require_schema(value, kind, path, place)
        elif not (kind.endswith("?") and value is None) and not KINDS[kind.removesuffix("?")](value):
            wanted = kind.removesuffix("?")
            raise InputError(f"is corrupt: its {place} is a {type(value).__name__}, expected {wanted}", file=path)


def migrate(entry: dict[str, Any]) -> None:
    """Migrate the entry of an earlier version to current names, values and class paths, in place."""
    domain = domains().get(entry["domain"])
    if domain is None:
        return  # an error where the domain is used
    for name, section, cls in (
        ("hparams", "model", entry.get("task")),
        ("data_hparams", "data", entry.get("data_class")),
        ("data", "summary", ""),
    ):
        cls = migration.class_path(domain, cls) if isinstance(cls, str) else ""
        entry[name] = migration.options(domain, section, entry[name], stored=True, cls=cls)
    for name in ("task", "data_class"):
        if isinstance(entry.get(name), str):
            entry[name] = migration.class_path(domain, entry[name])


def resolve_class(target: str, domain_name: str, path: str | Path) -> Any:
    """Import the class named in a checkpoint; only classes from the package of an installed domain are allowed."""
    domain = find_domain(domain_name, file=path)
    module, _, name = target.partition(":")
    allowed = {domain.package, domain.task.partition(":")[0], domain.data.partition(":")[0]}
    if not any(module == own or module.startswith(own + ".") for own in allowed):
        raise InputError(
            f"names the class {target}, which does not belong to the domain {domain_name}; not opened", file=path
        )
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError):
        raise InputError(f"needs the class {target}, which this version does not have", file=path) from None
    return found


def file_option(entry: Mapping[str, Any], path: str | Path) -> str:
    """Name the option of a model's data module that takes a labelled file of the user.

    Args:
        entry: ``"seqssm"`` entry of the checkpoint.
        path: the checkpoint, for messages.

    Raises:
        InputError: the data module reads no such files.
    """
    domain = find_domain(entry["domain"], file=path)
    own = resolve_class(entry["data_class"], domain.name, path) if entry["data_class"] else None
    option = getattr(own, "labelled_argument", None) or domain.data_argument
    if option is None:
        raise InputError(f"the domain {domain.name} has no option for user files; pass options of its data module")
    return str(option)


def build_task(checkpoint: dict[str, Any], path: str | Path) -> Any:
    """Build the trained task of a checkpoint, in eval mode, on the CPU.

    Raises:
        InputError: the domain is not installed, or arguments or weights do not fit the network.
    """
    entry = checkpoint["seqssm"]
    cls = resolve_class(entry["task"], entry["domain"], path)
    if not (issubclass(cls, LightningModule) and hasattr(cls, "own_arguments")):
        raise InputError(f"names the class {entry['task']}, which is not a training task", file=path)
    weights = checkpoint["state_dict"]
    try:
        entry["hparams"], dropped = without_foreign(cls, entry["hparams"])
        report_dropped(cls, entry["hparams"].get(CHOICE, ""), dropped, str(path))
        require_arguments(cls, entry["hparams"], path)
        task: Any = cls(**entry["hparams"])
        storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in weights.values()}
        require_depth(entry["hparams"])
        layout = layout_of_integers(entry)
        declared = quantized.float_bytes(weights, {f"model.{name}": value for name, value in layout.items()})
        # counts shared weights twice, and allows for weights saved in half precision
        bound = 4 * sum(storages.values()) + declared + 2**20
        require_fits(task.build_model, bound, "the limit for the weights in the file")
        task.configure_model()
        quantized.install(task.model, layout)
        task.load_state_dict(weights)
    except InputError as error:
        raise InputError(error.message, file=error.file or path, place=error.place) from error
    except (TypeError, ValueError, RuntimeError) as error:
        first = " ".join(str(error).split())[:200]
        raise InputError(f"does not fit {entry['task']} of this version: {first}", file=path) from error
    return task.eval()


def layout_of_integers(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the layout of the integer layers of a compressed checkpoint (`seqssm.nn.quantized`); empty for others.

    Args:
        entry: the ``"seqssm"`` entry.

    Raises:
        InputError: the entry is corrupt.
    """
    compression = entry.get(COMPRESSION)
    if compression is None:
        return {}
    if not isinstance(compression, dict) or not isinstance(compression.get("layers"), dict):
        raise InputError(f"is corrupt: its {COMPRESSION} entry is incomplete")
    return compression["layers"]


def require_trainable(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Raise InputError for a compressed checkpoint, whose integer weights cannot be trained."""
    if checkpoint["seqssm"].get(COMPRESSION) is not None:
        raise InputError("is compressed and cannot be trained further; use the original checkpoint", file=path)


def require_whole(entry: Mapping[str, Any], path: Path) -> None:
    """Raise InputError for a student whose outputs are added to those of earlier ones.

    Args:
        entry: the ``"seqssm"`` entry of the checkpoint.
        path: the checkpoint.
    """
    stage = entry.get(STAGE)
    if stage is not None:
        raise InputError(
            f"is student {stage} of a set, whose outputs are added to those of the students before it; use "
            f"{set_of(path)}",
            file=path,
        )


def set_of(path: Path) -> str:
    """Return the file of the set to which a student belongs, or a placeholder if it is not there.

    Args:
        path: the checkpoint.
    """
    folder = path.parent.parent if path.parent.parent.name else path.absolute().parent.parent
    found = Path(f"{folder}.ckpt")
    return str(found) if found.is_file() else "SET.ckpt"


def require_arguments(cls: Any, hparams: dict[str, Any], path: str | Path) -> None:
    """Raise InputError if a checkpoint has arguments that its class does not take, or values of another type."""
    for name, value in hparams.items():
        parameter = cls.own_arguments.get(name) or cls.network_arguments.get(name)
        if parameter is None:
            raise InputError(f"does not fit {class_name(cls)} of this version, which has no argument {name}", file=path)
        if not matches(value, parameter.annotation):
            kind = inspect.formatannotation(parameter.annotation)
            raise InputError(f"is corrupt: its hparams.{name} is a {type(value).__name__}, expected {kind}", file=path)
