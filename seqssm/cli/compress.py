"""``seqssm compress MODEL.ckpt --method w8a8 --output small.ckpt``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from seqssm.cli.options import Parser, add, add_reading
from seqssm.cli.predict import domain_of, find_checkpoint
from seqssm.compress.methods import METHODS, RECIPES
from seqssm.domain import COUNT, Domain, Option, domains
from seqssm.errors import InputError

OPTIONS = (
    Option("--method", "bits of weights and activations (default w8a8)", str, None, tuple(METHODS)),
    Option(
        "--calibration", "input files as for predict; by default the validation records of the run", Path, many=True
    ),
    Option("--evaluate", "labelled file for the scores, as for test; by default the test split of the run", Path),
    Option("--output", "checkpoint to write, .ckpt", Path),
    Option("--overwrite", "replace the output", bool),
    Option("--records", "maximum number of calibration records", int, 128, bounds=COUNT),
    Option("--recipe", "quamba, or naive: largest values as scales, nearest rounding", str, "quamba", tuple(RECIPES)),
    Option("--root", "folder of the run's data set, as --data.root of fit"),
)


def compress(argv: list[str]) -> int:
    """``seqssm compress``."""
    path = find_checkpoint(argv, OPTIONS)
    asks_help = any(word in ("-h", "--help") for word in argv)
    domain = None if path is None or (asks_help and not path.exists()) else domain_of(path, None)
    parser = build_parser(domain)
    own = [] if domain is None else own_options(domain)
    given = parser.parse(argv, others_of(own))
    assert domain is not None  # a checkpoint was found, or the parser has refused
    if given.output is None:
        raise InputError("--output FILE is required (.ckpt)")
    from seqssm.compress.procedure import Request, text
    from seqssm.compress.procedure import compress as run
    from seqssm.training.run import flag_value
    from seqssm.training.sizes import require_count

    require_count("--records", given.records, 1, 1_000_000, "the largest number")
    options: dict[str, Any] = {option.name: getattr(given, option.name) for option in own}
    request = Request(
        model=given.model,
        method=METHODS[given.method or "w8a8"],
        output=given.output,
        calibration=given.calibration or (),
        options=options,
        evaluate=given.evaluate,
        recipe=RECIPES[given.recipe],
        most=given.records,
        overwrite=given.overwrite,
        data=() if given.root is None else (f"--data.root={flag_value(given.root)}",),
    )
    print(text(run(request)))
    print(f"written: {given.output}")
    return 0


def own_options(domain: Domain) -> list[Option]:
    """Return the options with which a domain reads the calibration files."""
    taken = {option.flag for option in OPTIONS}
    return [option for option in domain.predict_options if option.flag not in taken]


def others_of(own: list[Option]) -> dict[str, str]:
    """Return the options of other domains, and the name of their domain."""
    mine = {option.flag for option in (*own, *OPTIONS)}
    return {
        option.flag: f"the domain {one.name}"
        for one in domains().values()
        for option in one.predict_options
        if option.flag not in mine
    }


def build_parser(domain: Domain | None) -> Parser:
    more = "" if domain else "\nseqssm compress MODEL.ckpt --help also lists how the model's domain reads files."
    parser = Parser(
        "seqssm compress",
        "Quantise a trained model: a smaller checkpoint for predict and test, and a table of what it costs." + more,
        "seqssm compress runs/best.ckpt --method w8a8 --output small.ckpt",
    )
    parser.add_argument("model", metavar="MODEL.ckpt", type=Path, help="checkpoint, or run folder (best.ckpt is used)")
    for option in OPTIONS:
        add(parser, option)
    if domain is not None:
        add_reading(parser, domain, own_options(domain))
    return parser
