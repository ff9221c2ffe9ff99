"""The parsers accept every `seqssm` command of the documentation and of every README."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from seqssm.cli import compress, diagnose, fit, kfold, main, predict
from seqssm.cli.options import Parser
from seqssm.domain import Domain, domains, find_domain
from seqssm.errors import InputError, nearest
from seqssm.training import presets
from seqssm.training.lightning_cli import class_options

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [
        *(file for file in ROOT.glob("docs/**/*.md") if "_build" not in file.parts),
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "kernels/README.md", "examples/README.md")),
        *ROOT.glob("domains/*/README.md"),
    ]
)
ELSEWHERE = {"images"}  # the worked domain of examples/, tested in tests/examples
FEWEST = 60  # commands on all pages; fewer means that they were not found


class Parsed(BaseException):
    """The command line was accepted; nothing is run."""


def commands(page: Path) -> list[str]:
    """The command lines of a page: lines of code blocks, and inline code."""
    text = page.read_text(encoding="utf-8")
    fenced = re.findall(r"^ *```(?:bash|sh|console)?\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    lines = [line.strip() for block in fenced for line in block.replace("\\\n", " ").splitlines()]
    outside = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines += [" ".join(code.split()) for code in re.findall(r"`(seqssm [^`]+)`", outside)]
    found = []
    for line in lines:
        line = re.sub(r"^.*?(-m seqssm|srun seqssm|\.venv/bin/seqssm) ", "seqssm ", line)
        if line.startswith("seqssm ") and not re.search(r"\[|\.\.\.|<|\b[A-Z]+\|[A-Z]+\b", line):
            found.append(line.split(" > ")[0])
    return found


EVERY = [(page.relative_to(ROOT).as_posix(), line) for page in PAGES for line in commands(page)]


def test_the_commands_are_found():
    assert len(EVERY) >= FEWEST
    assert len({page for page, _ in EVERY}) >= 10


@pytest.fixture
def only_parsed(monkeypatch):
    """Stop every command after parsing; the models that the pages name do not exist."""
    parse = Parser.parse
    monkeypatch.setattr("seqssm.cli.options.require_models", lambda paths: None)

    def stop(self, argv, others=None):
        parse(self, argv, others)
        raise Parsed

    monkeypatch.setattr(Parser, "parse", stop)


@pytest.mark.parametrize("page", sorted({page for page, _ in EVERY}))
def test_every_command_is_parsed(page, only_parsed):
    wrong = []
    for line in (line for found, line in EVERY if found == page):
        words = shlex.split(line, comments=True)[1:]
        try:
            check(words)
        except InputError as error:
            wrong.append(f"{line}: {error}")
    assert wrong == []


def check(words: list[str]) -> None:
    """Parse a command line; options of a preset's classes too."""
    known = domains()
    if not words or words[0] in ELSEWHERE or words[0].startswith("-"):
        return
    if words[0] == "predict" or words[1:2] == ["predict"]:
        accepted_by_one(words[1:] if words[0] == "predict" else words[2:], known)
        return
    if words[0] in known and words[1:2] in (["fit"], ["kfold"]):
        domain = find_domain(words[0])
        parser = fit.fit_parser(domain) if words[1] == "fit" else kfold.kfold_parser(domain)
        own, overrides = fit.split(words[2:], parser)
        require_options(domain, own, overrides)
    if words[0] in known and len(words) < 3 and words[1:2] not in (["fit"], ["kfold"]):
        names = [*("fit", "validate", "test", "kfold", "predict", "--help", "--help-all")]
        names += [command.name for command in known[words[0]].commands]
        if len(words) > 1 and words[1] not in names:
            raise InputError(f"unknown command {words[1]}")
        return  # the name of a command in a sentence
    if words[0] in ("compress", "diagnose") and len(words) > 1:
        own = [one.flag for one in (compress if words[0] == "compress" else diagnose).OPTIONS]
        unknown = [word for word in words if word.startswith("-") and word not in own]
        if unknown:
            raise InputError(f"unknown option {unknown[0]}")
        return  # the checkpoint names the domain, and with it further options
    names = ("compress", "distill", "diagnose", "test", "fit", "data", "export", "report", "compare")
    if len(words) == 1 and words[0] in names:
        return
    try:
        main.run(words)
    except (Parsed, SystemExit):  # --help ends the parser
        return
    raise InputError("was not parsed")


def accepted_by_one(words: list[str], known: dict[str, Domain]) -> None:
    """Parse `predict` with the options of each domain, because no checkpoint names one."""
    if len(words) < 2:
        return  # the name of the command in a sentence
    errors = []
    for domain in known.values():
        try:
            predict.build_parser("seqssm predict", domain).parse(words)
        except (Parsed, SystemExit):  # --help ends the parser
            return
        except InputError as error:
            errors.append(f"{domain.name}: {error}")
    raise InputError("; ".join(errors))


def require_options(domain: Domain, own: list[str], overrides: list[str]) -> None:
    """Raise InputError for a preset that does not exist, or an option that its classes do not have."""
    targets = {"model": domain.task, "data": domain.data}
    for flag, value in pairwise(own):
        if flag == "--config" and not value.endswith((".yaml", ".yml")):
            source = presets.find_preset(domain, value)
            content = presets.read_preset(source, domain)
            for section in targets:
                targets[section] = (content.get(section) or {}).get("class_path") or targets[section]
    for word in overrides:
        found = re.match(r"--(model|data)\.(\w+)", word)
        if found and found[2] not in (names := class_options(targets[found[1]])):
            raise InputError(f"unknown option {found[0]}{nearest(found[2], names)}")
