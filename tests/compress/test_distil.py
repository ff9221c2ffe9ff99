"""`seqssm distill`: what it prints, interruptions, and what a later student is not used for."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from seqssm_forecasting import simulate as series
from seqssm_pathology import simulate as slides

import seqssm
from seqssm.cli.main import main
from seqssm.errors import InputError
from seqssm.training.task import Task

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = ["--students", "2", "--budget", "0.9", "--trainer.max_epochs", "2"]
DISTILL = ["distill", "run", *QUICK, "--output"]
AGAIN = f"seqssm distill run {' '.join(QUICK)} --output set.ckpt --resume"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with a teacher, `run`, and an uninterrupted distillation, `whole.ckpt`."""
    folder = tmp_path_factory.mktemp("distilled")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PL_GLOBAL_SEED", "1")
        series.walks(120, 2, seed=1).to_csv("walks.csv", index=False)
        data = {"file": "walks.csv", "lookback": 12, "horizon": 3}
        model = {"d_model": 16, "d_ff": 16, "blend": False, "layers": 2}
        seqssm.fit("forecasting", data=data, model=model, trainer={"max_epochs": 1}, output="run")
        assert main([*DISTILL, "whole.ckpt"]) == 0
    return folder


@pytest.fixture
def folder(whole, tmp_path, monkeypatch):
    """A copy of the folder, the current one of the test."""
    shutil.copytree(whole, tmp_path / "made")
    monkeypatch.chdir(tmp_path / "made")
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    return tmp_path / "made"


