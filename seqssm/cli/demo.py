"""``seqssm demo``: the flags of `seqssm.tools.demo`."""

from __future__ import annotations

from pathlib import Path

from seqssm.cli.options import Parser
from seqssm.files.lock import Lock
from seqssm.tools.demo import require_ours, run_demo


def demo(argv: list[str]) -> int:
    """``seqssm demo``."""
    parser = Parser(
        "seqssm demo",
        "Train and predict with every domain in minutes on a CPU, on synthetic data with known ground truth, and write "
        "tables, figures and one self-contained page.",
        "seqssm demo --output demo",
    )
    parser.add_argument("--output", metavar="PATH", default="demo", help="folder of the page (default demo)")
    folder = Path(parser.parse(argv).output)
    require_ours(folder)
    with Lock(folder):
        return run_demo(folder)
