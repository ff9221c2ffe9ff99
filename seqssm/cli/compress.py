"""``seqssm compress MODEL.ckpt --method w8a8 --output small.ckpt``."""

from __future__ import annotations

from pathlib import Path

from seqssm.bounds import COUNT
from seqssm.cli.options import Parser, add
from seqssm.cli.reading import Reading, find_reading
from seqssm.compress.methods import METHODS, RECIPES, STATES
from seqssm.domain import OVERWRITE, Option
from seqssm.errors import InputError
from seqssm.files.outputs import require_checkpoint

OPTIONS = (
    Option("--method", "bits of weights and activations", str, "w8a8", tuple(METHODS)),
    Option("--calibration", "input files as for predict (default: the validation records of the run)", Path, many=True),
    Option(
        "--test-data",
        "labelled file for the scores, as for test (default: the test split of the run)",
        Path,
        formerly=("--evaluate",),
    ),
    Option("--output", "checkpoint to write, .ckpt", Path),
    OVERWRITE,
    Option("--records", "maximum number of calibration records", int, 128, bounds=COUNT),
    Option("--recipe", "quamba, or naive: largest values as scales, nearest rounding", str, "quamba", tuple(RECIPES)),
    Option("--state", "state of scans between pieces, steps and calls", str, STATES[0], STATES),
    Option("--root", "folder of the run's data set, as --data.root of fit"),
)


def compress(argv: list[str]) -> int:
    """``seqssm compress``."""
    reading = find_reading(
        argv, OPTIONS, lambda words: require_checkpoint(words.output, words.overwrite, words.words[0])
    )
    given = build_parser(reading).parse(argv, reading.others)
    if given.output is None:
        raise InputError("--output FILE is required (.ckpt)")
    from seqssm.compress.procedure import Request, text
    from seqssm.compress.procedure import compress as run
    from seqssm.training.run import flag_value
    from seqssm.training.sizes import require_count

    require_count("--records", given.records, 1, 1_000_000, "the largest number")
    request = Request(
        model=given.model,
        method=METHODS[given.method],
        output=given.output,
        calibration=given.calibration or (),
        options=reading.values(given),
        evaluate=given.test_data,
        recipe=RECIPES[given.recipe],
        most=given.records,
        overwrite=given.overwrite,
        data=() if given.root is None else (f"--data.root={flag_value(given.root)}",),
        integer_state=given.state == STATES[1],
    )
    print(text(run(request)))
    print(f"written: {given.output}")
    return 0


def build_parser(reading: Reading) -> Parser:
    more = "" if reading.domain else "\nseqssm compress MODEL.ckpt --help also lists how its domain reads files."
    parser = Parser(
        "seqssm compress",
        "Quantise a trained model: a smaller checkpoint for predict and test, and a table of what it costs." + more,
        "seqssm compress runs/best.ckpt --method w8a8 --output small.ckpt",
    )
    parser.add_argument("model", metavar="MODEL.ckpt", type=Path, help="checkpoint, or run folder (best.ckpt is used)")
    for option in OPTIONS:
        add(parser, option)
    reading.add_to(parser)
    return parser
