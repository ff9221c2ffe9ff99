"""A teacher or a warm start: what the outputs mean, and test records that the other model was trained on."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest

from seqssm.cli.main import main
from seqssm.domain import find_domain, resolve
from seqssm.training.leakage import seen
from seqssm.training.output_names import Outputs, interval_names

FIT = ["toy", "fit", "--config", "tiny", "--trainer.max_epochs", "1"]


@pytest.fixture
def numbered(toy, monkeypatch):
    """The toy with ids of records, and with classes in the order of an option."""
    from seqssm_toy.data import ToyData
    from seqssm_toy.task import ToyTask

    def identities(data, split):
        items = {"train": data.train_set, "val": data.val_set, "test": data.test_set}[split]
        return [{"id": f"r{row}"} for row in items.rows]

    def named(cls, hparams, summary):
        return Outputs("classes", ("a", "b") if hparams["slow"] < 0.001 else ("b", "a"))

    monkeypatch.setattr(ToyData, "identities", identities)
    monkeypatch.setattr(ToyTask, "named_outputs", classmethod(named))
    assert main([*FIT, "--data.rows", "60", "--output", "first"]) == 0


def notes(run: str) -> list[str]:
    return [line for line in json.loads(Path(run, "about.json").read_text())["notes"] if "test records" in line]


@pytest.mark.parametrize("option", ["--model.init_from", "--model.teacher"])
def test_records_that_the_other_model_was_trained_on_are_reported(numbered, capsys, option):
    """A study over folds from a model trained on all of them had MCC .91 without a word."""
    other = ["--data.folds", "4", "--data.fold", "2"]  # records 2, 6, ...: training records of the first run
    assert main([*FIT, *other, option, "first", "--output", "second"]) == 0
    expected = f"warning: the model of {option} first was trained on 15 of 15 test records"
    assert expected in capsys.readouterr().out
    assert len(notes("second")) == 1
    assert notes("second")[0].startswith(expected)
    assert notes("second")[0].endswith("; the figures of the test are too good")
    assert main([*FIT, option, "first/best.ckpt", "--output", "same"]) == 0
    assert notes("same") == [], "the same split"
    assert main(["report", "second"]) == 0
    assert "the figures of the test are too good" in Path("second/report.html").read_text()


@pytest.mark.parametrize("option", ["--model.init_from", "--model.teacher"])
def test_models_before_the_other_model_are_followed(numbered, capsys, option):
    """Two fits from one model had the figures of a third one without a word."""
    other = ["--data.folds", "4", "--data.fold", "2"]
    assert main([*FIT, *other, option, "first", "--output", "second"]) == 0
    Path("elsewhere").mkdir()
    with contextlib.chdir("elsewhere"):  # the path `first` belongs to the folder of the second run
        assert main([*FIT, *other, "--model.init_from", "../second", "--output", "../third"]) == 0
        name = f"{option} ../first (of ../second/best.ckpt)"
        assert f"warning: the model of {name} was trained on 15 of 15 test records" in capsys.readouterr().out
    assert len(notes("third")) == 1
    shutil.rmtree("first")
    shutil.copytree("second", "first")  # each of the two now names the other one, or itself
    assert main([*FIT, *other, "--model.init_from", "first", "--output", "fourth"]) == 0
    assert notes("fourth") == []
    shutil.rmtree("first")
    capsys.readouterr()
    assert main([*FIT, *other, "--model.init_from", "second", "--output", "fifth"]) == 0
    line = f"{option} first (of second/best.ckpt): overlap with its training records was not checked (no such"
    assert line in capsys.readouterr().out


def test_an_unknown_split_is_reported(numbered, capsys):
    Path("alone").mkdir()
    shutil.copy("first/best.ckpt", "alone")
    checkpoint = "alone/best.ckpt"
    assert main([*FIT, "--data.fold", "1", "--model.init_from", checkpoint, "--output", "second"]) == 0
    line = f"--model.init_from {checkpoint}: overlap with its training records was not checked (no split.csv beside it)"
    assert line in capsys.readouterr().out
    assert main([*FIT, "--model.teacher", checkpoint, "--output", "same"]) == 0
    assert "not checked" not in capsys.readouterr().out, "the options of the data are those of the teacher"


def test_records_seen_without_labels_are_no_warning(numbered, monkeypatch, capsys):
    from seqssm_toy.task import ToyTask

    from seqssm.training import leakage

    class Pretrained(ToyTask):
        self_supervised = True

    monkeypatch.setattr(leakage, "resolve_class", lambda *_: Pretrained)
    other = ["--data.folds", "4", "--data.fold", "2"]
    assert main([*FIT, *other, "--model.init_from", "first", "--output", "second"]) == 0
    assert "15 of 15 test records were seen, without labels, by the model of --model.init_from first" in (
        capsys.readouterr().out
    )
    assert "too good" not in "".join(notes("second"))


def test_a_teacher_of_other_outputs_is_refused_and_a_warm_start_reported(numbered, capsys):
    other = ["--model.slow", "0.001", "--output", "second"]
    assert main([*FIT, *other, "--model.teacher", "first"]) == 2
    assert capsys.readouterr().err.strip() == "seqssm: --model.teacher: its classes are a, b; the model's are b, a"
    assert main([*FIT, *other, "--model.init_from", "first"]) == 0
    line = "warning: other classes (there a, b; here b, a); each starts from the weights in its position"
    assert line in capsys.readouterr().out
    assert any(line in note for note in json.loads(Path("second/about.json").read_text())["notes"])


def test_what_the_own_split_has_in_common_is_not_that_of_the_other_model():
    run = [
        {"split": "train", "id": "1", "patient": "p"},
        {"split": "val", "id": "2", "patient": "q"},
        {"split": "test", "id": "3", "patient": "r"},
    ]
    tested = [{"id": "3", "patient": "p"}, {"id": "1", "patient": "s"}, {"id": "5", "patient": "r"}]
    assert seen(tested, run, [], ()) == {"train": ["3", "1"], "val": []}
    assert seen(tested, run, [{"id": "7", "patient": "p"}], ()) == {"train": ["1"], "val": []}
    assert seen(tested, run, [], ("id",)) == {"train": ["3"], "val": []}
    assert seen(tested, run, run[:2], ()) == {"train": [], "val": []}


# -- what the outputs mean ---------------------------------------------------------------------------------------------


def test_outputs_are_compared_by_name_order_and_unit():
    one = Outputs("time bins", ("below 5", "from 5"), "months")
    assert not one.renamed(Outputs("time bins", ("below 5", "from 5")))
    assert one.renamed(Outputs("time bins", ("below 5", "from 5"), "days"))
    assert not one.renamed(Outputs())
    many, other = (Outputs("classes", tuple(f"c{k}" for k in numbers)) for numbers in (range(30), [*range(20), 25, 26]))
    assert many.listed(other) == "..., c20, c21, c22, c23, c24, c25, c26, c27, ..."
    assert other.listed(many) == "..., c25, c26"
    assert interval_names([2.0, 5.5]) == ["below 2", "2 to 5.5", "from 5.5"]


def heads(**values) -> dict:
    return {"target": "any", "heads": [{"name": "t", "tag": "", "place": 0, **values}]}


def several(*columns: str) -> dict:
    labels = {"kind": "labels", "name": "labels", "tag": "labels.", "place": 1, "labels": list(columns)}
    number = {"kind": "regression", "name": "age", "tag": "age.", "place": 0, "mean": 0.0, "scale": 1.0}
    return {"target": "several", "heads": [number, labels]}


@pytest.mark.parametrize(
    ("task", "one", "other"),
    [
        ("ecg", {"classes": ["AF", "SR"]}, {"classes": ["SR", "AF"]}),
        ("ecg", {"classes": ["AF", "SR"]}, {"classes": ["AF", "SR"], "loss": "cross_entropy"}),
        ("dna", {"classes": ["a", "b"], "target": "class"}, {"classes": ["b", "a"], "target": "class"}),
        ("dna", {"classes": ["a", "b"], "target": "labels"}, {"classes": ["a", "b"], "target": "class"}),
        ("dna", {"classes": ["x"], "target": "value"}, {"classes": ["y"], "target": "value"}),
        ("forecasting", {"quantiles": [0.1, 0.5, 0.9]}, {}),
        ("forecasting", {"quantiles": [0.1, 0.5, 0.9]}, {"quantiles": [0.05, 0.5, 0.95]}),
        (
            "pathology",
            heads(kind="classification", classes=["a", "b"]),
            heads(kind="classification", classes=["b", "a"]),
        ),
        ("pathology", heads(kind="labels", labels=["a", "b"]), heads(kind="labels", labels=["a", "c"])),
        ("pathology", heads(kind="labels", labels=["a", "b"]), heads(kind="labels", labels=["a", "b", "c"])),
        ("pathology", heads(kind="regression"), {**heads(kind="regression", name="other")}),
        ("pathology", heads(kind="survival", edges=[0.0, 2.0, 9.0]), heads(kind="survival", edges=[0.0, 3.0, 9.0])),
        (
            "pathology",
            heads(kind="survival", edges=[0.0, 2.0, 9.0], unit="days"),
            heads(kind="survival", edges=[0.0, 2.0, 9.0], unit="months"),
        ),
        ("pathology", several("a", "b"), several("b", "a")),
    ],
)
def test_every_domain_names_its_outputs(task, one, other):
    paths = {"dna": "seqssm_dna.labels_task:SequenceLabels"}
    cls = resolve(paths.get(task) or find_domain(task).task)
    first, second = (
        cls.named_outputs({}, found) if task == "pathology" else cls.named_outputs(found, {}) for found in (one, other)
    )
    assert first.names
    assert not first.renamed(first)
    assert first.renamed(second) or first.kind != second.kind


def test_the_outer_edges_of_time_bins_have_no_meaning():
    cls = resolve(find_domain("pathology").task)
    ends = [heads(kind="survival", edges=[low, 2.0, high], unit="months") for low, high in ((0.0, 9.0), (1.0, 7.0))]
    assert not cls.named_outputs({}, ends[0]).renamed(cls.named_outputs({}, ends[1]))
