"""The state of a distillation, `distill.json` in the folder of its students, from which it can be continued."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from seqssm.errors import InputError
from seqssm.files import fingerprint
from seqssm.files.outputs import STUDENTS
from seqssm.training import origin
from seqssm.training.run_folder import RunFolder
from seqssm.training.unchanged import is_recorded


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: name of the model.
        width, depth: its size; of a sum of several, that of the last one.
        flops: operations per record as a fraction of the teacher's.
        scores: its test scores.
        digest: digest of the checkpoint of a student or of the control.
    """

    name: str
    width: int
    depth: int
    flops: float
    scores: dict[str, float]
    digest: str = ""


class State:
    """The options of a distillation, and the rows of the models that are finished.

    Args:
        folder: folder of the students' runs.
        teacher: checkpoint of the teacher.
        options: the other options by flag, with their words.
        resume: whether to continue the distillation in the folder, if there is one.
        paths: flags that name files of the data, which may have been moved.

    Attributes:
        rows: the finished rows, by name.
        moved: the flags of files at another path than before, as words.

    Raises:
        InputError: the distillation in the folder has other options, or another teacher.
    """

    def __init__(
        self,
        folder: Path,
        teacher: Path,
        options: Mapping[str, Sequence[str]],
        resume: bool,
        paths: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.options = {"TEACHER": [str(teacher)], **{flag: list(words) for flag, words in options.items()}}
        self.teacher = fingerprint.of_files([teacher])
        self.continued = resume and (folder / STUDENTS).is_file()
        self.rows: dict[str, Row] = {}
        self.moved: list[str] = []
        self.aside: list[tuple[Path, Path]] = []  # (place, where `begin` puts what is there)
        if self.continued:
            kept = RunFolder(folder).read_json(STUDENTS)
            self._require_same(kept, paths)
            self.rows = {row["name"]: Row(**row) for row in kept["rows"]}
            self._require_comparable()

    def _require_same(self, kept: Mapping[str, Any], paths: Sequence[str]) -> None:
        base, before = origin.base_of(kept, self.folder) or Path.cwd(), kept["options"]
        for flag in {**self.options, **before}:
            then, now = before.get(flag), self.options.get(flag)
            if origin.same(now, then, base):
                continue
            if flag in paths and now and origin.all_exist(now):
                self.moved += [flag, *now]
            else:
                raise InputError(
                    f"--resume: was begun {_given(flag, then)}, not {_given(flag, now)}; give the same options, or "
                    "choose another --output",
                    file=self.folder,
                )
        if self.teacher != kept["teacher"]:
            raise InputError(
                "--resume: the teacher has changed since the first student was trained; start again with --overwrite",
                file=self.folder,
            )

    def _require_comparable(self) -> None:
        """Require a first student with which moved data can be compared; without one, test the teacher again."""
        first = RunFolder(self.folder / "student-1")
        if self.moved and not first.holds_run():
            self.rows.clear()
        elif self.moved and not is_recorded(first):
            raise InputError(
                f"{self.moved[0]}: the run has another path, and no digests to compare the data", file=first.path
            )

    def begin(self, output: Path) -> None:
        """Write the state; of a new distillation, put aside what an earlier one has left.

        Args:
            output: file of the set.
        """
        self.aside = [(one, one.with_name(f".{one.name}.replaced")) for one in (output, self.folder)]
        if self.continued:
            return
        for now, before in self.aside:
            _remove(before)
            if now.exists():
                now.rename(before)
        self.folder.mkdir(parents=True)
        self._write()

    def restore(self) -> None:
        """Put back what `begin` has put aside, because no student can be trained."""
        _remove(self.folder)
        for now, before in self.aside:
            if before.exists():
                before.rename(now)

    def replace(self) -> None:
        """Remove what `begin` has put aside, because a student is trained."""
        for _, before in self.aside:
            _remove(before)

    def keep(self, row: Row) -> None:
        """Keep the row of a model that is finished.

        Args:
            row: the row.
        """
        self.rows[row.name] = row
        self._write()

    def _write(self) -> None:
        rows = [asdict(row) for row in self.rows.values()]
        content = {"options": self.options, "teacher": self.teacher, "rows": rows}
        content |= origin.entries(self.folder, Path.cwd())
        RunFolder(self.folder).write_text(STUDENTS, json.dumps(content, indent=2) + "\n")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _given(flag: str, words: Sequence[str] | None) -> str:
    return f"without {flag}" if words is None else f"with {' '.join([flag, *words])}"


def flags_of(words: Sequence[str]) -> dict[str, list[str]]:
    """Return the words after each flag of a command line; the last one of several equal flags counts.

    Args:
        words: ``["--trainer.max_epochs", "2"]`` or ``["--trainer.max_epochs=2"]``.
    """
    found: dict[str, list[str]] = {}
    flag = ""
    for word in origin.words(list(words)):
        if word.startswith("--"):
            flag, found[word] = word, []
        else:
            found[flag].append(word)
    return found
