"""Run folders: file names, protection of existing runs, and `metrics.json`."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

from seqssm.errors import InputError
from seqssm.files.disk import atomic, sweep, writing
from seqssm.files.lock import Lock

CONFIG, BEST, LAST, LOG, METRICS, FOLDS = (
    "config.yaml",
    "best.ckpt",
    "last.ckpt",
    "log.csv",
    "metrics.json",
    "folds.csv",
)
FIGURES = "figures"
PLAN = "kfold.yaml"  # configuration of a kfold study
ENSEMBLE = "ensemble.ckpt"  # the trained models of a study in one file
SPLIT = "split.csv"  # the records of each split
ABOUT = "about.json"  # command, environment and notes about the data
REPORT = "report.html"


class RunFolder:
    """The folder of a run.

    Args:
        path: the folder; it need not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise InputError("is a file; --output takes a folder", file=self.path)

    def holds_run(self) -> bool:
        """Whether the folder contains results; a config alone was left by a run that failed early."""
        return any((self.path / name).exists() for name in (BEST, LAST, LOG, FOLDS, PLAN))

    def require_free(self, command: str) -> None:
        """Raise InputError with the three options if the folder already contains a run."""
        if self.holds_run():
            resume = f"--resume {shlex.quote(str(self.path))}" if command.endswith("fit") else "--resume"
            raise InputError(
                f"already contains a run: continue it with `{command} {resume}`, replace it with `--overwrite`, "
                "or choose another folder with `--output`",
                file=self.path,
            )

    def clear(self) -> None:
        """Remove the files of an earlier run, and no other files in the folder."""
        with writing(self.path):
            for name in (CONFIG, BEST, LAST, LOG, METRICS, FOLDS, PLAN, SPLIT, ENSEMBLE, ABOUT, REPORT):
                (self.path / name).unlink(missing_ok=True)
            for events in self.path.glob("events.out.tfevents.*"):
                events.unlink()
            if (self.path / FIGURES).is_dir():
                shutil.rmtree(self.path / FIGURES)
            for folder in self.path.glob("test-*"):  # tests on other data, with the weights that are replaced
                if (folder / METRICS).is_file():
                    RunFolder(folder).clear()
                    if not any(folder.iterdir()):
                        folder.rmdir()

    def lock(self) -> Lock:
        """Locks the folder, and removes temporary files that a killed run left in it."""
        lock = Lock(self.path)
        if lock.exclusive:
            sweep(self.path / FIGURES)
        return lock

    def write_text(self, name: str, text: str) -> None:
        with atomic(self.path / name, "w") as file:
            file.write(text)

    def read_json(self, name: str = METRICS) -> dict[str, Any]:
        """Read the JSON file `name`; an empty dict if there is none."""
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError:
            raise InputError("is not valid JSON; remove it", file=self.path / name) from None

    def update_metrics(self, section: str, content: dict[str, Any]) -> Path:
        """Set one section ("test", "validate", "kfold") of `metrics.json`, keeping the others."""
        metrics = {**self.read_json(), section: content}
        self.write_text(METRICS, json.dumps(metrics, indent=2, allow_nan=False) + "\n")
        return self.path / METRICS
