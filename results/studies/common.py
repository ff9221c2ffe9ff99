"""Code shared by all studies: running a command, reading its tables, writing Markdown."""

from __future__ import annotations

import csv
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
RUNS = ROOT / "runs" / "real"

Study = tuple[Callable[[], dict[str, Any]], Callable[[dict[str, Any]], str]]
"""A study: (function that runs it, function that formats its table)."""


def seqssm(*words: str) -> None:
    """Run a `seqssm` command and show its output."""
    print("$ seqssm " + " ".join(words), flush=True)
    code = subprocess.run([sys.executable, "-m", "seqssm", *words], cwd=ROOT, check=False).returncode
    if code != 0:
        raise SystemExit(f"exited with code {code}; to resume, run: python results/real.py")


def relative(path: Path) -> str:
    """A path below the repository, as it is typed there."""
    return str(path.relative_to(ROOT))


def results_of_study(name: str) -> dict[str, Any]:
    """The results of a study that has been run; empty if it has not."""
    path = ROOT / "results" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def results_of(run: Path) -> dict[str, Any]:
    """The content of a run's `metrics.json`; empty if there is none."""
    path = run / "metrics.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def tested(domain: str, run: Path, words: Sequence[str]) -> dict[str, Any]:
    """Fit with the arguments `words` and test, or continue where an earlier call stopped; return the test's results."""
    if not (run / "last.ckpt").is_file() and not (run / "config.yaml").is_file():
        seqssm(domain, "fit", *words, "--output", relative(run))
    elif "test" not in results_of(run):
        seqssm(domain, "fit", "--resume", relative(run))
    if "test" not in results_of(run):
        seqssm(domain, "test", relative(run))
    return results_of(run)["test"]


def seeds() -> tuple[int, ...]:
    """Seeds of a study, which `SEQSSM_STUDY_SEEDS` may limit (1,2,3)."""
    return tuple(int(one) for one in os.environ.get("SEQSSM_STUDY_SEEDS", "1,2,3").split(","))


def install_images() -> None:
    """Make the worked domain of image arrays known to this process and its children."""
    site = RUNS / "images_site"
    info = site / "seqssm_images-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: seqssm-images\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[seqssm.domains]\nimages = seqssm_images:DOMAIN\n", encoding="utf-8")
    own = [str(ROOT / "examples"), str(site)]
    sys.path[:0] = [one for one in own if one not in sys.path]
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join([*own, *(one for one in known if one and one not in own)])


def table_of(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def epochs(log: Path) -> list[dict[str, float]]:
    """The rows of a run's `log.csv`."""
    return [{name: float(value) for name, value in row.items() if value} for row in table_of(log)]


def markdown(lines: list[list[str]]) -> str:
    """A Markdown table; the first line is its header."""
    rows = ["| " + " | ".join(cells) + " |" for cells in lines]
    return "\n".join([rows[0], "|" + " --- |" * len(lines[0]), *rows[1:]])


def spread(values: list[float]) -> str:
    """Mean and standard deviation over the seeds, or the mean alone if all are equal."""
    mean = statistics.fmean(values)
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{mean:.4f}" if std < 5e-5 else f"{mean:.4f} ± {std:.4f}"
