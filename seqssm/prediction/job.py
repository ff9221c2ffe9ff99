"""A prediction job: lock, resumption, distribution over processes, and the finished file.

Until the output ``name.csv`` is complete, there is a hidden folder ``.name.csv.parts`` next to it with a lock,
``job.json`` (checkpoint, inputs and options) and the part files, one per process and start.
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
from seqssm.files import notes
from seqssm.files.disk import atomic, refusal, require_writable, sweep, writing
from seqssm.files.lock import Lock
from seqssm.prediction.loop import batched, outcomes
from seqssm.prediction.model import Model
from seqssm.prediction.predictor import Predictor, Record
from seqssm.prediction.table import Parts, PartWriter, require_suffix, tabulate
from seqssm.training.processes import START, TIMEOUT, SingleProcess, choose_device
from seqssm.version import __version__

TRACES = 20  # tracebacks kept per process
FAILURES = 3  # failed records whose reason is printed


@dataclass(frozen=True)
class Job:
    """The arguments of ``seqssm predict``; `options` are the domain's own, by name, `files` those that they read."""

    checkpoint: Path
    inputs: list[Path]
    output: Path
    options: dict[str, Any] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    batch_size: int = 32
    num_workers: int = 0
    accelerator: str = "auto"
    precision: str = "32-true"
    figures: Path | None = None
    budget: float | None = None
    resume: bool = False
    overwrite: bool = False
    timeout: float = TIMEOUT  # seconds without progress after which a process counts as hung


@dataclass
class Result:
    """The result of a job.

    Attributes:
        records: number of records.
        failed: number of failed ones.
        log: log of internal errors, if any.
        unit: what is counted, in the plural.
        files: further files.
        failures: the first failed rows, as ``id: reason``.
    """

    records: int
    failed: int
    log: Path | None = None
    unit: str = "records"
    files: list[Path] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@dataclass
class Plan:
    """Sent by rank 0 to the others: the number of records, and the batches that are done."""

    records: int
    done: set[int]


class WorkFolder:
    """The hidden folder next to an output, locked by one writer.

    Raises:
        InputError: another writer is active, an earlier prediction exists, or `resume` finds a different job.
    """

    def __init__(self, job: Job) -> None:
        self.job, self.path = job, parts_folder(job.output)
        self.manifest = manifest_of(job)
        if job.output.is_dir():
            raise InputError("is a folder; --output takes a file", file=job.output)
        begun = self.manifest.is_file()
        if job.output.exists() and not job.overwrite and not (job.resume and begun):
            raise InputError("already exists; choose another --output or pass --overwrite", file=job.output)
        if begun and not job.resume and not job.overwrite:
            raise InputError(
                "has an interrupted prediction: --resume continues it, --overwrite restarts it",
                file=job.output,
            )
        self.lock = Lock(self.path)
        if self.lock.exclusive:
            sweep(job.output.parent, job.output.name)
            if job.figures is not None:
                sweep(job.figures)

    def prepare(self, records: int) -> Plan:
        """Prepare the folder and return the batches that are already done."""
        content = job_properties(self.job, records)
        if self.job.resume and self.manifest.is_file():
            self._require_same(content)
            return Plan(records, set(Parts(self.path).places))
        with writing(self.path):
            for part in self.path.iterdir():
                if part not in (self.lock.path, self.lock.holder, self.manifest):
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
            if kept.get(name) == value or (name == "files" and name not in kept):  # begun by an earlier version
                continue
            what = name
            if name == "options" and isinstance(kept.get(name), dict):
                flags = [flag for flag in value if kept[name].get(flag) != value[flag]]
                what = "options (" + ", ".join("--" + flag.replace("_", "-") for flag in flags) + ")"
            raise InputError(
                f"--resume: the interrupted prediction differs in its {what}; repeat its command, or restart with "
                "--overwrite",
                file=self.job.output,
            )

    def require_unchanged(self) -> None:
        """Check that no input has changed since the prediction began; new files in a folder do not count.

        Raises:
            InputError: a file has changed or is gone, so that rows may belong to other records.
        """
        kept = json.loads(self.manifest.read_text(encoding="utf-8"))
        for path, before in zip([*self.job.inputs, *self.job.files], [*kept["inputs"], *kept.get("files", [])]):
            now = {tuple(entry) for entry in stamp(path)}
            if any(tuple(entry) not in now for entry in before):
                raise InputError("has changed during the prediction; restart it with --overwrite", file=path)

    def remove(self) -> None:
        """Remove all files in the folder, the lock last."""
        for path in self.path.iterdir():
            if path not in (self.lock.path, self.lock.holder):
                path.unlink()
        self.lock.release()
        shutil.rmtree(self.path, ignore_errors=True)


def manifest_of(job: Job) -> Path:
    """Path of the properties of a job that has begun."""
    return parts_folder(job.output) / "job.json"


