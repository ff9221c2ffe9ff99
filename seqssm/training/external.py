"""Evaluation of a run on data other than its own: which options make it so, where results go, overlap with training.

A data module takes part by declaring `DataModule.sources` and implementing `use_summary` and `identities`. Then

- another value of a source makes the evaluation *external*: every labelled record is tested with the checkpoint's
  fitted values, and nothing is split or fitted;
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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from seqssm.errors import InputError
from seqssm.files.disk import writing
from seqssm.files.lock import Lock
from seqssm.training.checkpoint import Summary
from seqssm.training.data import DataModule
from seqssm.training.run_folder import SPLIT, RunFolder

TRAINED_ON = ("train", "val")  # a validation record has chosen the epoch


def flagged(overrides: Sequence[str]) -> set[str]:
    """Names of the data options that LightningCLI flags set."""
    found = (re.match(r"--data\.(?:init_args\.)?(\w+)", word) for word in overrides)
    return {match[1] for match in found if match}


def inherited(hparams: Mapping[str, Any], data: type[DataModule], overrides: Sequence[str]) -> dict[str, Any]:
    """A run's data options that still apply beside the flags.

    Sources are alternatives: with ``--data.manifest``, the run's ``dataset`` no longer applies.
    """
    given = flagged(overrides)
    replaced: set[str] = set()
    if any(given & set(group) for group in data.sources):
        replaced = {name for group in data.sources if not given & set(group) for name in group}
    return {name: value for name, value in hparams.items() if name not in replaced}


def differing(data: DataModule, kept: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `data` that are not those of a run and change what is tested, by name.

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
    """Equal values, or two names of one existing file."""
    if a == b:
        return True
    if not (isinstance(a, str) and isinstance(b, str)):
        return False
    try:
        return Path(a).samefile(b)
    except (OSError, ValueError):
        return False


class Destination:
    """Decides, once the data module is built, whether its data is the run's own, and where the results go.

    Args:
        checkpoint: the checkpoint file.
        entry: its ``"seqssm"`` entry.
        overrides: LightningCLI flags.
        output: folder of the results; the run's own, or ``RUN/test-<name>`` for other data, when not given.

    Attributes:
        run: the folder of the checkpoint.
        folder: the folder of the results; set by `choose`.
        differing: options that differ from the run's; set by `choose`.
        external: whether the records come from another source; set by `choose`.
    """

    def __init__(
        self, checkpoint: Path, entry: Mapping[str, Any], overrides: Sequence[str], output: str | Path | None
    ) -> None:
        self.run, self.entry, self.given, self.output = RunFolder(checkpoint.parent), entry, flagged(overrides), output
        self.checkpoint, self.folder = checkpoint, self.run
        self.differing: dict[str, Any] = {}
        self.external = False

    def choose(self, data: DataModule) -> Path:
        """The folder of the results; also hands the checkpoint's fitted values to `data`.

        Raises:
            InputError: an option that the checkpoint fixes, or a split of external data.
        """
        if data.sources:
            self.differing = differing(data, self.entry["data_hparams"])
            self.external = any(name in self.differing for group in data.sources for name in group)
            self._require_same_fit(data)
            data.use_summary(Summary(self.entry["data"], self.checkpoint), self.external)
            data.trained_with = dict(self.entry["data_hparams"]) if self.external else None
        if self.output is not None:
            self.folder = RunFolder(self.output)
        elif self.differing:
            self.folder = RunFolder(self.run.path / f"test-{self._name(data)}")
        return self.folder.path

    def _require_same_fit(self, data: DataModule) -> None:
        """Refuses options that contradict how the checkpoint was made."""
        for name in (*data.fixed, *data.split_options):
            if self.external and name in data.split_options:
                if name in self.given:
                    raise InputError(f"--data.{name}: other data is tested whole; drop the option")
            elif name in self.differing:
                kept = self.entry["data_hparams"].get(name)
                raise InputError(f"--data.{name}: the run has {kept}, not {self.differing[name]}; drop the option")

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
        """Locks the folder of the results.

        Raises:
            InputError: it cannot be written, or holds a run or the test of other data.
        """
        if self.folder.path.resolve() == self.run.path.resolve():
            if self.differing:
                raise InputError("holds the results of the run's own data; choose another --output", file=self.run.path)
        else:
            if self.folder.holds_run():
                raise InputError("holds a run; choose another --output", file=self.folder.path)
            before = self.folder.read_json().values()
            if any((section.get("data") or {}) != self._described() for section in before):
                raise InputError("holds the test of other data; choose another --output", file=self.folder.path)
        try:
            return self.folder.lock()
        except InputError as error:
            hint = (
                "" if self.output is not None or "is being written" in error.message else "; --output DIR names another"
            )
            raise InputError(f"{error.message.partition(';')[0]}{hint}", file=error.file) from None

    def _described(self) -> dict[str, str]:
        return {name: str(value) for name, value in self.differing.items() if value is not None}

    def record(self, overlap: dict[str, int] | None) -> dict[str, Any]:
        """What `metrics.json` says about the data, beside the metrics."""
        if not self.differing:
            return {"checkpoint": self.checkpoint.name}
        return {"checkpoint": str(self.checkpoint), "data": self._described(), "overlap": overlap}


# -- the records of a run ----------------------------------------------------------------------------------------------


def write_split(folder: RunFolder, data: DataModule) -> None:
    """Writes `split.csv`: one row per record of the run, with its split and identities.

    It stays in the run's folder and is not part of a checkpoint, which may be passed on without the ids of patients.
    """
    rows = [{"split": split, **row} for split in ("train", "val", "test") for row in data.identities(split)]
    if not rows:
        with writing(folder.path):
            (folder.path / SPLIT).unlink(missing_ok=True)
        return
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    folder.write_text(SPLIT, file.getvalue())


def read_split(folder: RunFolder) -> list[dict[str, str]] | None:
    """The rows of `split.csv`, or None where the folder has none.

    Raises:
        InputError: it is not what `write_split` wrote.
    """
    path = folder.path / SPLIT
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
    except FileNotFoundError:
        return None
    except (UnicodeDecodeError, csv.Error):
        raise InputError("is not the split of a run; remove it", file=path) from None
    if rows and not {"split", "id"} <= set(rows[0]):
        raise InputError("is not the split of a run (columns split, id); remove it", file=path)
    return rows


def overlapping(tested: Sequence[Mapping[str, str]], run: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """Ids of tested records that a run was trained on.

    Args:
        tested: identities of the tested records; a record may have several rows.
        run: rows of the run's `split.csv`.

    Returns:
        For ``train`` and ``val`` the ids, each once, whose record has an identity (of the same name) in that split.
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
    """Reports, before a test on other data, the records that the run was trained on.

    Args:
        run: the run's folder.

    Attributes:
        counts: records by split of the run, or None where it was not checked.
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
            why = f"{self.run.path} holds no {SPLIT}" if rows is None else "the records have no ids"
            print(f"overlap with the training data not checked: {why}", file=sys.stderr)
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


def require_own_data(destination: Destination, verb: str) -> None:
    """Refuses other data for a command that needs the run's own splits."""
    if destination.external and verb != "test":
        raise InputError(f"{verb} runs on the run's own data; use test for other data")
