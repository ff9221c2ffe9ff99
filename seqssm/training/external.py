"""Evaluation of a run on other data: the options that select it, the results folder, overlap with the training data.

A data module supports this by declaring `DataModule.sources` and implementing `use_summary` and `identities`. Then

- another value of a source makes the evaluation *external*: every labelled record is tested with the checkpoint's
  fitted values, and nothing is split or fitted, unless it is another path of the run's own records
  (`seqssm.training.own_data`);
- another value of any other option that changes the result (a column, say) keeps the run's own splits; values that
  contradict the training (a fold, a scaling) are refused.

In both cases the results go to a folder of their own, and records that the run was trained on are reported.
"""

from __future__ import annotations

import csv
import inspect
import io
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from seqssm.errors import InputError
from seqssm.files.disk import writing
from seqssm.files.lock import Lock
from seqssm.training.checkpoint import Summary
from seqssm.training.data import DataModule
from seqssm.training.run_folder import ABOUT, METRICS, SPLIT, RunFolder

TRAINED_ON = ("train", "val")  # validation records have selected the epoch


def flagged(overrides: Sequence[str]) -> set[str]:
    """Return the names of the data options set by LightningCLI flags."""
    found = (re.match(r"--data\.(?:init_args\.)?(\w+)", word) for word in overrides)
    return {match[1] for match in found if match}


def inherited(hparams: Mapping[str, Any], data: type[DataModule], overrides: Sequence[str]) -> dict[str, Any]:
    """Return the data options of a run that still apply in combination with the flags.

    Sources are alternatives: with ``--data.manifest``, the run's ``dataset`` no longer applies.
    """
    given = flagged(overrides)
    replaced = {name for group in data.alternatives if given & set(group) for name in group if name not in given}
    if any(given & set(group) for group in data.sources):
        replaced |= {name for group in data.sources if not given & set(group) for name in group}
    return {name: value for name, value in hparams.items() if name not in replaced}


