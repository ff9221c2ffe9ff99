"""``seqssm <domain> fit``, ``validate`` and ``test``: the flags of `seqssm.training.run`."""

from __future__ import annotations

from typing import Literal

from seqssm.cli.options import Parser
from seqssm.domain import Domain
from seqssm.errors import InputError, nearest
from seqssm.training import presets, run

GROUPS = ("--model", "--data", "--trainer", "--early_stopping", "--seed_everything")


def fit_parser(domain: Domain) -> Parser:
    parser = Parser(
        f"seqssm {domain.name} fit",
        "Trains a model. Every option of the preset can be overridden: --model.x, --data.x, --trainer.x, "
        "--early_stopping.x, --seed_everything (all of them: --help-all).",
        f"seqssm {domain.name} fit --config {domain.example_preset} --trainer.max_epochs 5",
    )
    parser.add_argument(
        "--config", action="append", default=[], metavar="PRESET|FILE", help="preset or YAML; repeatable"
    )
    parser.add_argument("--output", metavar="DIR", help=f"the run's folder (default runs/{domain.name}/PRESET)")
    parser.add_argument("--resume", metavar="RUN", help="continue the run in this folder as if it had not stopped")
    parser.add_argument("--overwrite", action="store_true", help="replace the run that lies in the folder")
    parser.add_argument("--help-all", action="store_true", help="every option of model, data and trainer")
    add_timeout(parser)
    return parser


def add_timeout(parser: Parser) -> None:
    parser.add_argument(
        "--timeout",
        type=float,
        default=run.TIMEOUT,
        metavar="SECONDS",
        help=f"with several processes: how long one waits for another (default {run.TIMEOUT:.0f})",
    )


def split(argv: list[str], parser: Parser) -> tuple[list[str], list[str]]:
    """(our flags, LightningCLI's).

    Raises:
        InputError: a flag of neither, with the nearest one.
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
    if options.resume is None:
        given = run.Options(overrides, timeout=options.timeout)
        run.fit(domain, options.config, given, output=options.output, overwrite=options.overwrite)
        return 0
    if options.config or options.overwrite or options.output:
        raise InputError("--resume RUN takes config and folder of the run: drop --config, --output and --overwrite")
    run.resume(domain, options.resume, overrides, timeout=options.timeout)
    return 0


def evaluate(domain: Domain, verb: str, argv: list[str]) -> int:
    """``seqssm <domain> test`` and ``validate``."""
    parser = Parser(
        f"seqssm {domain.name} {verb}",
        f"Runs a trained model on the {'test' if verb == 'test' else 'validation'} data. Config and checkpoint come "
        "from the run; --data.x and --trainer.x override. Other data named by --data.x is tested whole, with the "
        "checkpoint's classes and scaling, into a folder of its own (RUN/test-NAME).",
        f"seqssm {domain.name} {verb} runs/{domain.name}/{domain.example_preset}",
    )
    parser.add_argument("run", metavar="RUN_OR_CKPT", help="a run's folder (its best.ckpt is taken) or a checkpoint")
    parser.add_argument("--output", metavar="DIR", help="folder for the results (default: the run's own)")
    add_timeout(parser)
    own, overrides = split(argv, parser)
    options = parser.parse(own)
    which: Literal["test", "validate"] = "test" if verb == "test" else "validate"
    run.evaluate(domain, which, options.run, overrides, output=options.output, timeout=options.timeout)
    return 0


def help_all(domain: Domain) -> int:
    """``fit --help-all``: everything that LightningCLI takes, for the domain's default classes."""
    from jsonargparse import ArgumentParser
    from lightning.pytorch import Trainer

    from seqssm.domain import resolve
    from seqssm.training.lightning_cli import EarlyStopping

    parser = ArgumentParser(prog=f"seqssm {domain.name} fit")
    parser.add_argument("--seed_everything", type=int, default=1, help="seed of everything random in the run")
    parser.add_class_arguments(resolve(domain.task), "model", fail_untyped=False)
    parser.add_class_arguments(resolve(domain.data), "data", fail_untyped=False)
    parser.add_class_arguments(EarlyStopping, "early_stopping")
    parser.add_class_arguments(Trainer, "trainer", fail_untyped=False, skip={"default_root_dir"})
    parser.print_help()
    return 0
