"""Bags of the data folder that are corrupt, locked or being written; slides as separate records."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from seqssm_pathology.data import BagData
from seqssm_pathology.files import read_bag

import seqssm
from seqssm.cli.main import main


@pytest.fixture
def copied(cohort, tmp_path):
    """A copy of the cohort that may be changed: (manifest, folder)."""
    shutil.copytree(cohort[0], tmp_path / "copied")
    return tmp_path / "copied" / "manifest.csv", tmp_path / "copied"


def bag_of_the_test_split(copied) -> Path:
    """The bag of a case of the test split."""
    data = BagData(manifest=str(copied[0]), features=str(copied[1]))
    data.setup()
    return copied[1] / "h5_files" / f"{data.test_set.cases[0].id}.h5"


@pytest.mark.parametrize("damage", ["truncated", "wide", "empty", "key"])
def test_a_damaged_bag_of_the_test_split_is_detected_before_training(damage, copied, fit, tmp_path, capsys):
    bag = bag_of_the_test_split(copied)
    if damage == "truncated":
        bag.write_bytes(bag.read_bytes()[:1500])
    elif damage == "empty":
        bag.write_bytes(b"")
    else:
        with h5py.File(bag, "w") as file:
            file["features" if damage == "wide" else "other"] = np.zeros((4, 9), dtype=np.float32)
    words = ["--data.manifest", str(copied[0]), "--data.features", str(copied[1])]
    assert fit(tmp_path / "run", *words) == 2
    message = capsys.readouterr()
    assert str(bag) in message.err
    assert "--data.invalid drop drops such bags" in message.err
    assert "epoch" not in message.out
    assert fit(tmp_path / "run", *words, "--data.invalid", "drop", "--model.network", "mean", epochs=1) == 0
    message = capsys.readouterr().err
    assert f"1 unusable bags dropped (first: {bag}" in message
    assert f"1 cases without a bag dropped (first: {bag.stem})" in message


def test_locked_and_forbidden_files_are_named(copied, monkeypatch):
    bag = bag_of_the_test_split(copied)

    def refuse(error):
        def open_(*_args, **_kwargs):
            raise error

        return open_

    locked = BlockingIOError(11, "Unable to synchronously open file (unable to lock file, errno = 11)")
    for error, message in ((locked, "is locked by another process"), (PermissionError(13, "no"), "permission denied")):
        monkeypatch.setattr(h5py, "File", refuse(error))
        with pytest.raises(seqssm.InputError, match=message):
            read_bag(bag)


def test_a_file_that_is_being_written_is_locked(copied):
    bag = bag_of_the_test_split(copied)
    code = "import h5py, sys; f = h5py.File(sys.argv[1], 'a'); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(bag)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout.readline() == "open\n"
        try:
            with pytest.raises(seqssm.InputError, match="is locked by another process, which may still be writing it"):
                read_bag(bag)
        finally:
            writer.communicate("")


def test_slides_as_records_from_fit_to_prediction(copied, fit, tmp_path, capsys):
    frame = pd.read_csv(copied[0], dtype=str)
    frame["case_id"] = [f"P{k // 2}" for k in range(len(frame))]  # a normal slide and one with a lesion each
    frame.to_csv(copied[0], index=False)
    run = tmp_path / "run"
    words = ["--data.manifest", str(copied[0]), "--data.features", str(copied[1]), "--data.folds", "3"]
    assert fit(run, *words, "--model.network", "mean", epochs=1) == 0
    assert "every slide is a separate record" in capsys.readouterr().err
    assert main(["pathology", "test", str(run)]) == 0
    assert "slides, trained on" in capsys.readouterr().out
    table = pd.read_csv(run / "figures" / "test_records.csv")
    assert list(table.columns[:4]) == ["id", "patient", "label", "p_lesion"]
    split = pd.read_csv(run / "split.csv")
    assert split.groupby("patient")["split"].nunique().max() == 1
    predicted = seqssm.load(run, accelerator="cpu").predict(copied[1], manifest=str(copied[0]))
    assert list(predicted["id"]) == list(frame["slide_id"])
