"""The same mistake has the same sentence in every domain and command."""

from __future__ import annotations

from pathlib import Path

import pytest

from seqssm.cli.main import main

RUNS = Path(__file__).resolve().parents[1] / "compat" / "runs"
OF = {"ecg": RUNS / "ecg_mamba", "forecasting": RUNS / "forecasting_smamba", "pathology": RUNS / "pathology_srmamba"}


def refused(capsys, *argv) -> str:
    assert main([str(word) for word in argv]) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("name", OF)
def test_one_sentence_per_mistake(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("old.csv").touch()
    model = OF[name] / "best.ckpt"
    output = ("--output", "o.csv")
    assert refused(capsys, "predict", model, "none", *output) == "seqssm: none: no such file or folder"
    assert (
        refused(capsys, "predict", "none.ckpt", "x", *output)
        == "seqssm: none.ckpt: no such run or checkpoint; expected the folder of a run or a file *.ckpt"
    )
    assert refused(capsys, "predict", model, "x", "--output", "") == "seqssm: --output: the name is empty"
    suffix = refused(capsys, "predict", model, "x", "--output", "o.txt")
    assert suffix == "seqssm: o.txt: --output must end in .csv or .parquet"
    exists = refused(capsys, "predict", model, "none", "--output", "old.csv")
    assert exists == "seqssm: old.csv: already exists; choose another --output or pass --overwrite"
    other = "ecg" if name != "ecg" else "dna"
    belongs = f"belongs to the domain {name}, not {other}: use seqssm {name} "
    assert refused(capsys, other, "predict", model, "x", *output) == f"seqssm: {model}: {belongs}predict"
    assert refused(capsys, other, "test", model) == f"seqssm: {model}: {belongs}test"
    resumed = refused(capsys, other, "fit", "--resume", OF[name])
    assert resumed == f"seqssm: {OF[name]}: {belongs}fit --resume {OF[name]}"
    extended = refused(capsys, other, "extend", model, "--support", "old.csv", "--output", "o.ckpt")
    assert extended.startswith(f"seqssm: {model}: belongs to the domain {name}, not {other}")


@pytest.mark.parametrize(
    ("command", "suffix"),
    [("report run", ".html"), ("compare a b", ".csv"), ("ecg stream a b", ".csv"), ("predict a b", ".csv or .parquet")],
)
def test_names_of_outputs(command, suffix, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "run"):
        Path(name).mkdir()
    argv = command.split()
    argv = [str(OF["ecg"] / "best.ckpt") if word == "a" and argv[0] == "predict" else word for word in argv]
    assert refused(capsys, *argv, "--output", "o.xyz") == f"seqssm: o.xyz: --output must end in {suffix}"
    assert refused(capsys, *argv, "--output=") == "seqssm: --output: the name is empty"
