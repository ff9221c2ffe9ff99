"""Ensembles: the container, the means and standard deviations over members, studies used as a model, every domain."""

from __future__ import annotations

import errno
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import seqssm
from seqssm.cli.main import main
from seqssm.errors import InputError
from seqssm.training import checkpoint, ensemble

STUDY = [
    "toy",
    "kfold",
    "--config",
    "tiny",
    "--trainer.max_epochs",
    "1",
    "--seeds",
    "1,2,3",
    "--models",
    "net,wide,mean",
]


@pytest.fixture
def study(toy):
    assert main([*STUDY, "--output", "study"]) == 0
    return Path("study")


@pytest.fixture
def numbers(tmp_path):
    path = tmp_path / "numbers.txt"
    path.write_text("a 1 2 3\nb 0.5 0 -1\nc 2 2 2\n", encoding="utf-8")
    return path


def test_a_study_predicts_as_one_model(study, numbers, tmp_path, capsys):
    assert main(["predict", str(study), str(numbers), "--output", "out.csv", "--accelerator", "cpu"]) == 0
    assert "ensemble.ckpt (6 models)" in capsys.readouterr().out
    table = pd.read_csv("out.csv")
    members = [
        seqssm.load(one).predict(numbers) for one in sorted(study.glob("*/seed-*")) if (one / "best.ckpt").exists()
    ]
    assert len(members) == 6
    values = np.stack([one["value"] for one in members])
    np.testing.assert_allclose(table["value"], values.mean(0), rtol=1e-6)
    np.testing.assert_allclose(table["value_std"], values.std(0, ddof=1), rtol=1e-5)
    assert list(table.columns) == ["index", "id", "unit", "value", "value_std", *list(members[0].columns)[4:]]
    again = seqssm.load(study).predict(numbers)
    np.testing.assert_allclose(again[["value", "value_std"]], table[["value", "value_std"]])
    own = seqssm.load(study / "net")
    assert own.members == ["seed-1", "seed-2", "seed-3"]
    np.testing.assert_allclose(own.predict(numbers)["value"], values[:3].mean(0), rtol=1e-6)


def read_only(folder, monkeypatch):
    """Let files in `folder` be refused, as a read-only file system does (permissions do not bind root)."""
    usual = tempfile.TemporaryFile

    def refusing(*args, dir=None, **more):
        if Path(dir).resolve() == folder.resolve():
            raise OSError(errno.EROFS, "read-only", str(dir))
        return usual(*args, dir=dir, **more)

    monkeypatch.setattr("seqssm.files.disk.tempfile.TemporaryFile", refusing)


