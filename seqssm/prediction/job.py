"""One prediction job: who may write, what is done already, the share of each process, and the finished file.

Beside the output ``name.csv`` lies, until it is complete, the hidden folder ``.name.csv.parts``: a lock, ``job.json``
(what is predicted, from what and how) and the part files, one a process and start.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seqssm.errors import InputError
from seqssm.files.disk import atomic, refusal, require_writable, sweep, writing
from seqssm.files.lock import Lock
from seqssm.prediction.loop import batched, outcomes
from seqssm.prediction.model import Model
from seqssm.prediction.predictor import Predictor, Record
from seqssm.prediction.table import Parts, PartWriter, require_suffix, tabulate
from seqssm.training.processes import START, TIMEOUT, Alone, choose_device
from seqssm.version import __version__

TRACES = 20  # tracebacks kept a process; a thousand equal ones help nobody


@dataclass(frozen=True)
class Job:
    """What ``seqssm predict`` was asked for; `options` are the domain's own, by name."""

    checkpoint: Path
    inputs: list[Path]
    output: Path
    options: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 32
    num_workers: int = 0
    accelerator: str = "auto"
    precision: str = "32-true"
    figures: Path | None = None
    resume: bool = False
    overwrite: bool = False
    timeout: float = TIMEOUT  # seconds without progress after which one of several processes counts as hung


@dataclass
class Result:
    """How a job ended: records in all, of which not ok, and the log of our own failures, if any."""

    records: int
    failed: int
    log: Path | None = None


@dataclass
class Plan:
    """What the first process tells the others: the number of records, and which batches are done."""

    records: int
    done: set[int]


class WorkFolder:
    """The hidden folder beside an output, held by one writer.

    Raises:
        InputError: another writer is at it, an earlier prediction is in the way, or `resume` finds none of this job.
    """

    def __init__(self, job: Job) -> None:
        self.job, self.path = job, job.output.with_name(f".{job.output.name}.parts")
        self.manifest = self.path / "job.json"
        if job.output.is_dir():
            raise InputError("is a folder; --output takes a file", file=job.output)
        begun = self.manifest.is_file()
        if job.output.exists() and not job.overwrite and not (job.resume and begun):
            raise InputError("exists already; --overwrite replaces it, --output OTHER leaves it", file=job.output)
        if begun and not job.resume and not job.overwrite:
            raise InputError(
                "an interrupted prediction lies beside it: --resume continues it, --overwrite starts anew",
                file=job.output,
            )
        self.lock = Lock(self.path)
        if self.lock.exclusive:
            sweep(job.output.parent, job.output.name)
            if job.figures is not None:
                sweep(job.figures)

    def prepare(self, records: int) -> Plan:
        """Makes the folder ready: the batches that are done already, or none."""
        content = describe(self.job, records)
        if self.job.resume and self.manifest.is_file():
            self._require_same(content)
            return Plan(records, set(Parts(self.path).places))
        with writing(self.path):
            for part in self.path.glob("*.part"):
                part.unlink()
        with atomic(self.manifest, "w") as file:
            json.dump(content, file, indent=1)
        return Plan(records, set())

    def _require_same(self, content: dict[str, Any]) -> None:
        try:
            kept = json.loads(self.manifest.read_text(encoding="utf-8"))
        except ValueError:
            kept = {}
        for name, value in content.items():
            if kept.get(name) == value:
                continue
            what = name
            if name == "options" and isinstance(kept.get(name), dict):
                flags = [flag for flag in value if kept[name].get(flag) != value[flag]]
                what = "options (" + ", ".join("--" + flag.replace("_", "-") for flag in flags) + ")"
            raise InputError(
                f"--resume: the interrupted prediction differs in its {what}; repeat its command, or start anew with "
                "--overwrite",
                file=self.job.output,
            )

    def remove(self) -> None:
        """Removes everything in the folder, the lock last."""
        for path in self.path.iterdir():
            if path not in (self.lock.path, self.lock.holder):
                path.unlink()
        self.lock.release()
        shutil.rmtree(self.path, ignore_errors=True)


