"""`test` on other data than the run's: tested records, fitted values, location of results, reports."""

from __future__ import annotations

import json
import shutil

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from seqssm_pathology import simulate
from seqssm_pathology.data import BagData
from seqssm_pathology.ranges import Profile, Ranges

import seqssm
from seqssm.cli.main import main


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A second cohort with other case ids: (manifest, folder of bags)."""
    folder = tmp_path_factory.mktemp("other")
    simulate.cohort(folder, cases=14, seed=8, width=6)
    manifest = pd.read_csv(folder / "manifest.csv", dtype=str)
    for name in manifest["slide_id"]:
        (folder / "h5_files" / f"{name}.h5").rename(folder / "h5_files" / f"x_{name}.h5")
    manifest["slide_id"] = "x_" + manifest["slide_id"]
    manifest["case_id"] = "X_" + manifest["case_id"]
    manifest.to_csv(folder / "manifest.csv", index=False)
    return folder / "manifest.csv", folder


@pytest.fixture
def own(run, tmp_path):
    """A copy of a trained run that was tested on its own data."""
    folder = shutil.copytree(run, tmp_path / "own")
    assert main(["pathology", "test", str(folder)]) == 0
    return folder


def options(manifest, features) -> list[str]:
    return ["--data.manifest", str(manifest), "--data.features", str(features)]


def test_every_case_is_tested_with_the_checkpoints_values_in_a_separate_folder(own, other, capsys):
    before = (own / "metrics.json").read_bytes(), (own / "figures" / "test_records.csv").read_bytes()
    capsys.readouterr()
    assert main(["pathology", "test", str(own), *options(*other)]) == 0
    printed = capsys.readouterr()
    assert "none of the 14 tested records is in the run's training data" in printed.err
    assert "logistic " in printed.out
    assert before == ((own / "metrics.json").read_bytes(), (own / "figures" / "test_records.csv").read_bytes())
    (folder,) = own.glob("test-*")
    table = pd.read_csv(folder / "figures" / "test_records.csv")
    assert list(table["id"]) == list(pd.read_csv(other[0])["case_id"])
    # the same answers as `predict`, which reads classes and scaler from the checkpoint
    out = own / "out.csv"
    assert main(["predict", str(own / "best.ckpt"), str(other[1]), "--output", str(out)]) == 0
    predicted = pd.read_csv(out)
    torch.testing.assert_close(
        torch.tensor(table["p_lesion"].to_numpy()), torch.tensor(predicted["p_lesion"].to_numpy()), atol=1e-5, rtol=0
    )
    report = json.loads((folder / "metrics.json").read_text())["test"]
    assert report["data"] == {"manifest": str(other[0]), "features": str(other[1])}
    assert report["overlap"] == {"train": 0, "val": 0}


def test_records_that_were_trained_on_are_counted(own, cohort, tmp_path, capsys):
    copy = tmp_path / "copy.csv"
    kept = pd.read_csv(cohort[0] / "manifest.csv", dtype=str).iloc[:-1]  # with all of them, it is the run's own
    kept.to_csv(copy, index=False)
    assert main(["pathology", "test", str(own), *options(copy, cohort[0])]) == 0
    split = pd.read_csv(own / "split.csv", dtype=str)
    split = split[split["id"].isin(kept["case_id"])]
    message = capsys.readouterr().err
    assert len(split) == 23
    for name, what in (("train", "trained"), ("val", "validated")):
        rows = split[split["split"] == name]
        assert f"warning: the run was {what} on {len(rows)} of the 23 tested records (first: " in message
    # the slide is sufficient if a case has another name
    frame = pd.read_csv(copy, dtype=str)
    frame["case_id"] = [f"N{k}" for k in range(len(frame))]
    frame.to_csv(copy, index=False)
    words = [*options(copy, cohort[0]), "--output", str(tmp_path / "out")]
    assert main(["pathology", "test", str(own), *words]) == 0
    assert "trained on" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["test"]["overlap"]["train"] > 0
    (own / "split.csv").unlink()
    assert main(["pathology", "test", str(own), *words]) == 0
    assert "overlap with the training data was not checked" in capsys.readouterr().err


def test_the_ids_are_in_no_checkpoint(own):
    for name in ("best.ckpt", "last.ckpt"):
        assert b"made_0" not in (own / name).read_bytes()
    assert set(pd.read_csv(own / "split.csv")["split"]) == {"train", "val", "test"}


def test_the_same_file_under_another_name_is_the_runs_own_data(own, cohort, monkeypatch):
    monkeypatch.chdir(cohort[0])
    before = json.loads((own / "metrics.json").read_text())
    assert main(["pathology", "test", str(own), *options("manifest.csv", ".")]) == 0
    assert json.loads((own / "metrics.json").read_text()) == before
    assert not list(own.glob("test-*"))


def test_output_names_the_folder_for_the_own_data_too(own, tmp_path):
    before = (own / "metrics.json").read_bytes()
    assert main(["pathology", "test", str(own), "--output", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())["test"]
    assert found.pop("checkpoint") == str(own / "best.ckpt")
    wanted = json.loads(before)["test"]
    assert wanted.pop("checkpoint") == "best.ckpt"
    assert found == wanted
    assert (tmp_path / "out" / "figures" / "test_records.csv").is_file()


def test_a_read_only_run_gives_a_remedy(own, other, tmp_path, monkeypatch, capsys):
    from seqssm.training import run_folder

    real = run_folder.Lock.__init__

    def refuse(self, folder):
        if own in (folder, *folder.parents):
            raise run_folder.InputError("the file system is read-only; what was complete is kept", file=folder)
        real(self, folder)

    monkeypatch.setattr(run_folder.Lock, "__init__", refuse)
    assert main(["pathology", "test", str(own), *options(*other)]) == 2
    assert "the file system is read-only; choose another folder with --output DIR" in capsys.readouterr().err
    assert main(["pathology", "test", str(own), *options(*other), "--output", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.manifest", "{bad}", "--data.features", "{d}"], "classes unknown to the model: Lesion"),
        (["--data.manifest", "{m}", "--data.features", "{d}", "--data.fold", "1"], "does not apply to other data"),
        (["--data.manifest", "{m}", "--data.features", "{d}", "--data.clip", "3"], "--data.clip 3.0: the run has None"),
        (["--data.manifest", "{m}", "--data.features", "{d}", "--output", "{run}"], "choose another --output"),
        (["--data.manifest", "{m}", "--data.features", "{wide}"], "width 7, the model was trained on 6"),
        (["--data.manifest", "{m}", "--data.features", "{table}"], "the model was trained on bags of patches"),
        (["--data.fold", "1"], "--data.fold 1: the run has 0"),
    ],
)  # fmt: skip
def test_what_contradicts_the_checkpoint_is_one_line(words, message, own, other, tmp_path, capsys):
    bad, wide, table = tmp_path / "bad.csv", tmp_path / "wide", tmp_path / "v.csv"
    bad.write_text(other[0].read_text().replace(",lesion,", ",Lesion,"))
    table.write_text("id,A\n" + "".join(f"X_made_{k:03d},{k}\n" for k in range(14)))
    simulate.cohort(wide, cases=14, seed=8, width=7)
    for file in (wide / "h5_files").iterdir():
        file.rename(file.with_name(f"x_{file.name}"))
    names = {"m": other[0], "d": other[1], "bad": bad, "wide": wide, "table": table, "run": own}
    capsys.readouterr()
    assert main(["pathology", "test", str(own), *(word.format(**names) for word in words)]) == 2
    printed = capsys.readouterr().err.splitlines()
    assert message in printed[-1]
    assert not list(own.glob("test-*/metrics.json"))


def test_a_data_set_by_name_is_replaced_by_files(other):
    from seqssm.training.external import inherited

    kept = {"dataset": "musk1", "manifest": None, "features": None, "clip": 3.0}
    words = ["--data.manifest", "m.csv", "--data.init_args.features=x"]
    assert inherited(kept, BagData, words) == {"manifest": None, "features": None, "clip": 3.0}
    assert inherited(kept, BagData, ["--data.num_workers", "2"]) == kept


def test_survival_takes_the_bins_of_the_checkpoint(fit, cohort, other, tmp_path, capsys):
    run = tmp_path / "run"
    manifest = tmp_path / "manifest.csv"
    shutil.copy(cohort[0] / "manifest.csv", manifest)
    assert fit(run, *options(manifest, cohort[0]), preset="survival", epochs=1) == 0
    assert main(["pathology", "test", str(run), *options(*other)]) == 0
    content = torch.load(run / "best.ckpt", weights_only=True)["seqssm"]["data"]
    (folder,) = run.glob("test-*")
    columns = list(pd.read_csv(folder / "figures" / "test_records.csv").columns)
    curve = [f"S_{edge:.4g}_months" for edge in content["edges"][1:]]
    assert columns[-len(curve) - 1 :] == [*curve, "median_survival_months"]
    # without the training data there are no baselines
    manifest.unlink()
    capsys.readouterr()
    assert main(["pathology", "test", str(run), *options(*other)]) == 0
    printed = capsys.readouterr()
    assert "baselines skipped" in printed.err
    assert "cox " not in printed.out
    assert "kaplan_meier" in printed.out


def test_overwriting_a_run_removes_the_tests_of_its_weights(own, other, fit, cohort):
    assert main(["pathology", "test", str(own), *options(*other)]) == 0
    words = [*options(cohort[0] / "manifest.csv", cohort[0]), "--overwrite", "--model.network", "mean"]
    assert fit(own, *words, epochs=1) == 0
    assert not list(own.glob("test-*"))


def test_bags_of_another_encoder_or_unit_are_reported(run, other, cohort, tmp_path, capsys):
    """Their classes had a probability of 1 without a remark."""
    slides = {name: one.bag.features for name, one in cohort[1].items()}
    changed = {
        "as trained": lambda x: x,
        "times 20": lambda x: 20 * x,
        "shifted": lambda x: x + 10,
        "norm 1": lambda x: x / np.linalg.norm(x, axis=1, keepdims=True),
        "one patch": lambda x: np.repeat(x[:1], len(x), axis=0),
    }
    model = seqssm.load(run, accelerator="cpu")
    counts = {
        name: sum(bool(note) for note in model.predict({k: of(v) for k, v in slides.items()})["notes"])
        for name, of in changed.items()
    }
    assert (counts["as trained"], counts["shifted"]) == (0, len(slides))
    assert counts["norm 1"] == counts["one patch"] == len(slides)
    assert counts["times 20"] >= len(slides) - 1  # six features, whose mean is near 0 in one bag
    assert f"warning: {len(slides)} of {len(slides)} records have features unlike those of the training" in (
        capsys.readouterr().err
    )
    copy = shutil.copytree(other[1], tmp_path / "copy")
    own = shutil.copytree(run, tmp_path / "own")
    assert main(["pathology", "test", str(own), *options(*other)]) == 0
    assert "unlike those" not in capsys.readouterr().err
    equal = lambda x: np.repeat(x[:1], len(x), axis=0)  # noqa: E731
    for change in (lambda x: 10 + x, equal, np.zeros_like):  # zeros are inside of ranges around 0
        for file in (copy / "h5_files").iterdir():
            with h5py.File(file, "r+") as bag:
                bag["features"][...] = change(bag["features"][()])
        assert main(["pathology", "test", str(own), *options(copy / "manifest.csv", copy)]) == 0
        warning = "14 of 14 test cases have features unlike those of the training; another encoder"
        assert warning in capsys.readouterr().err


def test_the_ranges_of_few_bags_and_features():
    rng = np.random.default_rng(0)

    def fitted(rows):
        return Ranges.fit([Profile.of(row) for row in rows])

    assert fitted(rng.normal(size=(7, 20))) is None
    ranges, up = fitted(rng.normal(size=(40, 20)) + np.arange(20)), np.arange(20.0)
    assert Ranges.of_summary(ranges.summary()).outside(Profile.of(up)) == 0
    assert ranges.remark(Profile.of(up)) == ""
    assert ranges.remark(Profile.of(up[::-1])).endswith("% of the features are outside the range of the training bags")
    narrow, far = fitted(rng.normal(size=(40, 2))), Profile.of(np.array([9.0, 9.0]))
    assert narrow.outside(far) == 1
    assert narrow.remark(far) == ""  # two features are too few


def test_tests_on_the_same_other_data_are_compared_by_their_folders(own, other, tmp_path, capsys):
    again = shutil.copytree(own, tmp_path / "again")
    for folder in (own, again):
        assert main(["pathology", "test", str(folder), *options(*other)]) == 0
    (first,), (second,) = own.glob("test-*"), again.glob("test-*")
    capsys.readouterr()
    assert main(["compare", str(first), str(second), "--output", str(tmp_path / "table.csv")]) == 0
    assert "on the same 14 records; interval: paired bootstrap" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "table.csv").dropna(subset="difference")
    assert len(table)
    assert not table[["difference", "2.5 %", "97.5 %"]].any(axis=None), "the same weights"
    assert main(["compare", str(own), str(second)]) == 0
    assert "different test records (0 in common" in capsys.readouterr().out
    # a moved run takes its tests with it; another folder needs the checkpoint where it was
    (tmp_path / "again").rename(tmp_path / "moved")
    moved = tmp_path / "moved" / second.name
    assert main(["compare", str(first), str(moved)]) == 0
    shutil.copytree(moved, tmp_path / "alone")
    assert main(["compare", str(first), str(tmp_path / "alone")]) == 2
    assert "is the test of a checkpoint that is not there: " in capsys.readouterr().err
    assert main(["report", str(first)]) == 2
    assert "is a test, which the report of its run contains" in capsys.readouterr().err


def test_other_times_of_the_same_cases_are_not_compared(fit, cohort, other, tmp_path, capsys):
    """Survival records keep no labels by class; their targets are compared by digest."""
    manifest = pd.read_csv(other[0], dtype=str)
    manifest.assign(survival_months=manifest["survival_months"].astype(float) + 1).to_csv(
        tmp_path / "later.csv", index=False
    )
    run = tmp_path / "run"
    assert fit(run, *options(cohort[0] / "manifest.csv", cohort[0]), preset="survival", epochs=1) == 0
    folders = [tmp_path / name for name in ("one", "two", "three")]
    for folder, path in zip(folders, (other[0], other[0], tmp_path / "later.csv")):
        assert main(["pathology", "test", str(run), *options(path, other[1]), "--output", str(folder)]) == 0
    capsys.readouterr()
    assert main(["compare", str(folders[0]), str(folders[1])]) == 0
    assert "on the same 14 records" in capsys.readouterr().out
    assert main(["compare", str(folders[0]), str(folders[2])]) == 0
    assert "different targets of the same records" in capsys.readouterr().out


def test_other_data_may_have_a_column_of_the_other_kind(fit, cohort, other, tmp_path, capsys):
    """Events at training and censoring in the other cohort: the two options are alternatives."""
    events = pd.read_csv(cohort[0] / "manifest.csv", dtype=str)
    events["dead"] = 1 - events["censorship"].astype(int)
    events.drop(columns="censorship").to_csv(tmp_path / "events.csv", index=False)
    run = tmp_path / "run"
    words = [*options(tmp_path / "events.csv", cohort[0]), "--data.event_column", "dead"]
    assert fit(run, *words, preset="survival", epochs=1) == 0
    capsys.readouterr()
    assert main(["pathology", "test", str(run), *options(*other), "--data.censor_column", "censorship"]) == 0
    (folder,) = run.glob("test-*")
    censored = pd.read_csv(folder / "figures" / "test_records.csv").filter(like="censor").iloc[:, 0]
    assert censored.astype(int).tolist() == pd.read_csv(other[0])["censorship"].tolist()
