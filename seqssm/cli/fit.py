"""``seqssm <domain> fit``, ``validate`` and ``test``: the flags of `seqssm.training.run`."""

from __future__ import annotations

import shlex
from typing import Literal

from seqssm.cli.options import Parser
from seqssm.domain import Domain
from seqssm.errors import InputError, nearest
from seqssm.training import presets, run
from seqssm.training.sizes import WAITING

GROUPS = ("--model", "--data", "--trainer", "--early_stopping", "--seed_everything")


def fit_parser(domain: Domain) -> Parser:
    parser = Parser(
        f"seqssm {domain.name} fit",
        "Train a model. Every option of the preset can be overridden: --model.x, --data.x, --trainer.x, "
        "--early_stopping.x, --seed_everything (--help-all lists them). Lists are separated by spaces or commas.",
        f"seqssm {domain.name} fit --config {domain.example_preset} --trainer.max_epochs 5",
    )
    parser.add_argument(
        "--config", action="append", default=[], metavar="PRESET|FILE", help="preset or YAML; repeatable"
    )
    parser.add_argument("--output", metavar="PATH", help=f"run folder (default runs/{domain.name}/PRESET)")
    parser.add_argument("--resume", metavar="RUN", help="continue an interrupted run")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in the folder")
    parser.add_argument("--help-all", action="store_true", help="list every option of model, data and trainer")
    add_timeout(parser)
    return parser


def add_timeout(parser: Parser) -> None:
    parser.add_argument(
        "--timeout",
        type=float,
        default=run.TIMEOUT,
        metavar="SECONDS",
        help=f"{WAITING} (default {run.TIMEOUT:.0f})",
    )


def split(argv: list[str], parser: Parser) -> tuple[list[str], list[str]]:
    """Split the arguments into (our flags, LightningCLI's flags).

    Raises:
        InputError: an unknown flag, with the most similar known one.
    """
    own: list[str] = []
    rest: list[str] = []
    target = own
    for word in argv:
        flag = word.split("=")[0]
        if flag.startswith("--") and len(flag) > 2:
            if flag == "--trainer.default_root_dir":
                raise InputError(f"--trainer.default_root_dir is not used: {presets.HOME}")
            ours, theirs = flag in parser.flags(), flag.split(".")[0] in GROUPS
            if not ours and not theirs:
                raise InputError(f"unknown option {flag}{nearest(flag, [*parser.flags(), *GROUPS])}")
            target = own if ours else rest
        elif word == "-h":
            target = own
        target.append(word)
    return own, rest


def fit(domain: Domain, argv: list[str]) -> int:
    """``seqssm <domain> fit``."""
    parser = fit_parser(domain)
    own, overrides = split(argv, parser)
    options = parser.parse(own)
    if options.help_all:
        return help_all(domain)
    typed = shlex.join(["seqssm", domain.name, "fit", *argv])
    if options.resume is None:
        given = run.Options(overrides, timeout=options.timeout, command=typed)
        run.fit(domain, options.config, given, output=options.output, overwrite=options.overwrite)
        return 0
    if options.config or options.overwrite or options.output:
        raise InputError("--resume RUN uses the config and folder of the run: drop --config, --output and --overwrite")
    run.resume(domain, options.resume, run.Options(overrides, timeout=options.timeout, command=typed))
    return 0


def evaluate(domain: Domain, command: str, argv: list[str]) -> int:
    """``seqssm <domain> test`` and ``validate``."""
    parser = Parser(
        f"seqssm {domain.name} {command}",
        f"Evaluate a trained model on the {'test' if command == 'test' else 'validation'} data. Config and checkpoint "
        "come from the run; --data.x and --trainer.x override them. If --data.x selects another data set, all of it is "
        "tested with the checkpoint's classes and scaling, and results go to a separate folder (RUN/test-NAME).",
        f"seqssm {domain.name} {command} runs/{domain.name}/{domain.example_preset}",
    )
    parser.add_argument("run", metavar="RUN_OR_CKPT", help="run folder (best.ckpt is used) or checkpoint")
    parser.add_argument("--output", metavar="PATH", help="folder for the results (default: the run folder)")
    add_timeout(parser)
    own, overrides = split(argv, parser)
    options = parser.parse(own)
    which: Literal["test", "validate"] = "test" if command == "test" else "validate"
    run.evaluate(domain, which, options.run, overrides, output=options.output, timeout=options.timeout)
    return 0


def help_all(domain: Domain) -> int:
    """``fit --help-all``: all options of LightningCLI, for the domain's default classes."""
    from jsonargparse import ArgumentParser
    from lightning.pytorch import Trainer

    from seqssm.domain import resolve
    from seqssm.training.lightning_cli import EarlyStopping

    parser = ArgumentParser(prog=f"seqssm {domain.name} fit")
    parser.add_argument("--seed_everything", type=int, default=1, help="seed of all randomness in the run")
    parser.add_class_arguments(resolve(domain.task), "model", fail_untyped=False)
    parser.add_class_arguments(resolve(domain.data), "data", fail_untyped=False)
    parser.add_class_arguments(EarlyStopping, "early_stopping")
    parser.add_class_arguments(Trainer, "trainer", fail_untyped=False, skip={"default_root_dir"})
    parser.print_help()
    return 0
