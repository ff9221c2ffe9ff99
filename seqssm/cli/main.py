"""The console entry: which command it is, and what its end means for the exit code.

Exit codes: 0 all well; 1 our bug, with the traceback in a file; 2 a bad flag, config or input; 3 finished, some rows
not ok; 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback

from seqssm.cli import help as pages
from seqssm.domain import Domain, domains, resolve
from seqssm.errors import InputError, nearest
from seqssm.files.disk import loader_was_killed, refusal
from seqssm.version import __version__


def main(argv: list[str] | None = None) -> int:
    """Runs a command line and returns its exit code."""
    try:
        return run(sys.argv[1:] if argv is None else argv)
    except InputError as error:
        return say(str(error), 2)
    except KeyboardInterrupt as stop:
        hint = f"; continue with: {stop}" if str(stop) else ""
        return say(f"interrupted{hint}", 130)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else say(str(stop.code), 2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left, as in `| head`
        return 0
    except Exception as error:
        return failed(error)


def say(message: str, code: int) -> int:
    print(f"seqssm: {message}", file=sys.stderr, flush=True)
    return code


def failed(error: Exception) -> int:
    """Exit code of an exception that no command expected, with a line about it."""
    trouble = refusal(error)
    if trouble is not None:
        name = getattr(error, "filename", None)
        return say(f"{name}: {trouble}" if name else trouble, 2)
    if loader_was_killed(error):
        return say(
            "a reading process was ended from outside, often for lack of memory; a lower --data.num_workers (fit) or "
            "--num-workers (predict) helps, --resume continues",
            2,
        )
    name = type(error).__name__
    if name == "MisconfigurationException":  # by name: Lightning is not imported for every command
        return say(" ".join(str(error).split()), 2)
    if name == "OutOfMemoryError":
        return say("out of memory on the device; a smaller --data.batch_size (fit) or --batch-size (predict) helps", 2)
    with tempfile.NamedTemporaryFile(
        "w", prefix="seqssm-", suffix=".log", delete=False, errors="backslashreplace"
    ) as log:
        log.write(f"seqssm {__version__}: {' '.join(sys.argv)}\n")
        traceback.print_exc(file=log)
    return say(f"internal error ({name}: {' '.join(str(error).split())[:200]}); the traceback is in {log.name}", 1)


def run(argv: list[str]) -> int:
    """Dispatches to the command; raises what `main` translates."""
    known = domains()
    if not argv or argv[0] in ("--help", "-h", "help"):
        print(pages.package(known))
        return 0
    command, rest = argv[0], argv[1:]
    if command == "--version":
        print(__version__)
        return 0
    if command in known:
        return run_domain(known[command], rest)
    if command == "predict":
        from seqssm.cli.predict import predict

        return predict(rest)
    if command == "data":
        from seqssm.cli.data import data

        return data(rest)
    if command == "demo":
        from seqssm.cli.demo import demo

        return demo(rest)
    if command == "info":
        from seqssm.cli.info import info

        return info(rest)
    if command == "warmup":
        from seqssm.cli.warmup import warmup

        return warmup(rest)
    raise InputError(f"unknown command {command}{nearest(command, [*known, *pages.COMMANDS])} (see seqssm --help)")


def run_domain(domain: Domain, argv: list[str]) -> int:
    """``seqssm <domain> ...``."""
    if not argv or argv[0] in ("--help", "-h", "help"):
        print(pages.domain(domain))
        return 0
    verb, rest = argv[0], argv[1:]
    if verb in ("fit", "validate", "test", "--help-all"):
        from seqssm.cli import fit

        if verb == "--help-all":
            return fit.help_all(domain)
        return fit.fit(domain, rest) if verb == "fit" else fit.evaluate(domain, verb, rest)
    if verb == "kfold":
        from seqssm.cli.kfold import kfold

        return kfold(domain, rest)
    if verb == "predict":
        from seqssm.cli.predict import predict

        return predict(rest, domain)
    for own in domain.verbs:
        if own.name == verb:
            return run_verb(domain, own, rest)
    names = [*pages.VERBS, *(own.name for own in domain.verbs)]
    raise InputError(f"unknown verb {verb}{nearest(verb, names)} (see seqssm {domain.name} --help)")


def run_verb(domain: Domain, verb: object, argv: list[str]) -> int:
    """A domain's own verb: its options parsed, its function called."""
    from seqssm.cli.options import Parser, add
    from seqssm.domain import Verb

    assert isinstance(verb, Verb)
    parser = Parser(f"seqssm {domain.name} {verb.name}", verb.help, verb.example)
    if verb.inputs:
        parser.add_argument("inputs", nargs="+", metavar=verb.inputs)
    for option in verb.options:
        add(parser, option)
    return int(resolve(verb.run)(vars(parser.parse(argv))) or 0)
