"""Data modules whose batches are a function of (seed, epoch, step, rank) alone.

This makes a resumed run bit-identical to an uninterrupted one, and a run on two processes comparable to one on a single
process: no random number depends on state outside the checkpoint. The loaders distribute the records over the processes
themselves, so Lightning's samplers are disabled.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import DataLoader, Dataset

from seqssm.bounds import SEED, Bounds
from seqssm.errors import InputError
from seqssm.files.disk import require_no_pipes
from seqssm.files.notes import note
from seqssm.training.lists import require_distinct, require_no_blanks
from seqssm.training.seeds import derive_seed, seed_torch
from seqssm.training.sizes import LARGEST_BATCH, most_processes, require_count

CPU = torch.device("cpu")
IN_MEMORY = "FILE"
"""What `DataModule.predict_words` writes for a table in memory."""


class Batch(list):
    """The indices of a batch, with the seed of its augmentation (None without randomness)."""

    seed: int | None = None


class SeededItems(Dataset):
    """Fetches whole batches, each under its own seed, in the loader process."""

    def __init__(self, items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]

    def __getitems__(self, batch: Sequence[int]) -> list:
        seed = getattr(batch, "seed", None)
        if seed is not None:
            seed_torch(seed, CPU)
            np.random.seed(seed % 2**32)
            random.seed(seed)
        if hasattr(self.items, "__getitems__"):
            return self.items.__getitems__(list(batch))
        return [self.items[index] for index in batch]


class TrainBatches:
    """Shuffled batches of one process; batch k of epoch e does not depend on what happened before it.

    The permutation of an epoch is a function of (seed, epoch). A batch consists of `batch_size` neighbours in it, of
    which each process takes every `world`-th. A short last batch is padded from the front to a multiple of `world`.

    Args:
        count: number of records.
        batch_size: records per batch, over all processes.
        seed: seed of the permutation and the augmentation.
        rank: number of this process.
        world: number of processes.
        drop_last: whether to drop a short last batch.
    """

    def __init__(self, count: int, batch_size: int, seed: int, rank: int, world: int, drop_last: bool) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.rank, self.world, self.drop_last = rank, world, drop_last
        self.epoch = self.start = 0

    def __len__(self) -> int:
        return self.count // self.batch_size if self.drop_last else -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
        order = torch.randperm(self.count, generator=generator).tolist()
        for step in range(self.start, len(self)):
            chunk = order[step * self.batch_size : (step + 1) * self.batch_size]
            missing = -len(chunk) % self.world
            if missing:
                chunk += (order * self.world)[:missing]
            batch = Batch(chunk[self.rank :: self.world])
            batch.seed = derive_seed(self.seed, self.epoch, step, self.rank, 1)
            yield batch


class EvalBatches:
    """Batches in the order of the records; process r of `world` takes batches r, r + world, ...

    Whole batches are distributed, not their records, so a loss that is normalised within a batch does not depend on the
    number of processes. All processes get the same number of batches (a wrapped model synchronises in each forward):
    the last ones repeat a batch. `real` is the number of batches of this process that are not repetitions.

    Args:
        count: number of records.
        batch_size: records per batch.
        rank: number of this process.
        world: number of processes.
    """

    def __init__(self, count: int, batch_size: int, rank: int, world: int) -> None:
        self.count, self.batch_size, self.rank, self.world = count, batch_size, rank, world
        self.total = -(-count // batch_size)
        self.real = len(range(rank, self.total, world))

    def __len__(self) -> int:
        return -(-self.total // self.world)

    def __iter__(self) -> Iterator[Batch]:
        for turn in range(len(self)):
            number = min(self.rank + turn * self.world, self.total - 1)
            yield Batch(range(number * self.batch_size, min((number + 1) * self.batch_size, self.count)))


class Loader:
    """A `torch.utils.data.DataLoader` behind `batches`, resumable inside an epoch.

    Not a subclass, because Lightning rebuilds DataLoaders with its own samplers. Nothing is drawn or started before the
    first batch is requested; by then the trainer has restored its epoch.
    """

    def __init__(
        self,
        items: Any,
        batches: TrainBatches | EvalBatches,
        num_workers: int,
        collate: Callable | None,
        epoch: Callable[[], int],
    ) -> None:
        self.batches, self.epoch = batches, epoch
        self.resume_at = self.served = 0
        self.loader = DataLoader(
            SeededItems(items),
            batch_sampler=batches,  # type: ignore[arg-type]
            num_workers=num_workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=num_workers > 0,
            generator=torch.Generator(),  # otherwise every new iterator advances the global generator
        )

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        if isinstance(self.batches, TrainBatches):
            self.batches.epoch, self.batches.start = self.epoch(), self.resume_at
        self.served, self.resume_at = self.resume_at, 0
        for batch in self.loader:
            self.served += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Store the number of batches yielded in the current epoch; the trainer stores the epoch."""
        return {"served": self.served}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.resume_at = state["served"] if state["served"] < len(self) else 0


def whole_batch(items: Any) -> Any:
    """Return `batch` unchanged: the data set returns whole batches (``__getitems__``)."""
    return items


