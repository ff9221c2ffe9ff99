"""``seqssm predict MODEL.ckpt INPUT... --output FILE``; the checkpoint determines the domain and its options."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqssm.bounds import Bounds
from seqssm.cli.options import Parsed, Parser, add, require_models
from seqssm.domain import ACCELERATOR, Domain, Option, domains, find_domain
from seqssm.environment import INTERRUPTS
from seqssm.errors import ExitCode, InputError, other_domain
from seqssm.files.disk import require_new, require_suffix, require_writable
from seqssm.files.outputs import TABLES
from seqssm.given import select
from seqssm.training.sizes import LARGEST_BATCH, PATIENCE, TIMEOUT, WAITING, most_processes

if TYPE_CHECKING:
    from seqssm.files.disk import Begun
    from seqssm.prediction.job import Job, Result

PRECISION = {
    "32": "32-true",
    "32-true": "32-true",
    "bf16": "bf16-mixed",
    "bf16-mixed": "bf16-mixed",
    "16": "16-mixed",
    "16-mixed": "16-mixed",
}
COMMON = (
    Option("--output", "output table, .csv or .parquet; written when it is complete", Path),
    Option("--resume", "continue an interrupted prediction that had the same options", bool),
    Option("--overwrite", "replace the output, or restart an interrupted prediction", bool),
    Option("--allow-failed", "exit with code 0 even if some records could not be predicted", bool),
    Option("--batch-size", "records per batch", int, 32, bounds=Bounds(1, LARGEST_BATCH, meaning="the largest batch")),
    Option(
        "--num-workers",
        "processes that read the records; 0 reads in the main process",
        int,
        0,
        bounds=Bounds(0, most_processes(), meaning="for the processors of this machine"),
    ),
    ACCELERATOR,
    Option("--devices", "number of processes, one per device; auto: all GPUs. torchrun and srun set it themselves"),
    Option("--timeout", WAITING, float, TIMEOUT, bounds=PATIENCE, metavar="SECONDS"),
    Option("--precision", "arithmetic precision; 16 and bf16 are mixed precision", str, "32", tuple(PRECISION)),
    Option(
        "--budget",
        "of a set of students: fraction of the teacher's operations; the first students within it are used",
        float,
        bounds=Bounds(0, 1000, above=True),
    ),
    Option("--figures", "folder for a figure per record; without it no figures are drawn", Path),
)
LINE = 400  # maximum length of a printed reason, characters
EVERY_SECONDS = 10.0  # between progress lines outside a terminal


def predict(argv: list[str], domain: Domain | None = None) -> int:
    """``seqssm predict`` and ``seqssm <domain> predict``."""
    name = "seqssm predict" if domain is None else f"seqssm {domain.name} predict"
    words = loosely(argv)
    checkpoint = None if words is None or not words.words else Path(words.words[0])
    asks_help = any(word in ("-h", "--help") for word in argv)
    if checkpoint is None and asks_help:
        build_parser(name, domain).parse(["--help"])
    if checkpoint is not None:
        require_models([checkpoint])  # importing PyTorch takes seconds
        if words is not None and words.output and not asks_help:
            require_table(words)
        domain = domain_of(checkpoint, domain)
    parser = build_parser(name, domain)
    own = {option.flag for option in domain.predict_options} if domain else set()
    others = {
        option.flag: f"the domain {other.name}" + (f", not of {domain.name}" if domain else "")
        for other in domains().values()
        for option in other.predict_options
        if option.flag not in own
    }
    options = parser.parse(argv, others)
    job = build_job(options, domain)
    from seqssm.files.disk import Begun
    from seqssm.prediction.job import manifest_of, run_job
    from seqssm.prediction.launch import processes

    with interruptible(name, argv, Begun(manifest_of(job), job.resume)), processes(options.devices, job) as group:
        with Progress(group.rank == 0) as progress:
            result = run_job(group, job, progress.show if group.rank == 0 else None)
        if group.rank > 0:
            return 0
        return finish(job, result, options.allow_failed)


def build_parser(name: str, domain: Domain | None) -> Parser:
    example = domain.example_input if domain else "INPUT"
    more = "" if domain else "\nseqssm predict MODEL.ckpt --help also lists the options of the model's domain."
    parser = Parser(
        name,
        f"Predict from a checkpoint and your files. Every input record has its row, in input order.{more}",
        f"{name} runs/best.ckpt {example} --output predictions.csv",
    )
    parser.add_argument("model", metavar="MODEL.ckpt", help="checkpoint, run folder (best.ckpt) or kfold study")
    parser.add_argument("inputs", metavar="INPUT", nargs="+", help="input files")
    for option in COMMON:
        add(parser, option)
    if domain is not None and domain.predict_options:
        group = parser.add_argument_group(f"of {domain.name}")
        for option in domain.predict_options:
            add(group, option)
    return parser


def loosely(argv: list[str], common: Iterable[Option] = COMMON) -> argparse.Namespace | None:
    """Parse a command line before the domain's options are known; None if its options are not understood.

    Args:
        argv: the arguments.
        common: options of the command.

    Returns:
        The options as typed, and the positional arguments as ``words``.
    """
    loose = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    loose.add_argument("words", nargs="*")
    seen: set[str] = set()
    for option in [*common, *(option for domain in domains().values() for option in domain.predict_options)]:
        if option.flag not in seen:
            seen.add(option.flag)
            if option.type is bool:
                loose.add_argument(option.flag, action="store_true")
            else:
                loose.add_argument(option.flag, nargs="+" if option.many else None)
    try:
        return loose.parse_known_intermixed_args([word for word in argv if word not in ("-h", "--help")])[0]
    except argparse.ArgumentError:
        return None  # the strict parser reports the error


def require_table(words: argparse.Namespace) -> None:
    """Check the table and the folder of figures that ``predict`` writes, before the model is opened.

    Args:
        words: result of `loosely`.

    Raises:
        InputError: another suffix, a folder, an existing file, or a folder that cannot be written.
    """
    require_suffix(words.output, TABLES)
    require_new(words.output, words.overwrite or words.resume, words.words)
    if words.figures:
        require_writable(Path(words.figures))


def domain_of(path: Path, wanted: Domain | None = None, studies: bool = True) -> Domain:
    """Return the domain of a checkpoint.

    Args:
        path: checkpoint, run folder or folder of a study.
        wanted: the only accepted domain; None for any.
        studies: whether the ensemble of a study is accepted; it is then written to its folder.

    Raises:
        InputError: the checkpoint is not usable, or belongs to another domain than `wanted`.
    """
    from seqssm.training import checkpoint, ensemble

    path = ensemble.find(path) if studies else checkpoint.find_checkpoint(path)
    content = ensemble.read(path)[0].content if studies else checkpoint.read_checkpoint(path)
    name = content["seqssm"]["domain"]
    if wanted is not None and name != wanted.name:
        raise other_domain(name, wanted.name, path, "predict")
    return find_domain(name, file=path)


def build_job(options: Parsed, domain: Domain | None) -> Job:
    """Return the job that the flags describe, after the checks that need no model."""
    from seqssm.files.disk import input_files, require_no_input, require_no_pipes
    from seqssm.prediction.job import Job
    from seqssm.training import ensemble

    assert domain is not None  # a checkpoint was found, or the parser has refused
    if options.output is None:
        raise InputError("--output FILE is required (.csv or .parquet)")
    require_suffix(options.output, TABLES)
    read = [getattr(options, option.name) for option in domain.predict_options if not option.writes]
    read += [options.model, options.inputs]
    require_no_input(options.output, read)
    require_no_pipes(read)
    for option in (one for one in domain.predict_options if one.writes):
        name = getattr(options, option.name)
        if name is None or not Path(name).is_file():
            continue
        require_no_input(Path(name), read, option.flag)
        if not (options.overwrite or options.resume):
            raise InputError(f"already exists; choose another {option.flag} or pass --overwrite", file=name)
    ensemble.warn_of_missing(options.model)
    return Job(
        checkpoint=ensemble.find(options.model),
        inputs=[Path(name) for name in options.inputs],
        output=options.output,
        options=select(options.values(), [option.name for option in domain.predict_options]),
        files=list(input_files(read[:-2])),
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        accelerator=options.accelerator,
        precision=PRECISION[options.precision],
        figures=options.figures,
        budget=options.budget,
        timeout=options.timeout,
        resume=options.resume,
        overwrite=options.overwrite,
    )


@contextmanager
def interruptible(name: str, argv: list[str], begun: Begun) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the job so that it can be continued; once it has begun, print the command."""

    try:
        before = signal.signal(signal.SIGTERM, INTERRUPTS)
    except ValueError:  # signals can be handled in the main thread only
        before = None
    try:
        yield
    except KeyboardInterrupt:
        if not begun:
            raise KeyboardInterrupt from None
        words = [word for word in argv if word not in ("--resume", "--overwrite")]
        raise KeyboardInterrupt(f"{name} {shlex.join(words)} --resume") from None
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


