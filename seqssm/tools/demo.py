"""``seqssm demo``: train and predict with every domain on synthetic data; write tables, figures and one HTML page."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import time
from pathlib import Path

from seqssm.domain import domains, resolve
from seqssm.errors import ExitCode, InputError
from seqssm.files.disk import atomic, writing
from seqssm.tools.page import Chapter, Section, write_page
from seqssm.tools.units import units_of
from seqssm.training.run_folder import METRICS
from seqssm.version import __version__

PAGE = "index.html"


def require_ours(folder: Path) -> None:
    """Reject a folder with other content; an earlier demo is replaced."""
    if folder.exists() and not folder.is_dir():
        raise InputError("is a file; --output takes a folder", file=folder)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / PAGE).is_file():
        raise InputError("is not empty and does not contain an earlier demo; choose another --output", file=folder)


def run_demo(folder: Path) -> int:
    """Run the demo of every domain into `folder`; the exit code is `PARTIAL` if one of them failed.

    A domain whose packages are not installed is named with what it needs, on the page too.

    Raises:
        InputError: no domain's packages are installed.
    """
    if domains() and all(domain.missing() for domain in domains().values()):
        raise InputError("; ".join(str(domain.missing()) for domain in domains().values()))
    sciences: list[Chapter] = []
    write_page(folder / PAGE, "seqssm", "This demo is still running.", [])  # marks the folder as a demo from now on
    code, begun = ExitCode.OK, time.monotonic()
    for domain in domains().values():
        missing = domain.missing()
        if missing is not None:
            print(f"{domain.name}: not shown: {missing}", flush=True)
            sciences.append(Chapter(domain.title, [Section("Not installed", missing, headline=missing)]))
            continue
        place = folder / domain.name
        with writing(place):
            if place.is_dir():
                shutil.rmtree(place)
            place.mkdir(parents=True)
        print(f"{domain.name}: {domain.title}", flush=True)
        start = time.monotonic()
        try:
            sections = resolve(domain.demo)(place)
        except (InputError, ImportError) as error:
            print(f"seqssm: the demo of {domain.name} failed: {error}", file=sys.stderr, flush=True)
            sections, code = [Section("Failed", str(error), headline=f"Failed: {error}")], ExitCode.PARTIAL
        write_tables(place, sections)
        sciences.append(Chapter(domain.title, sections, units_of(domain)))
        print(f"  {time.monotonic() - start:.0f} s", flush=True)
    sciences.append(next_steps(folder))
    lead = f"Made by seqssm {__version__} from synthetic data in {time.monotonic() - begun:.0f} seconds."
    write_page(folder / PAGE, "seqssm: state-space models for science", lead, sciences, cards=True)
    print(f"written: {folder / PAGE}")
    return code


def next_steps(folder: Path) -> Chapter:
    """Commands for the reader's own data, and for the runs of the demo."""
    found = sorted(file.parent for file in folder.glob(f"*/*/{METRICS}"))
    lines = [f"seqssm report {shlex.quote(str(found[0]))}    # everything about a run of this demo"] if found else []
    for domain in domains().values():
        if domain.missing() is None:
            preset = domain.own_preset or domain.example_preset
            run = f"runs/{domain.name}/{preset}"
            lines += ["", f"seqssm {domain.name} --help    # presets, commands, examples"]
            lines += [f"seqssm {domain.name} fit --config {preset}", f"seqssm {domain.name} test {run}"]
            lines += [f"seqssm predict {run}/best.ckpt {domain.example_input} --output predictions.csv"]
    text = "The same commands as in this demo, on your own files; `--data.*` names them (see `--help`)."
    return Chapter("What to run next", [Section("", text, code="\n".join(lines).strip())])


def write_tables(folder: Path, sections: list[Section]) -> None:
    """Write each table of the page as a CSV file too."""
    taken: set[str] = set()
    for section in sections:
        for title, frame in section.tables:
            name = base = re.sub(r"\W+", "-", title.lower()).strip("-")[:60] or "table"
            while name in taken:
                name = f"{base}-{len(taken)}"
            taken.add(name)
            with atomic(folder / f"{name}.csv", "w") as file:
                frame.to_csv(file, index=False, lineterminator="\n")
