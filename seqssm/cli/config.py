"""Presets and config files: found by name, read, and brought to one form. Needs no torch."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from seqssm.cli.options import nearest
from seqssm.domain import Domain
from seqssm.errors import InputError

SECTIONS = ("seed_everything", "early_stopping", "trainer", "model", "data")


def presets(domain: Domain) -> dict[str, Path]:
    """The domain's presets by name, sorted so that ``x_96`` comes before ``x_192``."""
    spec = find_spec(domain.package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    found = {path.stem: path for folder in folders for path in Path(folder).glob("configs/*.yaml")}

    def order(name: str) -> list:
        return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in name.split("_")]

    return {name: found[name] for name in sorted(found, key=order)}


def locate(domain: Domain, name: str) -> Path:
    """The file of a preset, or the config file itself.

    Raises:
        InputError: neither; the nearest preset is named.
    """
    known = presets(domain)
    if name in known:
        return known[name]
    path = Path(name)
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        raise InputError("no such config file", file=path)
    raise InputError(
        f"--config {name}: no such preset or file{nearest(name, known)} (seqssm {domain.name} --help lists them)"
    )


def read(path: Path, domain: Domain) -> dict[str, Any]:
    """A config file as a dict with full ``class_path, init_args`` entries; classes not named are the domain's own.

    Raises:
        InputError: no YAML, not a mapping, or an unknown section.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        raise InputError("is not valid YAML", file=path, place=mark and f"line {mark.line + 1}") from None
    if not isinstance(content, dict):
        raise InputError("is not a config: it has no sections (model, data, trainer)", file=path)
    for section in content:
        if section not in SECTIONS:
            raise InputError(f"unknown section {section!r}{nearest(str(section), SECTIONS)}", file=path)
        if section != "seed_everything" and not isinstance(content[section], dict | None):
            raise InputError(f"the section {section!r} has no entries of the form name: value", file=path)
    for section, default in (("model", domain.task), ("data", domain.data)):
        part = content.get(section)
        if isinstance(part, dict) and "class_path" not in part:
            content[section] = {"class_path": default.replace(":", "."), "init_args": part}
    return content


def as_text(config: dict[str, Any]) -> str:
    return yaml.safe_dump(config, sort_keys=False)
