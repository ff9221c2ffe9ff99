"""Flag parsing with one-line errors that suggest the most similar flag."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NoReturn

from seqssm.domain import Option
from seqssm.errors import InputError, nearest


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

    def parse(self, argv: list[str], others: dict[str, str] | None = None) -> argparse.Namespace:
        """Parse all of `argv`.

        Args:
            argv: the arguments.
            others: flags that are valid elsewhere only, mapped to where they belong.

        Raises:
            InputError: an unknown flag (the message suggests the most similar one) or an invalid value.
        """
        for word in argv:
            flag = word.split("=")[0]
            if flag.startswith("--") and len(flag) > 2 and flag not in self.flags():
                if others and flag in others:
                    raise InputError(f"{flag} is an option of {others[flag]}")
                raise InputError(f"unknown option {flag}{nearest(flag, self.flags())}")
        return self.parse_intermixed_args(argv)  # options may appear between files


class Bounded(argparse.Action):
    """Stores a value after checking the bounds of its `Option`."""

    def __init__(self, *args: Any, option: Option, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.option = option

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        self.option.bounds.require(self.option.flag, values)
        setattr(namespace, self.dest, values)


METAVARS = {int: "INT", float: "NUMBER", Path: "PATH"}
"""Name of a value in the help by the type of its option."""


def add(parser: argparse._ActionsContainer, option: Option) -> None:
    """Add a domain's `Option` to `parser`."""
    text = option.help
    if option.type is bool:
        parser.add_argument(option.flag, action="store_true", default=option.default or False, help=text)
        return
    if option.default is not None:
        text += f" (default {option.default:g})" if option.type is float else f" (default {option.default})"
    parser.add_argument(
        option.flag,
        action=Bounded,
        option=option,
        type=option.type,
        default=option.default,
        choices=option.choices,
        nargs="+" if option.many else None,
        help=text.replace("%", "%%"),
        metavar=None
        if option.choices
        else option.metavar or ("PATH" if option.writes else METAVARS.get(option.type, "TEXT")),
    )
