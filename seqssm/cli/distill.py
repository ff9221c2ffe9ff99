"""``seqssm distill TEACHER.ckpt --students 5 --budget 0.6 --output set.ckpt``."""

from __future__ import annotations

import shlex
from pathlib import Path

from seqssm.bounds import Bounds
from seqssm.cli.fit import split
from seqssm.cli.options import Parser, add
from seqssm.domain import OVERWRITE, Option
from seqssm.errors import InputError
from seqssm.files.outputs import require_students

BUDGET, WEIGHT = Bounds(0, 10, above=True), Bounds(0, 1)
OPTIONS = (
    Option("--students", "number of students", int, 5, bounds=Bounds(1, 100)),
    Option("--budget", "operations of all students over those of the teacher", float, 0.6, bounds=BUDGET),
    Option("--soft", "weight of the teacher's outputs in the loss; the rest is labels", float, 0.5, bounds=WEIGHT),
    Option("--temperature", "temperature of the teacher's outputs", float, 2.0, bounds=Bounds(0, 1000, above=True)),
    Option("--alone", "part of the training records without the earlier students", float, 0.0, bounds=Bounds(0, 1)),
    Option("--no-control", "omit the single student of the same operations", bool),
    Option("--output", "file of the set, .ckpt; the students' runs are kept in a folder of this name", Path),
    OVERWRITE,
    Option("--resume", "continue an interrupted distillation that had the same options", bool),
)


def distill(argv: list[str]) -> int:
    """``seqssm distill``."""
    parser = build_parser()
    own, overrides = split(argv, parser)
    given = parser.parse(own)
    if given.output is None:
        raise InputError("--output FILE is required (.ckpt)")
    foreign = next((word for word in overrides if word.startswith("--model")), None)
    if foreign is not None:
        raise InputError(f"{foreign.split('=')[0]}: the students have the options of the teacher, in smaller sizes")
    if given.resume and given.overwrite:
        raise InputError("--resume and --overwrite exclude each other")
    require_students(given.output, given.overwrite, given.model, given.resume)
    from seqssm.compress.distil import Request, distil, text

    request = Request(
        teacher=given.model,
        output=given.output,
        students=given.students,
        budget=given.budget,
        soft=given.soft,
        temperature=given.temperature,
        alone=given.alone,
        control=not given.no_control,
        overwrite=given.overwrite,
        overrides=overrides,
        resume=given.resume,
        command=shlex.join(["seqssm", "distill", *(one for one in argv if one not in ("--resume", "--overwrite"))]),
    )
    done = distil(request)
    print(text(done))
    print(f"written: {given.output}")
    print(done.next)
    return 0


def build_parser() -> Parser:
    parser = Parser(
        "seqssm distill",
        "Train a sequence of small models, each on what the sum of the earlier ones leaves, from a trained model. "
        "predict --budget uses the first of them. Options of data and trainer can be overridden as in fit.",
        "seqssm distill runs/best.ckpt --students 5 --budget 0.6 --output set.ckpt",
    )
    parser.add_argument("model", metavar="TEACHER.ckpt", type=Path, help="checkpoint, or run folder (its best.ckpt)")
    for option in OPTIONS:
        add(parser, option)
    return parser