class Progress:
    """A progress bar on a terminal, occasional lines elsewhere; nothing unless `shown`."""

    def __init__(self, shown: bool) -> None:
        self.bar: Any = None
        self.task: Any = None
        self.first, self.reported = time.monotonic(), time.monotonic()
        if shown and sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            self.bar = progress.Progress(
                progress.TextColumn("predicting"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TimeRemainingColumn(),
                console=Console(stderr=True),
            )

    def __enter__(self) -> Progress:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self.bar is not None:
            self.bar.stop()

    def show(self, done: int, total: int) -> None:
        """Show progress: (records done, total number of records)."""
        if self.bar is not None:
            if self.task is None:
                self.task = self.bar.add_task("", total=total)
            self.bar.update(self.task, completed=done)
            return
        now = time.monotonic()
        if now - self.reported >= EVERY_SECONDS:
            self.reported = now
            print(f"predicted {done} of {total} records, {now - self.first:.0f} s", file=sys.stderr, flush=True)


def shortened(line: str) -> str:
    """Return a text on one line of at most `LINE` characters."""
    line = " ".join(line.split())
    return line if len(line) <= LINE else f"{line[: LINE - 3]}..."


def finish(job: Job, result: Result, allow_failed: bool) -> int:
    """Print the result of the job and return the exit code."""
    good = result.records - result.failed
    print(f"{result.records} {result.unit}: {good} ok, {result.failed} failed", file=sys.stderr)
    for line in result.failures:
        print(f"  {shortened(line)}", file=sys.stderr)
    if result.failed > len(result.failures) > 0:
        print(f"  ...; the column reason of {job.output} lists all", file=sys.stderr)
    if result.log is not None:
        print(f"some failures are internal errors; their tracebacks are in {result.log}", file=sys.stderr)
    if job.figures is not None and not any(job.figures.glob("*.png")):
        print("no figures: these predictions have none", file=sys.stderr)
    for path in (job.output, *result.files):
        print(f"written: {path}")
    return ExitCode.PARTIAL if result.failed and not allow_failed else ExitCode.OK
