"""Options that have no effect are refused in one line, by one declaration (`Option.needs`, `Option.models`)."""

from __future__ import annotations

from pathlib import Path

import pytest

import seqssm
from seqssm.cli.main import main
from seqssm.cli.options import Parser, add
from seqssm.cli.predict import COMMON
from seqssm.domain import Option, domains, resolve
from seqssm.errors import InputError

RUNS = Path(__file__).resolve().parents[1] / "compat" / "runs"


def values(option: Option) -> list[str]:
    """The words that give an option a value other than its default."""
    if option.type is bool:
        return [option.flag]
    if option.choices:
        return [option.flag, next(one for one in option.choices if one != option.default)]
    bounds = option.bounds
    number = next((one for one in (3, 0.3, 30) if not bounds.problem(one) and one != option.default), 3)
    return [option.flag, str(number) if option.type in (int, float) else "a"]


def given(option: Option) -> list[list[str]]:
    """Ways to give an option: another value than its default, and the default itself."""
    default = [] if option.type is bool or option.default in (None, "") else [[option.flag, str(option.default)]]
    return [values(option), *default]


NEEDS = {
    (domain.name, option.flag): (domain, option)
    for domain in domains().values()
    for option in domain.predict_options
    if option.needs
}


@pytest.mark.parametrize("key", NEEDS, ids=" ".join)
def test_an_option_is_refused_without_those_it_needs(key):
    domain, option = NEEDS[key]
    parser = Parser("seqssm predict", "", "")
    known = {one.flag: one for one in (*COMMON, *domain.predict_options)}
    for one in known.values():
        add(parser, one)
    flags = [need.partition(" ")[0] for need in option.needs]
    assert all(flag in known for flag in flags)
    for need, flag in zip(option.needs, flags):
        others = [word for other in flags if other != flag for word in values(known[other])]
        for words in given(option):
            with pytest.raises(InputError, match=rf"^--[\w-]+ has no effect without {need}$"):
                parser.parse([*words, *others])
    needed = [word for need, flag in zip(option.needs, flags) for word in need.split()[:1] + values(known[flag])[1:]]
    for words in given(option):
        parser.parse([*words, *needed])
    parser.parse(needed)


def test_kinds_of_models_are_those_of_the_predictor():
    kinds = {"causal language models", "masked language models", "language models", "classifiers"}
    declared = {option.models for domain in domains().values() for option in domain.predict_options}
    assert declared - {""} == kinds
    assert resolve(domains()["ecg"].predictor).kinds == ()


def test_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert (
        main(["predict", str(RUNS / "ecg_mamba" / "best.ckpt"), "a", "--output", "o.csv", "--paper-speed", "50"]) == 2
    )
    assert capsys.readouterr().err == "seqssm: --paper-speed has no effect without --figures\n"


@pytest.mark.parametrize(
    ("run", "words", "message"),
    [
        ("ecg_mamba", ["--paper-speed", "25"], "--paper-speed has no effect without --figures"),
        ("forecasting_dlinear", ["--sample-seed", "0"], "--sample-seed has no effect without --samples"),
        ("pathology_survival", ["--top-k", "20"], "--top-k has no effect without --figures"),
    ],
)
def test_defaults_are_refused_as_other_values_are(tmp_path, monkeypatch, capsys, run, words, message):
    """They were ignored in silence."""
    monkeypatch.chdir(tmp_path)
    Path("a.fa").write_text(">a\nACGTACGTACGT\n")
    assert main(["predict", str(RUNS / run / "best.ckpt"), "a.fa", "--output", "o.csv", *words]) == 2
    assert message in capsys.readouterr().err


def test_from_python_too():
    model = seqssm.load(RUNS / "ecg_mamba" / "best.ckpt")
    for speed in (25.0, 50.0):
        with pytest.raises(InputError, match="--paper-speed has no effect without --figures"):
            model.predictor({"paper_speed": speed})
    with pytest.raises(InputError, match="--challenge-folder has no effect without --format challenge"):
        model.predictor({"challenge_folder": "x"})


def test_options_of_figures_from_python():
    """In commands the parser refuses them, in Python `predict` and `embed` do."""
    model = seqssm.load(RUNS / "ecg_mamba" / "best.ckpt")
    for call in (model.predict, model.embed):
        with pytest.raises(InputError, match="--paper-speed has no effect without --figures"):
            call("a.hea", paper_speed=50)
    assert model.predictor({"paper_speed": 50}, figures="folder")


def test_a_name_that_python_reserves_ends_in_a_line():
    from seqssm.domain import python_name

    assert [python_name(name) for name in ("class", "level")] == ["class_", "level"]
    model = seqssm.load(RUNS / "ecg_mamba" / "best.ckpt")
    with pytest.raises(InputError, match=r"ecg has no option clas_$"):
        model.predictor({"clas_": 1})