def interrupt(monkeypatch, folder: str) -> None:
    """Send SIGINT in the second epoch of the training of a student, and run the command."""
    step = Task.training_step

    def training_step(task, batch, batch_idx):
        if task.current_epoch == 1 and batch_idx == 1 and task.trainer.callbacks[-1].folder.name == folder:
            os.kill(os.getpid(), signal.SIGINT)
        return step(task, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(Task, "training_step", training_step)
        assert main([*DISTILL, "set.ckpt"]) == 130


def rows(folder: str) -> list[dict]:
    kept = json.loads(Path(folder, "distill.json").read_text())["rows"]
    return [{name: value for name, value in row.items() if name != "digest"} for row in kept]


def test_the_data_are_described_once(tmp_path, monkeypatch, capsys):
    """The line was printed again by the test of each student, above the line that names the next one."""
    monkeypatch.chdir(tmp_path)
    slides.cohort(tmp_path / "slides", cases=14, seed=8, width=6)
    data = {"manifest": "slides/manifest.csv", "features": "slides"}
    seqssm.fit("pathology", data=data, model={"d_model": 16}, trainer={"max_epochs": 1}, output="run")
    capsys.readouterr()
    monkeypatch.setattr(sys, "stderr", sys.stdout)
    assert main([*DISTILL, "set.ckpt", "--no-control"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("features of width") == 1
    assert printed.index("features of width") < printed.index("student 1 of 2")


@pytest.mark.parametrize("student", [pytest.param("student-1", marks=pytest.mark.long), "student-2", "control"])
def test_an_interrupted_distillation_is_continued(folder, monkeypatch, capsys, student):
    """It could not be; `fit --resume` of the second student, as advised, left out the first one."""
    interrupt(monkeypatch, student)
    assert f"interrupted; continue with: {AGAIN}" in capsys.readouterr().err
    finished = {path: path.stat().st_mtime_ns for path in folder.glob("set/*/log.csv") if path.parent.name != student}
    assert main([*DISTILL, "set.ckpt"]) == 2
    assert "set: already exists; continue it with --resume" in capsys.readouterr().err
    if student == "student-2":
        assert main(["forecasting", "fit", "--resume", "set/student-2"]) == 2
        assert f"continue the set with {AGAIN}\n" in capsys.readouterr().err
    assert main([*DISTILL, "set.ckpt", "--resume"]) == 0
    assert capsys.readouterr().out.count("already finished") == len(finished)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert rows("set") == rows("whole")
    for name in ("student-1", "student-2", "control"):
        for file in ("best.ckpt", "last.ckpt"):
            one, other = (torch.load(f"{of}/{name}/{file}", weights_only=True)["state_dict"] for of in ("set", "whole"))
            assert one.keys() == other.keys()
            assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("of", ["teacher", "student"])
def test_an_interrupted_test_is_reported(folder, monkeypatch, capsys, of):
    """Lightning ended the command with exit code 1 and no message."""
    step = Task.test_step

    def test_step(task, batch, batch_idx):
        if (task.hparams["teacher"] is None) == (of == "teacher"):
            os.kill(os.getpid(), signal.SIGINT)
        return step(task, batch, batch_idx)

    monkeypatch.setattr(Task, "test_step", test_step)
    assert main([*DISTILL, "set.ckpt"]) == 130
    hint = f"; continue with: {AGAIN}" if of == "student" else ""  # before, nothing is begun
    assert capsys.readouterr().err.endswith(f"seqssm: interrupted{hint}\n")
    assert Path("set").exists() == bool(hint)


def test_other_options_are_no_continuation(folder, monkeypatch, capsys):
    interrupt(monkeypatch, "student-2")
    resume = [*DISTILL, "set.ckpt", "--resume"]
    for more, why in (
        (["--students", "3"], "with --students 2, not with --students 3"),
        (["--no-control"], "without --no-control, not with --no-control"),
        (["--trainer.max_epochs=5"], "with --trainer.max_epochs 2, not with --trainer.max_epochs 5"),
        (["--data.batch_size", "4"], "without --data.batch_size, not with --data.batch_size 4"),
    ):
        capsys.readouterr()
        assert main([*resume, *more]) == 2
        assert f"set: --resume: was begun {why}; give the same options" in capsys.readouterr().err
    assert main([*resume, "--overwrite"]) == 2
    table = Path("walks.csv").read_text()
    Path("walks.csv").write_text(table.replace(".1", ".2"))
    capsys.readouterr()
    assert main(resume) == 2
    assert "the data are not those of this run" in capsys.readouterr().err
    Path("walks.csv").write_text(table)
    shutil.copy("whole/control/best.ckpt", "run/best.ckpt")
    assert main(resume) == 2
    assert "the teacher has changed since the first student was trained" in capsys.readouterr().err


@pytest.mark.parametrize("student", [pytest.param("student-1", marks=pytest.mark.long), "student-2"])
def test_data_that_were_moved_are_accepted(folder, monkeypatch, capsys, student):
    """Their new path was another option, and refused."""
    interrupt(monkeypatch, student)
    Path("else").mkdir()
    moved = shutil.move("walks.csv", "else/walks.csv")
    resume = [*DISTILL, "set.ckpt", "--resume"]
    capsys.readouterr()
    assert main(resume) == 2
    assert "if it was moved, give its new path as --data.file" in capsys.readouterr().err
    assert main([*resume, "--data.file", "nowhere.csv"]) == 2
    assert "was begun without --data.file" in capsys.readouterr().err
    text = Path(moved).read_text()
    Path(moved).write_text(text.replace(".1", ".2"))
    assert main([*resume, "--data.file", moved]) == 2
    assert "the data are not those of this run" in capsys.readouterr().err
    Path(moved).write_text(text)
    assert main([*resume, "--data.file", moved]) == 0
    assert rows("set") == rows("whole")


def test_a_finished_set_has_its_data(folder, capsys):
    """Other data were accepted in silence, and nothing was trained."""
    resume = [*DISTILL, "whole.ckpt", "--resume"]
    series.walks(120, 2, seed=5).to_csv("other.csv", index=False)
    before = Path("whole.ckpt").read_bytes()
    assert main([*resume, "--data.file", "other.csv"]) == 2
    assert "--resume: --data.file other.csv: the data are not those of this run" in capsys.readouterr().err
    assert Path("whole.ckpt").read_bytes() == before
    shutil.copy("walks.csv", "copy.csv")
    assert main([*resume, "--data.file", "copy.csv"]) == 0
    assert rows("whole")[0]["name"] == "teacher"


def test_a_student_that_was_trained_on_is_not_taken_again(folder, capsys):
    """The set was written with another first student than the second one was trained with."""
    assert main(["forecasting", "fit", "--resume", "whole/student-1", "--trainer.max_epochs", "3"]) == 0
    capsys.readouterr()
    shutil.copy("whole/student-1/last.ckpt", "whole/student-1/best.ckpt")
    assert main([*DISTILL, "whole.ckpt", "--resume"]) == 2
    error = capsys.readouterr().err
    assert "student-1/best.ckpt: --resume: has changed since it was tested in the set; start again with" in error


def test_a_later_student_is_no_model_of_its_own(folder, capsys):
    """Its scores were printed as those of a model, and the advice on a set was to use one."""
    part = "whole/student-2"
    assert torch.load(f"{part}/best.ckpt", weights_only=True)["seqssm"]["stage"] == 2
    for argv in (
        ["forecasting", "test", part],
        ["forecasting", "validate", part],
        ["predict", part, "walks.csv", "--output", "x.csv"],
        ["compare", "run", part],
        ["compress", part, "--output", "x.ckpt"],
        ["distill", part, "--output", "x.ckpt"],
        ["export", part, "--output", "x.onnx"],
        ["diagnose", part, "walks.csv", "--output", "x.csv"],
        ["forecasting", "fit", "--config", "run/config.yaml", "--model.teacher", part, "--output", "x"],
    ):
        capsys.readouterr()
        assert main(argv) == 2, argv
        message = capsys.readouterr().err
        assert "is student 2 of a set, whose outputs are added to those of the students before it" in message
        assert message.endswith("use whole.ckpt\n")
        assert message.count("\n") == 1
    for use in (lambda model: model.predict("walks.csv"), lambda model: model.embed("walks.csv")):
        with pytest.raises(InputError, match="is student 2 of a set"):
            use(seqssm.load(part))
    assert main(["info", part]) == 0
    assert "2 of a set" in capsys.readouterr().out
    assert main(["report", part]) == 0
    page = Path(part, "report.html").read_text()
    assert "seqssm forecasting test whole.ckpt" in page
    assert "seqssm forecasting test whole/student-2" not in page
    assert "seqssm forecasting fit" not in page
    assert main(["report", "whole.ckpt"]) == 2
    assert "is a set of students, which has no report; test prints its scores" in capsys.readouterr().err
    for argv in (["forecasting", "fit", "--resume", "whole"], ["forecasting", "test", "whole"]):
        assert main(argv) == 2
        assert "whole: is the folder of a set of students" in capsys.readouterr().err


def test_a_set_is_tested(folder, capsys):
    whole, first = rows("whole")[2], rows("whole")[1]
    assert main(["forecasting", "test", "whole.ckpt"]) == 0
    assert "next:" not in capsys.readouterr().out
    found = json.loads(Path("test-whole/metrics.json").read_text())["test"]["metrics"]
    assert found["mse"] == pytest.approx(whole["scores"]["mse"], rel=1e-5)
    assert whole["scores"] != first["scores"]
    assert seqssm.load("whole.ckpt").test().metrics["mse"] == found["mse"]
    assert main(["forecasting", "test", "run"]) == 0
    assert main(["compare", "run", "test-whole"]) == 0
    assert "difference = run - " in capsys.readouterr().out
    shutil.rmtree("whole")  # the set alone
    shutil.rmtree("test-whole")
    assert main(["forecasting", "test", "whole.ckpt"]) == 0
    assert main(["diagnose", "whole.ckpt", "walks.csv", "--output", "x.csv"]) == 2
    assert "its first student alone is a complete model" in capsys.readouterr().err
