"""Reproduce every figure that a README states on real data: write `results/<study>.json`, then the README tables.

    python results/real.py                 all studies; finished ones are not run again
    python results/real.py etth1_96        some of them
    python results/real.py --tables        only the tables, from the JSON files at hand

Runs are stored in `runs/real/<study>` and resumed after an interruption. Data sets are searched for as in the commands
(`SEQSSM_DATA`, the user's cache). A table in a README is the text between the lines `<!-- results: NAME -->` and `<!--
end of results -->`, which is always generated from the JSON.

The studies of each science and their tables are defined in `studies/<science>.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
from pathlib import Path
from typing import Any

from studies import (
    compress,
    compress_presets,
    compress_speed,
    dna,
    ecg,
    fine_tuning,
    forecasting,
    generation,
    later,
    left_out,
    passkey,
    pathology,
    recipes,
    summary,
    synthetic,
)
from studies.common import ROOT, Study

RESULTS = ROOT / "results"
BLOCK = re.compile(r"(<!-- results: (\S+) -->\n).*?(<!-- end of results -->)", re.DOTALL)
STUDIES: dict[str, Study] = {
    **forecasting.STUDIES,
    **ecg.STUDIES,
    **pathology.STUDIES,
    **fine_tuning.STUDIES,
    **recipes.STUDIES,
    **synthetic.STUDIES,
    **generation.STUDIES,
    **dna.STUDIES,
    **compress.STUDIES,
    **compress_presets.STUDIES,
    **compress_speed.STUDIES,
    **later.STUDIES,
    **left_out.STUDIES,
    **passkey.STUDIES,
}


def machine() -> dict[str, Any]:
    """The machine on which the figures were measured."""
    import torch

    name = platform.processor()
    if Path("/proc/cpuinfo").is_file():
        names = re.findall(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
        name = names[0] if names else name
    return {
        "cpu": name,
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def tables(names: list[str] | None = None) -> dict[str, str]:
    """The Markdown of every study that has been run, and the summary of all; or of the named studies only."""
    made, studies = {}, {}
    for name in names or STUDIES:
        path = RESULTS / f"{name}.json"
        if path.is_file():
            study = studies[name] = json.loads(path.read_text(encoding="utf-8"))
            where = study["machine"]
            note = f"{where['cpu']}, torch {where['torch']}. Printed by `python results/real.py {name}`."
            made[name] = f"{STUDIES[name][1](study)}\n\n{note}\n"
    if names is None:
        note = "Written by `python results/real.py --tables` from the studies named in the domain READMEs."
        made["summary"] = f"{summary.summary_table(studies)}\n\n{note}\n"
    return made


def filled(text: str, made: dict[str, str]) -> str:
    """Text of a README with its tables filled in."""
    return BLOCK.sub(lambda found: f"{found[1]}{made[found[2]]}{found[3]}" if found[2] in made else found[0], text)


def write_tables() -> None:
    """Update the tables of every README that contains markers."""
    made = tables()
    pages = [path for path in ROOT.glob("docs/**/*.md") if "_build" not in path.parts]
    for path in sorted([ROOT / "README.md", *ROOT.glob("domains/*/README.md"), *pages]):
        if path.is_file():
            before = path.read_text(encoding="utf-8")
            after = filled(before, made)
            if after != before:
                path.write_text(after, encoding="utf-8")
                print(f"written: {path.relative_to(ROOT)}")


def main() -> None:
    """Run the studies named on the command line, all of them by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", metavar="STUDY", help=f"of: {', '.join(STUDIES)}")
    parser.add_argument("--tables", action="store_true", help="only write the tables, without running studies")
    options = parser.parse_args()
    for name in options.studies:
        if name not in STUDIES:
            parser.error(f"unknown study {name}; choose from: {', '.join(STUDIES)}")
    for name in [] if options.tables else options.studies or STUDIES:
        study = {"machine": machine(), **STUDIES[name][0]()}
        (RESULTS / f"{name}.json").write_text(json.dumps(study, indent=2) + "\n", encoding="utf-8")
        print(f"\n{name}\n{tables([name])[name]}", flush=True)
    write_tables()


if __name__ == "__main__":
    main()
