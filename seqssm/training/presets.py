"""Presets and config files: lookup, reading and normalisation. Does not import torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from seqssm.domain import Domain
from seqssm.errors import InputError, nearest
from seqssm.training import migration
from seqssm.training.run_folder import CONFIG

HOME = "--output DIR sets the run folder"
LARGEST, MOST_ENTRIES = 1_000_000, 100_000  # bytes of a config file; entries in it with aliases expanded
VARIANTS = "presets"  # section of a preset file: name -> differences from the rest of the file
FORM = ("class_path", "init_args", "dict_kwargs")
"""Entries of a section that names its class."""
SECTIONS = ("seed_everything", "early_stopping", "trainer", "model", "data")


@dataclass(frozen=True)
class Source:
    """The source of a configuration.

    Attributes:
        path: the YAML file.
        name: name of the preset, or the file's stem; default name of the run folder.
        variant: entry of the file's section ``presets``; None for the whole file.
    """

    path: Path
    name: str
    variant: str | None = None


class OnceLoader(yaml.SafeLoader):
    """Rejects duplicate keys, of which PyYAML silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "has a key that is not a string", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"has the duplicate key {key.value!r}", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def presets(domain: Domain) -> dict[str, Source]:
    """List the domain's presets by name, sorted so that ``x_96`` precedes ``x_192``.

    A file holds one preset, named by its stem, or several: its section ``presets`` then maps each name to the
    differences (``etth1_192: {data: {horizon: 192}}``).
    """
    spec = find_spec(domain.package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    found: dict[str, Source] = {}
    for path in (path for folder in folders for path in Path(folder).glob("configs/*.yaml")):
        variants = _variants(path)
        for name in variants or [path.stem]:
            found[name] = Source(path, name, name if variants else None)

    def order(name: str) -> list:
        return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in name.split("_")]

    return {name: found[name] for name in sorted(found, key=order)}


