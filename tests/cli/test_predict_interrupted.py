"""`predict` that ends early: interruptions, changed inputs, full disks and signals; resuming gives an equal file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from seqssm.files.lock import Lock

from .predicting import MIXED, parts, predict, rows


class Stop:
    """Interrupts a prediction after some batches, as Ctrl-C does."""

    def __init__(self, monkeypatch, after: int, error: BaseException) -> None:
        from seqssm.prediction.table import PartWriter

        self.monkeypatch, self.left, self.error, self.write = monkeypatch, after, error, PartWriter.write
        monkeypatch.setattr(PartWriter, "write", lambda writer, *args: self.count(writer, *args))

    def count(self, writer, *args) -> None:
        if self.left == 0:
            raise self.error
        self.left -= 1
        self.write(writer, *args)


def interrupted(run, path, monkeypatch, *argv, after=2, error=None) -> int:
    with monkeypatch.context() as patch:
        Stop(patch, after, error or KeyboardInterrupt())
        return predict(run, path, "--output", "out.csv", "--batch-size", 2, *argv)


def test_an_input_that_changes_meanwhile_is_not_predicted_in_part(run, numbers, monkeypatch, capsys):
    """Rows appended, inserted or removed between two readings; rows would belong to other records."""
    from seqssm.prediction.table import PartWriter

    write = PartWriter.write
    for text in ("new 1 2 3\n", ""):
        path = numbers(6)
        content = text + path.read_text(encoding="utf-8")[: None if text else -5]

        def change(writer, *given, path=path, content=content):
            path.write_text(content, encoding="utf-8")
            write(writer, *given)

        with monkeypatch.context() as patch:
            patch.setattr(PartWriter, "write", change)
            assert predict(run, path, "--output", "out.csv", "--batch-size", 6, "--overwrite") == 2
        assert "numbers.txt: has changed during the prediction; restart it with --overwrite" in capsys.readouterr().err
        assert not Path("out.csv").exists()
    assert predict(run, path, "--output", "out.csv", "--overwrite") in (0, 3)


def test_interrupted_and_resumed_gives_an_equal_file(run, numbers, monkeypatch, capsys):
    path = numbers(11, MIXED)
    assert predict(run, path, "--output", "whole.csv", "--batch-size", 2) == 3
    capsys.readouterr()
    assert interrupted(run, path, monkeypatch) == 130
    message = capsys.readouterr().err
    assert "interrupted; continue with: seqssm predict" in message
    assert message.strip().endswith("--resume")
    assert not Path("out.csv").exists()
    assert predict(run, path, "--output", "out.csv", "--batch-size", 2) == 2
    assert "--resume continues it, --overwrite restarts it" in capsys.readouterr().err
    tail = next(parts(Path("out.csv").absolute()).glob("*.part"))
    with open(tail, "ab") as file:
        file.write(tail.read_bytes()[:50])  # a frame cut off by a kill
    assert interrupted(run, path, monkeypatch, "--resume", after=1) == 130
    assert predict(run, path, "--output", "out.csv", "--batch-size", 2, "--resume") == 3
    assert Path("out.csv").read_bytes() == Path("whole.csv").read_bytes()
    assert sorted(os.listdir()) == ["out.csv", "whole.csv"]


def test_an_interrupt_before_the_first_batch_advises_nothing(run, numbers, monkeypatch, capsys):
    """The advised --resume would find the output that --overwrite was to replace, and fail."""
    from seqssm.prediction.job import WorkFolder

    path = numbers(4)
    assert predict(run, path, "--output", "out.csv") == 0

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(WorkFolder, "prepare", stop)
    capsys.readouterr()
    assert predict(run, path, "--output", "out.csv", "--overwrite") == 130
    assert capsys.readouterr().err.strip().splitlines()[-1] == "seqssm: interrupted"


def test_resume_predicts_only_what_is_missing(run, numbers, monkeypatch):
    path = numbers(10)
    assert interrupted(run, path, monkeypatch, after=3) == 130
    asked = []
    from seqssm_toy.predict import ToyPredictor

    once = ToyPredictor.predict
    monkeypatch.setattr(ToyPredictor, "predict", lambda self, records: asked.extend(records) or once(self, records))
    assert predict(run, path, "--output", "out.csv", "--batch-size", 2, "--resume") == 0
    assert [record.index for record in asked] == [6, 7, 8, 9]


def test_overwrite_restarts_an_interrupted_prediction(run, numbers, monkeypatch):
    assert interrupted(run, numbers(6), monkeypatch) == 130
    assert predict(run, numbers(4), "--output", "out.csv", "--overwrite") == 0
    assert len(rows("out.csv")) == 8


def test_resume_without_anything_to_resume_starts(run, numbers):
    assert predict(run, numbers(2), "--output", "out.csv", "--resume") == 0


def test_resume_refuses_another_checkpoint_input_or_option(run, numbers, monkeypatch, capsys, toy):
    path = numbers(6)
    assert interrupted(run, path, monkeypatch) == 130
    again = ["--output", "out.csv", "--resume", "--batch-size", 2]
    capsys.readouterr()
    assert predict(run, path, *again, "--scale", 2) == 2
    assert "differs in its options (--scale)" in capsys.readouterr().err
    assert predict(run, path, "--output", "out.csv", "--resume") == 2
    assert "--batch-size" in capsys.readouterr().err
    assert predict(run / "last.ckpt", path, *again) == 2
    assert "differs in its checkpoint" in capsys.readouterr().err
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("r5", "q5"), encoding="utf-8")
    assert predict(run, path, *again) == 2
    assert "differs in its inputs" in capsys.readouterr().err
    assert not Path("out.csv").exists()


def test_a_second_writer_is_refused(run, numbers, capsys):
    with Lock(parts(Path("out.csv").absolute())):
        for flag in ("--overwrite", "--resume"):
            assert predict(run, numbers(2), "--output", "out.csv", flag) == 2
            assert "is being written by process" in capsys.readouterr().err
    assert os.listdir() == []


def test_a_full_disk_is_reported_and_loses_nothing(run, numbers, monkeypatch, capsys):
    path = numbers(6)
    assert interrupted(run, path, monkeypatch, error=OSError(28, "No space left on device", "x.part")) == 2
    message = capsys.readouterr().err
    assert "no space left on the disk" in message
    assert len(message.strip().splitlines()) == 1
    assert predict(run, path, "--output", "out.csv", "--batch-size", 2, "--resume") == 0


def test_a_full_disk_at_the_merge_keeps_the_old_output_and_the_parts(run, numbers, monkeypatch, capsys):
    path = numbers(6)
    assert predict(run, path, "--output", "out.csv", "--batch-size", 2) == 0
    before = Path("out.csv").read_bytes()

    def full(self, table):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("seqssm.prediction.table.CsvSink.write", full)
        assert predict(run, path, "--output", "out.csv", "--batch-size", 2, "--scale", 3, "--overwrite") == 2
    assert "out.csv: no space left on the disk" in capsys.readouterr().err
    assert Path("out.csv").read_bytes() == before
    assert predict(run, path, "--output", "out.csv", "--batch-size", 2, "--scale", 3, "--resume") == 0
    assert Path("out.csv").read_bytes() != before
    assert os.listdir() == ["out.csv"]


def command(*argv, **more) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "seqssm", *map(str, argv)], stderr=subprocess.PIPE, text=True, **more
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_resumably(run, numbers, monkeypatch, number):
    from seqssm_toy.predict import ToyPredictor

    path, seen, before = numbers(8), [], signal.getsignal(signal.SIGTERM)
    once = ToyPredictor.predict

    def interrupt(self, records):
        seen.append(records)
        if len(seen) == 3:
            os.kill(os.getpid(), number)
        return once(self, records)

    with monkeypatch.context() as patch:
        patch.setattr(ToyPredictor, "predict", interrupt)
        assert predict(run, path, "--output", "out.csv", "--batch-size", 2) == 130
    assert signal.getsignal(signal.SIGTERM) is before
    assert os.listdir() == [".out.csv.parts"]
    assert predict(run, path, "--output", "out.csv", "--batch-size", 2, "--resume") == 0
    assert len(rows("out.csv")) == 16


@pytest.mark.long
def test_a_file_size_limit_is_a_full_disk(run, numbers, capsys):
    """The operating system's limit, in a separate process."""
    import resource

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    path = numbers(200)
    child = command("predict", run, path, "--output", "out.csv", "--batch-size", 5, preexec_fn=limit)
    printed = child.communicate()[1]
    assert child.returncode == 2, printed
    assert "exceeds the maximum size" in printed
    assert not Path("out.csv").exists()
    assert predict(run, path, "--output", "out.csv", "--batch-size", 5, "--resume") == 0
    assert len(rows("out.csv")) == 400