class DataModule(LightningDataModule):
    """Base class of the domains' data modules: the subclass makes data sets, this class makes loaders.

    `setup(stage)` of a subclass sets `train_set`, `val_set` and `test_set`: map-style data sets of dicts of tensors,
    each with the record's index under ``"index"``. `collate`, if set, joins items into a batch, one index each.
    Random augmentation draws from the global generators of torch, NumPy or Python.

    Args:
        batch_size: records per batch. In training, N processes share a batch equally, so N must divide it; in
            validation and test, each process takes whole batches. Scores do not depend on N.
        num_workers: loader processes; 0 loads in the main process.
        seed: seed of shuffling and augmentation; the run's seed by default.
        root: folder to search for the data set instead of the default ones.

    Raises:
        InputError: a size is out of range.
    """

    drop_last_train: ClassVar[bool] = False
    sources: ClassVar[tuple[tuple[str, ...], ...]] = ()
    """Options that name the records, in mutually exclusive groups: ``(("manifest", "features"), ("dataset",))``. `test`
    with another value is an external evaluation (`seqssm.training.external`), which requires such a declaration."""
    alternatives: ClassVar[tuple[tuple[str, ...], ...]] = ()
    """Groups of other options of which one is used: ``(("censor_column", "event_column"),)``."""
    split_options: ClassVar[tuple[str, ...]] = ()
    """Options of the split, which do not apply to an external evaluation."""
    fixed: ClassVar[tuple[str, ...]] = ()
    """Options whose effect is contained in the checkpoint's fitted values; `test` rejects other values."""
    paths: ClassVar[tuple[str, ...]] = ("root",)
    """Options that name files or folders, perhaps among other values."""
    neutral: ClassVar[tuple[str, ...]] = ("batch_size", "num_workers", "seed", "root")
    """Options that do not affect the results of a test."""
    limits: ClassVar[Mapping[str, Bounds]] = {}
    """Bounds of the subclass's numeric options, checked before its constructor continues. None is always accepted."""

    trained_with: dict[str, Any] | None = None
    """In an external evaluation, the options of the run's own data module, on which baselines are trained."""
    kept_paths: Mapping[str, Any] = {}
    """Paths as the run's checkpoint and `config.yaml` keep them (`seqssm.training.origin`)."""
    fitted: Mapping[str, Any] | None = None
    """The fitted values that `use_summary` was given; None in training."""
    recorded: bool = False
    """Whether a run or study that exists has the data and their split: it is continued, or distilled."""
    external: bool = False
    """Whether all labelled records are tested, as `use_summary` was told."""
    is_reference: bool = False
    """Whether the module reads a run's own data, for the baselines of an external evaluation."""
    frame: Any = None
    """The user's table in memory, as `use_frame` was given; None where the data are files."""
    train_set: Any = None
    val_set: Any = None
    test_set: Any = None
    collate: Callable | None = None
    _reference: DataModule | None = None

    def __init__(
        self, batch_size: int = 32, num_workers: int = 0, seed: int | None = None, root: str | None = None
    ) -> None:
        require_count("--data.batch_size", batch_size, 1, LARGEST_BATCH, "the largest batch")
        require_count("--data.num_workers", num_workers, 0, most_processes(), "for the processors of this machine")
        SEED.require("--data.seed", seed)
        super().__init__()
        self.save_hyperparameters(logger=False)
        for name, bounds in self.limits.items():
            bounds.require(f"--data.{name}", self.hparams[name])
        require_no_blanks("--data.", type(self), self.hparams)
        require_distinct("--data.", type(self), self.hparams)
        require_no_pipes(self.hparams.values())
        self.batch_size, self.num_workers, self.seed, self.root = batch_size, num_workers, seed, root

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Raise TypeError for a class that declares `sources` without implementing `use_summary`."""
        super().__init_subclass__(**kwargs)
        if cls.sources and cls.use_summary is DataModule.use_summary:
            raise TypeError(f"{cls.__name__} declares sources and needs a method use_summary")

    def use_frame(self, frame: Any) -> None:
        """Use a pandas DataFrame in place of the user's file; called before `setup`."""
        raise InputError("the data of this domain come from files, not from a DataFrame")

    def summary(self) -> dict[str, Any]:
        """Return everything that prediction needs: tensors and plain Python only (scaler, column names, ...)."""
        return {}

    def use_summary(self, summary: Mapping[str, Any], external: bool) -> None:
        """Set fitted values; called by `test` and `validate` before `setup` if the class declares `sources`.

        Args:
            summary: value of `summary` after training, with the fitted values (classes, scaler, ...).
            external: whether all labelled records form the test set, without splitting or fitting.
        """

    def reference(self) -> Any:
        """Return the training data: this module, or in an external evaluation that of the run; None if unreadable."""
        if self.trained_with is None:
            return self
        if self._reference is None:
            try:
                own = type(self)(**self.trained_with)
                own.is_reference = True
                own.use_summary(self.fitted or {}, external=False)
                own.setup("test")
            except InputError as error:
                rank_zero_only(note)(f"the run's own data cannot be read, baselines skipped: {error}", sys.stderr)
                return None
            self._reference = own
        return self._reference

    @rank_zero_only
    def print_line(self, line: str) -> None:
        """Print a line about the data in rank 0; it is kept with the run, too."""
        note(line)

    labelled_argument: ClassVar[str | None] = None
    """Option that names a labelled file of the user, for `extend`; None if the records have no classes."""

    def class_names(self) -> list[str]:
        """Return the classes that occur in the source, before `setup`; for `extend`.

        Raises:
            InputError: the records have no classes, or the source cannot be read.
        """
        raise InputError(f"{type(self).__name__} has no classes that could be extended")

    @classmethod
    def grown_summary(cls, summary: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
        """Return the summary of a model with more classes.

        Args:
            summary: summary of the checkpoint.
            names: all classes; those of the checkpoint come first.
        """
        return {**summary, "classes": list(names)}

    def require_support(self) -> None:
        """Raise InputError if a record is not fit to learn a class from; called by `extend` after `setup`."""

    def plain_train_set(self) -> Any:
        """Return the training records as they are tested: whole, without augmentation."""
        return self.train_set

    def augmented(self) -> Any:
        """Return the records of `test_set` with the augmentation of the training; by default None, for no such data."""
        return None

    def whole_loader(self, items: Any) -> Loader:
        """Return a loader of all items in order, in this process alone.

        Args:
            items: a data set like `test_set`.
        """
        return Loader(items, EvalBatches(len(items), self.batch_size, 0, 1), 0, self.collate, lambda: 0)

    def require_folds(self, folds: Sequence[int]) -> None:
        """Raise InputError if a fold of the source has no records; called by `kfold` before anything is trained.

        Reads tables and headers only. By default, nothing is checked.

        Args:
            folds: indices of the folds that will be trained.
        """

    def identities(self, split: str) -> list[dict[str, str]]:
        """Return the identities of the records of ``"train"``, ``"val"`` or ``"test"``, for `split.csv`.

        Returns:
            Dicts with ``"id"`` and optionally further identities (a patient, a slide); a record may have several.
        """
        return []

    @property
    def positional(self) -> tuple[str, ...]:
        """Identities that depend on the position in a file, such as numbers of lines; another order is no change."""
        return ()

    def targets(self, split: str) -> list[Any]:
        """Return the id of each record of a split and what it is labelled with, to notice changes.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``.

        Returns:
            Tuples that JSON can hold; empty if `identities` cover them, or the data have none.
        """
        return []

    def inputs(self, split: str) -> str:
        """Return a digest of what the records of a split contain, to notice changes (`seqssm.files.fingerprint`).

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``.

        Returns:
            The digest; empty if `identities` cover the contents.
        """
        return ""

    def predict_words(self) -> list[str]:
        """Inputs and options with which ``seqssm predict`` reads these data, for the hint after a fit.

        Called after `setup`. `IN_MEMORY` stands for the file where the data are no files. Empty without an own method.
        """
        return [] if self.frame is None else [IN_MEMORY]

    @property
    def run_seed(self) -> int:
        """Return `seed`, or the run's seed (``--seed_everything``)."""
        return self.seed if self.seed is not None else int(os.environ.get("PL_GLOBAL_SEED", 0))

    @property
    def place(self) -> tuple[int, int]:
        """Return (rank, number of processes); (0, 1) outside a trainer."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def require_divisible(self, processes: int) -> None:
        """Raise InputError unless `processes` divides the training batch."""
        if self.batch_size % processes:
            lower = self.batch_size // processes * processes
            near = f"{lower} or {lower + processes}" if lower else str(processes)
            raise InputError(
                f"--data.batch_size {self.batch_size}: not divisible by the {processes} processes that share a "
                f"batch; pass {near}"
            )

    def current_epoch(self) -> int:
        """Return the epoch of the next training batches."""
        # unlike `completed`, `processed` is already correct when a resumed run makes its first batch
        return int(self.trainer.fit_loop.epoch_progress.current.processed) if self.trainer else 0  # type: ignore[attr-defined]

    def train_dataloader(self) -> Loader:
        rank, world = self.place
        self.require_divisible(world)
        batches = TrainBatches(len(self.train_set), self.batch_size, self.run_seed, rank, world, self.drop_last_train)
        return Loader(self.train_set, batches, self.num_workers, self.collate, self.current_epoch)

    def val_dataloader(self) -> Loader | list:
        return self._eval_loader(self.val_set)

    def test_dataloader(self) -> Loader | list:
        return self._eval_loader(self.test_set)

    def _eval_loader(self, items: Any) -> Loader | list:
        if items is None or len(items) == 0:
            return []
        batches = EvalBatches(len(items), self.batch_size, *self.place)
        return Loader(items, batches, self.num_workers, self.collate, self.current_epoch)

    def is_padding(self, stage: str, batch_idx: int) -> bool:
        """Whether this process's batch `batch_idx` of "val" or "test" only repeats another process's records."""
        items = self.val_set if stage == "val" else self.test_set
        return batch_idx >= EvalBatches(len(items), self.batch_size, *self.place).real
