"""Presets and config files: found by name, read, and brought to one form. Needs no torch."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from seqssm.domain import Domain
from seqssm.errors import InputError, nearest

HOME = "a run's folder is named by --output DIR"
SECTIONS = ("seed_everything", "early_stopping", "trainer", "model", "data")


class OnceLoader(yaml.SafeLoader):
    """Refuses a name that stands twice in one mapping, of which YAML would take the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"names {key.value!r} twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


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
    if name in domain.models and domain.models[name][0].startswith("--"):
        flags = " ".join(domain.models[name])
        raise InputError(f"--config {name}: is a model, not a preset: give {flags} beside --config PRESET")
    raise InputError(
        f"--config {name}: no such preset or file{nearest(name, known)} (seqssm {domain.name} --help lists them)"
    )


def read(path: Path, domain: Domain) -> dict[str, Any]:
    """A config file as a dict with full ``class_path, init_args`` entries; classes not named are the domain's own.

    Raises:
        InputError: no YAML, not a mapping, or an unknown section.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=OnceLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        said = str(getattr(error, "problem", None) or "")
        what = said if said.startswith("names ") else "is not valid YAML"
        raise InputError(what, file=path, place=mark and f"line {mark.line + 1}") from None
    if not isinstance(content, dict):
        raise InputError("is not a config: it has no sections (model, data, trainer)", file=path)
    content = {section: part for section, part in content.items() if part is not None}
    for section in content:
        if section not in SECTIONS:
            raise InputError(f"unknown section {section!r}{nearest(str(section), SECTIONS)}", file=path)
        if section != "seed_everything" and not isinstance(content[section], dict):
            raise InputError(f"the section {section!r} has no entries of the form name: value", file=path)
    for section, default in (("model", domain.task), ("data", domain.data)):
        part = content.get(section)
        if isinstance(part, dict) and "class_path" not in part:
            content[section] = {"class_path": default.replace(":", "."), "init_args": part}
        elif isinstance(part, dict) and not isinstance(part["class_path"], str):
            raise InputError(f"{section}.class_path is a class's full name, not {part['class_path']}", file=path)
    if content.get("trainer", {}).get("default_root_dir") is not None:
        raise InputError(f"trainer.default_root_dir is not used: {HOME}", file=path)
    return content


def as_text(config: dict[str, Any]) -> str:
    return yaml.safe_dump(config, sort_keys=False)
