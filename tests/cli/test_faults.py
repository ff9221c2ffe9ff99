"""Errors of users, their systems and other packages give one line and exit code 2, never a traceback."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from seqssm.cli import help as pages
from seqssm.cli import main as console
from seqssm.cli.main import main
from seqssm.domain import domains
from seqssm.errors import ExitCode, InputError

FIT = ["toy", "fit", "--config", "tiny", "--trainer.max_epochs", "1"]


def refused(capsys, argv: list[str]) -> str:
    """Run a command line that must be rejected; return the one line of its error."""
    capsys.readouterr()
    assert main([str(word) for word in argv]) == 2
    message = capsys.readouterr().err.strip()
    assert len(message.splitlines()) == 1
    return message


def test_exit_codes_are_one_table():
    page = pages.package(domains())
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", readme, re.MULTILINE)
    assert rows == [(str(int(code)), code.meaning) for code in ExitCode]
    for code in ExitCode:
        assert re.search(rf"^  {int(code)} +{re.escape(code.meaning)}$", page, re.MULTILINE)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model.learning_rate", "-0.1"], "--model.learning_rate -0.1: must be in [0, 100]"),
        (["--model.learning_rate", ".nan"], "--model.learning_rate nan: must be"),
        (["--model.weight_decay", "-1"], "--model.weight_decay -1.0: must be"),
        (["--model.weight_decay", ".inf"], "--model.weight_decay inf: must be"),
        (["--model.warmup_steps", "-1"], "--model.warmup_steps -1: must be"),
    ],
)
def test_numbers_that_no_optimiser_takes(toy, capsys, flags, words):
    assert words in refused(capsys, [*FIT, *flags, "--output", "run"])
    assert not Path("run").exists()


@pytest.mark.parametrize(("engine", "words"), [("numbaa", "did you mean numba?"), ("triton", "triton")])
def test_unknown_and_unsuitable_engines(tmp_path, capsys, engine, words):
    """Detected before an old run is replaced and before anything is computed."""
    from seqssm_forecasting import simulate

    simulate.series(200, 3).to_csv(tmp_path / "my.csv", index=False)
    run = tmp_path / "run"
    run.mkdir()
    (run / "log.csv").write_text("old", encoding="utf-8")
    argv = ["forecasting", "fit", "--config", "smamba", "--data.file", tmp_path / "my.csv", "--output", run]
    argv += ["--overwrite", "--data.horizon", "4", "--trainer.accelerator", "cpu", "--model.engine", engine]
    message = refused(capsys, argv)
    assert f"--model.engine {engine}: " in message
    assert words in message
    assert (run / "log.csv").read_text(encoding="utf-8") == "old"


LAUGHS = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{[1, 2]: 3}: 4", "line 1: has a key that is not a string"),
        ("model: {? {a: 1} : 2}", "has a key that is not a string"),
        ("model: " + "[" * 5000 + "]" * 5000, "is nested too deeply"),
        ("model: " + "{a: " * 5000 + "1" + "}" * 5000, "is nested too deeply"),
        (LAUGHS + "model: {d_model: *a8}\n", "its aliases expand to more than"),
        ("model: &m {d_model: *m}", "its aliases expand to more than"),
        ("# " + "x" * 1_100_000, "larger than 1000 kB"),
        ("model: {d_model: 2020-99-99}", "is not valid YAML"),
        ("1: 2", "unknown section 1"),
    ],
    ids=lambda value: value[:24],
)
def test_malformed_and_hostile_configs(toy, capsys, tmp_path, text, words):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    assert words in refused(capsys, ["toy", "fit", "--config", path, "--output", "run"])


def test_a_config_with_anchors_is_read(toy, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("model: {d_model: &width 5}\ndata: {rows: 40, batch_size: *width}\n", encoding="utf-8")
    assert main([*FIT, "--config", str(path), "--output", "run"]) == 0


@pytest.mark.parametrize(
    ("domain", "name", "value", "words"),
    [
        ("toy", "offset", [0.25], "its data.offset is a list, expected tensor"),
        ("forecasting", "columns", "abc", "its data.columns is a str, expected strings"),
        ("forecasting", "horizon", "6", "its data.horizon is a str, expected int"),
        ("forecasting", "known", [1], "its data.known is a list, expected mapping"),
        ("ecg", "preprocess", {"rate_hz": "fast"}, "its data.preprocess.rate_hz is a str, expected float"),
        ("pathology", "edges", [None], "its data.edges is a list, expected numbers"),
    ],
)
def test_summary_entries_of_a_wrong_type(run, capsys, tmp_path, domain, name, value, words):
    content = torch.load(run / "best.ckpt", weights_only=True)
    content["seqssm"]["domain"] = domain
    content["seqssm"]["data"] = {name: value}
    path = tmp_path / "changed.ckpt"
    torch.save(content, path)
    assert words in refused(capsys, ["predict", path, "x", "--output", "out.csv"])


def test_weights_of_a_wrong_type(run, capsys, tmp_path):
    content = torch.load(run / "best.ckpt", weights_only=True)
    content["state_dict"]["model.head.bias"] = "zero"
    torch.save(content, tmp_path / "changed.ckpt")
    assert "does not contain tensors only" in refused(capsys, ["toy", "test", tmp_path / "changed.ckpt"])


@pytest.mark.parametrize(
    "code",
    [
        "raise TypeError('a bug')",
        "raise RuntimeError('two\\nlines')",
        "raise SystemExit(5)",
        "import no_such_package",
        "DOMAIN = 3",
        "def (",
        "pass",
        "1 / 0",
    ],
)
def test_a_domain_that_raises_any_exception_is_skipped(toy, capsys, monkeypatch, tmp_path, code):
    plugin = tmp_path / "plugin"
    (plugin / "bad_domain-1.0.dist-info").mkdir(parents=True)
    (plugin / "bad_domain-1.0.dist-info" / "METADATA").write_text("Name: bad_domain\nVersion: 1.0\n")
    (plugin / "bad_domain-1.0.dist-info" / "entry_points.txt").write_text("[seqssm.domains]\nbad = bad_domain:DOMAIN\n")
    (plugin / "bad_domain.py").write_text(code + "\n")
    monkeypatch.syspath_prepend(str(plugin))
    monkeypatch.setattr("seqssm.domain._told", set())
    monkeypatch.delitem(sys.modules, "bad_domain", raising=False)
    assert main(["--help"]) == 0
    printed = capsys.readouterr()
    assert "toy" in printed.out
    assert "forecasting" in printed.out
    lines = [line for line in printed.err.splitlines() if "bad" in line]
    assert len(lines) == 1
    assert lines[0].startswith("seqssm: domain bad skipped, it cannot be loaded: ")


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">&- 2>&-", ">/dev/full 2>/dev/full"])
def test_closed_streams(closed):
    command = f"{sys.executable} -m seqssm --help {closed}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, env={**os.environ})
    assert done.returncode == (2 if "full" in closed else 0)
    assert "Traceback" not in done.stdout + done.stderr


def test_a_closed_pipe_does_not_stop_the_command(tmp_path):
    read, write = os.pipe()
    os.close(read)
    stream = console.usable(io.TextIOWrapper(os.fdopen(write, "wb", buffering=0), write_through=True), own=True)
    for _ in range(3):
        print("epoch", file=stream, flush=True)
    assert stream.encoding


def test_a_terminal_that_cannot_encode_a_path(toy, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert main([*FIT, "--output", "Läufe"]) == 0
    sys.stdout.flush()
    assert b"run: L\\xe4ufe" in raw.getvalue()


def test_a_folder_has_one_writer(tmp_path):
    from seqssm.errors import InputError
    from seqssm.files.lock import Lock

    folder = tmp_path / "new" / "run"
    with Lock(folder), pytest.raises(InputError, match=f"is being written by process {os.getpid()} on "):
        Lock(folder)
    assert not folder.parent.exists(), "files made for the lock are removed"
    Lock(folder).release()


@pytest.mark.parametrize("error", [NotImplementedError(), OSError(37, "No locks available")])
def test_file_systems_without_locks(tmp_path, monkeypatch, error):
    from seqssm.files import lock

    def acquire(*_, **__):
        raise error

    monkeypatch.setattr(lock.FileLock, "acquire", acquire)
    with lock.Lock(tmp_path / "run"):
        (tmp_path / "run" / "file").touch()
    assert os.listdir(tmp_path / "run") == ["file"]


@pytest.mark.parametrize("word", ["%d.%m.%Y %H:%M", "@home.csv", "`x`", "[a", "{b", "|", "*x.csv", "a: b: c"])
def test_words_that_are_not_yaml_are_text(toy, capsys, word):
    """A format, a file name or a separator reaches the data as typed."""
    argv = ["forecasting", "fit", "--config", "smamba", "--output", "run", "--trainer.accelerator", "cpu"]
    message = refused(capsys, [*argv, "--data.file", word])
    assert message.startswith(f"seqssm: {word}: ")


@pytest.mark.parametrize("error", [RecursionError(), ImportError("half"), InputError("no")])
def test_an_interrupt_that_a_library_turned_into_an_error(toy, monkeypatch, capsys, error):
    """Ctrl-C in the middle of an import leaves half a module, whose next use fails in any way."""
    from seqssm_toy.data import ToyData

    def setup(*_, **__):
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(ToyData, "setup", setup)
        assert main([*FIT, "--output", "run"]) == 130
    assert capsys.readouterr().err.splitlines()[-1].startswith("seqssm: interrupted")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_while_pytorch_is_imported(tmp_path):
    """Its compiled code aborts on an exception: the process ends at once, with the code of an interruption."""
    package = tmp_path / "torch"
    package.mkdir()
    (package / "__init__.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nos.abort()\n")
    code = "import sys; from seqssm.cli.main import terminable\nwith terminable():\n import torch"
    path = os.pathsep.join([str(tmp_path), *sys.path])
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert (child.returncode, child.stdout, child.stderr) == (130, "", "seqssm: interrupted\n")
