"""The console entry point: dispatch to commands, and translation of exceptions into exit codes."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

from seqssm.cli import help as pages
from seqssm.domain import Domain, domains, resolve
from seqssm.environment import INTERRUPTS, check_variables, launch, speaks
from seqssm.errors import ExitCode, InputError, nearest
from seqssm.files.disk import loader_was_killed, refusal
from seqssm.version import __version__


def main(argv: list[str] | None = None) -> int:
    """Run a command line and return its exit code.

    Args:
        argv: the arguments; those of the process by default.
    """
    own = argv is None  # otherwise called from another program
    for name in ("stdout", "stderr"):
        setattr(sys, name, usable(getattr(sys, name), own))
    if own:
        sys.unraisablehook = unraised
    code = outcome(sys.argv[1:] if argv is None else argv, own)
    try:
        sys.stdout.flush()
    except OSError as error:  # a full disk of a redirection is only detected now
        return say(f"standard output: {refusal(error) or error}", ExitCode.INPUT)
    return code


def unraised(about: sys.UnraisableHookArgs) -> None:
    """Print an exception that Python cannot raise, as by default; an interrupt is noted and ends the command later."""
    if not issubclass(about.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(about)


def outcome(argv: list[str], own: bool = False) -> int:
    """Run a command line and return its exit code; every exception becomes a line on stderr.

    Args:
        argv: the arguments.
        own: whether the process ends with the command; a signal after it then changes neither result nor exit code.
    """
    reports = speaks()  # asked first: Lightning removes the variables when a trainer ends
    try:
        with terminable(own):
            return int(run(argv))
    except InputError as error:
        return interrupted(reports) if INTERRUPTS.came else say(str(error), ExitCode.INPUT)
    except KeyboardInterrupt as stop:
        # If the interrupt hit code that a library ran from a string, CPython noted it as unhandled and would end
        # `python -m seqssm` by SIGINT instead of with our code; running a string again clears the note.
        exec("")
        return interrupted(reports, str(stop))
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or ExitCode.OK
        return say(str(stop.code), ExitCode.INPUT)
    except BrokenPipeError:  # when called from another program; in our own process `Unbroken` drops the output
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK
    except Exception as error:
        return interrupted(reports) if INTERRUPTS.came else failed(error)
    finally:
        INTERRUPTS.came = False


def interrupted(reports: bool, hint: str = "") -> ExitCode:
    """Report an interrupted command and return its exit code.

    Args:
        reports: whether this process reports the end of a job.
        hint: command that continues it, empty if there is none.
    """
    if not reports:
        return ExitCode.INTERRUPTED
    return say(f"interrupted; continue with: {hint}" if hint else "interrupted", ExitCode.INTERRUPTED)


@contextlib.contextmanager
def terminable(own: bool = False) -> Iterator[None]:
    """Let SIGTERM, sent by batch systems, end a command as Ctrl-C does, even before its work has begun.

    Both are noted (`seqssm.environment.Interrupts`).

    Args:
        own: whether the process ends with the command; if it succeeds, both signals are ignored afterwards.
    """

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield  # called from another program, which handles signals itself
        return
    signal.signal(signal.SIGTERM, INTERRUPTS)
    plain = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if plain:
        signal.signal(signal.SIGINT, INTERRUPTS)
    finished = False
    try:
        yield
        finished = own
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN if finished else signal.SIG_DFL)
        if plain:
            signal.signal(signal.SIGINT, signal.SIG_IGN if finished else signal.default_int_handler)


class Unbroken:
    """A text stream whose reader may exit early, as in ``| head``; output after that is dropped.

    Args:
        stream: the stream of the process.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        with self._unbroken():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._unbroken():
            self.stream.flush()

    @contextlib.contextmanager
    def _unbroken(self) -> Any:
        try:
            yield
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def usable(stream: Any, own: bool) -> Any:
    """Return `stream`, or a replacement if it is closed; unencodable characters are written as ``\\xe9``.

    Args:
        stream: ``sys.stdout`` or ``sys.stderr``; None if the process was started without it.
        own: whether this is our own process, so that a reader that exits early need not be reported.
    """
    if stream is None or getattr(stream, "closed", False):
        return open(os.devnull, "w", encoding="utf-8")
    with contextlib.suppress(AttributeError, ValueError, OSError):
        stream.reconfigure(errors="backslashreplace")
    return Unbroken(stream) if own and not isinstance(stream, Unbroken) else stream


def say(message: str, code: ExitCode) -> ExitCode:
    """Print one line on stderr and return the exit code."""
    with contextlib.suppress(OSError, ValueError):  # stderr is closed
        print(f"seqssm: {message}", file=sys.stderr, flush=True)
    return code