def test_the_container_is_plain_and_follows_the_study(study, numbers, capsys, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        read_only(study, patch)
        cached = ensemble.find(study)
        assert cached.is_relative_to(tmp_path / "cache")
        assert "study cannot be written" in capsys.readouterr().out
        assert ensemble.find(study) == cached
        assert not capsys.readouterr().out, "written again"
        assert main(["report", str(study)]) == 2
        assert "read-only; name another file with --output" in capsys.readouterr().err
        assert len(seqssm.load(study).members) == 6
    path = ensemble.find(study)
    content = torch.load(path, weights_only=True)
    checkpoint.require_plain(content, "ensemble")
    written = path.stat().st_mtime_ns
    assert ensemble.find(study).stat().st_mtime_ns == written, "not written again"
    shutil.rmtree(study / "wide" / "seed-3")
    assert len(ensemble.read(ensemble.find(study))) == 5
    shutil.copy(ensemble.find(study), "alone.ckpt")
    whole = seqssm.load(study).predict(numbers)
    shutil.rmtree(study)
    pd.testing.assert_frame_equal(seqssm.load("alone.ckpt").predict(numbers), whole)
    capsys.readouterr()
    assert main(["toy", "test", "alone.ckpt"]) == 2
    assert "is an ensemble, which only predict and info can use" in capsys.readouterr().err


def test_what_cannot_be_an_ensemble_is_refused(study, numbers, toy, monkeypatch):
    runs = sorted(study.glob("net/seed-*"))
    with pytest.raises(InputError, match="at least two trained models, found 1"):
        ensemble.combine(runs[:1], "one.ckpt")
    path = ensemble.combine(runs, "all.ckpt")
    content = torch.load(path, weights_only=True)
    torch.save({**content, "members": []}, "empty.ckpt")
    with pytest.raises(InputError, match="its members are incomplete"):
        seqssm.load("empty.ckpt")
    content["seqssm"]["ensemble"]["output"] = "median"
    torch.save(content, "median.ckpt")
    with pytest.raises(InputError, match="combined in a way unknown to seqssm"):
        seqssm.load("median.ckpt")
    with pytest.raises(InputError, match="has no embeddings"):
        seqssm.load(path).embed(numbers)
    from seqssm_toy.predict import ToyPredictor

    monkeypatch.setattr(ToyPredictor, "estimates", [])
    with pytest.raises(InputError, match="ToyPredictor does not support ensembles"):
        seqssm.load(path).predict(numbers)


def test_a_record_that_fails_keeps_its_row(study, tmp_path):
    path = tmp_path / "some.txt"
    path.write_text("a 1 2 3\nb bad\nc unreadable 1 2\nd unusable 2 3\ne 0 0 1\n", encoding="utf-8")
    table = seqssm.load(study).predict(path)
    alone = seqssm.load(study / "net" / "seed-1").predict(path)
    assert list(table["status"]) == list(alone["status"])
    assert list(table["reason"]) == list(alone["reason"])
    assert list(table["value"].isna()) == list(table["value_std"].isna()) == list(alone["value"].isna())


RUNS = Path(__file__).parents[1] / "compat" / "runs"
SINGLE = [
    ("ecg", ["compress", "MODEL", "--output", "x.ckpt"]),
    ("ecg", ["export", "MODEL", "--output", "x.onnx"]),
    ("ecg", ["distill", "MODEL", "--output", "x.ckpt"]),
    ("ecg", ["diagnose", "MODEL", "record.csv", "--output", "x.csv"]),
    ("ecg", ["ecg", "extend", "MODEL", "--support", "new.csv", "--output", "x.ckpt"]),
    ("ecg", ["ecg", "test", "MODEL"]),
    ("ecg", ["ecg", "validate", "MODEL"]),
    ("ecg", ["ecg", "stream", "MODEL", "record"]),
    ("pathology", ["pathology", "regime", "MODEL"]),
    ("ecg", ["dna", "generate", "MODEL"]),
    ("ecg", ["dna", "scan-variants", "MODEL", "--reference", "g.fa", "--region", "chr1:1-9"]),
]


@pytest.fixture(scope="module")
def made_studies(tmp_path_factory):
    """Studies of two runs per domain, and their ensembles as files outside of them."""
    folder = tmp_path_factory.mktemp("studies")
    for domain, run in (("ecg", "ecg_stream"), ("pathology", "pathology_srmamba")):
        for seed in (1, 2):
            own = shutil.copytree(RUNS / run, folder / domain / "net" / f"seed-{seed}")
            (own / "metrics.json").write_text('{"test": {"metrics": {}, "tables": []}}')
        (folder / domain / "kfold.yaml").write_text("config: []\n")
        ensemble.combine(sorted((folder / domain / "net").iterdir()), folder / f"{domain}.ckpt")
    return folder


@pytest.mark.parametrize(("domain", "argv"), SINGLE)
def test_what_needs_a_single_model_refuses_a_study_and_writes_nothing(made_studies, domain, argv, capsys, monkeypatch):
    monkeypatch.chdir(made_studies)
    before = sorted(made_studies.rglob("*"))
    for name in (domain, f"{domain}/net", f"{domain}.ckpt"):
        assert main([name if word == "MODEL" else word for word in argv]) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1, message
        if name.endswith(".ckpt"):
            assert "an ensemble" in message or "belongs to the domain" in message
        else:
            assert f"{name}: is a kfold study, and a single model is needed: give one of its runs, such as" in message
    assert sorted(made_studies.rglob("*")) == before


def test_a_study_is_continued_by_kfold(made_studies, capsys):
    assert main(["ecg", "fit", "--resume", str(made_studies / "ecg")]) == 2
    assert "is a kfold study: continue it with seqssm ecg kfold" in capsys.readouterr().err


def test_runs_that_are_not_in_the_ensemble_are_named(study, numbers, capsys):
    """A study with a deleted or an unfinished run predicted with the others, without a word."""
    shutil.rmtree(study / "net" / "seed-2")
    (study / "wide" / "seed-1" / "best.ckpt").unlink()
    words = ["predict", str(study), str(numbers), "--output", "out.csv", "--accelerator", "cpu"]
    assert main(words) == 0
    warned = "warning: 2 of 6 runs of study are unfinished or missing, and not in the ensemble: net/seed-2, wide/seed-1"
    assert capsys.readouterr().err.count(warned) == 1
    seqssm.load(study / "net")
    assert "warning: 1 of 3 runs" in capsys.readouterr().err
