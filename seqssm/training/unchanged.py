"""Whether the records of a run are still those of its training: a run resumed on other data is neither of the two."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from seqssm.errors import InputError
from seqssm.training.about import About
from seqssm.training.data import DataModule
from seqssm.training.external import overlapping, read_split, split_rows, write_split
from seqssm.training.run_folder import ABOUT, RunFolder

TARGETS, INPUTS = "targets", "inputs"  # entries of `about.json`: a digest of each split
SPLITS = {"train": "training", "val": "validation", "test": "test"}
PEOPLE = ("patient", "group")  # identities that other records share


def digests(data: DataModule, splits: Iterable[str] = SPLITS) -> dict[str, dict[str, str]]:
    """Return the digests of targets and inputs by split, for `about.json`; without splits that have none.

    Args:
        data: the data module, after `setup`.
        splits: the splits whose digests are wanted.
    """
    found: dict[str, dict[str, str]] = {TARGETS: {}, INPUTS: {}}
    for split in splits:
        rows = sorted(json.dumps(one, default=str, sort_keys=True) for one in data.targets(split))
        if rows:
            found[TARGETS][split] = hashlib.sha256("\n".join(rows).encode()).hexdigest()[:32]
        if inputs := data.inputs(split):
            found[INPUTS][split] = inputs
    return found


def changes(folder: RunFolder, data: DataModule, splits: Sequence[str] = tuple(SPLITS)) -> str:
    """Describe how the records of a run differ from those of its training; empty if they do not, or it is unknown.

    Args:
        folder: the run's folder, with `split.csv` and `about.json`.
        data: the data module, after `setup`.
        splits: the splits to compare.
    """
    kept, now = read_split(folder) or [], split_rows(data, splits)
    left_out = (*PEOPLE, *data.positional)
    names = [name for name in now[0] if name in kept[0] and name not in left_out] if kept and now else []
    known, found = folder.read_json(ABOUT), digests(data, splits)
    differences = []
    for split in splits:
        before, after = (_counted(rows, split, names) for rows in (kept, now))
        gone, new = (before - after).total(), (after - before).total()
        if names and (gone or new):
            differences.append(f"{gone} {SPLITS[split]} records are gone or changed, {new} are new")
            continue
        pairs = {name: (known.get(name, {}).get(split), one.get(split)) for name, one in found.items()}
        other = [name for name, (old, new) in pairs.items() if old is not None and old != new]
        if other:
            differences.append(f"{' and '.join(other)} of {SPLITS[split]} records have changed")
    return "; ".join(differences)


def is_recorded(folder: RunFolder) -> bool:
    """Return whether a run has what `changes` compares; those of earlier versions have not.

    Args:
        folder: the run's folder.
    """
    return bool(read_split(folder)) and INPUTS in folder.read_json(ABOUT)


def record(folder: RunFolder, data: DataModule, splits: Sequence[str] = tuple(SPLITS)) -> None:
    """Write what `changes` and ``seqssm compare`` compare, for a test without a training or on other data.

    Args:
        folder: the folder of the test.
        data: the data module, after `setup`.
        splits: the splits of the records.
    """
    write_split(folder, data, splits)
    about = About(folder, None, False, [])
    about.content |= digests(data, splits)
    about.write()


def _counted(rows: Sequence[Mapping[str, str]], split: str, names: Sequence[str]) -> Counter:
    return Counter(tuple(str(row.get(name) or "") for name in names) for row in rows if row["split"] == split)


def require_unchanged(folder: RunFolder, data: DataModule) -> None:
    """Reject the continuation of a run whose records have changed.

    Args:
        folder: the run's folder.
        data: the data module, after `setup`.

    Raises:
        InputError: records are gone, new or in another split, or have other targets.
    """
    why = changes(folder, data)
    if why:
        advice = "restore them, or start again with --overwrite or another --output"
        raise InputError(f"the data are not those of this run ({why}); {advice}", file=folder.path)


def trained_on(rows: Sequence[Mapping[str, str]], data: DataModule, split: str = "test") -> list[str]:
    """Return the ids of records that a run was trained or validated on, without those that already were then.

    Args:
        rows: rows of the run's `split.csv`.
        data: the data module, after `setup`.
        split: split of the records; validation records must not be training records.
    """

    moving = data.positional

    def stable(some: Iterable[Mapping[str, str]], but: str = "") -> list[dict[str, str]]:
        return [{name: value for name, value in row.items() if name not in moving or name == but} for row in some]

    known = stable(row for row in rows if row["split"] != split)
    before = stable((row for row in rows if row["split"] == split), "id")
    then, now = overlapping(before, known), overlapping(stable(data.identities(split), "id"), known)
    return [name for split, ids in now.items() for name in ids if name not in then[split]]


class ChangeCheck(Callback):
    """Compares the records with those at the time of the training, before an evaluation of the run's own data.

    Args:
        run: the run's folder.

    Attributes:
        changed: how the evaluated records differ; empty if they do not.
        training: how the training records differ, on which the baselines of a test are trained.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run, self.changed, self.training = run, "", ""

    def on_test_start(self, trainer: Trainer, task: LightningModule) -> None:
        self._compare(trainer, "test")

    def on_validation_start(self, trainer: Trainer, task: LightningModule) -> None:
        self._compare(trainer, "val")

    def _compare(self, trainer: Trainer, split: str) -> None:
        """Report changes.

        Raises:
            InputError: the run was trained on some of the records, because the data, and so the split, changed.
        """
        data = trainer.datamodule  # type: ignore[attr-defined]
        self.changed = changes(self.run, data, (split,))
        self.training = changes(self.run, data, ("train",)) if split == "test" else ""
        if self.training and not self.changed and trainer.is_global_zero:
            what = "the training records have changed since the training, and with them the baselines"
            print(f"warning: {what}: {self.training}", file=sys.stderr)
        if not self.changed:
            return
        what = f"the data have changed since the training: {self.changed}"
        ids = trained_on(read_split(self.run) or [], data, split)
        if ids:
            own = [name for group in data.sources for name in group if data.hparams.get(name) is not None]
            copy = f" (test RUN --data.{own[0]} COPY, a copy of the file that has them)" if own else ""
            raise InputError(
                f"{what}; the run was trained on {len(ids)} of the present {SPLITS[split]} records (first: {ids[0]}). "
                f"Restore the data, or test all of them as other data, which need another name{copy}",
                file=self.run.path,
            )
        if trainer.is_global_zero:
            print(f"warning: {what}", file=sys.stderr)
