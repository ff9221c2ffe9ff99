"""Relative paths of a run are those of the folder in which it was started, wherever it is continued or tested."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

import seqssm
from seqssm.cli.main import main
from seqssm.domain import domains, resolve
from seqssm.training import origin
from seqssm.training.run_folder import RunFolder
from tests.cli.test_kfold_resume import dna, ecg, forecasting, pathology, with_other_labels

QUICK = "--trainer.max_epochs 1 --trainer.accelerator cpu --output run"
SMALL = {
    "ecg": "--model.d_model 16 --model.depth 1 --model.d_state 4",
    "pathology": "--model.d_model 8 --model.layers 1 --model.d_state 4 --model.pool_width 8",
    "forecasting": "--model.d_model 16 --model.d_state 4 --model.blend false",
    "dna": "",
}


@pytest.fixture
def there(tmp_path, monkeypatch, one_thread):
    """The folder of the data, which is the current one, and another folder."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")  # removes variables that a command sets
    for name in ("there", "else"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "there")
    return tmp_path / "there"


def fit(make) -> None:
    domain = make.__name__
    words = make().split(" --models ")[0].split()
    assert main([domain, "fit", *words, *SMALL[domain].split(), *QUICK.split()]) == 0


@pytest.mark.parametrize(
    "make",
    [*(pytest.param(make, marks=pytest.mark.long) for make in (dna, ecg, forecasting)), pathology],
    ids=lambda make: make.__name__,
)
def test_a_run_is_continued_and_tested_from_another_folder(there, monkeypatch, capsys, make):
    domain = make.__name__
    fit(make)
    before = torch.load("run/best.ckpt", weights_only=True)
    monkeypatch.chdir(there.parent / "else")
    assert main([domain, "test", str(there / "run")]) == 0
    assert main([domain, "fit", "--resume", str(there / "run"), "--trainer.max_epochs", "2"]) == 0
    after = torch.load(there / "run" / "last.ckpt", weights_only=True)
    for key in ("seqssm", "hyper_parameters", "datamodule_hyper_parameters"):
        assert str(there.parent) not in repr({**after[key], "data": None})
    assert after["seqssm"]["data_hparams"] == before["seqssm"]["data_hparams"]
    assert after["datamodule_hyper_parameters"] == before["datamodule_hyper_parameters"]
    config = (there / "run" / "config.yaml").read_text()
    assert ": data.csv\n" in config
    assert ".." not in config
    monkeypatch.chdir(there)
    assert main([domain, "test", "run"]) == 0
    assert "other data" not in capsys.readouterr().out


PLACES = {
    "dna": {"train": "data.csv"},
    "ecg": {"manifest": "data.csv"},
    "forecasting": {"file": "data.csv"},
    "pathology": {"manifest": "data.csv", "features": "."},
}


@pytest.mark.parametrize(
    "make",
    [*(pytest.param(make, marks=pytest.mark.long) for make in (dna, ecg, forecasting)), pathology],
    ids=lambda make: make.__name__,
)
def test_data_that_were_moved_out_of_the_project(there, monkeypatch, capsys, make):
    """The new path was another option, and refused."""
    domain, store = make.__name__, there.parent / "store"
    fit(make)
    (there / "run").rename(there.parent / "run")
    there.rename(store)
    there.mkdir()
    (there.parent / "run").rename(there / "run")
    monkeypatch.chdir(there.parent / "else")
    resume = [domain, "fit", "--resume", "../there/run"]
    given = [word for name, value in PLACES[domain].items() for word in (f"--data.{name}", f"../store/{value}")]
    capsys.readouterr()
    assert main([*resume, "--trainer.max_epochs", "2"]) == 2
    assert f"if it was moved, give its new path as --data.{next(iter(PLACES[domain]))}" in capsys.readouterr().err
    assert main([*resume, *given]) == 0, "nothing left to train"
    assert main([*resume, "--trainer.max_epochs", "2"]) == 0, "the new path is kept"
    kept = torch.load(there / "run" / "last.ckpt", weights_only=True)["seqssm"]["data_hparams"]
    assert {name: kept[name] for name in PLACES[domain]} == {
        name: str(store / value) for name, value in PLACES[domain].items()
    }
    assert main([domain, "test", "../there/run"]) == 0
    assert "other data" not in capsys.readouterr().out
    monkeypatch.chdir(store)
    with_other_labels(domain)
    monkeypatch.chdir(there)
    assert main([domain, "fit", "--resume", "run", "--trainer.max_epochs", "3", *given]) == 2
    assert "the data are not those of this run" in capsys.readouterr().err


