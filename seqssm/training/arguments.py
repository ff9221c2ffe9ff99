"""Configs and flags before LightningCLI parses them: migration, arguments of other networks, misspelt names."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import yaml

from seqssm.domain import Domain, resolve
from seqssm.errors import InputError, nearest
from seqssm.training import migration, networks
from seqssm.training.lists import item_type, list_value, option_types
from seqssm.training.presets import OnceLoader

SECTIONS = ("model", "data")
DATA_SET = "dataset"  # the option of a data module that names a registered set


def given_values(words: Sequence[str]) -> dict[str, str]:
    """Return the value of each option in a list of words, ``--a 1`` or ``--a=1``; the last one counts."""
    parts = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    return {flag: value for flag, value in pairwise(parts) if flag.startswith("--")}


@dataclass
class Flag:
    """A command-line flag, ``--model.d_model 64``.

    Attributes:
        name: the flag, with its dashes.
        value: its value; None if the flag has none.
        more: further words after the value, which only a list option takes.
    """

    name: str
    value: str | None
    more: list[str] = field(default_factory=list)

    @property
    def section(self) -> str:
        return self.name.removeprefix("--").split(".")[0]

    @property
    def option(self) -> str:
        """The name within the section, without ``init_args``; empty for the section itself."""
        return self.plain.removeprefix("--").partition(".")[2]

    @property
    def plain(self) -> str:
        return self.name.replace(".init_args", "").removesuffix("+")

    def words(self) -> list[str]:
        return [self.name] if self.value is None else [f"{self.name}={self.value}"]


def split_flags(words: Sequence[str]) -> list[Flag]:
    """Parse the flags of a command line.

    Raises:
        InputError: a flag without its value, or a value without a flag.
    """
    flags: list[Flag] = []
    waiting = False  # whether the last flag has no value yet
    for word in words:
        if word.startswith("--"):
            if waiting:
                break
            name, joined, value = word.partition("=")
            flags.append(Flag(name, value if joined else None))
            waiting = not joined
        elif not flags:
            raise InputError(f"{word}: expected an option before this value")
        elif waiting:
            flags[-1].value, waiting = word, False
        else:
            flags[-1].more.append(word)
    if waiting:
        raise InputError(f"{flags[-1].name} needs a value")
    return flags


@dataclass
class Arguments:
    """Arguments for LightningCLI: configs (later ones win), then flags.

    Attributes:
        domain: the domain, whose migrations apply.
        configs: contents returned by `seqssm.training.presets.read_preset`.
        flags: command-line flags.
        named: names of further options that the user gave, ``"model.d_model"`` (from Python).
        packaged: positions of the configs that are presets; they list options of the networks of their comparisons too.
    """

    domain: Domain
    configs: list[dict[str, Any]]
    flags: list[Flag]
    named: frozenset[str] = frozenset()
    packaged: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        for flag in self.flags:
            if flag.section in SECTIONS and flag.option and "." not in flag.option:
                given = _value(flag.value)
                name, value = migration.option(self.domain, flag.section, flag.option, given)
                if name != flag.option:
                    flag.name = f"--{flag.section}.{name}"
                if value != given:
                    flag.value = yaml.safe_dump(value, default_flow_style=True, width=10**9).split("\n...")[0].strip()
        self._join_lists()

    def _join_lists(self) -> None:
        """Convert the words of list options to YAML.

        Raises:
            InputError: an option without a list has several values.
        """
        kinds: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
        for section in {flag.section for flag in self.flags}.intersection(SECTIONS):
            if isinstance(cls := _class(self.class_of(section)), type):
                kinds[section] = option_types(cls)
        for flag in self.flags:
            kind = kinds.get(flag.section, {}).get(flag.option)
            if item_type(kind) is not None and flag.value is not None:
                flag.value, flag.more = list_value(flag.plain, [flag.value, *flag.more], kind), []
            elif flag.more:
                raise InputError(f"{flag.more[0]}: expected an option before this value")

    def given(self) -> set[str]:
        """Return the names of the options of model and data that the user gave, ``"model.d_model"``."""
        return {f"{flag.section}.{flag.option}" for flag in self.flags if flag.section in SECTIONS} | self.named

    def words(self) -> list[str]:
        """Format the arguments for LightningCLI."""
        configs = [word for one in self.configs for word in ("--config", yaml.safe_dump(one, sort_keys=False))]
        return [*configs, *(word for flag in self.flags for word in flag.words())]

    def class_of(self, section: str) -> str:
        """Return the class path of a section: the last one given, or the domain's default."""
        path = {"model": self.domain.task, "data": self.domain.data}[section].replace(":", ".")
        for config in self.configs:
            path = (config.get(section) or {}).get("class_path", path)
        for flag in self.flags:
            if flag.name in (f"--{section}", f"--{section}.class_path") and flag.value:
                path = flag.value
        return path

    def drop_foreign(self, flags_too: bool) -> None:
        """Drop the arguments of networks that are not chosen, and report those that differ from the default.

        Args:
            flags_too: whether to drop flags too (for studies of several networks); otherwise such a flag is an error.
        """
        task = _class(self.class_of("model"))
        if not getattr(task, "networks", None):
            return
        chosen = task.own_arguments[networks.CHOICE].default
        for config in self.configs:
            chosen = _arguments(config).get(networks.CHOICE) or chosen
        for flag in self.flags:
            if flag.section == "model" and flag.option == networks.CHOICE and flag.value:
                chosen = flag.value
        told: list[str] = []
        keep = [] if flags_too else [name.removeprefix("model.") for name in self.named]
        for place, config in enumerate(self.configs):
            if isinstance((config.get("model") or {}).get("init_args"), dict):
                own = _arguments(config).get(networks.CHOICE)
                config["model"]["init_args"], names = networks.without_foreign(task, _arguments(config), chosen, keep)
                told += names if place not in self.packaged or own != chosen else []
        if flags_too and chosen in task.networks:
            mine = networks.parameters(task.networks[chosen])
            theirs = {name for name in task.network_arguments if name not in mine}
            foreign = [flag for flag in self.flags if flag.section == "model" and flag.option in theirs]
            self.flags = [flag for flag in self.flags if flag not in foreign]
            told += [flag.option for flag in foreign]
        networks.report_dropped(task, chosen, told, "config" if not flags_too else "study")

    def require_one_source(self) -> None:
        """Raise InputError if the options name both a data set and own records."""
        if self._given_value(DATA_SET) is None:
            return
        for name in sorted(self._own_sources()):
            if self._given_value(name) is not None:
                raise InputError(f"--data.{DATA_SET} and --data.{name} exclude each other; give one of them")

    def _own_sources(self) -> set[str]:
        """Return the options of the data that name own records."""
        sources = getattr(_class(self.class_of("data")), "sources", ())
        return {option for group in sources for option in group} - {DATA_SET}

    def drop_data_set(self, in_memory: bool = False) -> None:
        """Drop what belongs to a preset's data set where the user's own records replace it, and report it.

        Records that a config names replace the data sets of earlier configs, those of flags replace that of all.

        Args:
            in_memory: whether the records are a data frame.
        """
        own = self._own_sources()
        given = {name.removeprefix("data.") for name in self.given() if name.startswith("data.")}
        if in_memory:
            given.add(str(self.domain.data_argument))
        if self._given_value(DATA_SET) is None:  # null drops the data set too
            given.discard(DATA_SET)
        for place, config in enumerate(self.configs):
            options = _arguments(config, "data")
            later = [_arguments(one, "data").items() for one in self.configs[place + 1 :]]
            named = given | {option for items in later for option, value in items if value is not None}
            if options.get(DATA_SET) is None or DATA_SET in named or not named & own:
                continue
            belong = {
                one.name: options[one.name]
                for one in self.domain.of_data_set
                if options.get(one.name) is not None
                and not (one.values and options[one.name] not in one.values)
                and not named & set(one.beside)
            }
            config["data"]["init_args"] = {k: v for k, v in options.items() if k not in {DATA_SET, *belong}}
            told = [f"{option} {value}" for option, value in belong.items() if option not in named]
            if told:
                dropped = f"{', '.join(told)} dropped, of the data set {options[DATA_SET]}"
                print(f"seqssm: config: {dropped}", file=sys.stderr)

    def _given_value(self, name: str) -> Any:
        """Return the value that the user gave for an option of the data; None without one."""
        values = [_arguments(self.configs[-1], "data").get(name)] if f"data.{name}" in self.named else []
        values += [_value(flag.value) for flag in self.flags if flag.section == "data" and flag.option == name]
        return values[-1] if values else None

    def require_known(self, known: Iterable[str]) -> None:
        """Raise InputError for an unknown name, suggesting the most similar known one."""
        known = list(known)
        named = [
            (f"--{section}.{name}", True)
            for config in self.configs
            for section in ("model", "data", "trainer", "early_stopping")
            for name in (_arguments(config, section) if section in SECTIONS else config.get(section) or {})
        ]
        named += [(flag.plain, False) for flag in self.flags]
        for name, in_config in named:
            open_ended = name.count(".") > 1 and ".".join(name.split(".")[:2]) in known
            if name not in known and not open_ended:
                shown = name.removeprefix("--") if in_config else name
                choice = [k.removeprefix("--") for k in known] if in_config else known
                where = "config: " if in_config else ""
                raise InputError(f"{where}unknown option {shown}{nearest(shown, choice)}")


def _value(word: str | None) -> Any:
    """Return the value of a flag; what is not YAML (``%d.%m.%Y``, ``@home``) is a string.

    Raises:
        InputError: a mapping has a key twice.
    """
    if not word:
        return word
    try:
        return yaml.load(word, Loader=OnceLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = str(getattr(error, "problem", ""))
        if problem.startswith("has the duplicate key "):
            raise InputError(f"{word}: {problem}") from None
        return word


def _arguments(config: dict[str, Any], section: str = "model") -> dict[str, Any]:
    found = (config.get(section) or {}).get("init_args") or {}
    return found if isinstance(found, dict) else {}


def _class(path: str) -> Any:
    """Return the class of a full path; None for a bare name or an unknown class, which the parser reports."""
    module, _, name = path.rpartition(".")
    try:
        return resolve(f"{module}:{name}") if module else None
    except (ImportError, AttributeError, ValueError):
        return None
