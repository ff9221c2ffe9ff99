"""``seqssm <domain> extend MODEL.ckpt --support new.csv --output bigger.ckpt``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from seqssm.bounds import SEED, Bounds
from seqssm.cli.fit import split
from seqssm.cli.options import Parser, add
from seqssm.domain import ACCELERATOR, OVERWRITE, Domain, Option
from seqssm.errors import InputError
from seqssm.files.outputs import require_checkpoint

OPTIONS = (
    Option("--support", "labelled files with a few records of each new class", Path, many=True),
    Option("--output", "checkpoint to write, .ckpt", Path),
    Option(
        "--base", "labelled files with records of old classes whose means the checkpoint does not hold", Path, many=True
    ),
    Option("--evaluate", "labelled files for the accuracy, beside the test split of the run", Path, many=True),
    Option("--more-shots", "also accept records of classes that exist already", bool),
    Option("--linear-head", "what becomes of a linear head: new rows, or an error", str, "grow", ("grow", "refuse")),
    Option(
        "--steps",
        "training steps of the new branch (default: 50, or 100 if the training had augmentation)",
        int,
        bounds=Bounds(0, 1_000_000),
    ),
    Option("--learning-rate", "learning rate of the new branch", float, 5e-3, bounds=Bounds(0, 100)),
    Option("--seed", "seed of the training", int, 0, bounds=SEED),
    ACCELERATOR,
    OVERWRITE,
)


def extend(domain: Domain, argv: list[str]) -> int:
    """``seqssm <domain> extend``."""
    parser = build_parser(domain)
    own, overrides = split(argv, parser)
    given = parser.parse(own)
    for name in ("support", "output"):
        if getattr(given, name) is None:
            raise InputError(f"--{name} FILE is required")
    options = data_options(overrides)
    require_checkpoint(given.output, given.overwrite, given.model)
    from seqssm.incremental.learn import Recipe
    from seqssm.incremental.procedure import Request, text
    from seqssm.incremental.procedure import extend as run

    request = Request(
        model=given.model,
        support=given.support,
        output=given.output,
        base=given.base or (),
        evaluate=given.evaluate or (),
        more_shots=given.more_shots,
        linear_head=given.linear_head,
        recipe=Recipe(steps=given.steps, learning_rate=given.learning_rate, seed=given.seed),
        options=options,
        accelerator=given.accelerator,
        overwrite=given.overwrite,
    )
    done = run(domain, request)
    print(f"{text(done)}\nwritten: {given.output}\n{done.next}")
    return 0


def data_options(words: list[str]) -> dict[str, Any]:
    """Parse ``--data.name value`` and ``--data.name=value``; values are YAML.

    Args:
        words: the arguments.

    Raises:
        InputError: an option of another section, or one without a value.
    """
    import yaml

    found: dict[str, Any] = {}
    rest = list(words)
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        if not flag.startswith("--data."):
            raise InputError(f"{flag}: extend takes options --data.NAME of the records only")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise InputError(f"{flag}: a value is missing")
            value = rest.pop(0)
        try:
            found[flag.removeprefix("--data.")] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise InputError(f"{flag} {value}: is not a value in YAML notation") from None
    return found


def build_parser(domain: Domain) -> Parser:
    parser = Parser(
        f"seqssm {domain.name} extend",
        "Add classes to a trained single-label classifier from a few labelled records. The network is frozen; a branch "
        "in front of the head is trained. Options --data.NAME say how the files are read, as for test; those that name "
        "files are new paths of the run's own data.",
        f"seqssm {domain.name} extend runs/best.ckpt --support new.csv --output bigger.ckpt",
    )
    parser.add_argument("model", metavar="MODEL.ckpt", type=Path, help="checkpoint, or run folder (best.ckpt is used)")
    for option in OPTIONS:
        add(parser, option)
    return parser
