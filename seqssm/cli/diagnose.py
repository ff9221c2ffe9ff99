"""``seqssm diagnose MODEL.ckpt FILES --output diagnosis.csv``."""

from __future__ import annotations

from pathlib import Path

from seqssm.bounds import COUNT
from seqssm.cli.options import Parser, add
from seqssm.cli.reading import Reading, find_reading
from seqssm.domain import OVERWRITE, Option
from seqssm.errors import InputError
from seqssm.files.outputs import require_diagnosis

OPTIONS = (
    Option("--output", "table to write, .csv; the figure has the same name with .png", Path),
    Option("--records", "maximum number of records", int, 64, bounds=COUNT),
    OVERWRITE,
)


def diagnose(argv: list[str]) -> int:
    """``seqssm diagnose``."""
    reading = find_reading(argv, OPTIONS, lambda words: require_diagnosis(words.output, words.overwrite, words.words))
    given = build_parser(reading).parse(argv, reading.others)
    if given.output is None:
        raise InputError("--output FILE is required (.csv)")
    require_diagnosis(given.output, given.overwrite, [*reading.values(given).values(), given.model, given.inputs])
    import seqssm
    from seqssm.tools import diagnose as tool

    model = seqssm.load(given.model, accelerator="cpu")
    found = tool.diagnose(model, given.inputs, reading.values(given), given.records)
    print(found.text())
    for written in tool.write(found, given.output, given.overwrite):
        print(f"written: {written}")
    return 0


def build_parser(reading: Reading) -> Parser:
    more = "" if reading.domain else "\nseqssm diagnose MODEL.ckpt --help also lists how its domain reads files."
    parser = Parser(
        "seqssm diagnose",
        "Measure how far back a trained model looks: decay of its states, what they still hold of earlier tokens "
        "and of each other, and the regime of its scans." + more,
        "seqssm diagnose runs/best.ckpt series.csv --output diagnosis.csv",
    )
    parser.add_argument("model", metavar="MODEL.ckpt", type=Path, help="checkpoint, or run folder (best.ckpt is used)")
    parser.add_argument("inputs", metavar="FILE", type=Path, nargs="+", help="input files, as for predict")
    for option in OPTIONS:
        add(parser, option)
    reading.add_to(parser)
    return parser