def parts_folder(output: Path) -> Path:
    """Return the hidden folder next to an output."""
    return output.with_name(f".{output.name}.parts")


def job_properties(job: Job, records: int) -> dict[str, Any]:
    """Return the properties that must be equal for a job to be resumed, as they come back from JSON."""
    options = {
        **job.options,
        "batch_size": job.batch_size,
        "accelerator": job.accelerator,
        "precision": job.precision,
        "figures": None if job.figures is None else str(job.figures.absolute()),
        "budget": job.budget,
    }
    content = {
        "version": __version__,
        "checkpoint": digest(job.checkpoint),
        "inputs": [stamp(path) for path in job.inputs],
        "files": [stamp(path) for path in job.files],
        "options": options,
        "records": records,
    }
    return json.loads(json.dumps(content, default=str))


def digest(path: Path) -> str:
    """Compute the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamp(path: Path) -> list[list[Any]]:
    """List name, size and modification time of the files of an input: a file, a folder, or a record name."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
    elif path.is_file():
        files = [path]
    else:
        files = sorted(path.parent.glob(path.name + ".*"))
    return [[str(f.absolute()), f.stat().st_size, f.stat().st_mtime_ns] for f in files] or [[str(path.absolute())]]


@notes.once()
def run_job(group: SingleProcess, job: Job, progress: Callable[[int, int], None] | None = None) -> Result:
    """Predict this process's batches; rank 0 also prepares, merges and cleans up.

    Args:
        group: the processes of the job.
        job: the job, equal in all processes.
        progress: called in rank 0 with (records done, total records).

    Raises:
        InputError: nothing can be predicted, or a write fails; finished batches are kept for ``--resume``.
    """
    work: WorkFolder | None = None

    def begin() -> tuple[Predictor, Plan | None]:
        nonlocal work
        require_suffix(job.output)
        predictor = _model(job, group).predictor(job.options, job.figures)
        predictor.output, predictor.work = job.output, parts_folder(job.output)
        if group.rank > 0:
            return predictor, None
        if job.figures is not None:
            require_writable(job.figures)
        work = WorkFolder(job)
        # count the records first, to report unusable files before a long prediction rather than after it
        return predictor, work.prepare(sum(1 for _ in beating(group, predictor.records(job.inputs))))

    def finish() -> Result | None:
        if work is None:
            return None
        work.require_unchanged()
        parts = Parts(work.path)
        files = predictor.finish(parts.tables())
        columns, units = predictor.columns, predictor.units
        total, failed = parts.write(job.output, columns, plan.records, units, group.beat, predictor.days)
        failures = parts.failures(FAILURES) if failed else []
        work.remove()
        return Result(total, failed, keep(traces), predictor.unit, files, failures)

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


def beating(group: SingleProcess, items: Iterator[Any]) -> Iterator[Any]:
    """Yield `items`, with a heartbeat to the other processes for each."""
    for item in items:
        group.beat()
        yield item


def together(group: SingleProcess, step: Callable[[], Any]) -> Any:
    """Run `step`; if it fails in one process, all raise, so that none waits forever."""
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
    """Convert `error` to a form that can be sent to another process."""
    if error is None or isinstance(error, InputError):
        return error
    message = refusal(error)
    return InputError(message) if message else RuntimeError("".join(traceback.format_exception(error)))


def _model(job: Job, group: SingleProcess) -> Model:
    model = Model(job.checkpoint, "cpu", job.precision, job.budget)
    model.network.to(choose_device(job.accelerator, group.local_rank))
    return model


def _share(
    group: SingleProcess, job: Job, plan: Plan, predictor: Predictor, progress: Callable[[int, int], None] | None
) -> list[str]:
    """Predict and write every batch of this process; return the tracebacks of internal errors."""
    traces: list[str] = []
    if progress is not None:
        progress(min(len(plan.done) * job.batch_size, plan.records), plan.records)
    mine = _mine(group, plan, batched(beating(group, predictor.records(job.inputs)), job.batch_size))
    parts = PartWriter(parts_folder(job.output) / f"{group.rank}-{os.getpid()}-{secrets.token_hex(4)}.part")
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


def _mine(
    group: SingleProcess, plan: Plan, batches: Iterator[tuple[int, list[Record]]]
) -> Iterator[tuple[int, list[Record]]]:
    turn = 0
    for number, records in batches:
        if number in plan.done:
            continue
        if turn % group.world == group.rank:
            yield number, records
        turn += 1


def keep(traces: list[str]) -> Path | None:
    """Write tracebacks to a file for a bug report; None if there are none."""
    if not traces:
        return None
    with tempfile.NamedTemporaryFile(
        "w", prefix="seqssm-", suffix=".log", delete=False, encoding="utf-8", errors="backslashreplace"
    ) as log:
        log.write(f"seqssm {__version__}: {' '.join(sys.argv)}\n\n" + "\n".join(traces))
    return Path(log.name)
