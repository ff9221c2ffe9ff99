"""The rank of a process: variables of launchers are used, stray environment variables are ignored."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from seqssm import environment
from seqssm.cli.main import main
from seqssm.environment import Launch, launch
from seqssm.errors import InputError

FIT = ["toy", "fit", "--config", "tiny", "--trainer.max_epochs", "1"]
STRAY = [
    {"LOCAL_RANK": "1"},
    {"RANK": "1"},
    {"NODE_RANK": "1"},
    {"GROUP_RANK": "2"},
    {"SLURM_PROCID": "1"},
    {"RANK": "3", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"},
    {"LOCAL_RANK": "1", "RANK": "1", "NODE_RANK": "1", "SLURM_PROCID": "1"},
]


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """Remove variables of launchers before the test and those of the test after it."""
    for name in (*environment.RANKS, *environment.COUNTS, "MASTER_ADDR", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "0")
        monkeypatch.delenv(name)


def files(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.iterdir()}


@pytest.mark.parametrize("stray", STRAY, ids=str)
def test_a_stray_rank_neither_overwrites_a_run_nor_suppresses_output(run, monkeypatch, capsys, stray):
    for name, value in stray.items():
        monkeypatch.setenv(name, value)
    before = files(run)
    assert main([*FIT, "--output", str(run)]) == 2
    assert "already contains a run" in capsys.readouterr().err
    assert files(run) == before
    for name, value in stray.items():
        monkeypatch.setenv(name, value)
    assert main([*FIT, "--output", "new"]) == 0
    printed = capsys.readouterr()
    assert "best: epoch 0" in printed.out
    assert "next: seqssm toy test new" in printed.out
    assert {"config.yaml", "best.ckpt", "last.ckpt", "log.csv"} <= set(os.listdir("new"))
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK"):
        if name in stray and "MASTER_ADDR" not in stray:
            assert f"seqssm: {name}={stray[name]} ignored: no launcher started this process" in printed.err


@pytest.mark.long
def test_a_stray_rank_at_the_start_of_python(run):
    """Lightning reads the ranks when it is imported."""
    done = subprocess.run(
        [sys.executable, "-m", "seqssm", *FIT, "--output", "new"],
        env={**os.environ, "LOCAL_RANK": "1", "SLURM_PROCID": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "best: epoch 0" in done.stdout
    assert Path("new/log.csv").is_file()


def test_a_run_that_appears_while_another_is_built_is_not_deleted(run, monkeypatch, capsys):
    """On file systems without locks, two commands may both find the folder empty."""
    from seqssm.training.run_folder import RunFolder

    answers = iter([False, True])
    monkeypatch.setattr(RunFolder, "holds_run", lambda folder: next(answers))
    before = files(run)
    assert main([*FIT, "--output", str(run)]) == 2
    assert "already contains a run" in capsys.readouterr().err
    assert files(run) == before


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"RANK": "first"}, "RANK=first: expected an integer of at least 0"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK=-1: expected an integer"),
        ({"NODE_RANK": ""}, "NODE_RANK=: expected an integer"),
        ({"SLURM_PROCID": "1.5"}, "SLURM_PROCID=1.5: expected an integer"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two: expected an integer"),
        ({"SEQSSM_CHECKPOINT_SECONDS": "soon"}, "SEQSSM_CHECKPOINT_SECONDS=soon: expected a number of seconds"),
        ({"SEQSSM_CHECKPOINT_SECONDS": "-1"}, "SEQSSM_CHECKPOINT_SECONDS=-1: expected a number of seconds"),
        ({"SEQSSM_CHECKPOINT_SECONDS": "nan"}, "SEQSSM_CHECKPOINT_SECONDS=nan: expected a number of seconds"),
        ({"SEQSSM_CHECK": "yes"}, "SEQSSM_CHECK=yes: expected 0 or 1"),
        ({"SEQSSM_TRITON_CONFIG": "none.json"}, "SEQSSM_TRITON_CONFIG=none.json: no such file"),
        ({"SEQSSM_DATA": __file__}, "is a file, not a folder"),
        (
            {"RANK": "5", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"},
            "rank 5 of 2 processes: ranks are counted from 0",
        ),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}, "asks for 1: pass --trainer.devices 2"),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4"}, "srun started 4 processes"),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "4", "SLURM_JOB_NAME": "fit"}, "--ntasks-per-node=4"),
    ],
)
def test_wrong_variables_are_one_line(toy, monkeypatch, capsys, variables, words):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main([*FIT, "--output", "run"]) == 2
    message = capsys.readouterr().err.strip()
    assert words in message
    assert len(message.splitlines()) == 1
    assert not Path("run").exists()


def test_wrong_variables_are_detected_by_predict_too(run, numbers, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "two")
    assert main(["predict", str(run), str(numbers(3)), "--output", "out.csv"]) == 2
    assert "WORLD_SIZE=two" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({"TORCHELASTIC_RUN_ID": "x", "RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "4"},
         Launch("torchrun", 3, 4, 1, 2)),
        ({"MASTER_ADDR": "a", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, Launch("the environment", 1, 2, 1)),
        ({"MASTER_ADDR": "a", "WORLD_SIZE": "4", "NODE_RANK": "1", "LOCAL_RANK": "0"},
         Launch("the environment", 1, 4, 0)),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}, Launch("srun", 1, 2, 0)),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, None),  # the batch script around srun
        ({"WORLD_SIZE": "2", "RANK": "1"}, None),  # no address of a rendezvous
    ],
)  # fmt: skip
def test_launchers(monkeypatch, variables, found):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launch() == found


def test_kfold_is_not_launched(toy, monkeypatch, capsys):
    for name, value in {"MASTER_ADDR": "a", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert main(["toy", "kfold", "--config", "tiny", "--seeds", "1,2", "--output", "study"]) == 2
    assert "start kfold once" in capsys.readouterr().err


def test_checkpoint_seconds(monkeypatch):
    assert environment.checkpoint_seconds() == 600
    monkeypatch.setenv(environment.CHECKPOINT_SECONDS, "0.5")
    assert environment.checkpoint_seconds() == 0.5
    monkeypatch.setenv("RANK", "x")
    with pytest.raises(InputError, match="RANK=x"):
        launch()