def test_killed_and_resumed_gives_an_equal_file(run, numbers):
    path = numbers(60)
    child = command("predict", run, path, "--output", "out.csv", "--batch-size", 2, "--delay", 0.1)
    folder = parts(Path("out.csv").absolute())
    for _ in range(600):
        time.sleep(0.05)
        if sum(part.stat().st_size for part in folder.glob("*.part")) > 5000:
            break
    child.kill()
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    assert not Path("out.csv").exists()
    assert json.loads((folder / "job.json").read_text(encoding="utf-8"))["records"] == 60
    assert predict(run, path, "--output", "out.csv", "--batch-size", 2, "--delay", 0.1, "--resume") == 0
    assert predict(run, path, "--output", "whole.csv", "--batch-size", 2) == 0
    assert Path("out.csv").read_bytes() == Path("whole.csv").read_bytes()
    assert not folder.exists()


@pytest.mark.parametrize("made", [None, AttributeError("module 'numba' has no attribute 'core'")])
def test_an_interrupt_that_a_library_lost_ends_the_job(run, numbers, monkeypatch, capsys, made):
    """Compilers of kernels drop an interrupt, half-imported modules make another error of it: all records failed."""
    from seqssm_toy.predict import ToyPredictor

    from seqssm.environment import INTERRUPTS

    path, predict_batch = numbers(6), ToyPredictor.predict

    def lose(predictor, records):
        INTERRUPTS.came = True
        if made is not None:
            raise made
        return predict_batch(predictor, records)

    with monkeypatch.context() as patch:
        patch.setattr(ToyPredictor, "predict", lose)
        assert predict(run, path, "--output", "out.csv", "--batch-size", 2) == 130
    assert "interrupted; continue with: seqssm predict" in capsys.readouterr().err
    assert not Path("out.csv").exists()
    assert predict(run, path, "--output", "out.csv", "--batch-size", 2, "--resume") == 0


