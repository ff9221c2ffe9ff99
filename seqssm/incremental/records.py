"""Labelled records for an extension: those of new classes, of old ones, and for the accuracy."""

from __future__ import annotations

import contextlib
import inspect
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seqssm.domain import find_domain
from seqssm.errors import InputError, nearest, no_such_file
from seqssm.training import checkpoint, external, origin, own_data
from seqssm.training.class_means import ClassInputs
from seqssm.training.class_task import ClassTask
from seqssm.training.data import Loader, TrainBatches
from seqssm.training.presets import read_beside
from seqssm.training.run_folder import RunFolder
from seqssm.training.unchanged import changes


@dataclass
class Reader:
    """Reads labelled files with the data module of a checkpoint, as a test on other data does.

    Attributes:
        path: the checkpoint.
        entry: its ``"seqssm"`` entry.
        options: options of the data module given by the user, by name.
    """

    path: Path
    entry: Mapping[str, Any]
    options: Mapping[str, Any]

    @property
    def data_class(self) -> Any:
        """Class of the data module.

        Raises:
            InputError: the checkpoint was saved without one.
        """
        if not self.entry["data_class"]:
            raise InputError("was saved without a data module, which reads the records", file=self.path)
        return checkpoint.resolve_class(self.entry["data_class"], self.entry["domain"], self.path)

    def _is_source(self, name: str) -> bool:
        return any(name in group for group in self.data_class.sources)

    @property
    def sources(self) -> dict[str, Any]:
        """New paths of the run's own data, by option."""
        return {name: value for name, value in self.options.items() if self._is_source(name)}

    def require_options(self) -> None:
        """Check the user's options.

        Raises:
            InputError: an unknown option, a data set, or a value that the checkpoint fixes.
        """
        cls = self.data_class
        known = list(inspect.signature(cls).parameters)
        for name, value in self.options.items():
            if name not in known:
                raise InputError(f"unknown option --data.{name}{nearest(name, known)}")
            if self._is_source(name) and name not in cls.paths:
                raise InputError(f"--data.{name}: pass the files with --support, --base and --evaluate")
            if self._is_source(name) and not origin.all_exist(value):
                raise InputError(f"--data.{name} {value}: no such file or folder")
            kept = self.entry["data_hparams"].get(name)
            if name in cls.fixed and value != kept:
                raise InputError(f"--data.{name} {value}: the model has {kept}; drop the option")

    def _module(self, file: Path | None) -> Any:
        cls = self.data_class
        config = read_beside(self.path, find_domain(self.entry["domain"]))
        kept = own_data.data_options(self.entry, self.path, config, cls)
        if file is None:
            kept |= self.sources
        else:
            if cls.labelled_argument is None:
                raise InputError(f"{cls.__name__} reads no labelled files", file=self.path)
            if not file.exists():
                raise no_such_file(file)
            kept = external.inherited(kept, cls, [f"--data.{cls.labelled_argument}"])
            further = {name: value for name, value in self.options.items() if name not in self.sources}
            kept |= {**further, cls.labelled_argument: str(file)}
        return cls(**kept)

    def class_names(self, file: Path) -> list[str]:
        """Return the classes that occur in a file."""
        return list(dict.fromkeys(str(name) for name in self._module(file).class_names()))

    def read(self, file: Path | None, names: Sequence[str], support: bool = False) -> Any:
        """Return a loader of the labelled records of a file, or of the run's own test split.

        Args:
            file: the file; None for the test split of the run.
            names: classes of the labels, by index.
            support: whether the records are checked as those of a new class are.
        """
        data = self._module(file)
        summary = self.data_class.grown_summary(self.entry["data"], names)
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            data.use_summary(checkpoint.Summary(summary, self.path), file is not None)
            try:
                data.setup("test")
            except InputError as error:
                raise origin.with_option(error, data.hparams if file is None else {}) from None
            if support:
                data.require_support()
        if file is None and self.sources and (why := changes(RunFolder(self.path.parent), data, ("test",))):
            raise InputError(f"--data.{next(iter(self.sources))}: the data are not those of the run ({why})")
        for line in said.getvalue().splitlines():
            if line.startswith("  ") and file is not None and not (support and "tested" in line):
                print(f"{file}:{line[1:]}", file=sys.stderr)
        if data.test_set is None or not len(data.test_set):
            raise InputError("no labelled records", file=file)
        self.keep = data  # temporary files of the module live as long as it does
        return data.whole_loader(data.test_set)

    def augmented(self, copies: int, seed: int) -> list[Any]:
        """Return loaders of the records that were read last, with other draws of the training's augmentation each.

        Args:
            copies: number of loaders; there are none for data without augmentation.
            seed: seed of the draws.
        """
        data = self.keep
        items = data.augmented()
        if items is None:
            return []
        batches = [TrainBatches(len(items), data.batch_size, seed, 0, 1, False) for _ in range(copies)]
        return [Loader(items, own, 0, data.collate, partial(int, copy)) for copy, own in enumerate(batches)]


@torch.no_grad()
def inputs_of(task: ClassTask, loaders: Sequence[Any], device: Any) -> ClassInputs:
    """Read what projector and head of a task read.

    Args:
        task: the task.
        loaders: results of `Reader.read`.
        device: device of the network.
    """
    parts = [part for loader in loaders for part in task.read_classes(loader, device)]
    return ClassInputs.joined(parts)


@torch.no_grad()
def predicted(task: ClassTask, loader: Any, device: Any) -> Tensor:
    """Return the predicted class of every record, (n,) on the CPU.

    Args:
        task: the task.
        loader: result of `Reader.read`.
        device: device of the network.
    """
    task.eval()
    found = []
    for batch in loader:
        moved = task.transfer_batch_to_device(batch, torch.device(device), 0)
        found.append(task.class_scores(moved).argmax(1).cpu())
    return torch.cat(found)