def differing(data: DataModule, kept: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of `data` that differ from a run's and affect the test, by name.

    Args:
        data: the data module, not yet set up.
        kept: the run's options, from its checkpoint.
    """
    defaults = {name: one.default for name, one in inspect.signature(type(data)).parameters.items()}
    return {
        name: value
        for name, value in data.hparams.items()
        if not name.startswith("_")
        and name not in data.neutral
        and not _same(value, kept.get(name, defaults.get(name)))
    }


def _same(a: Any, b: Any) -> bool:
    """Whether two values are equal, or name the same existing file."""
    if a == b:
        return True
    if not (isinstance(a, str) and isinstance(b, str)):
        return False
    try:
        return Path(a).samefile(b)
    except (OSError, ValueError):
        return False


class Destination:
    """Decides whether the data is the run's own and where results go, once the data module is built.

    Args:
        checkpoint: the checkpoint file.
        entry: its ``"seqssm"`` entry.
        overrides: LightningCLI flags.
        output: results folder; by default the run folder, or ``RUN/test-<name>`` for other data or another checkpoint.
        result: whether the checkpoint is the result of its run, not another file (a compressed model, the last epoch).
        trained: a checkpoint in the folder of its training, if that is another one.

    Attributes:
        run: folder of the checkpoint.
        trained: folder of its training.
        folder: results folder; set by `choose_folder`.
        differing: options that differ from the run's; set by `choose_folder`.
        external: whether the records come from another source; set by `choose_folder`.
    """

    def __init__(
        self,
        checkpoint: Path,
        entry: Mapping[str, Any],
        overrides: Sequence[str],
        output: str | Path | None,
        result: bool = True,
        trained: Path | None = None,
    ) -> None:
        self.trained = RunFolder((trained or checkpoint).parent)
        self.run, self.entry, self.given, self.output = RunFolder(checkpoint.parent), entry, flagged(overrides), output
        self.checkpoint, self.folder, self.result = checkpoint, self.run, result
        self.differing: dict[str, Any] = {}
        self.external = False

    def choose_folder(self, data: DataModule, moved: Collection[str] = ()) -> Path:
        """Choose the results folder, and pass the checkpoint's fitted values to `data`.

        Args:
            data: the data module of the evaluation.
            moved: its sources that name the run's own records at another path.

        Raises:
            InputError: an option is fixed by the checkpoint, or splits external data.
        """
        if data.sources:
            found = differing(data, self.entry["data_hparams"])
            self.differing = {name: value for name, value in found.items() if name not in moved}
            self.external = any(name in self.differing for group in data.sources for name in group)
            self._require_same_fit(data)
            data.use_summary(Summary(self.entry["data"], self.checkpoint), self.external)
            data.trained_with = dict(self.entry["data_hparams"]) if self.external else None
        if self.output is not None:
            self.folder = RunFolder(self.output)
        elif self.differing or not self.result:
            names = [*([] if self.result else [self.checkpoint.stem]), *([self._name(data)] if self.differing else [])]
            self.folder = RunFolder(self.run.path / f"test-{'-'.join(names)}")
        return self.folder.path

    def _require_same_fit(self, data: DataModule) -> None:
        """Reject options that contradict the checkpoint."""
        for name in (*data.fixed, *data.split_options):
            if self.external and name in data.split_options:
                if name in self.given:
                    raise InputError(
                        f"--data.{name}: does not apply to other data, which is tested without a split; drop the option"
                    )
            elif name in self.differing:
                kept = self.entry["data_hparams"].get(name)
                raise InputError(f"--data.{name} {self.differing[name]}: the run has {kept}; drop the option")

    def _name(self, data: DataModule) -> str:
        sources = [name for group in data.sources for name in group]
        first = next((self.differing[name] for name in sources if isinstance(self.differing.get(name), str)), None)
        if first is not None:
            path = Path(first)
            name = f"{path.resolve().parent.name}-{path.stem}" if path.exists() else path.stem
        else:
            name = "-".join(f"{name}-{value}" for name, value in self.differing.items())
        return re.sub(r"[^\w.-]+", "-", name).strip("-")[:80] or "other"

    def lock(self) -> Lock:
        """Lock the results folder.

        Raises:
            InputError: the folder is not writable, or contains a run or the test of different data.
        """
        if self.folder.path.resolve() == self.run.path.resolve() and self.run.holds_run():
            if self.differing or not self.result:
                of = "best.ckpt" if not self.differing else "the run's own data"
                raise InputError(f"contains the results of {of}; choose another --output", file=self.run.path)
        else:
            if self.folder.holds_run():
                raise InputError("contains a run; choose another --output", file=self.folder.path)
            before = self.folder.read_json().values()
            if any((section.get("data") or {}) != self._described() for section in before):
                raise InputError("contains the test of different data; choose another --output", file=self.folder.path)
            other = {Path(one).name for section in before if (one := section.get("checkpoint"))} - {
                self.checkpoint.name
            }
            if other:
                message = f"contains the test of {other.pop()}; choose another --output"
                raise InputError(message, file=self.folder.path)
        try:
            return self.folder.lock()
        except InputError as error:
            hint = (
                ""
                if self.output is not None or "is being written" in error.message
                else "; choose another folder with --output DIR"
            )
            raise InputError(f"{error.message.partition(';')[0]}{hint}", file=error.file) from None

    def _described(self) -> dict[str, str]:
        return {name: str(value) for name, value in self.differing.items() if value is not None}

    @property
    def takes_records(self) -> bool:
        """Whether the records of a test are written beside its results: not in a run, nor over files of the user."""
        strangers = not (self.folder.path / METRICS).exists() and any(
            (self.folder.path / name).exists() for name in (SPLIT, ABOUT)
        )
        return self.folder.path.resolve() != self.run.path.resolve() and not strangers

    def record(self, overlap: dict[str, int] | None, changed: str, training: str) -> dict[str, Any]:
        """Return the description of the data for `metrics.json`.

        Args:
            overlap: number of records of other data that the run was trained on, by split.
            changed: how the run's own test records differ from those at its training.
            training: how its training records differ, on which the baselines are trained.
        """
        if not self.differing:
            found = {"changed": changed, "training_changed": training}
            path = (
                self.checkpoint.name if self.folder.path.resolve() == self.run.path.resolve() else str(self.checkpoint)
            )
            return {"checkpoint": path, **{name: text for name, text in found.items() if text}}
        return {"checkpoint": str(self.checkpoint), "data": self._described(), "overlap": overlap}


# -- the records of a run ----------------------------------------------------------------------------------------------


SPLITS = ("train", "val", "test")


def write_split(folder: RunFolder, data: DataModule, splits: Sequence[str] = SPLITS) -> None:
    """Write `split.csv`: one row per record of the run, with its split and identities.

    The file stays in the run folder and is not part of a checkpoint, so a checkpoint contains no patient ids.
    """
    rows = split_rows(data, splits)
    if not rows:
        with writing(folder.path):
            (folder.path / SPLIT).unlink(missing_ok=True)
        return
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    folder.write_text(SPLIT, file.getvalue())


def split_rows(data: DataModule, splits: Sequence[str] = SPLITS) -> list[dict[str, str]]:
    """Return the rows of `split.csv`; empty for records without ids.

    Args:
        data: the data module, after `setup`.
        splits: the splits whose rows are wanted.
    """
    return [{"split": split, **row} for split in splits for row in data.identities(split)]


def read_split(folder: RunFolder) -> list[dict[str, str]] | None:
    """Read the rows of `split.csv`; None if the folder has none.

    Raises:
        InputError: the file was not written by `write_split`.
    """
    path = folder.path / SPLIT
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
    except FileNotFoundError:
        return None
    except (UnicodeDecodeError, csv.Error):
        raise InputError("is not a split file of a run; remove it", file=path) from None
    if rows and not {"split", "id"} <= set(rows[0]):
        raise InputError("is not a split file of a run (columns split, id); remove it", file=path)
    return rows


def overlapping(tested: Sequence[Mapping[str, str]], run: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """Find the tested records that a run was trained on.

    Args:
        tested: identities of the tested records; a record may have several rows.
        run: rows of the run's `split.csv`.

    Returns:
        For ``train`` and ``val``, the unique ids whose record shares an identity (of the same name) with that split.
    """
    found: dict[str, list[str]] = {}
    seen: set[str] = set()
    for split in TRAINED_ON:
        known = {(name, value) for row in run if row["split"] == split for name, value in row.items() if value}
        ids = [row["id"] for row in tested if any(item in known for item in row.items() if item[1])]
        found[split] = [name for name in dict.fromkeys(ids) if name not in seen]
        seen |= set(found[split])
    return found


class OverlapCheck(Callback):
    """Reports the records that the run was trained on, before a test on other data.

    Args:
        run: the run's folder.

    Attributes:
        counts: number of records by split of the run; None if not checked.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.counts: dict[str, int] | None = None

    def on_test_start(self, trainer: Trainer, task: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        rows = read_split(self.run)
        tested = trainer.datamodule.identities("test")  # type: ignore[attr-defined]
        if rows is None or not tested:
            why = f"{self.run.path} contains no {SPLIT}" if rows is None else "the records have no ids"
            print(f"overlap with the training data was not checked: {why}", file=sys.stderr)
            return
        found = overlapping(tested, rows)
        self.counts = {split: len(ids) for split, ids in found.items()}
        total = len({row["id"] for row in tested})
        if not any(found.values()):
            print(f"none of the {total} tested records is in the run's training data", file=sys.stderr)
        for split, what in (("train", "was trained on"), ("val", "was validated on")):
            ids = found[split]
            if ids:
                print(
                    f"warning: the run {what} {len(ids)} of the {total} tested records (first: {ids[0]})",
                    file=sys.stderr,
                )


def require_own_data(destination: Destination, command: str) -> None:
    """Reject other data for a command that needs the run's own split."""
    if destination.external and command != "test":
        raise InputError(f"{command} uses the run's own data; use test for other data")