def describe(job: Job, records: int) -> dict[str, Any]:
    """What must be equal for a job to be continued, as JSON gives it back."""
    options = {
        **job.options,
        "batch_size": job.batch_size,
        "accelerator": job.accelerator,
        "precision": job.precision,
        "figures": None if job.figures is None else str(job.figures.absolute()),
    }
    content = {
        "version": __version__,
        "checkpoint": digest(job.checkpoint),
        "inputs": [stamp(path) for path in job.inputs],
        "options": options,
        "records": records,
    }
    return json.loads(json.dumps(content, default=str))


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamp(path: Path) -> list[list[Any]]:
    """Name, size and time of the files of an input: the file, a folder's files, or those of a record's name."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
    elif path.is_file():
        files = [path]
    else:
        files = sorted(path.parent.glob(path.name + ".*"))
    return [[str(f.absolute()), f.stat().st_size, f.stat().st_mtime_ns] for f in files] or [[str(path.absolute())]]


def run(group: Alone, job: Job, progress: Callable[[int, int], None] | None = None) -> Result:
    """Predicts this process's share; the first one also prepares, merges and tidies up.

    Args:
        group: the processes of the job.
        job: what to do, alike in all processes.
        progress: called in the first process with (records done, records in all).

    Raises:
        InputError: nothing can be predicted, or the disk refuses; what was predicted before is kept for ``--resume``.
    """
    work: WorkFolder | None = None

    def begin() -> tuple[Predictor, Plan | None]:
        nonlocal work
        require_suffix(job.output)
        predictor = _model(job, group).predictor(job.options)
        predictor.output = job.output
        if group.rank > 0:
            return predictor, None
        if job.figures is not None:
            require_writable(job.figures)
        work = WorkFolder(job)
        # counted before anything is predicted: a file that cannot be used is told now, not after a night's work
        return predictor, work.prepare(sum(1 for _ in beating(group, predictor.records(job.inputs))))

    def finish() -> Result | None:
        if work is None:
            return None
        total, failed = Parts(work.path).write(job.output, predictor.columns, plan.records, group.beat)
        work.remove()
        return Result(total, failed, keep(traces))

    group.timeout = max(job.timeout, START)
    try:
        predictor, plan = together(group, begin)
        plan = group.broadcast(plan)
        group.timeout = job.timeout
        share = together(group, lambda: _share(group, job, plan, predictor, progress))
        traces = [trace for part in group.gather(share) for trace in part]
        return group.broadcast(together(group, finish))
    finally:
        if work is not None:
            work.lock.release()


def beating(group: Alone, items: Iterator[Any]) -> Iterator[Any]:
    """`items`, with a sign of life to the other processes for each."""
    for item in items:
        group.beat()
        yield item


def together(group: Alone, step: Callable[[], Any]) -> Any:
    """Runs `step`; when it fails in any process, all raise, so that none waits for another in vain."""
    value: Any = None
    own: Exception | None = None
    try:
        value = step()
    except Exception as error:
        own = error
    for trouble in group.gather(_portable(own)):
        if trouble is not None:
            raise own or trouble
    return value


def _portable(error: Exception | None) -> Exception | None:
    """`error` in a form that can be sent to another process."""
    if error is None or isinstance(error, InputError):
        return error
    said = refusal(error)
    return InputError(said) if said else RuntimeError("".join(traceback.format_exception(error)))


def _model(job: Job, group: Alone) -> Model:
    model = Model(job.checkpoint, "cpu", job.precision)
    model.network.to(choose_device(job.accelerator, group.local_rank))
    return model


def _share(
    group: Alone, job: Job, plan: Plan, predictor: Predictor, progress: Callable[[int, int], None] | None
) -> list[str]:
    """Predicts and writes every batch that falls to this process; returns the tracebacks of our own failures."""
    traces: list[str] = []
    if progress is not None:
        progress(min(len(plan.done) * job.batch_size, plan.records), plan.records)
    mine = _mine(group, plan, batched(beating(group, predictor.records(job.inputs)), job.batch_size))
    folder = job.output.with_name(f".{job.output.name}.parts")
    parts = PartWriter(folder / f"{group.rank}-{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        for outcome in outcomes(predictor, mine, job.num_workers, job.precision, job.figures):
            parts.write(outcome.batch, tabulate(outcome.records, outcome.rows, predictor.columns))
            traces += outcome.traces[: TRACES - len(traces)]
            if progress is not None:
                progress(outcome.records[-1].index + 1, plan.records)
            group.beat()
    finally:
        parts.close()
    return traces


def _mine(group: Alone, plan: Plan, batches: Iterator[tuple[int, list[Record]]]) -> Iterator[tuple[int, list[Record]]]:
    turn = 0
    for number, records in batches:
        if number in plan.done:
            continue
        if turn % group.world == group.rank:
            yield number, records
        turn += 1


def keep(traces: list[str]) -> Path | None:
    """Writes tracebacks into a file that the user can send us; None when there are none."""
    if not traces:
        return None
    with tempfile.NamedTemporaryFile(
        "w", prefix="seqssm-", suffix=".log", delete=False, encoding="utf-8", errors="backslashreplace"
    ) as log:
        log.write(f"seqssm {__version__}: {' '.join(sys.argv)}\n\n" + "\n".join(traces))
    return Path(log.name)
