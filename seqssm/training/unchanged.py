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
from seqssm.training.external import read_split, split_rows, write_split
from seqssm.training.run_folder import ABOUT, RunFolder

TARGETS = "targets"  # entry of `about.json`: a hash of the targets of each split
SPLITS = {"train": "training", "val": "validation", "test": "test"}
PEOPLE = ("patient", "group")  # identities that other records share


def target_hashes(data: DataModule, splits: Iterable[str] = SPLITS) -> dict[str, str]:
    """Return a hash of the targets of each split, for `about.json`; empty for data without targets.

    Args:
        data: the data module, after `setup`.
        splits: the splits whose hashes are wanted.
    """
    found = {}
    for split in splits:
        rows = sorted(json.dumps(one, default=str, sort_keys=True) for one in data.targets(split))
        if rows:
            found[split] = hashlib.sha256("\n".join(rows).encode()).hexdigest()[:32]
    return found


def changes(folder: RunFolder, data: DataModule, splits: Sequence[str] = tuple(SPLITS)) -> str:
    """Describe how the records of a run differ from those of its training; empty if they do not, or it is unknown.

    Args:
        folder: the run's folder, with `split.csv` and `about.json`.
        data: the data module, after `setup`.
        splits: the splits to compare.
    """
    kept, now = read_split(folder) or [], split_rows(data, splits)
    if not kept or not now:
        return ""
    names = [name for name in now[0] if name in kept[0] and name not in PEOPLE]
    hashes, known = target_hashes(data, splits), folder.read_json(ABOUT).get(TARGETS, {})
    found = []
    for split in splits:
        before, after = (_counted(rows, split, names) for rows in (kept, now))
        gone, new = (before - after).total(), (after - before).total()
        if gone or new:
            found.append(f"{gone} {SPLITS[split]} records are gone or changed, {new} are new")
        elif hashes.get(split) != known.get(split, hashes.get(split)):
            found.append(f"targets of {SPLITS[split]} records have changed")
    return "; ".join(found)


def record(folder: RunFolder, data: DataModule) -> None:
    """Write what `changes` compares, for a test without a training.

    Args:
        folder: the folder of the test.
        data: the data module, after `setup`.
    """
    write_split(folder, data)
    about = About(folder, None, False, [])
    about.content[TARGETS] = target_hashes(data)
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


class ChangeCheck(Callback):
    """Warns before a test if the test records are not those at the time of the training.

    Args:
        run: the run's folder.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run

    def on_test_start(self, trainer: Trainer, task: LightningModule) -> None:
        if trainer.is_global_zero:
            why = changes(self.run, trainer.datamodule, ("test",))  # type: ignore[attr-defined]
            if why:
                print(f"warning: the data have changed since the training: {why}", file=sys.stderr)
