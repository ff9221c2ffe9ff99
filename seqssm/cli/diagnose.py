"""``seqssm diagnose MODEL.ckpt FILES --output diagnosis.csv``."""

from __future__ import annotations

from pathlib import Path

from seqssm.cli.options import Parser, add, add_reading
from seqssm.cli.predict import domain_of, find_checkpoint
from seqssm.domain import COUNT, Domain, Option, domains
from seqssm.errors import InputError

OPTIONS = (
    Option("--output", "table to write, .csv; the figure has the same name with .png", Path),
    Option("--records", "maximum number of records", int, 64, bounds=COUNT),
    Option("--overwrite", "replace the output", bool),
)


def diagnose(argv: list[str]) -> int:
    """``seqssm diagnose``."""
    path = find_checkpoint(argv, OPTIONS)
    asks_help = any(word in ("-h", "--help") for word in argv)
    domain = None if path is None or (asks_help and not path.exists()) else domain_of(path, None)
    own = [] if domain is None else own_options(domain)
    others = {o.flag: f"the domain {one.name}" for one in domains().values() for o in own_options(one) if o not in own}
    for option in own:
        others.pop(option.flag, None)
    given = build_parser(domain).parse(argv, others)
    if given.output is None:
        raise InputError("--output FILE is required (.csv)")
    import seqssm
    from seqssm.tools import diagnose as tool

    tool.require_output(given.output, given.overwrite)
    model = seqssm.load(given.model, accelerator="cpu")
    found = tool.diagnose(
        model, given.inputs, {option.name: getattr(given, option.name) for option in own}, given.records
    )
    print(found.text())
    for written in tool.write(found, given.output, given.overwrite):
        print(f"written: {written}")
    return 0


def own_options(domain: Domain) -> list[Option]:
    """Return the options with which a domain reads files, without those that write more of them."""
    taken = {option.flag for option in OPTIONS}
    return [option for option in domain.predict_options if option.flag not in taken and not option.writes]


def build_parser(domain: Domain | None) -> Parser:
    more = "" if domain else "\nseqssm diagnose MODEL.ckpt --help also lists how the model's domain reads files."
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
    if domain is not None:
        add_reading(parser, domain, own_options(domain))
    return parser
