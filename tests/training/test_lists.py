"""List options of `fit`, `test`, `kfold` and `distill`: values separated by commas or spaces, in every domain."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from jsonargparse import ArgumentParser

from seqssm.domain import Domain, Option, domains, resolve, split_list
from seqssm.errors import InputError
from seqssm.training import presets
from seqssm.training.arguments import Arguments, Flag, split_flags
from seqssm.training.lists import item_type, list_value, option_types


def classes(domain: Domain) -> dict[tuple[str, str], type]:
    """The task and data classes that a domain names, in its presets too: (section, class path) -> class."""
    paths = {("model", domain.task), ("data", domain.data)}
    for name in presets.presets(domain):
        content = presets.read_preset(presets.find_preset(domain, name), domain)
        for section in ("model", "data"):
            if section in content:
                paths.add((section, ":".join(content[section]["class_path"].rsplit(".", 1))))
    return {(section, path.replace(":", ".")): resolve(path) for section, path in paths}


OPTIONS = {
    (domain.name, f"--{section}.{name}", path): (domain, kind)
    for domain in domains().values()
    for (section, path), cls in classes(domain).items()
    for name, kind in option_types(cls).items()
    if item_type(kind) is not None
}
VALUES = {str: (["a", "2", "c d"], ["a", "2", "c d"]), int: (["1", "-2"], [1, -2]), float: (["0.5", "40"], [0.5, 40.0])}


def parsed(domain: Domain, flag: str, path: str, *words: str) -> Any:
    """Parse a flag as `fit` does."""
    section, name = flag[2:].split(".")
    config = {section: {"class_path": path, "init_args": {}}}
    arguments = Arguments(domain, [config], split_flags([flag, *words] if words[0] != "=" else [flag + "=" + words[1]]))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument(flag, type=option_types(resolve(":".join(path.rsplit(".", 1))))[name])
    return parser.parse_args(arguments.flags[0].words())[flag[2:]]


def test_every_domain_has_list_options():
    assert {name for name, *_ in OPTIONS} >= {"dna", "ecg", "forecasting", "pathology"}
    wanted = {"--data.columns", "--data.label_columns", "--data.band_hz", "--data.skip_rows", "--model.quantiles"}
    assert {flag for _, flag, _ in OPTIONS} >= wanted


@pytest.mark.parametrize("key", sorted(OPTIONS), ids=" ".join)
def test_every_list_option_takes_commas_and_spaces(key, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    domain, kind = OPTIONS[key]
    _, flag, path = key
    item = item_type(kind)
    item = next(one for one in get_args(item) if one is not type(None)) if get_origin(item) else item
    words, expected = VALUES[item]
    forms = [words, [",".join(words)], [", ".join(words)], ["=", ",".join(words)], [words[0] + ",", *words[1:]]]
    for form in forms:
        assert parsed(domain, flag, path, *form) == expected, form
    yaml = "[" + ", ".join(f"'{word}'" if item is str else word for word in words) + "]"
    assert parsed(domain, flag, path, yaml) == expected
    assert parsed(domain, flag, path, words[0]) in (expected[:1], expected[0])
    if item is str:
        assert parsed(domain, flag, path, '"a,b",c') == ["a,b", "c"]
        assert parsed(domain, flag, path, '["a,b", c]') == ["a,b", "c"]
    with pytest.raises(InputError, match=f"{flag} .*expected values"):
        parsed(domain, flag, path, f"{words[0]},,{words[1]}")


@pytest.mark.parametrize("words", [[""], ["OT", ""], [" "], ["OT", ",,"]])
def test_an_empty_value_is_shown_in_quotes(words):
    shown = shlex.join(words)
    with pytest.raises(InputError, match=re.escape(f"--data.columns {shown}: expected values")):
        list_value("--data.columns", words, list[str] | None)
    with pytest.raises(InputError, match="--level '': expected numbers"):
        Option("--level", "", float, many=True).listed([""])


@pytest.mark.parametrize("value", [[""], ["OT", " "], ""])
def test_an_empty_value_of_a_config_or_from_python(value):
    from seqssm_forecasting.data import ForecastingData

    with pytest.raises(InputError, match=re.escape(f"--data.columns {value!r}: a value is empty")):
        ForecastingData(file="x.csv", columns=value)


def test_a_name_that_is_given_twice_is_refused():
    """The label, series or target was trained twice, or the last kind of a target was taken."""
    from seqssm_dna.sequences import SequenceData
    from seqssm_forecasting.data import ForecastingData

    with pytest.raises(InputError, match=r"^--data\.columns: OT appears twice$"):
        ForecastingData(file="x.csv", columns=["OT", "HUFL", "OT"])
    with pytest.raises(InputError, match=r"^--data\.label_columns: EGFR appears twice$"):
        SequenceData("x.csv", target="labels", label_columns=["EGFR", "EGFR"])
    with pytest.raises(InputError, match=r"KRAS: regression}: has the duplicate key 'KRAS'$"):
        Arguments(domains()["pathology"], [], [Flag("--data.targets", "{KRAS: classification, KRAS: regression}")])


def test_other_options_take_one_value(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    domain = domains()["forecasting"]
    with pytest.raises(InputError, match=r"^7: expected an option before this value"):
        Arguments(domain, [], split_flags(["--data.horizon", "6", "7"]))
    assert Arguments(domain, [], split_flags(["--data.file", "a,b.csv"])).flags[0].value == "a,b.csv"
    assert Arguments(domain, [], split_flags(["--data.columns", "null"])).flags[0].value == "null"
    Path("a,b.fa").touch()
    assert list_value("--data.fasta", ["a,b.fa"], str | list[str] | None) == "a,b.fa"
    with pytest.raises(InputError, match="one list"):
        list_value("--data.columns", ["[a,b]", "c"], list[str])


def test_quotes_and_commas():
    assert split_list('a,"b,c",d,') == ["a", "b,c", "d"]
    assert split_list('"say ""a,b""",c') == ['say "a,b"', "c"]
    assert split_list('5",6,7') == ['5"', "6", "7"]  # a quote that is never closed
    words = [f"a,{number}" for number in range(100_000)]  # a pattern that looked ahead at each comma took hours
    assert split_list(",".join(f'"{word}"' for word in words)) == words


def test_a_single_bound_is_no_mapping():
    """`--data.clip 0:` was a mapping to YAML, and failed in the parser with a message on operands."""
    for word, value in (("0:", ["0:"]), ("-1:", ["-1:"]), ("load=0:", ["load=0:"]), (":5", ":5"), ("0:5", "0:5")):
        path = "seqssm_forecasting.data.ForecastingData"
        assert parsed(domains()["forecasting"], "--data.clip", path, "=", word) == value
