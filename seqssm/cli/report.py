"""``seqssm report`` and ``seqssm compare``: the flags of `seqssm.tools.report` and `seqssm.tools.compare`."""

from __future__ import annotations

from pathlib import Path

from seqssm.cli.options import Parser, add
from seqssm.domain import OVERWRITE
from seqssm.files.disk import atomic, require_new, require_suffix


def report(argv: list[str]) -> int:
    """``seqssm report``."""
    parser = Parser(
        "seqssm report",
        "Write one self-contained HTML page about a run: scores, tables and figures of its tests, calibration, "
        "learning curves, data, configuration, environment, and the commands that repeat it.",
        "seqssm report runs/forecasting/smamba --output report.html",
    )
    parser.add_argument("run", metavar="RUN", help="run folder, or folder of a kfold study")
    parser.add_argument("--output", metavar="PATH", help="the page (default RUN/report.html)")
    add(parser, OVERWRITE)
    options = parser.parse(argv)
    require_new(options.output, options.overwrite, [options.run])
    if options.output is not None:
        require_suffix(options.output, (".html",))
    from seqssm.tools.report import write_report

    print(f"written: {write_report(options.run, options.output)}")
    return 0


def compare(argv: list[str]) -> int:
    """``seqssm compare``."""
    parser = Parser(
        "seqssm compare",
        "Compare the tests of several runs in one table, with differences from the first run, and their intervals, "
        "where both tested the same records. Several kfold studies are paired by fold and seed.",
        "seqssm compare runs/ecg/small runs/ecg/small-again --output differences.csv",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="run folders that were tested, or folders of tests on other data (RUN/test-NAME); the first is the "
        "reference",
    )
    parser.add_argument("--output", metavar="PATH", help="write the table as CSV too")
    add(parser, OVERWRITE)
    options = parser.parse(argv)
    require_new(options.output, options.overwrite, options.runs)
    if options.output is not None:
        require_suffix(options.output, (".csv",))
    from seqssm.tools.compare import compare as table

    found = table(options.runs)
    print(found.text())
    if options.output is not None:
        with atomic(Path(options.output), "w") as file:
            found.tables[0][1].to_csv(file, index=False, lineterminator="\n")
        print(f"written: {options.output}")
    return 0