@pytest.mark.parametrize(
    "make",
    [*(pytest.param(make, marks=pytest.mark.long) for make in (dna, ecg, forecasting)), pathology],
    ids=lambda make: make.__name__,
)
def test_data_that_were_moved_or_copied_are_tested_as_the_runs_own(there, capsys, make):
    """Before a continuation they were other data, with a folder of their own."""
    domain, store = make.__name__, there.parent / "store"
    fit(make)
    assert main([domain, "test", "run"]) == 0
    expected = json.loads(Path("run/metrics.json").read_text())["test"]
    shutil.copytree(there, store, ignore=shutil.ignore_patterns("run"))
    given = [word for name, value in PLACES[domain].items() for word in (f"--data.{name}", str(store / value))]

    def check() -> None:
        capsys.readouterr()
        assert main([domain, "test", "run", *given]) == 0
        assert ": the data of the run, at another path" in capsys.readouterr().err
        assert not list(Path("run").glob("test-*"))
        assert json.loads(Path("run/metrics.json").read_text())["test"]["metrics"] == expected["metrics"]

    check()
    for path in list(there.iterdir()):
        if path.name != "run":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    check()
    os.chdir(store)
    with_other_labels(domain)
    os.chdir(there)
    assert main([domain, "test", "run", *given]) == 0
    assert "at another path" not in capsys.readouterr().err
    assert list(Path("run").glob("test-*")), "other labels are other data"


def test_a_run_that_recorded_no_records_takes_no_other_path(there, capsys):
    fit(forecasting)
    shutil.copy("data.csv", "copy.csv")
    about = json.loads(Path("run/about.json").read_text())
    Path("run/about.json").write_text(json.dumps({name: about[name] for name in ("command", "folder", "way")}))
    assert main(["forecasting", "fit", "--resume", "run", "--trainer.max_epochs", "2", "--data.file", "copy.csv"]) == 2
    assert "--data.file: the checkpoint has data.csv, not copy.csv" in capsys.readouterr().err


def test_the_same_file_by_another_path_is_no_other_option(there, monkeypatch, capsys):
    fit(forecasting)
    resume = ["forecasting", "fit", "--resume", "run", "--trainer.max_epochs", "2", "--data.file"]
    assert main([*resume, str(there / "data.csv")]) == 0
    assert torch.load("run/last.ckpt", weights_only=True)["seqssm"]["data_hparams"]["file"] == "data.csv"
    monkeypatch.chdir(there / "run")
    assert main(["forecasting", "fit", "--resume", ".", "--trainer.max_epochs", "3", "--data.file", "../data.csv"]) == 0


def test_a_project_that_was_moved_is_continued_where_it_is(there, monkeypatch):
    fit(forecasting)
    moved = there.parent / "moved"
    there.rename(moved)
    monkeypatch.chdir(moved)
    assert main(["forecasting", "fit", "--resume", "run", "--trainer.max_epochs", "2"]) == 0
    assert json.loads(Path("run/about.json").read_text())[origin.FOLDER] == str(moved)


def test_a_project_that_was_copied_reads_its_own_data(there, monkeypatch, capsys):
    """From inside and from elsewhere, although the original is still there; also a study."""
    fit(forecasting)
    words = ["forecasting", "kfold", *forecasting().split(), "--trainer.max_epochs", "1", "--output", "study"]
    assert main(words) == 0
    copied = Path(shutil.copytree(there, there.parent / "copied"))
    lines = (copied / "data.csv").read_text().splitlines(keepends=True)
    (copied / "data.csv").write_text("".join(lines[:-5]))
    capsys.readouterr()
    for folder, run in ((copied, "run"), (there.parent / "else", str(copied / "run")), (there, "../copied/run")):
        monkeypatch.chdir(folder)
        assert main(["forecasting", "fit", "--resume", run, "--trainer.max_epochs", "2"]) == 2
        assert "changed" in capsys.readouterr().err
    monkeypatch.chdir(copied)
    assert main([*words, "--resume"]) == 2
    assert "changed" in capsys.readouterr().err
    shutil.copy(there / "data.csv", copied / "data.csv")
    assert main([*words, "--resume"]) == 0
    assert main(["forecasting", "fit", "--resume", "run", "--trainer.max_epochs", "2"]) == 0
    assert json.loads(Path("run/about.json").read_text())[origin.FOLDER] == str(copied)


@pytest.mark.parametrize("output", ["runs/a", ".", "../else/a"])
def test_a_copied_run_belongs_to_the_folder_beside_it(there, output):
    """Also if it was renamed, or lies beside the folder of the data."""
    (there / output).mkdir(parents=True, exist_ok=True)
    kept = origin.entries(there / output, there)
    assert origin.base_of(kept, there / output) == there
    other = there.parent / "other"
    copied = other / there.name
    (copied / output).parent.mkdir(parents=True, exist_ok=True)
    copied.mkdir(exist_ok=True)
    assert origin.base_of(kept, copied / output) == copied
    if output != ".":
        assert origin.base_of(kept, (copied / output).parent / "renamed") == copied
    assert origin.base_of({**kept, origin.WAY: "gone"}, there / output) == there
    assert origin.base_of({}, there) is None


