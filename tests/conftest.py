"""The toy domain of `tests/toy`, installed for one test, and a run of it."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

import pytest

TOY = Path(__file__).parent / "toy"


def install_toy(patch: pytest.MonkeyPatch) -> None:
    patch.syspath_prepend(str(TOY))
    patch.setenv("PYTHONPATH", os.pathsep.join([str(TOY), os.environ.get("PYTHONPATH", "")]))  # for child processes
    for name in ("PL_GLOBAL_SEED", "SEQSSM_DATA", "SEQSSM_CHECKPOINT_SECONDS"):
        patch.setenv(name, "0")
        patch.delenv(name)  # so that what a command sets is gone afterwards


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """The domain `toy`, installed; the working folder is empty, the cache another empty one."""
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
    """A check that `predict` refuses, in one line, a checkpoint from which what it said of its data was removed."""
    import torch

    import seqssm
    from seqssm.cli.main import main

    def check(run: Path, inputs: Path) -> None:
        content = torch.load(run / "best.ckpt", weights_only=True)
        content["seqssm"]["data"] = {}
        path = tmp_path / "emptied.ckpt"
        torch.save(content, path)
        with pytest.raises(seqssm.InputError, match="is damaged"):
            seqssm.load(path).predict(inputs)
        capsys.readouterr()
        assert main(["predict", str(path), str(inputs), "--output", str(tmp_path / "out.csv")]) == 2
        said = capsys.readouterr().err.strip()
        assert said.startswith(f"seqssm: {path}: is damaged: its 'seqssm' entry is not complete (no data.")
        assert len(said.splitlines()) == 1
        assert not (tmp_path / "out.csv").exists()

    return check


@pytest.fixture
def numbers(tmp_path):
    """Writes an input file of the toy: `count` good records, and `special` ones (place -> line)."""

    def write(count: int = 10, special: dict[int, str] | None = None, name: str = "numbers.txt") -> Path:
        lines = [f"r{n} {math.sin(n):.4f} {math.cos(n):.4f} {n / 10:.1f}" for n in range(count)]
        for place, line in (special or {}).items():
            lines[place] = line
        path = tmp_path / name
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return path

    return write
