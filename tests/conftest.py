"""The toy domain of `tests/toy`, installed for one test, and a run of it; a notebook's cells, run in this process."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import PROGRAM, Browser

TOY = Path(__file__).parent / "toy"


def pytest_configure() -> None:
    """Let Ctrl-C reach the tests that send it: shells start background jobs with SIGINT ignored."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def install_toy(patch: pytest.MonkeyPatch) -> None:
    patch.syspath_prepend(str(TOY))
    patch.setenv("PYTHONPATH", os.pathsep.join([str(TOY), os.environ.get("PYTHONPATH", "")]))  # for child processes
    for name in ("PL_GLOBAL_SEED", "SEQSSM_DATA", "SEQSSM_CHECKPOINT_SECONDS"):
        patch.setenv(name, "0")
        patch.delenv(name)  # removes variables that a command sets


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """Install the domain `toy`; the working folder and the cache are empty folders."""
    install_toy(monkeypatch)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    import seqssm_toy

    return seqssm_toy.DOMAIN


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """A finished run of the preset `tiny`; not to be changed."""
    from seqssm.cli.main import main

    folder = tmp_path_factory.mktemp("toy") / "run"
    with pytest.MonkeyPatch.context() as patch:
        install_toy(patch)
        assert main(["toy", "fit", "--config", "tiny", "--output", str(folder)]) == 0
    return folder


@pytest.fixture
def run(toy, finished_run, tmp_path):
    """A copy of a finished run of the toy."""
    return shutil.copytree(finished_run, tmp_path / "run")


@pytest.fixture
def require_refusal_when_emptied(tmp_path, capsys):
    """A check that `predict` rejects, in one line, a checkpoint without its description of the data."""
    import torch

    import seqssm
    from seqssm.cli.main import main

    def check(run: Path, inputs: Path) -> None:
        content = torch.load(run / "best.ckpt", weights_only=True)
        content["seqssm"]["data"] = {}
        path = tmp_path / "emptied.ckpt"
        torch.save(content, path)
        with pytest.raises(seqssm.InputError, match="is corrupt"):
            seqssm.load(path).predict(inputs)
        capsys.readouterr()
        assert main(["predict", str(path), str(inputs), "--output", str(tmp_path / "out.csv")]) == 2
        message = capsys.readouterr().err.strip()
        assert message.startswith(f"seqssm: {path}: is corrupt: its 'seqssm' entry is incomplete (no data.")
        assert len(message.splitlines()) == 1
        assert not (tmp_path / "out.csv").exists()

    return check


@pytest.fixture
def numbers(tmp_path):
    """Write an input file of the toy: `count` good records, and `special` ones (position -> line)."""

    def write(count: int = 10, special: dict[int, str] | None = None, name: str = "numbers.txt") -> Path:
        lines = [f"r{n} {math.sin(n):.4f} {math.cos(n):.4f} {n / 10:.1f}" for n in range(count)]
        for place, line in (special or {}).items():
            lines[place] = line
        path = tmp_path / name
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return path

    return write


@pytest.fixture
def one_thread():
    """Run PyTorch on one thread; small networks do not benefit from a second one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run_notebook(tmp_path, monkeypatch):
    """A function that runs a notebook's cells in an empty folder; returns its variables and the first bytes of each
    image shown."""

    def run(name: str) -> tuple[dict[str, object], list[object]]:
        shown: list[object] = []
        display = types.ModuleType("IPython.display")
        display.Image = lambda path: Path(path).read_bytes()[:8]
        display.display = lambda *images: shown.extend(images)
        package = types.ModuleType("IPython")
        package.version_info, package.get_ipython = (9, 0), lambda: None  # matplotlib asks for both
        monkeypatch.setitem(sys.modules, "IPython", package)
        monkeypatch.setitem(sys.modules, "IPython.display", display)
        monkeypatch.chdir(tmp_path)
        before = dict(os.environ)
        file = Path(__file__).parents[1] / "notebooks" / f"{name}.ipynb"
        names: dict[str, object] = {}
        for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                assert cell["outputs"] == []  # kept empty: the file stays small, and its diffs readable
                exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
        os.environ.clear()
        os.environ.update(before)
        return names, shown

    return run


@pytest.fixture(scope="session")
def browser(tmp_path_factory) -> Iterator[Browser]:
    """A headless Chromium for all tests of this process."""
    if PROGRAM is None:
        pytest.skip("no Chromium on this machine")
    with Browser(PROGRAM, tmp_path_factory.mktemp("browser") / "profile") as started:
        yield started


@pytest.fixture
def browse(browser) -> Callable[..., Any]:
    """Function that opens a page in a headless Chromium and returns the value of a JavaScript expression.

    Console messages, and anything that is loaded from outside the page, are an error.
    """

    def opened(page: Path, expression: str, width: int = 1280) -> Any:
        with browser.open(page, width) as tab:
            found = tab.value(expression)
            assert tab.complaints() == []
            assert tab.requests() == []
        return found

    return opened
