"""Options of all commands of all domains: one flag is one thing, with one type, default and help line."""

from __future__ import annotations

from collections import defaultdict

from seqssm.cli import compress, diagnose, distill, extend, predict
from seqssm.domain import OVERWRITE, Option, domains

DIFFERENT = {
    "--output": "the file or folder that a command writes",
    "--overwrite": "predict also restarts an interrupted prediction",
    "--batch-size": "of records, or of generated sequences",
    "--budget": "of the students to train, or to use",
    "--class": "of a generated sequence, or compared between alleles",
    "--evaluate": "extend takes several files",
    "--figures": "of each record, or of a region",
    "--html": "a page per file, or per slide",
    "--label": "of a generated sequence, or in front of a given one",
    "--layout": "of pages, or of files",
    "--per-window": "ECG: with the length, seconds; DNA: the length is --window, bases",
    "--records": "of a calibration, or of a diagnosis",
    "--seed": "of sampling, folds or training",
    "--step": "between windows, between cutoffs, or of a measurement",
    "--temperature": "of sampling, or of a teacher",
    "--top-k": "bases, or patches",
    "--weights": "of a score, or of an encoder",
    "--window": "around an allele, or of a region",
}
"""Flags that mean different things in different commands, and what."""


def commands() -> dict[str, tuple[Option, ...]]:
    """The options of every command that declares them as `Option`."""
    found = {"predict": predict.COMMON, "compress": compress.OPTIONS, "diagnose": diagnose.OPTIONS}
    found |= {"distill": distill.OPTIONS, "extend": extend.OPTIONS}
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
            for suffix, unit in (("-s", "seconds"), ("-hz", "hertz")):
                assert not option.flag.endswith(suffix) or unit in option.help, where
