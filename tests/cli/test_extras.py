"""Installations with one extra only: a missing package is one line that names its extra; the rest works."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from seqssm.domain import domains

OLD = Path(__file__).parents[1] / "compat"
HIDING = """
import importlib.abc, sys
hidden = sys.argv.pop(1).split(",")
class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden())
from seqssm.cli.main import main
sys.exit(main())
"""
ECG = "seqssm: the domain ecg needs scipy and wfdb, which are not installed: pip install 'seqssm[ecg]'"
PATHOLOGY = "seqssm: the domain pathology needs h5py, which is not installed: pip install 'seqssm[pathology]'"


def run_without(packages: str, *argv: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", HIDING, packages, *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def refused(packages: str, *argv: object) -> str:
    done = run_without(packages, *argv)
    assert done.returncode == 2, done
    assert done.stdout == ""
    return done.stderr.strip()


@pytest.mark.parametrize(
    "argv",
    [["--help"], ["fit", "--config", "ecg_small"], ["test", "run"], ["kfold", "--help"], ["score", "--help"]],
    ids=" ".join,
)
def test_commands_name_the_extra(argv):
    assert refused("scipy,wfdb", "ecg", *argv) == ECG


@pytest.mark.parametrize("argv", [["tile", "a.svs"], ["predict", "model.ckpt", "bags"]], ids=" ".join)
def test_commands_of_pathology_name_the_extra(argv):
    assert refused("h5py", "pathology", *argv) == PATHOLOGY


@pytest.mark.long
def test_predict_on_a_checkpoint_names_the_extra():
    path = OLD / "runs" / "ecg_mamba" / "best.ckpt"
    line = refused("wfdb", "predict", path, "records", "--output", "out.csv")
    needs = "the domain ecg needs wfdb, which is not installed: pip install 'seqssm[ecg]'"
    assert line == f"seqssm: {path}: {needs}"


def test_help_lists_what_the_others_need():
    done = run_without("scipy,wfdb", "--help")
    assert done.returncode == 0
    assert "  ecg          the domain ecg needs scipy and wfdb" in done.stdout
    assert "seqssm forecasting fit" in done.stdout
    assert "seqssm ecg fit" not in done.stdout


def test_what_a_domain_needs_is_in_its_extra():
    """The required imports belong to packages of the extra, and a complete installation lacks none."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    packages = packages_distributions()
    for domain in domains().values():
        assert domain.missing() is None
        extra = [re.match(r"[\w-]+", line)[0] for line in project["optional-dependencies"].get(domain.name, [])]
        assert {packages[name][0] for name in domain.requires} <= set(extra)


def test_the_demo_names_what_is_missing(toy, monkeypatch, capsys):
    from dataclasses import replace

    from seqssm.cli.main import main

    lame = replace(toy, name="lame", requires=("no_such_package",), install="pip install lame")
    monkeypatch.setattr("seqssm.tools.demo.domains", lambda: {"lame": lame, "toy": toy})
    assert main(["demo", "--output", "page"]) == 0
    line = "the domain lame needs no_such_package, which is not installed: pip install lame"
    assert f"lame: not shown: {line}" in capsys.readouterr().out
    assert line in Path("page/index.html").read_text(encoding="utf-8")
    monkeypatch.setattr("seqssm.tools.demo.domains", lambda: {"lame": lame})
    assert main(["demo", "--output", "other"]) == 2
    assert capsys.readouterr().err == f"seqssm: {line}\n"
    assert not Path("other").exists()


@pytest.mark.long
def test_a_package_that_is_missing_elsewhere(run, numbers):
    line = refused("pyarrow", "predict", run, numbers(), "--output", "out.csv")
    assert line == "seqssm: the package pyarrow is not installed, or not whole (No module named 'pyarrow')"
