"""Options that have no effect are refused in one line, by one declaration (`Option.needs`, `Option.models`)."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import seqssm
from seqssm.cli.main import main
from seqssm.cli.options import Parser, add
from seqssm.cli.predict import COMMON
from seqssm.domain import Option, domains, resolve
from seqssm.errors import InputError
from seqssm.training.data import DataModule
from seqssm.training.effects import COMMON as EVERYWHERE
from seqssm.training.effects import without_effect
from seqssm.training.task import Task

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


def options(domain):
    """Options of all networks, tasks and data modules of a domain, by name."""
    package = f"seqssm_{domain.name}."
    resolve(domain.task), resolve(domain.data)
    found = set()
    for module in MODULES.get(domain.name, ()):
        resolve(f"{package}{module}")
    for base, section in ((Task, "model"), (DataModule, "data")):
        waiting = [base]
        while waiting:
            one = waiting.pop()
            waiting += one.__subclasses__()
            if one.__module__.startswith(package):
                found |= {f"{section}.{name}" for name in inspect.signature(one).parameters}
    return found


MODULES = {"dna": ("labels_task:SequenceLabels", "conditioned:ConditionedGeneration", "sequences:SequenceData")}


@pytest.mark.parametrize("domain", domains().values(), ids=lambda one: one.name)
def test_effects_name_options(domain):
    known = options(domain)
    for effect in (*EVERYWHERE, *domain.effects):
        named = [effect.name, *(need.partition(" ")[0] for need in effect.needs), *effect.without]
        assert not set(named) - known


EFFECTS = [
    (
        "dna",
        "splice",
        ["--model.conv_kernel", "9", "--model.network", "hybrid"],
        "--model.conv_kernel has no effect without --model.conv_layers",
    ),
    (
        "dna",
        "splice",
        ["--model.conv_kernel", "4", "--model.network", "hybrid"],
        "--model.conv_kernel has no effect without",
    ),
    (
        "dna",
        "splice",
        ["--model.network", "hybrid", "--model.n_heads", "2"],
        "--model.n_heads has no effect without --model.attn_period or --model.mixer attention",
    ),
    (
        "dna",
        "splice",
        ["--model.network", "hybrid", "--model.mixer", "mamba", "--model.head_dim", "8"],
        "--model.head_dim has no effect",
    ),
    (
        "dna",
        "finetune",
        ["--data.train", "a.csv", "--data.target", "labels", "--model.class_weights", "balanced"],
        "--model.class_weights has no effect without --data.target class",
    ),
    ("dna", "splice", ["--data.fold", "1"], "--data.fold has no effect without --data.folds"),
    ("dna", "splice", ["--data.folds", "4"], "--data.folds 4 requires --data.fold, the test fold, from 0 to 3"),
    ("ecg", "ecg_small", ["--data.folds", "4"], "--data.folds 4 requires --data.fold, the test fold, from 0 to 3"),
    (
        "ecg",
        "ecg_small",
        ["--model.teacher_weight", "0.5"],
        "--model.teacher_weight has no effect without --model.teacher",
    ),
    (
        "ecg",
        "ecg_small",
        ["--data.causal_filter", "true", "--data.band_hz", "null", "--data.manifest", "m.csv"],
        "--data.causal_filter has no effect without --data.band_hz",
    ),
    ("forecasting", "smamba", ["--data.window_step", "3"], "--data.window_step has no effect without --data.windows"),
    (
        "forecasting",
        "smamba",
        ["--data.split", "60/20/20", "--data.val_from", "2020", "--data.test_from", "2021"],
        "--data.split has no effect with --data.val_from",
    ),
    (
        "pathology",
        "srmamba",
        ["--data.bins", "8"],
        "--data.bins has no effect without --data.target survival|several",
    ),
    (
        "pathology",
        "srmamba",
        ["--model.network", "clam_sb", "--model.instance_loss", "none", "--model.instances", "4"],
        "--model.instances has no effect without --model.instance_loss",
    ),
]


@pytest.mark.parametrize(("domain", "preset", "words", "message"), EFFECTS)
def test_options_of_fit_without_effect_are_refused(tmp_path, monkeypatch, capsys, domain, preset, words, message):
    """They were ignored in silence."""
    monkeypatch.chdir(tmp_path)
    assert main([domain, "fit", "--config", preset, *words, "--output", "run"]) == 2
    assert f"seqssm: {message}" in capsys.readouterr().err
    assert not Path("run").exists()


def test_options_of_fit_with_an_effect_are_not():
    values = {"model.conv_kernel": 9, "model.conv_layers": 2, "data.target": None, "data.bins": 3}
    effects = domains()["dna"].effects + domains()["pathology"].effects
    assert without_effect(effects, values, values) == []  # a target that is not known yet
    folds = {"data.split_column": "fold", "data.folds": 3, "data.fold": 0}  # the column has the folds
    assert without_effect(effects, folds, folds) == []
    assert without_effect(effects, ["data.bins"], {"data.bins": 4, "data.target": "classification"})
    assert without_effect(effects, ["data.label_column"], {"data.label_column": None, "data.target": "labels"}) == []


def test_options_of_fit_from_python():
    with pytest.raises(InputError, match=r"^--model.conv_kernel has no effect without --model.conv_layers$"):
        seqssm.fit(
            domain="dna", preset="splice", data={"train": "a.csv"}, model={"network": "hybrid", "conv_kernel": 9}
        )
