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
STAGE = "stage"  # entry of `about.json` and of the checkpoints of a student with earlier ones: its number in the set
SIGNED = "# lightning.pytorch=="  # first line of the configuration that a run writes


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

    def require_free(self, command: str, overwrite: bool = False) -> None:
        """Check that a run may be written to the folder.

        Args:
            command: the command that writes it, for messages.
            overwrite: whether to allow a folder with a run.

        Raises:
            InputError: the folder already contains a run, or other files that a run would replace.
        """
        if self.holds_run():
            if overwrite:
                return
            how = f"continue it with `{command} --resume {shlex.quote(str(self.path))}`"
            if not command.endswith("fit"):
                how = f"continue it by `--resume` in the `{command}` command that began it"
            raise InputError(
                f"already contains a run: {how}, replace it with `--overwrite`, or choose another folder with "
                "`--output`",
                file=self.path,
            )

        if (names := self._strangers()) and not self._begun():
            raise InputError(
                f"contains {', '.join(names)}, which no run has written and a run would replace: choose another folder "
                "with `--output`",
                file=self.path,
            )

    def require_restartable(self) -> None:
        """Check that a run without ``last.ckpt`` has no finished epochs, which starting again would discard.

        Raises:
            InputError: the log has more epochs than a run writes before its first ``last.ckpt``.
        """
        log = self.path / LOG
        if log.is_file() and len(log.read_bytes().splitlines()) > 2:
            best = " (predict and test can still use best.ckpt)" if (self.path / BEST).is_file() else ""
            raise InputError(
                f"is missing, but the run has finished epochs; it cannot be continued: fit with --overwrite{best}",
                file=self.path / LAST,
            )

    def _strangers(self) -> list[str]:
        """Names of the files that `clear` would remove, in a folder without a run."""
        names = [name for name in (CONFIG, METRICS, SPLIT, ENSEMBLE, ABOUT, REPORT) if (self.path / name).exists()]
        return [*names, FIGURES] if any((self.path / FIGURES).glob("*")) else names

    def _begun(self) -> bool:
        """Whether a run that failed early left its configuration."""
        try:
            with open(self.path / CONFIG, encoding="utf-8") as file:
                return file.readline().startswith(SIGNED)
        except (OSError, UnicodeDecodeError):
            return False

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
