"""Options of all commands of all domains: one flag is one thing, with one type, default and help line."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from seqssm.cli import compress, diagnose, distill, extend, predict
from seqssm.cli.options import Parser, add
from seqssm.domain import OVERWRITE, Option, domains
from seqssm.errors import InputError
from seqssm.training import kfold

DIFFERENT = {
    "--output": "the file or folder that a command writes",
    "--overwrite": "predict also restarts an interrupted prediction",
    "--batch-size": "of records, or of generated sequences",
    "--budget": "of the students to train, or to use",
    "--class": "of a generated sequence, or compared between alleles",
    "--figures": "of each record, or of a region",
    "--html": "a page per file, or per slide",
    "--label": "of a generated sequence, or in front of a given one",
    "--records": "of a calibration, or of a diagnosis",
    "--resume": "an interrupted prediction, or a distillation",
    "--seed": "of sampling, folds or training",
    "--step": "from one window, or cutoff, to the next",
    "--temperature": "of sampling, or of a teacher",
    "--top-k": "bases, or patches",
    "--window": "around an allele, or of a region",
    "--window-s": "of a row, or of further columns of a stream",
}
"""Flags with another object, default or help line in different commands, and which."""


def commands() -> dict[str, tuple[Option, ...]]:
    """The options of every command that declares them as `Option`."""
    found = {"predict": predict.COMMON, "compress": compress.OPTIONS, "diagnose": diagnose.OPTIONS}
    found |= {"distill": distill.OPTIONS, "extend": extend.OPTIONS, "kfold": (kfold.SEEDS, kfold.MODELS)}
    for domain in domains().values():
        if domain.package.startswith("seqssm_") and domain.name != "toy":
            found[f"{domain.name} predict"] = domain.predict_options
            found |= {f"{domain.name} {one.name}": one.options for one in domain.commands}
    return found


def test_a_flag_is_the_same_option_everywhere():
    uses: dict[str, dict[str, Option]] = defaultdict(dict)
    for command, options in commands().items():
        for option in options:
            assert option.flag not in uses or command not in uses[option.flag], f"{command} {option.flag} twice"
            uses[option.flag][command] = option
    several = {flag for flag, own in uses.items() if len(set(map(repr, own.values()))) > 1}
    assert several == set(DIFFERENT)
    for flag, own in uses.items():
        kinds = {(str if one.type is Path else one.type, one.many) for one in own.values()}
        assert len(kinds) == 1, f"{flag}: {kinds}"


def test_earlier_names_are_accepted(capsys):
    """A flag that was renamed means the same as the new one, unless it is another option of the command."""
    renamed = {
        (command, old): option for command, own in commands().items() for option in own for old in option.formerly
    }
    assert {"--per-window", "--layout", "--weights", "--step"} <= {old for _, old in renamed}
    for (command, old), option in renamed.items():
        assert old not in {one.flag for one in commands()[command]}, f"{command} {old}"
        value = option.choices[0] if option.choices else "2"
        for words in ([old, value], [f"{old}={value}"]):
            parser = Parser(f"seqssm {command}", "", "")
            add(parser, option)
            assert getattr(parser.parse(words), option.name) == option.type(value)
            assert f"note: {old} is called {option.flag} now" in capsys.readouterr().err


LISTS = {(command, one.flag): one for command, own in commands().items() for one in own if one.many}
VALUES = {str: ["a", "b=2", "c d"], Path: ["a.csv", "b.csv", "c"], int: [1, 2, 3], float: [-999.0, -1.5, 3.0]}
FRACTIONS = [0.1, 0.5, 0.9]


@pytest.mark.parametrize("option", LISTS.values(), ids=[" ".join(one) for one in LISTS])
def test_every_list_takes_commas_and_spaces(option):
    parser = Parser("seqssm", "", "")
    add(parser, option)
    fractions = option.type is float and option.bounds.problem(-999.0)
    values = FRACTIONS if fractions else VALUES[option.type]
    words = [f"{one:g}" if isinstance(one, float) else str(one) for one in values]
    expected = [option.type(word) for word in words]
    forms = [
        words,
        [",".join(words)],
        [", ".join(words)],
        [words[0] + ",", *words[1:]],
        [",".join(words[:2]), words[2]],
    ]
    for form in forms:
        assert getattr(parser.parse([option.flag, *form]), option.name) == expected, form
    assert getattr(parser.parse([f"{option.flag}={','.join(words)}"]), option.name) == expected
    again = [f"{option.flag}={','.join(words[:2])}", option.flag, words[2]]  # only the last one was taken
    assert getattr(parser.parse(again), option.name) == expected
    assert option.listed(",".join(words)) == option.listed(words) == option.listed(values) == expected
    assert f"{option.flag} " in parser.format_help()
    assert "separated by spaces or commas" in " ".join(parser.format_help().split())
    with pytest.raises(InputError, match=f"{option.flag} .*expected"):
        parser.parse([option.flag, f"{words[2]},,{words[1]}"])


def test_commas_within_a_value(tmp_path, monkeypatch):
    text, path = Option("--columns", "names", many=True), Option("--files", "files", Path, many=True)
    assert text.listed('"a,b",c') == ["a,b", "c"]
    monkeypatch.chdir(tmp_path)
    Path("a,b.csv").touch()
    assert path.listed(["a,b.csv", "c,d.csv"]) == [Path("a,b.csv"), Path("c"), Path("d.csv")]


def test_outputs_are_replaced_by_overwrite_only():
    for command, options in commands().items():
        own = {option.flag: option for option in options}
        if "--output" in own:
            assert command == "predict" or own["--overwrite"] == OVERWRITE, command


def test_help_lines_have_one_form():
    """Defaults in parentheses, which `add` writes for values; units in words; no full stop."""
    for command, options in commands().items():
        for option in options:
            where = f"{command} {option.flag}"
            assert "by default" not in option.help, where
            assert option.help.endswith("...") or not option.help.endswith("."), where
            assert option.default in (None, False) or "(default" not in option.help, where
            words = option.help.split()
            if {"file", "folder", "table"} & set(words[:2]) and option.type is str:
                parser = Parser("seqssm", "", "")
                add(parser, option)
                assert f"{option.flag} PATH" in parser.format_help(), where
            for suffix, unit in (("-s", "seconds"), ("-hz", "hertz")):
                assert not option.flag.endswith(suffix) or unit in option.help, where