def test_a_model_is_tested_from_python_after_the_folder_was_changed(there, monkeypatch):
    """The bags are read when they are tested, by relative paths."""
    pathology()
    data = {"manifest": "data.csv", "features": ".", "cache_gb": 0.0}
    options = {"d_model": 8, "layers": 1, "d_state": 4, "pool_width": 8}
    quick = {"max_epochs": 1, "accelerator": "cpu"}
    model = seqssm.fit("pathology", preset="srmamba", data=data, model=options, trainer=quick, output="run")
    before, loaded = model.test().metrics, seqssm.load("run")
    monkeypatch.chdir(there.parent / "else")
    assert model.test().metrics == before
    assert loaded.test().metrics == before
    shutil.copytree(there / "h5_files", "own/h5_files")
    shutil.copy(there / "data.csv", "own.csv")
    assert model.test(manifest="own.csv", features="own").metrics.keys() == before.keys()
    assert Path.cwd() == there.parent / "else"


def test_a_study_is_continued_from_another_folder(there, monkeypatch, capsys):
    words = ["forecasting", "kfold", *forecasting().split(), "--trainer.max_epochs", "1"]
    assert main([*words, "--output", "study"]) == 0
    monkeypatch.chdir(there.parent / "else")
    words[words.index("data.csv")] = str(there / "data.csv")
    assert main([*words, "--output", str(there / "study"), "--resume"]) == 0
    assert "already finished" in capsys.readouterr().out


def test_a_study_is_continued_with_data_that_were_moved(there, capsys):
    """One run is finished, one was begun, and one is new."""
    words = ["forecasting", "kfold", *forecasting().split(), "--trainer.max_epochs", "1", "--output", "study"]
    words = [word for word in words if word not in ("--models", "last_value")]
    assert main([*words, "--seeds", "1,2"]) == 0
    (there / "study" / "preset" / "seed-2" / "metrics.json").unlink()
    moved = shutil.move("data.csv", there.parent / "else" / "data.csv")
    words[words.index("data.csv")] = str(moved)
    assert main([*words, "--seeds", "1,2,3", "--resume"]) == 0
    assert "already finished" in capsys.readouterr().out
    lines = moved.read_text().splitlines(keepends=True)
    moved.write_text("".join(lines[:-5]))
    assert main([*words, "--seeds", "1,2,3,4", "--resume"]) == 2
    assert "the data are not those of this run" in capsys.readouterr().err
    assert main([*words, "--seeds", "1,2", "--resume", "--data.horizon", "3"]) == 2
    assert "different options" in capsys.readouterr().err


def test_values_that_are_no_paths_do_not_change(there, monkeypatch):
    for name in ("5", "DE", "a.csv"):
        Path(name).mkdir()
    monkeypatch.chdir(there.parent / "else")
    options = {"file": "a.csv", "folds": 5, "dataset": "DE", "more": {"x": ["a.csv", "/b", "gone.csv"]}, "no": None}
    found = origin.located(options, ("file", "folds", "more", "no"), there)
    inside = os.path.join("..", "there", "a.csv")
    assert found == {**options, "file": inside, "more": {"x": [inside, "/b", "gone.csv"]}}
    assert origin.same(inside, "a.csv", there)
    assert not origin.same("a.csv", "a.csv", there)
    assert origin.folder_of(RunFolder("none")) == Path.cwd()


@pytest.mark.parametrize("domain", ["dna", "ecg", "forecasting", "pathology"])
def test_every_option_that_names_a_file_is_declared(domain):
    """By the words of its description; a path that is not declared is not found from another folder."""
    import inspect
    import re

    one = domains()[domain]
    for cls in {
        resolve(one.data),
        *(resolve(path) for path in ["seqssm_dna.sequences:SequenceData"] if domain == "dna"),
    }:
        text = inspect.getdoc(cls).partition("Args:")[2]
        described = dict(re.findall(r"^    (\w+): (.*(?:\n {6,}.*)*)", text, re.MULTILINE))
        words = r"^(the user's (own )?(sequence |test )?(file|table)|path of|folder of|BED file of|.*\bfile of the)"
        named = {name for name, line in described.items() if re.search(words, line)}
        assert named, cls
        assert named <= set(cls.paths), named - set(cls.paths)
        assert set(cls.paths) <= set(inspect.signature(cls).parameters)
