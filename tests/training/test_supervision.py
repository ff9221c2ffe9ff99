"""Signals, dead and hung processes: every process of a run ends, with a documented exit code and one message."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from seqssm.cli.main import main
from seqssm.errors import ExitCode
from seqssm.training.supervision import Watch

DDP = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
FIT = ["toy", "fit", "--config", "tiny", "--data.rows", "120", "--output", "run"]
PATIENCE = 240  # seconds; a few are enough on an idle machine


class Job:
    """A command line in a separate session, so that a signal reaches all its processes, as from a terminal."""

    def __init__(self, *words: str, code: str = "") -> None:
        start = ["-c", code, *words] if code else ["-m", "seqssm", *words]
        self.process = subprocess.Popen(
            [sys.executable, *start],
            env={**os.environ, "OMP_NUM_THREADS": "1", "SEQSSM_CHECKPOINT_SECONDS": "0"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def children(self) -> list[int]:
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(number) for number in path.read_text(encoding="ascii").split()]

    def workers(self) -> list[int]:
        """The processes started by Lightning, which run the same command with a rank of their own.

        Any other child has the command line of its parent too, between its fork and its exec.
        """
        found = []
        for child in self.children():
            with contextlib.suppress(OSError):
                same = b"\0-m\0seqssm" in Path(f"/proc/{child}/cmdline").read_bytes()
                if same and re.search(rb"(^|\0)LOCAL_RANK=[1-9]", Path(f"/proc/{child}/environ").read_bytes()):
                    found.append(child)
        return found

    def wait_for(self, condition: Callable[[], bool]) -> None:
        began = time.monotonic()
        while not condition():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() - began < PATIENCE
            time.sleep(0.02)

    def signal_all(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def end(self) -> tuple[int, str]:
        """Exit code of the first process and stderr of all; require that none is left a second later."""
        try:
            printed = self.process.communicate(timeout=PATIENCE)[1]
            time.sleep(1)
            left = self.members()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        assert not left, printed
        return self.process.returncode, printed

    def members(self) -> list[str]:
        """Command lines of the processes of this job that still run."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, _, group = path.read_text(encoding="utf-8").rpartition(") ")[2].split()[:3]
                if int(group) == self.process.pid and state != "Z":
                    found.append((path.parent / "cmdline").read_text(encoding="utf-8"))
        return found


def saved() -> bool:
    return Path("run/last.ckpt").exists()


needs_proc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the processes in /proc")


def test_sigterm_before_the_first_batch(toy):
    """The process has installed its handler, but no trainer has."""
    code = (
        "import os, signal, sys\n"
        "from seqssm.training import presets\n"
        "def read(*_): os.kill(os.getpid(), signal.SIGTERM)\n"
        "presets.read_preset = read\n"
        "from seqssm.cli.main import main\n"
        "sys.exit(main())\n"
    )
    returned, printed = Job(*FIT, code=code).end()
    assert returned == ExitCode.INTERRUPTED
    assert printed.strip() == "seqssm: interrupted"
    assert not Path("run").exists()


@pytest.mark.parametrize("before", [False, True])
def test_sigterm_in_the_data_of_a_fit(toy, monkeypatch, capsys, before):
    """Before it has anything to resume; an earlier run, which it was to overwrite, is not what to continue."""
    from seqssm_toy.data import ToyData

    if before:
        assert main([*FIT, "--trainer.max_epochs", "1"]) == 0
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a plain Trainer of another test may have left a handler
    with monkeypatch.context() as patch:
        patch.setattr(ToyData, "setup", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
        assert main([*FIT, *["--overwrite"] * before]) == ExitCode.INTERRUPTED
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert capsys.readouterr().err.strip().splitlines()[-1] == "seqssm: interrupted"
    assert Path("run/last.ckpt").exists() == before
    assert not Path("run/.lock").exists()


def test_a_fit_that_fails_leaves_no_signal_handler(toy, monkeypatch):
    from seqssm_toy.data import ToyData

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    monkeypatch.setattr(ToyData, "setup", lambda *_, **__: 1 / 0)
    assert main(FIT) == ExitCode.BUG
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.long
@needs_proc
@pytest.mark.parametrize("imported", ["python", "libtorch_cpu"])
def test_sigterm_to_the_second_process_before_its_first_batch(toy, imported):
    """While its Python starts, and while it imports packages: the first process does not wait for it."""
    job = Job(*FIT, *DDP)
    job.wait_for(lambda: any(imported in Path(f"/proc/{one}/maps").read_text() for one in job.workers()))
    os.kill(job.workers()[0], signal.SIGTERM)
    code, printed = job.end()
    assert code == ExitCode.INTERRUPTED, printed
    assert [line for line in printed.splitlines() if line.startswith("seqssm: ")] == ["seqssm: interrupted"], (
        "the run folder has nothing to resume yet"
    )
    assert not Path("run/.lock").exists()


@needs_proc
@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGINT, id="Ctrl-C", marks=pytest.mark.long),
        pytest.param(signal.SIGKILL, id="killed"),
        pytest.param(signal.SIGSTOP, id="hung", marks=pytest.mark.slow),
    ],
)
def test_two_processes_of_a_fit(toy, number):
    """Ctrl-C to both; SIGKILL and SIGSTOP to the second."""
    job = Job(*FIT, *DDP, "--model.slow", "0.05", "--trainer.max_epochs", "400", "--timeout", "8")
    job.wait_for(saved)
    if number == signal.SIGINT:
        job.signal_all(number)
    else:
        os.kill(job.workers()[0], number)
    code, printed = job.end()
    resume = "continue with: seqssm toy fit --resume run"
    lines = [line for line in printed.splitlines() if line.startswith("seqssm: ")]
    assert len(lines) == 1, printed
    assert resume in lines[0]
    if number == signal.SIGINT:
        assert code == ExitCode.INTERRUPTED
        assert lines[0].startswith("seqssm: interrupted")
    else:
        assert code == ExitCode.INPUT
        what = "process 1 was killed (signal 9" if number == signal.SIGKILL else "did not respond in time"
        assert what in lines[0]
    assert not Path("run/.lock").exists()