@pytest.mark.parametrize("command", ["test", "validate"])
def test_an_interrupt_that_a_library_lost_ends_an_evaluation(run, monkeypatch, command):
    from seqssm_toy.task import ToyTask

    from seqssm.cli.main import main
    from seqssm.environment import INTERRUPTS

    step = ToyTask.step

    def lose(task, batch):
        INTERRUPTS.came = True
        return step(task, batch)

    before = (run / "metrics.json").read_bytes() if (run / "metrics.json").exists() else None
    with monkeypatch.context() as patch:
        patch.setattr(ToyTask, "step", lose)
        assert main(["toy", command, str(run)]) == 130
    assert ((run / "metrics.json").read_bytes() if (run / "metrics.json").exists() else None) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_after_the_end_changes_nothing(number):
    """A job whose result was written exited by the signal, and a pipeline took it for interrupted."""
    code = (
        f"import atexit, os, sys; atexit.register(os.kill, os.getpid(), {int(number)}); sys.argv = ['seqssm', 'info']; "
        "from seqssm.cli.main import main; sys.exit(main())"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0


def test_an_interrupt_in_a_destructor_prints_no_traceback():
    code = (
        "import sys; from seqssm.cli import main as entry\n"
        "class Last:\n"
        "    def __init__(self, error): self.error = error\n"
        "    def __del__(self): raise self.error\n"
        "def run(argv): Last(KeyboardInterrupt()); Last(ValueError('seen')); return 0\n"
        "entry.run = run; sys.exit(entry.main())"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0
    assert "KeyboardInterrupt" not in done.stderr
    assert "ValueError: seen" in done.stderr
