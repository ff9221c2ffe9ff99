"""Two processes give the results of one: `test` reports the same figures, `predict` writes the same file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from seqssm.cli.main import main
from seqssm.prediction import job as prediction_job
from seqssm.prediction.job import Job
from seqssm.training.processes import SingleProcess

DDP = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"]


def process(*argv, **environment) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, "-m", *map(str, argv)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.long
def test_fit_and_test_on_two_processes(toy):
    """61 records, so that the processes get unequal subsets; one thread each, as in the single process."""
    single = {"OMP_NUM_THREADS": "1"}
    done = process("seqssm", "toy", "fit", "--config", "tiny", "--data.rows", "61", "--output", "run", *DDP, **single)
    assert done.stdout.count("epoch 2  step") == 1, "only the first process prints"
    assert {"best.ckpt", "last.ckpt", "log.csv", "config.yaml"} <= set(os.listdir("run"))
    process("seqssm", "toy", "test", "run", *DDP, **single)
    two = json.loads(Path("run/metrics.json").read_text(encoding="utf-8"))["test"]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert main(["toy", "test", "run", "--trainer.devices", "1", "--trainer.strategy", "auto"]) == 0
    finally:
        torch.set_num_threads(threads)
    one = json.loads(Path("run/metrics.json").read_text(encoding="utf-8"))["test"]
    assert one["metrics"]["records"] == 15
    assert one == two
    assert not Path("run/.lock").exists()


SPECIAL = {2: "x bad 0 0", 5: "x bug 0 0", 6: "x unreadable 0 0"}


def test_predict_on_two_processes_gives_the_file_of_one(run, numbers, capsys):
    path = numbers(23, SPECIAL)
    common = ["predict", str(run), str(path), "--batch-size", "2", "--figures", "figs"]
    assert main([*common, "--output", "one.csv"]) == 3
    drawn = sorted(os.listdir("figs"))
    capsys.readouterr()
    assert main([*common, "--output", "two.csv", "--devices", "2"]) == 3
    message = capsys.readouterr().err
    assert "23 records: 20 ok, 3 failed" in message
    assert Path("one.csv").read_bytes() == Path("two.csv").read_bytes()
    assert sorted(os.listdir("figs")) == drawn
    assert sorted(os.listdir()) == ["figs", "one.csv", "two.csv"]


@pytest.mark.long
def test_a_killed_process_is_reported_and_finished_batches_are_kept(run, numbers, capsys):
    path = numbers(8, {5: "x die 0 0"})  # batch 5: of the second process
    common = ["predict", str(run), str(path), "--output", "out.csv", "--batch-size", "1"]
    assert main([*common, "--devices", "2"]) == 2
    message = capsys.readouterr().err
    assert "process 1 was killed (signal 9" in message
    assert "--resume continues" in message
    assert not Path("out.csv").exists()
    kept = list(Path(".out.csv.parts").glob("*.part"))
    assert len(kept) == 2
    assert all(part.stat().st_size for part in kept)
    assert not Path(".out.csv.parts/.lock").exists()


@pytest.mark.long
def test_an_error_of_one_process_is_reported_once(run, numbers, capsys):
    assert main(["predict", str(run), "missing.txt", "--output", "out.csv", "--devices", "2"]) == 2
    assert capsys.readouterr().err.strip() == "seqssm: missing.txt: no such file"
    assert os.listdir() == []


@pytest.mark.long
def test_torchrun_gives_the_file_of_one_process(run, numbers):
    path = numbers(11)
    assert main(["predict", str(run), str(path), "--output", "one.parquet", "--batch-size", "3"]) == 0
    torchrun = ["torch.distributed.run", "--nproc-per-node", "2", "-m", "seqssm"]
    process(*torchrun, "predict", run, path, "--output", "two.parquet", "--batch-size", "3", OMP_NUM_THREADS="1")
    assert Path("one.parquet").read_bytes() == Path("two.parquet").read_bytes()


class Fake(SingleProcess):
    """One of `world` simulated processes that run in turn, where no second process is needed."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world


def test_missing_batches_are_distributed_evenly(run, numbers, monkeypatch):
    """A resumed job distributes the missing batches evenly, whichever ones were finished."""
    from seqssm.prediction.job import Plan, _mine
    from seqssm.prediction.predictor import Record

    batches = [(number, [Record(number, str(number))]) for number in range(10)]
    plan = Plan(10, done={0, 2, 4, 6})
    shares = [[number for number, _ in _mine(Fake(rank, 2), plan, iter(batches))] for rank in (0, 1)]
    assert shares == [[1, 5, 8], [3, 7, 9]]


def test_a_job_from_python(run, numbers, tmp_path):
    job = Job(run / "best.ckpt", [numbers(3)], tmp_path / "out.csv", options={"scale": 1.0, "delay": 0.0, "unit": "m"})
    result = prediction_job.run_job(SingleProcess(), job)
    assert (result.records, result.failed, result.log) == (3, 0, None)
    with pytest.raises(ValueError, match="already exists"):
        prediction_job.run_job(SingleProcess(), job)
