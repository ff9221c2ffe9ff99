"""Test records that the model of ``--model.init_from`` or ``--model.teacher`` was trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqssm.errors import InputError
from seqssm.files.notes import note
from seqssm.training.checkpoint import class_name, find_checkpoint, read_checkpoint, resolve_class
from seqssm.training.external import TRAINED_ON, overlapping, read_split
from seqssm.training.origin import folder_of, located, other_options
from seqssm.training.run_folder import SPLIT, RunFolder

Rows = Sequence[Mapping[str, str]]
MOST = 32  # models that are followed from one to the model that it was trained with


@dataclass(frozen=True)
class Source:
    """A model that a fit starts from or learns from, or that such a model was trained with.

    Attributes:
        name: the option and the path, for messages.
        path: its checkpoint.
        entry: the ``"seqssm"`` entry of the checkpoint.
    """

    name: str
    path: Path
    entry: Mapping[str, Any]

    def before(self) -> Iterator[Source]:
        """Find the models of this one's own ``init_from`` and ``teacher``; missing ones are reported."""
        base = folder_of(RunFolder(self.path.parent))
        for option in ("init_from", "teacher"):
            given = located(self.entry["hparams"], [option], base).get(option)
            if not given:
                continue
            name = f"--model.{option} {given} (of {self.path})"
            try:
                path = find_checkpoint(given)
                yield Source(name, path, read_checkpoint(path)["seqssm"])
            except InputError as error:
                note(f"{name}: overlap with its training records was not checked ({error.message})")


def report_seen(task: Any, option: str, path: str | Path, entry: Mapping[str, Any]) -> None:
    """Report the test and validation records of a fit that other models were trained on, in one line per model.

    The records in the `split.csv` of the other run, and of the runs that it was started from or learned from, are
    compared with those of the fit. Nothing is printed if there are none, as for the same split.

    Args:
        task: the task that is trained, with its data set up.
        option: option that names the other model.
        path: checkpoint of the other model, or its run folder.
        entry: its ``"seqssm"`` entry.
    """
    data = None if task._trainer is None else task.trainer.datamodule
    if data is None or not task.trainer.is_global_zero:
        return
    waiting, known = [Source(f"{option} {path}", find_checkpoint(path), entry)], set[Path]()
    while waiting:
        source = waiting.pop(0)
        if source.path.resolve() in known or source.entry["domain"] != task.domain:
            continue
        if len(known) == MOST:
            note(f"{source.name}: overlap with its training records was not checked (more than {MOST} models before)")
            return
        known.add(source.path.resolve())
        _report(task, data, source)
        waiting += source.before()


def _report(task: Any, data: Any, source: Source) -> None:
    entry, run = source.entry, RunFolder(source.path.parent)
    rows, tested = read_split(run), data.identities("test")
    theirs, ours = (_columns(one) for one in (entry["data"], data.summary()))
    if rows is None or not tested or theirs != ours:
        why = "the test records have no ids" if not tested else "its data have other columns"
        why = f"no {SPLIT} beside it" if rows is None else why
        same = entry["data_class"] == class_name(type(data))
        if not same or other_options(entry["data_hparams"], data, folder_of(run)):  # otherwise the split is the same
            note(f"{source.name}: overlap with its training records was not checked ({why})")
        return
    train, val = data.identities("train"), data.identities("val")
    found = seen(tested, rows, [*train, *val], data.positional)
    total = len({row["id"] for row in tested})
    if resolve_class(entry["task"], entry["domain"], source.path).self_supervised and not task.self_supervised:
        if count := sum(map(len, found.values())):
            note(f"{count} of {total} test records were seen, without labels, by the model of {source.name}")
        return
    validated = seen(val, [row for row in rows if row["split"] == "train"], train, data.positional)["train"]
    counts = [
        ("trained", len(found["train"]), f"{total} test"),
        ("validated", len(found["val"]), f"{total} test"),
        ("trained", len(validated), f"{len({row['id'] for row in val})} validation"),
    ]
    if words := [f"{what} on {count} of {records} records" for what, count, records in counts if count]:
        of = "test" if any(found.values()) else "validation"
        note(f"warning: the model of {source.name} was {' and '.join(words)}; the figures of the {of} are too good")


def seen(tested: Rows, run: Rows, own: Rows, positional: Sequence[str]) -> dict[str, list[str]]:
    """Find records that another run was trained or validated on, unless the fit's own training records equal them.

    Args:
        tested: identities of the records.
        run: rows of the other run's `split.csv`.
        own: identities of the fit's own training records; what its split has in common with them is left out.
        positional: identities that are numbers of lines, which say nothing about another file.

    Returns:
        For ``train`` and ``val`` of the other run, the unique ids.
    """
    known = {item for row in own for item in row.items()}
    others = [
        {
            name: value
            for name, value in row.items()
            if name == "split" or (name not in positional and (name, value) not in known)
        }
        for row in run
        if row["split"] in TRAINED_ON
    ]
    return overlapping(tested, others)


def _columns(summary: Mapping[str, Any]) -> set[str]:
    """Return the names of the columns of a table, of which identities are digests; empty for other data."""
    found = summary.get("columns")
    return set(found) if isinstance(found, list | tuple) else set()