def test_ctrl_c_in_code_from_a_string_gives_the_exit_code(tmp_path):
    (tmp_path / "interrupted.py").write_text(
        "import sys\nfrom seqssm.cli import main\n"
        "def run(_): exec('raise KeyboardInterrupt')\n"
        "main.run = run\nsys.exit(main.main())\n",
        encoding="utf-8",
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-m", "interrupted"], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == ExitCode.INTERRUPTED
    assert done.stderr.strip() == "seqssm: interrupted"


@pytest.mark.long
@needs_proc
@pytest.mark.parametrize("seconds", [1, 4])
def test_ctrl_c_in_a_test_on_two_processes(run, seconds):
    """While the second process is starting, and while both are running."""
    job = Job("toy", "test", str(run), *DDP, "--data.rows", "4000000")
    job.wait_for(lambda: bool(job.workers()))
    time.sleep(seconds)
    job.signal_all(signal.SIGINT)
    code, printed = job.end()
    assert code == ExitCode.INTERRUPTED, printed
    assert "Traceback" not in printed


@pytest.mark.long
@needs_proc
@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGKILL, id="killed"), pytest.param(signal.SIGSTOP, id="hung", marks=pytest.mark.slow)],
)
def test_two_processes_of_a_prediction(run, numbers, number):
    """The second process dies while the first one has work for minutes."""
    words = ["predict", str(run), str(numbers(200)), "--output", "out.csv", "--batch-size", "1", "--devices", "2"]
    words += ["--delay", "3" if number == signal.SIGKILL else "0.05", "--timeout", "8"]
    job = Job(*words)
    parts = Path(".out.csv.parts")
    job.wait_for(lambda: len([part for part in parts.glob("*.part") if part.stat().st_size]) == 2)
    (child,) = [pid for pid in job.children() if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]
    os.kill(child, number)
    code, printed = job.end()
    assert code == ExitCode.INPUT, printed
    assert "--resume continues" in printed
    assert ("process 1 was killed" if number == signal.SIGKILL else "made no progress for 8 s") in printed
    assert not Path("out.csv").exists()


@pytest.mark.parametrize(
    ("code", "message", "outcome"),
    [
        (130, "interrupted; continue with: again", ExitCode.INTERRUPTED),
        (-signal.SIGINT, "interrupted; continue with: again", ExitCode.INTERRUPTED),
        (-signal.SIGKILL, "process 1 was killed (signal 9, often for lack of memory)", ExitCode.INPUT),
        (2, "process 1 failed, see above", ExitCode.INPUT),
        (1, "process 1 failed, see above", ExitCode.BUG),
    ],
)
def test_the_cause_of_death_of_the_other_process_is_reported(code, message, outcome):
    trainer = SimpleNamespace(strategy=SimpleNamespace(launcher=None), global_rank=0, local_rank=0)
    watch = Watch(trainer, lambda: "again", lambda: None)
    watch.lost = (1, code)
    assert watch.message().startswith(message)
    assert watch.code() == outcome


def test_lightning_does_not_kill_this_process_when_another_one_has_ended():
    """Its observer would, if its look came before that of the watch, and the exit code would be that of SIGKILL."""
    from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver

    other = subprocess.Popen([sys.executable, "-c", "raise SystemExit(130)"])
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    observer = _ChildProcessObserver(bystander.pid, [other], sleep_period=1)
    observer.start()
    trainer = SimpleNamespace(strategy=SimpleNamespace(launcher=None), global_rank=0, local_rank=0)
    Watch(trainer, lambda: "again", lambda: None).look()
    other.wait()
    observer.join(PATIENCE)
    assert not observer.is_alive()
    with pytest.raises(subprocess.TimeoutExpired):
        bystander.wait(1)
    bystander.kill()
    bystander.wait()
