"""`seqssm distill` with data of its own: teacher and students are tested on the same records."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from seqssm_dna import simulate as sequences
from seqssm_ecg import simulate as recordings
from seqssm_forecasting import simulate as series
from seqssm_pathology import simulate as slides

import seqssm
from seqssm.cli.main import main
from seqssm.compress import distil

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def tested(tmp_path, monkeypatch):
    """The ids of the records of each test whose scores are compared, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    found, scores = [], distil.scores

    def spied(task, recorded):
        data = task.trainer.datamodule
        rows = [row["id"] for row in data.identities("test")]
        found.append((len(data.test_set), rows, [k for one in recorded for k in one.batch["index"].tolist()]))
        return scores(task, recorded)

    monkeypatch.setattr(distil, "scores", spied)
    return found


def distilled(*flags: str, control: bool = False) -> dict[str, dict[str, float]]:
    """Distil `run` into two students, and return the scores of the table."""
    words = ["--students", "2", "--budget", "0.95", "--trainer.max_epochs", "1", "--output", "set.ckpt"]
    assert main(["distill", "run", *words, *([] if control else ["--no-control"]), *flags]) == 0
    return {row["name"]: row["scores"] for row in json.loads(Path("set/distill.json").read_text())["rows"]}


def require_same(tested: list, count: int) -> None:
    assert len(tested) == count
    assert all(one == tested[0] for one in tested)


def test_windows_of_a_forecaster(tested):
    """The teacher was tested on the windows of all rows: 316, the students on 64."""
    series.walks(120, 2, seed=1).to_csv("walks.csv", index=False)
    series.walks(130, 2, seed=2).assign(walk_1=lambda f: 50 * f["walk_1"]).to_csv("other.csv", index=False)
    data = {"file": "walks.csv", "lookback": 12, "horizon": 3}
    model = {"d_model": 16, "d_ff": 16, "layers": 2}
    seqssm.fit("forecasting", data=data, model=model, trainer={"max_epochs": 1}, output="run")
    rows = distilled("--data.file", "other.csv", control=True)
    assert list(rows) == ["teacher", "sum of 1", "sum of 2", "one student"]
    require_same(tested, 4)
    assert rows["teacher"]["mse"] < 10 * rows["one student"]["mse"]  # in the students' scale
    tested.clear()
    shutil.rmtree("set")
    Path("set.ckpt").unlink()
    distilled("--data.file", "other.csv", "--data.test_from", "2018-04-01", "--data.val_from", "2018-03-01")
    require_same(tested, 3)
    assert tested[0][1][0].startswith("2018-04-01")


def test_recordings(tested):
    for name, seed in (("made", 3), ("other", 50)):
        recordings.folder(Path(name), 40, seed=seed, seconds=2.0, rate_hz=100.0)
    model = {"d_model": 32, "depth": 4}
    data = {"manifest": "made/manifest.csv", "sampling_rate_hz": 100.0, "window_s": 2.0}
    seqssm.fit("ecg", preset="ecg_small", data=data, model=model, trainer={"max_epochs": 1}, output="run")
    distilled("--data.manifest", "other/manifest.csv", "--students", "1")
    require_same(tested, 2)
    assert len(tested[0][2]) < 20


def test_sequences_whose_classes_are_in_another_order(tested):
    """The probabilities of the teacher are in the order of the students' classes."""
    table = sequences.promoters(160, seed=1)
    table.to_csv("made.csv", index=False)
    sequences.promoters(200, seed=2)[::-1].to_csv("other.csv", index=False)
    model = {"n_layers": 2, "d_model": 16, "learning_rate": 0.02}
    trainer = {"max_epochs": 4}
    seqssm.fit("dna", preset="finetune", data={"train": "made.csv"}, model=model, trainer=trainer, output="run")
    rows = distilled("--data.train", "other.csv")
    require_same(tested, 3)
    assert len(tested[0][2]) < 100
    ids = pd.read_csv("set/student-1/split.csv").query("split == 'test'")["id"].astype(str)
    first = pd.read_csv("other.csv")
    assert main(["predict", "run", "other.csv", "--output", "p.csv"]) == 0
    made = pd.read_csv("p.csv")
    known = made["id"].astype(str).isin(ids)
    assert known.sum() == len(ids)
    truth = first["label"].astype(str)[known.to_numpy()].to_numpy()
    accuracy = float((made.loc[known, "prediction"].astype(str).to_numpy() == truth).mean())
    assert rows["teacher"]["accuracy"] == pytest.approx(accuracy, abs=1e-6)


@pytest.mark.parametrize("target", ["regression", "survival"])
def test_slides(tested, target):
    """Numbers and survival of the teacher are in the students' scale and time bins."""
    slides.cohort(Path("made"), cases=40, seed=3, width=6)
    slides.cohort(Path("other"), cases=40, seed=8, width=6)
    manifest = pd.read_csv("other/manifest.csv")
    manifest["lesion_percent"] = 3 * manifest["lesion_percent"] + 40
    manifest["survival_months"] = manifest["survival_months"] * 2
    manifest.to_csv("other/manifest.csv", index=False)
    data = {"manifest": "made/manifest.csv", "features": "made", "target": target}
    data |= {"label_column": "lesion_percent"} if target == "regression" else {"time_unit": "months"}
    model = {"d_model": 16, "layers": 2}
    seqssm.fit("pathology", data=data, model=model, trainer={"max_epochs": 2}, output="run")
    rows = distilled("--data.manifest", "other/manifest.csv", "--data.features", "other")
    require_same(tested, 3)
    assert len(tested[0][2]) < 20
    if target == "regression":
        made = seqssm.load("run").predict("other").set_index("id")["prediction"]
        split = pd.read_csv("set/student-1/split.csv")
        ids = split.loc[split["split"] == "test", "id"].drop_duplicates()
        truth = manifest.set_index("case_id")["lesion_percent"]
        mae = np.abs(made[ids] - truth[ids]).mean()
        assert rows["teacher"]["mae"] == pytest.approx(mae, rel=0.01)  # features are scaled as the students'
