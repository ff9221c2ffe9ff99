"""Flag parsing with one-line errors that suggest the most similar flag."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from seqssm.domain import Option, split_list
from seqssm.errors import InputError, nearest, no_such_model
from seqssm.files.disk import require_named, require_no_folder
from seqssm.given import Values, require_needs

MODELS = {
    "MODEL": 1,
    "MODEL.ckpt": 1,
    "MODEL_AND_RECORD": 1,
    "RUN": None,
    "RUN_OR_CKPT": 1,
    "TEACHER.ckpt": 1,
}
"""Positional arguments that are runs or checkpoints, and how many of their values are; None for all."""


class Parsed(argparse.Namespace):
    """Values of the options, and the names of the declared ones that were given."""

    __slots__ = ("given",)  # not among the values that `vars` returns

    def __init__(self) -> None:
        super().__init__()
        self.given: set[str] = set()

    def values(self) -> Values:
        """Return the values by name."""
        return Values(vars(self), self.given)


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises a one-line `InputError` instead of printing usage."""

    def __init__(self, prog: str, description: str, example: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")

    def flags(self) -> list[str]:
        return [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]

    def parse(self, argv: list[str], others: dict[str, str] | None = None) -> Parsed:
        """Parse all of `argv`.

        Args:
            argv: the arguments.
            others: flags that are valid elsewhere only, mapped to where they belong.

        Raises:
            InputError: an unknown flag (the message suggests the most similar one), an invalid value, or an option
                without the one that it needs.
        """
        if "--output=" in argv or ("--output", "") in pairwise(argv):
            require_named("")
        argv = [self._renamed(word) for word in argv]
        self._require_files(argv)
        for word in argv:
            flag = word.split("=")[0]
            if flag.startswith("--") and len(flag) > 2 and flag not in self.flags():
                if others and flag in others:
                    raise InputError(f"{flag} is an option of {others[flag]}")
                raise InputError(f"unknown option {flag}{nearest(flag, self.flags())}")
        # options may appear between files
        found = self.parse_intermixed_args(list(self._split(argv)), namespace=Parsed())
        switches = [action for action in self._actions if hasattr(action, "option") and action.nargs == 0]
        found.given |= {action.option.name for action in switches if getattr(found, action.dest)}
        require_needs([action.option for action in self._actions if hasattr(action, "option")], found.values())
        self._require_models(found)
        return found

    def _require_files(self, argv: list[str]) -> None:
        """Check that names of files to write do not end in a slash, which `Path` drops."""
        own = self.options()
        files = {one.flag for one in own if one.writes or (one.flag == "--output" and one.type is Path)}
        for word, following in pairwise([*argv, ""]):
            flag, equals, value = word.partition("=")
            name = value if equals else following
            if flag in files and name.endswith(("/", os.sep)):
                require_no_folder(name, flag)

    def _require_models(self, found: Parsed) -> None:
        """Check that runs and checkpoints exist before importing what reads them, which takes seconds."""
        for action in self._actions:
            if action.option_strings or action.metavar not in MODELS:
                continue
            given = getattr(found, action.dest)
            given = given if isinstance(given, list) else [given]
            require_models(path for path in given[: MODELS[action.metavar]] if path is not None)

    def options(self) -> list[Option]:
        """The declared options that take a value."""
        return [action.option for action in self._actions if isinstance(action, Declared)]

    def _renamed(self, word: str) -> str:
        """Replace the flag of an earlier version by today's, and say so."""
        flag, equals, value = word.partition("=")
        for option in self.options():
            if flag in option.formerly:
                print(f"note: {flag} is called {option.flag} now", file=sys.stderr)
                return f"{option.flag}{equals}{value}"
        return word

    def _split(self, argv: list[str]) -> Iterator[str]:
        """Split negative numbers in lists: argparse takes ``-999,-1`` for an option."""
        lists = {option.flag for option in self.options() if option.many}
        flag = ""
        for word in argv:
            if word.startswith("--"):
                flag = word
            if flag in lists and re.match(r"-[\d.].*,", word):
                yield from split_list(word)
            else:
                yield word


class Declared(argparse.Action):
    """Stores the value of an `Option` after checking its bounds; values of a list given several times are joined."""

    def __init__(self, *args: Any, option: Option, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.option = option

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        if self.option.many:
            values = self.option.listed(values)
        self.option.bounds.require(self.option.flag, values)
        if self.option.many and isinstance(namespace, Parsed) and self.option.name in namespace.given:
            values = [*getattr(namespace, self.dest), *values]
        setattr(namespace, self.dest, values)
        if isinstance(namespace, Parsed):
            namespace.given.add(self.option.name)


def require_models(paths: Iterable[str | Path]) -> None:
    """Raise InputError for a run or checkpoint that does not exist."""
    for path in paths:
        if not Path(path).exists():
            raise no_such_model(path)


FILES = ("--output", "--figures", "--bed", "--test", "--training", "--weights", "--encoder-weights", "--root")
"""Options that name files or folders in all commands that have them."""
METAVARS = {int: "INT", float: "NUMBER", Path: "PATH"}
"""Name of a value in the help by the type of its option."""


def add(parser: argparse._ActionsContainer, option: Option) -> None:
    """Add a domain's `Option` to `parser`."""
    text = option.help
    if option.type is bool:
        switch = parser.add_argument(option.flag, action="store_true", default=option.default or False, help=text)
        switch.option = option  # type: ignore[attr-defined]
        return
    if option.many:
        text += "; separated by spaces or commas"
    if option.default not in (None, ""):
        text += f" (default {option.default:g})" if option.type is float else f" (default {option.default})"
    parser.add_argument(
        option.flag,
        action=Declared,
        option=option,
        type=str if option.many else option.type,
        default=option.default,
        choices=option.choices,
        nargs="+" if option.many else None,
        help=text.replace("%", "%%"),
        metavar=None if option.choices else option.metavar or _metavar(option),
    )


def _metavar(option: Option) -> str:
    """Return the name of a value in the help."""
    return "PATH" if option.writes or option.flag in FILES else METAVARS.get(option.type, "TEXT")
