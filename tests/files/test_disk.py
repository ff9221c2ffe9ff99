"""The next holder of the lock removes the temporary files of killed processes, and nothing else."""

from __future__ import annotations

import errno
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from seqssm.cli.main import main
from seqssm.errors import InputError
from seqssm.files import disk
from seqssm.files.disk import require_new
from seqssm.files.lock import Lock


@pytest.fixture
def dead():
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def leave(folder: Path, dead: int) -> list[Path]:
    """Write a temporary file of a dead process into `folder`, and files that must stay; return the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = [folder / name for name in (f".best.ckpt.{os.getppid()}.tmp", "best.tmp", ".mine.tmp", f".x.{dead}.bak")]
    for path in (*kept, folder / f".last.ckpt.{dead}.tmp"):
        path.write_bytes(b"half")
    return kept


def test_a_lock_sweeps_its_folder(tmp_path, dead):
    folder = tmp_path / "run"
    kept = leave(folder, dead)
    with Lock(folder):
        assert {path.name for path in folder.glob("*")} >= {path.name for path in kept}
        assert not (folder / f".last.ckpt.{dead}.tmp").exists()
        leave(folder, dead)
        with pytest.raises(InputError, match="is being written"):
            Lock(folder)
        assert (folder / f".last.ckpt.{dead}.tmp").exists(), "nothing is removed without the lock"


def test_nothing_is_swept_without_locks(tmp_path, dead, monkeypatch):
    def acquire(*_, **__):
        raise OSError(errno.ENOLCK, "No locks available")

    leave(tmp_path, dead)
    monkeypatch.setattr("seqssm.files.lock.FileLock.acquire", acquire)
    with Lock(tmp_path):
        assert (tmp_path / f".last.ckpt.{dead}.tmp").exists()


@pytest.mark.parametrize("argv", [["fit", "--resume"], ["test"]])
def test_a_run_is_swept(run, dead, capsys, argv):
    leave(run, dead)
    leave(run / "figures", dead)
    assert main(["toy", *argv, str(run)]) == 0
    for folder in (run, run / "figures"):
        assert not (folder / f".last.ckpt.{dead}.tmp").exists()
        assert (folder / ".mine.tmp").exists()


def test_a_prediction_sweeps_its_own_output_only(run, numbers, dead):
    own, other = Path(f".out.csv.{dead}.tmp"), Path(f".other.csv.{dead}.tmp")
    for path in (own, other):
        path.touch()
    assert main(["predict", str(run), str(numbers()), "--output", "out.csv"]) == 0
    assert (own.exists(), other.exists()) == (False, True)


@pytest.mark.parametrize("where", ["numbers.txt", "numbers.txt/figures", "read-only"])
def test_a_folder_for_figures_is_checked_before_predicting(run, numbers, capsys, monkeypatch, where, tmp_path):
    import seqssm

    inputs, folder = numbers(), tmp_path / where
    make = disk.tempfile.TemporaryFile

    def refuse(*given, **named):
        if Path(named["dir"]) == tmp_path:
            raise OSError(errno.EROFS, "Read-only file system")
        return make(*given, **named)

    if where == "read-only":
        monkeypatch.setattr(disk.tempfile, "TemporaryFile", refuse)
    capsys.readouterr()
    assert main(["predict", str(run), str(inputs), "--output", "out.csv", "--figures", str(folder)]) == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith(f"seqssm: {folder}: ")
    assert len(message.splitlines()) == 1
    assert not Path("out.csv").exists()
    assert not Path(".out.csv.parts").exists()
    with pytest.raises(InputError):
        seqssm.load(run).predict(inputs, figures=folder)


def test_the_hint_after_a_fit_names_the_users_file(tmp_path, capsys):
    from seqssm_forecasting import simulate

    file = tmp_path / "it's my file.csv"
    simulate.series(200, 2).to_csv(file, index=False)
    argv = ["forecasting", "fit", "--config", "smamba", "--data.file", str(file), "--data.lookback", "12"]
    argv += ["--data.horizon", "2", "--model.network", "dlinear", "--trainer.max_epochs", "1"]
    assert main([*argv, "--trainer.accelerator", "cpu", "--output", str(tmp_path / "run")]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "seqssm predict" in line]
    words = shlex.split(line)
    assert words == ["seqssm", "predict", str(tmp_path / "run/best.ckpt"), str(file), "--output", "predictions.csv"]
    assert main([*words[1:-1], str(tmp_path / "out.csv")]) == 0


def test_an_output_is_never_an_input(tmp_path, monkeypatch):
    """Values of any option may name an input: a file, a link to it, NAME=FILE, lists, and the checkpoint of a run."""
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    for name in ("data.csv", "plan.csv", "run/best.ckpt"):
        Path(name).write_text("mine")
    Path("link.csv").symlink_to("data.csv")
    values = [None, 3, "auto", "a\0b", [Path("data.csv")], "promoter=plan.csv", "run"]
    for name in ("data.csv", "link.csv", "./plan.csv", "run/best.ckpt"):
        with pytest.raises(InputError, match="is also an input; choose a different --track"):
            require_new(name, True, values, "--track")
    Path("old.csv").write_text("old")
    require_new("old.csv", True, values)
    with pytest.raises(InputError, match="already exists"):
        require_new("old.csv", False, values)
