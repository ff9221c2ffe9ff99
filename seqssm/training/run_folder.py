"""A run's folder: what lies in it, who may write it, and how a second run is kept out."""

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
PLAN = "kfold.yaml"  # what a kfold was started with
SPLIT = "split.csv"  # which records were trained, validated and tested on


class RunFolder:
    """The folder of one run.

    Args:
        path: the folder; need not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise InputError("is a file; --output takes a folder", file=self.path)

    def holds_run(self) -> bool:
        """Whether something lies here that would be lost; a config alone is what a run that failed at once leaves."""
        return any((self.path / name).exists() for name in (BEST, LAST, LOG, FOLDS, PLAN))

    def require_free(self, command: str) -> None:
        """Raises InputError with the three ways on when a run lies here already."""
        if self.holds_run():
            resume = f"--resume {shlex.quote(str(self.path))}" if command.endswith("fit") else "--resume"
            raise InputError(
                f"holds a run already. Three ways on: `{command} {resume}` continues it, "
                "`--overwrite` replaces it, `--output OTHER` leaves it",
                file=self.path,
            )

    def clear(self) -> None:
        """Removes an earlier run's files, and nothing else that may lie in the folder."""
        with writing(self.path):
            for name in (CONFIG, BEST, LAST, LOG, METRICS, FOLDS, PLAN, SPLIT):
                (self.path / name).unlink(missing_ok=True)
            for events in self.path.glob("events.out.tfevents.*"):
                events.unlink()
            if (self.path / FIGURES).is_dir():
                shutil.rmtree(self.path / FIGURES)
            for folder in self.path.glob("test-*"):  # of other data, with the weights that are replaced
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
        """The JSON file `name`, or an empty dict where there is none."""
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError:
            raise InputError("is not valid JSON; remove it", file=self.path / name) from None

    def update_metrics(self, section: str, content: dict[str, Any]) -> Path:
        """Sets one section ("test", "validate", "kfold") of `metrics.json` and keeps the others."""
        metrics = {**self.read_json(), section: content}
        self.write_text(METRICS, json.dumps(metrics, indent=2, allow_nan=False) + "\n")
        return self.path / METRICS