def failed(error: Exception) -> ExitCode:
    """Report an unexpected exception in one line and return its exit code."""
    trouble = refusal(error)
    if trouble is not None:
        name = getattr(error, "filename", None)
        return say(f"{name}: {trouble}" if name else trouble, ExitCode.INPUT)
    if loader_was_killed(error):
        return say(
            "a loader process was killed, usually for lack of memory; lower --data.num_workers (fit) or "
            "--num-workers (predict), then continue with --resume",
            ExitCode.INPUT,
        )
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("seqssm"):
        package = error.name.partition(".")[0]
        lacking = "".join(f"; {domain.missing()}" for domain in domains().values() if package in domain.requires)
        return say(f"the package {package} is not installed, or not whole ({error}){lacking}", ExitCode.INPUT)
    name = type(error).__name__
    if name in ("MisconfigurationException", "EngineError"):  # by name: not imported for every command
        return say(" ".join(str(error).split()), ExitCode.INPUT)
    if name in ("OutOfMemoryError", "MemoryError"):
        return say(
            "out of memory; use a smaller model, --data.batch_size (fit) or --batch-size (predict)", ExitCode.INPUT
        )
    with tempfile.NamedTemporaryFile(
        "w", prefix="seqssm-", suffix=".log", delete=False, encoding="utf-8", errors="backslashreplace"
    ) as log:
        log.write(f"seqssm {__version__}: {' '.join(sys.argv)}\n")
        traceback.print_exc(file=log)
    return say(
        f"internal error ({name}: {' '.join(str(error).split())[:200]}); the traceback is in {log.name}", ExitCode.BUG
    )


def run(argv: list[str]) -> int:
    """Dispatch to the command; `main` translates exceptions."""
    known = domains()
    if not argv or argv[0] in ("--help", "-h", "help"):
        print(pages.package(known))
        return 0
    command, rest = argv[0], argv[1:]
    if command == "--version":
        print(__version__)
        return 0
    check_variables()
    if command in known:
        return run_domain(known[command], rest)
    if command == "predict":
        from seqssm.cli.predict import predict

        return predict(rest)
    if command == "report":
        from seqssm.cli.report import report

        return report(rest)
    if command == "export":
        from seqssm.cli.export import export

        return export(rest)
    if command == "compare":
        from seqssm.cli.report import compare

        return compare(rest)
    if command == "compress":
        from seqssm.cli.compress import compress

        return compress(rest)
    if command == "distill":
        from seqssm.cli.distill import distill

        require_single("seqssm distill", rest)
        return distill(rest)
    if command == "diagnose":
        from seqssm.cli.diagnose import diagnose

        return diagnose(rest)
    if command == "data":
        from seqssm.cli.data import data

        return data(rest)
    if command == "demo":
        from seqssm.cli.demo import demo

        require_single("seqssm demo", rest)
        return demo(rest)
    if command == "info":
        from seqssm.cli.info import info

        return info(rest)
    if command == "warmup":
        from seqssm.cli.warmup import warmup

        return warmup(rest)
    raise _unknown(command, known)


def _unknown(command: str, known: Mapping[str, Domain]) -> InputError:
    """Return the error of a first word that is neither a command nor a domain."""
    owners = [
        f"seqssm {one.name} {command}"
        for one in known.values()
        if command in (*pages.commands_of(one), *(own.name for own in one.commands))
    ]
    if owners:
        return InputError(f"{command} is a command of a domain: {', '.join(owners)}")
    return InputError(f"unknown command {command}{nearest(command, [*known, *pages.COMMANDS])} (see seqssm --help)")


def run_domain(domain: Domain, argv: list[str]) -> int:
    """``seqssm <domain> ...``."""
    domain.require()
    if not argv or argv[0] in ("--help", "-h", "help"):
        print(pages.domain(domain))
        return 0
    command, rest = argv[0], argv[1:]
    if command in ("fit", "validate", "test", "--help-all"):
        from seqssm.cli import fit

        if command == "--help-all":
            return fit.help_all(domain)
        return fit.fit(domain, rest) if command == "fit" else fit.evaluate(domain, command, rest)
    if command == "kfold":
        from seqssm.cli.kfold import kfold

        return kfold(domain, rest)
    if command == "extend":
        from seqssm.cli.extend import extend

        if not domain.extends:
            raise InputError(f"{domain.name} has no extend: only single-label classifiers take further classes")
        require_single(f"seqssm {domain.name} extend", rest)
        return extend(domain, rest)
    if command == "predict":
        from seqssm.cli.predict import predict

        return predict(rest, domain)
    for own in domain.commands:
        if own.name == command:
            return run_command(domain, own, rest)
    names = [*pages.commands_of(domain), *(own.name for own in domain.commands)]
    raise InputError(f"unknown command {command}{nearest(command, names)} (see seqssm {domain.name} --help)")


def require_single(command: str, argv: list[str]) -> None:
    """Raise InputError in a process of several that a launcher started, each of which would write the same files."""
    found = launch()
    if found is not None and not {"-h", "--help"} & set(argv):
        raise InputError(f"start {command} once, without {found.launcher}: it runs in one process")


def run_command(domain: Domain, command: object, argv: list[str]) -> int:
    """Parse the options of a domain's own command and call its function."""
    from seqssm.cli.options import Parser, add
    from seqssm.domain import Command
    from seqssm.files.disk import require_no_pipes

    assert isinstance(command, Command)
    parser = Parser(f"seqssm {domain.name} {command.name}", command.help, command.example)
    if command.inputs:
        parser.add_argument("inputs", nargs="+", metavar=command.inputs)
    for option in command.options:
        add(parser, option)
    require_single(parser.prog, argv)
    options = parser.parse(argv).values()
    require_no_pipes(options.get("inputs") or [])
    return int(resolve(command.run)(options) or 0)