def _variants(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    if f"\n{VARIANTS}:" not in f"\n{text}":
        return []
    return list(yaml.load(text, Loader=OnceLoader)[VARIANTS])


def find_preset(domain: Domain, name: str | Path) -> Source:
    """Find the file of a preset, or the config file itself.

    Raises:
        InputError: neither exists; the message suggests the most similar preset.
    """
    known = presets(domain)
    if name in known:
        return known[str(name)]
    path = Path(name)
    if path.is_file():
        return Source(path, path.stem)
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        raise InputError("no such config file", file=path)
    if name in domain.models and domain.models[str(name)]:
        flags = " ".join(domain.models[str(name)])
        raise InputError(f"--config {name}: is a model, not a preset; add {flags} to --config PRESET")
    raise InputError(
        f"--config {name}: no such preset or file{nearest(str(name), known)} (seqssm {domain.name} --help lists them)"
    )


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge `over` into a copy of `base`, key by key through nested mappings."""
    result = dict(base)
    for name, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(name), Mapping)
        result[name] = merged(result[name], value) if both else value
    return result


def _load(path: Path) -> Any:
    """Read a config file of bounded size, because YAML aliases can repeat a few lines millions of times."""
    if path.stat().st_size > LARGEST:
        raise InputError(f"is not a config: larger than {LARGEST // 1000} kB", file=path)
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=OnceLoader)
        if root is not None and _entries(root, {}) > MOST_ENTRIES:
            raise InputError(f"is not a config: its aliases expand to more than {MOST_ENTRIES} entries", file=path)
        return yaml.load(text, Loader=OnceLoader)
    except RecursionError:
        raise InputError("is nested too deeply for a config", file=path) from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        mark = getattr(error, "problem_mark", None)
        problem = str(getattr(error, "problem", None) or "")
        what = problem if problem.startswith(("has a key ", "has the duplicate key ")) else "is not valid YAML"
        raise InputError(what, file=path, place=mark and f"line {mark.line + 1}") from None


def _entries(node: yaml.Node, known: dict[int, int]) -> int:
    """Count the entries below `node` with aliases expanded; a recursive node counts as too many."""
    if id(node) not in known:
        known[id(node)] = MOST_ENTRIES + 1  # while it is being counted
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        below = [child for part in parts for child in (part if isinstance(part, tuple) else (part,))]
        known[id(node)] = 1 + sum(_entries(child, known) for child in below)
    return known[id(node)]


def read_presets(sources: Iterable[Source], domain: Domain) -> list[dict[str, Any]]:
    """Read configurations of which later ones change earlier ones, as `read_preset` does."""
    found: list[dict[str, Any]] = []
    for source in sources:
        found.append(read_preset(source, domain, found))
    return found


def read_preset(source: Source, domain: Domain, before: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Read a configuration as a dict with full ``class_path, init_args`` entries.

    Classes default to those of the configurations `before` it, then to the domain's own; options and classes of earlier
    versions get their current names.

    Raises:
        InputError: not YAML, not a mapping, or an unknown section.
    """
    path = source.path
    content = _load(path)
    if not isinstance(content, dict):
        raise InputError("is not a config: no sections (model, data, trainer)", file=path)
    variants = content.pop(VARIANTS, None)
    if source.variant is not None:
        content = merged(content, variants[source.variant] or {})
    elif variants:
        raise InputError(f"contains several presets; choose one of {', '.join(variants)}", file=path)
    return normalised(content, domain, path, before)


def read_beside(checkpoint: Path, domain: Domain) -> dict[str, Any]:
    """Read the `config.yaml` beside a checkpoint; empty if there is none.

    Args:
        checkpoint: the checkpoint, in the folder of its run.
        domain: domain of the run.
    """
    path = checkpoint.parent / CONFIG
    return read_preset(Source(path, checkpoint.parent.name), domain) if path.is_file() else {}


def normalised(
    content: dict[str, Any], domain: Domain, path: Path | None = None, before: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Check sections, fill in class paths and migrate options; arguments and errors as for `read_preset`."""
    content = {section: part for section, part in content.items() if part is not None}
    for section in content:
        if section not in SECTIONS:
            raise InputError(f"unknown section {section!r}{nearest(str(section), SECTIONS)}", file=path)
        if section != "seed_everything" and not isinstance(content[section], dict):
            raise InputError(f"section {section!r}: expected entries of the form name: value", file=path)
    for section, default in (("model", domain.task), ("data", domain.data)):
        part = content.get(section)
        if part is None:
            continue
        _require_one_form(section, part, path)
        if "class_path" not in part:
            earlier = [one[section]["class_path"] for one in before if section in one]
            cls = [default.replace(":", "."), *earlier][-1]
            part = {"class_path": cls, **(part if "init_args" in part else {"init_args": part})}
        elif not isinstance(part["class_path"], str):
            raise InputError(f"{section}.class_path {part['class_path']}: expected the full name of a class", file=path)
        arguments = part.get("init_args") or {}
        content[section] = {
            **part,
            "class_path": migration.class_path(domain, part["class_path"]),
            "init_args": migration.options(domain, section, arguments) if isinstance(arguments, dict) else arguments,
        }
    if content.get("trainer", {}).get("default_root_dir") is not None:
        raise InputError(f"trainer.default_root_dir is not used: {HOME}", file=path)
    return content


def _require_one_form(section: str, part: Mapping[str, Any], path: Path | None) -> None:
    """Raise InputError for a section with options both under ``init_args`` and beside it or beside ``class_path``."""
    if "class_path" not in part and "init_args" not in part:
        return
    beside = [str(name) for name in part if name not in FORM]
    if beside:
        where = " or ".join(name for name in FORM[:2] if name in part)
        message = f"{section}.{beside[0]} is given next to {where}: write all options of {section} under init_args"
        raise InputError(f"{message}, or without {where}" if where == "init_args" else message, file=path)


def blamed(
    error: InputError, contents: Sequence[Mapping[str, Any]], files: Sequence[Path], given: Mapping[str, Any]
) -> InputError:
    """Return an error about an option of the configs with the file that has the option; from Python, there is none.

    Args:
        error: the error; its message begins with ``config:`` and the option.
        contents: normalised configs, of which later ones win.
        files: their files.
        given: the normalised config of options given in Python, which wins over `contents`.
    """
    message = error.message.removeprefix("config: ")
    found = re.match(r"(?:unknown option )?([^:;\s]+)", message)
    section, _, name = (found[1] if found else "").partition(".")

    def has(content: Mapping[str, Any]) -> bool:
        part = content.get(section)
        options = (part or {}).get("init_args") if section in ("model", "data") else part
        return part is not None and (
            not name or (isinstance(options, dict) and name.split(".")[0] in map(str, options))
        )

    if has(given):
        return InputError(message)
    own = [file for content, file in zip(contents, files) if has(content)][-1:]
    return InputError(message, file=" with ".join(str(file) for file in own or files))


def as_text(config: dict[str, Any]) -> str:
    return yaml.safe_dump(config, sort_keys=False)
