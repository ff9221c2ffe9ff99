"""Options with which the domain of a model reads files, for commands that take a model and files."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from seqssm.cli.options import Parsed, Parser, add, require_models
from seqssm.cli.predict import domain_of, loosely
from seqssm.domain import Domain, Option, domains
from seqssm.given import Values, select


@dataclass(frozen=True)
class Reading:
    """The domain of the model in a command line, and its options.

    Attributes:
        domain: the domain; None if no model is given.
        own: options of `predict` in this domain that read files, other than those of the command.
        others: flags of other domains, and the name of their domain.
    """

    domain: Domain | None
    own: list[Option]
    others: dict[str, str]

    def add_to(self, parser: Parser) -> None:
        """Add the options in a group of their own."""
        if self.domain is not None and self.own:
            group = parser.add_argument_group(f"reading files of {self.domain.name}, as for predict")
            for option in self.own:
                add(group, option)

    def values(self, given: Parsed) -> Values:
        """Values of the options, by name."""
        return select(given.values(), [option.name for option in self.own])


def find_reading(
    argv: list[str], command: Sequence[Option], require_output: Callable[[argparse.Namespace], object]
) -> Reading:
    """Find the model in a command line, and the options of its domain.

    Args:
        argv: the arguments; the first positional one is the model.
        command: options of the command itself.
        require_output: check of the output, called with the words of the command line before the model is opened.

    Raises:
        InputError: the model is not usable, or the output cannot be written.
    """
    words = loosely(argv, command)
    path = None if words is None or not words.words else Path(words.words[0])
    asks_help = any(word in ("-h", "--help") for word in argv)
    if path is not None and not asks_help:
        require_models([path])
        if words is not None and words.output:
            require_output(words)
    domain = None if path is None or (asks_help and not path.exists()) else domain_of(path, studies=False)
    taken = {option.flag for option in command}
    own = [] if domain is None else _reading(domain, taken)
    mine = taken | {option.flag for option in own}
    others = {
        option.flag: f"the domain {one.name}"
        for one in domains().values()
        for option in _reading(one, taken)
        if option.flag not in mine
    }
    return Reading(domain, own, others)


def _reading(domain: Domain, taken: set[str]) -> list[Option]:
    return [option for option in domain.predict_options if option.flag not in taken and not option.writes]
