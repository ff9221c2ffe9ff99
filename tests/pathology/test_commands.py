"""The commands on simulated slides: fit, test, resume, kfold, predict with figures, and their errors."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from seqssm_pathology import DOMAIN, simulate
from seqssm_pathology.files import Bag, write_bag
from seqssm_pathology.task import PathologyTask

import seqssm
from seqssm.cli.main import main
from seqssm.training.networks import without_foreign
from seqssm.training.presets import presets


def data_of(cohort) -> list[str]:
    folder = cohort[0]
    return ["--data.manifest", str(folder / "manifest.csv"), "--data.features", str(folder)]


def test_test_prints_the_model_and_a_baseline(run, capsys):
    assert main(["pathology", "test", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "logistic " in printed
    report = json.loads((run / "metrics.json").read_text())["test"]
    assert set(report["metrics"]) == {"auroc", "accuracy", "balanced_accuracy", "f1", "kappa", "nll"}
    table = pd.read_csv(run / "figures" / "test_records.csv")
    assert list(table.columns) == ["id", "label", "p_lesion", "p_normal", "prediction"]
    assert len(table) == 5
    np.testing.assert_allclose(table["p_lesion"] + table["p_normal"], 1, atol=1e-6)


def test_predictions_keep_their_rows_and_draw_figures(run, cohort, tmp_path, capsys):
    folder = tmp_path / "bags"
    folder.mkdir()
    for name in ("made_001", "made_002"):
        shutil.copy(cohort[0] / "h5_files" / f"{name}.h5", folder)
    (folder / "broken.h5").write_text("text")
    write_bag(folder / "wide.h5", Bag("wide", np.zeros((3, 7), dtype=np.float32)), "test")
    write_bag(folder / "bare.h5", Bag("bare", np.ones((3, 6), dtype=np.float32)), "test")
    out, figures = tmp_path / "out.csv", tmp_path / "figures"
    words = ["predict", str(run / "best.ckpt"), str(folder), "--output", str(out), "--figures", str(figures)]
    assert main([*words, "--top-k", "3", "--accelerator", "cpu"]) == 3
    table = pd.read_csv(out)
    assert list(table["id"]) == ["bare", "broken", "made_001", "made_002", "wide"]
    assert list(table["status"]) == ["ok", "failed", "ok", "ok", "failed"]
    assert "width 7; the model was trained on 6" in table["reason"][4]
    good = table[table["status"] == "ok"]
    np.testing.assert_allclose(good["p_lesion"] + good["p_normal"], 1, atol=1e-6)
    attention = pd.read_csv(figures / "002_made_001_attention.csv")
    assert list(attention.columns) == ["slide_id", "x", "y", "patch", "score", "attention", "rank"]
    truth = cohort[1]["made_001"].bag
    np.testing.assert_array_equal(attention[["x", "y"]], truth.coords)
    assert attention["attention"].sum() == pytest.approx(1, abs=1e-4)
    assert attention["rank"].min() == 0
    assert attention["rank"].max() == 1
    top = pd.read_csv(figures / "002_made_001_top.csv")
    assert list(top["score"]) == sorted(attention["score"], reverse=True)[:3]
    drawn = {path.name for path in figures.iterdir()}
    assert {"002_made_001_heat.png", "002_made_001_ranked.png", "000_bare_ranked.png"} <= drawn
    assert "000_bare_heat.png" not in drawn


def test_python_gives_the_table_of_the_command(run, cohort, tmp_path):
    folder = cohort[0] / "h5_files"
    out = tmp_path / "out.csv"
    assert main(["predict", str(run), str(folder), "--output", str(out), "--batch-size", "5"]) == 0
    frame = seqssm.load(run / "best.ckpt", accelerator="cpu").predict(folder)
    written = pd.read_csv(out)
    np.testing.assert_allclose(frame["p_lesion"], written["p_lesion"], atol=1e-5)
    assert list(frame["id"]) == list(written["id"])


def test_mixed_precision_and_groups_of_bags(run, cohort, monkeypatch, capsys):
    from seqssm_pathology import predict

    folder = cohort[0] / "h5_files"
    plain = seqssm.load(run, accelerator="cpu").predict(folder)
    mixed = seqssm.load(run, accelerator="cpu", precision="bf16-mixed").predict(folder)
    np.testing.assert_allclose(mixed["p_lesion"], plain["p_lesion"], atol=0.02)
    monkeypatch.setattr(predict, "AT_ONCE", 250)  # two or three bags
    grouped = seqssm.load(run, accelerator="cpu").predict(folder)
    np.testing.assert_allclose(grouped["p_lesion"], plain["p_lesion"], atol=1e-5)


def test_bags_without_coordinates_are_reported_once(run, cohort, tmp_path, capsys):
    for name in ("a", "b"):
        write_bag(tmp_path / f"{name}.h5", Bag(name, np.ones((3, 6), dtype=np.float32)), "test")
    assert list(seqssm.load(run, accelerator="cpu").predict(tmp_path)["status"]) == ["ok", "ok"]
    assert capsys.readouterr().err.count("no coordinates") == 1


def test_a_manifest_makes_cases_of_slides(run, cohort, tmp_path):
    manifest = tmp_path / "m.csv"
    rows = ["made_000.svs,A", "made_001,A", "made_002,B", "made_004,C", "missing,C", "gone,D"]
    manifest.write_text("slide_id,case_id\n" + "\n".join(rows) + "\n")
    folder = tmp_path / "bags"
    folder.mkdir()
    for number in (0, 1, 2, 4, 9):
        shutil.copy(cohort[0] / "h5_files" / f"made_{number:03d}.h5", folder)
    figures = tmp_path / "figures"
    frame = seqssm.load(run, accelerator="cpu").predict(folder, manifest=str(manifest), figures=figures)
    assert list(frame["id"]) == ["A", "B", "C", "D", "made_009"]
    assert list(frame["status"]) == ["ok", "ok", "ok", "failed", "failed"]
    assert "no bag" in frame["reason"][3]
    assert "the manifest has no row for this bag" in frame["reason"][4]
    sizes = [len(cohort[1][f"made_00{k}"].bag) for k in (0, 1, 2, 4)]
    assert list(frame["patches"][:3]) == [sizes[0] + sizes[1], sizes[2], sizes[3]]
    assert {"000_A_heat1.png", "000_A_heat2.png", "001_B_heat.png"} <= {path.name for path in figures.iterdir()}


def test_slides_of_a_case_keep_their_patch_sizes(run, cohort, tmp_path):
    bag = cohort[1]["made_000"].bag
    for name, side in (("a", 256), ("b", 512)):
        write_bag(
            tmp_path / f"{name}.h5", Bag(name, bag.features, bag.coords, attributes={"patch_size_level0": side}), "test"
        )
    (tmp_path / "m.csv").write_text("slide_id,case_id\na,A\nb,A\n")
    model, figures = seqssm.load(run, accelerator="cpu"), tmp_path / "figures"
    frame = model.predict(tmp_path, manifest=str(tmp_path / "m.csv"), figures=figures)
    assert list(frame["status"]) == ["ok"]
    table = pd.read_csv(figures / "000_A_attention.csv")
    assert table.groupby("slide_id")["patch"].unique().map(list).to_dict() == {"a": [256], "b": [512]}


def test_a_slide_without_coordinates_does_not_prevent_other_heat_maps(run, cohort, tmp_path):
    bag = cohort[1]["made_000"].bag
    for name, coords in (("a", bag.coords), ("b", None)):
        write_bag(tmp_path / f"{name}.h5", Bag(name, bag.features, coords), "test")
    (tmp_path / "m.csv").write_text("slide_id,case_id\na,A\nb,A\n")
    model, figures = seqssm.load(run, accelerator="cpu"), tmp_path / "figures"
    assert list(model.predict(tmp_path, manifest=str(tmp_path / "m.csv"), figures=figures)["status"]) == ["ok"]
    assert {path.name for path in figures.glob("*heat*")} == {"000_A_heat1.png"}
    table = pd.read_csv(figures / "000_A_attention.csv", dtype=str).groupby("slide_id")
    assert list(table.get_group("a")["x"]) == [str(int(x)) for x in bag.coords[:, 0]]
    assert table.get_group("b")[["x", "y"]].isna().all(axis=None)


def test_a_missing_folder_of_slides_is_reported_at_once(run, cohort, tmp_path):
    pytest.importorskip("openslide", reason="openslide is not installed: pip install 'seqssm[slides]'")
    with pytest.raises(seqssm.InputError, match="no such folder of slides"):
        seqssm.load(run, accelerator="cpu").predict(cohort[0], figures=tmp_path / "f", slides=str(tmp_path / "none"))


def test_zero_instances_per_bag_are_refused(fit, cohort, tmp_path, capsys):
    assert fit(tmp_path / "run", *data_of(cohort), "--data.max_instances", "0") == 2
    assert "--data.max_instances 0: must be in [1, 1000000000]" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="its file systems have UTF-8 names only")
def test_file_names_that_are_not_utf8_or_long(run, cohort, tmp_path, recwarn):
    folder = tmp_path / "bags"
    folder.mkdir()
    source = cohort[0] / "h5_files" / "made_001.h5"
    shutil.copy(os.fsencode(source), os.fsencode(folder) + b"/caf\xe9.h5")
    shutil.copy(source, folder / f"{'x' * 200}.h5")
    out, figures = tmp_path / "out.csv", tmp_path / "figures"
    assert main(["predict", str(run), str(folder), "--output", str(out), "--figures", str(figures)]) == 0
    table = pd.read_csv(out)
    assert list(table["status"]) == ["ok", "ok"]
    assert table["id"][0] == r"caf\udce9"
    assert len(list(figures.glob("*_heat.png"))) == 2
    assert not [one for one in recwarn if "collapsed" in str(one.message)]


def test_patches_with_nan_are_a_failed_row_or_left_out(run, cohort, tmp_path):
    bag = cohort[1]["made_003"].bag
    features = bag.features.copy()
    features[4, 1] = np.nan
    write_bag(tmp_path / "n.h5", Bag("n", features, bag.coords), "test")
    model = seqssm.load(run, accelerator="cpu")
    assert model.predict(tmp_path / "n.h5")["status"][0] == "failed"
    dropped = model.predict(tmp_path / "n.h5", invalid="drop")
    assert dropped["status"][0] == "ok"
    assert dropped["dropped"][0] == 1


def test_a_run_resumes(fit, cohort, tmp_path):
    folder = tmp_path / "run"
    assert fit(folder, *data_of(cohort), epochs=1) == 0
    assert main(["pathology", "fit", "--resume", str(folder), "--trainer.max_epochs", "2"]) == 0
    whole = tmp_path / "whole"
    assert fit(whole, *data_of(cohort), epochs=2) == 0
    a, b = (torch.load(path / "last.ckpt", weights_only=True)["state_dict"] for path in (folder, whole))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_is_not_resumed_with_other_labels(fit, cohort, tmp_path, capsys):
    folder, manifest = tmp_path / "run", tmp_path / "m.csv"
    table = pd.read_csv(cohort[0] / "manifest.csv", dtype=str)
    table.to_csv(manifest, index=False)
    assert fit(folder, "--data.manifest", str(manifest), "--data.features", str(cohort[0]), epochs=1) == 0
    names = sorted(set(table["label"]))
    table.assign(label=[names[names.index(label) - 1] for label in table["label"]]).to_csv(manifest, index=False)
    assert main(["pathology", "fit", "--resume", str(folder), "--trainer.max_epochs", "2"]) == 2
    assert "the data are not those of this run (" in capsys.readouterr().err


def test_one_class_is_refused(fit, cohort, tmp_path, capsys):
    manifest = tmp_path / "m.csv"
    manifest.write_text("slide_id,case_id,label\n" + "".join(f"made_{k:03d},C{k},1\n" for k in range(12)))
    words = ["--data.manifest", str(manifest), "--data.features", str(cohort[0])]
    assert fit(tmp_path / "run", *words) == 2
    assert "every case has the label 1; at least two classes are needed" in capsys.readouterr().err


@pytest.mark.parametrize("network", ["mamba", "abmil_gated", "transmil"])
def test_survival_from_fit_to_curves(fit, network, cohort, tmp_path):
    folder = tmp_path / "run"
    words = [*data_of(cohort), "--model.network", network, "--data.covariate_column", "survival_months"]
    assert fit(folder, *words, preset="survival", epochs=1) == 0
    assert main(["pathology", "test", str(folder)]) == 0
    report = json.loads((folder / "metrics.json").read_text())["test"]
    assert set(report["metrics"]) == {"c_index", "ibs", "log_rank_p", "nll"}
    models = {row["model"]: row for row in report["tables"][0]["rows"]}
    assert set(models) == {network, "cox", "covariate", "kaplan_meier"}
    assert 0 < models["kaplan_meier"]["ibs"] < 1
    assert 0 < models["cox"]["ibs"] < 1
    assert models["covariate"]["c_index"] == 0  # with the time itself as the risk, every pair is wrong
    assert (folder / "figures" / "risk_groups.png").stat().st_size > 5000
    figures = tmp_path / "figures"
    frame = seqssm.load(folder, accelerator="cpu").predict(cohort[0] / "h5_files" / "made_001.h5", figures=figures)
    curve = frame.filter(like="S_").iloc[0].to_numpy()
    assert len(curve) == 4
    assert (np.diff(curve) <= 0).all()
    assert 0 <= curve[-1] <= curve[0] <= 1
    assert frame["risk"][0] == pytest.approx(-curve.sum(), abs=1e-6)
    assert (figures / "000_made_001_survival.png").exists()


@pytest.mark.parametrize(("name", "flag"), [("OS", None), ("dead", None), ("cens", None), ("dead", "event")])
def test_a_value_that_equals_the_answer_is_refused(name, flag, fit, tmp_path, capsys):
    generator = np.random.default_rng(0)
    time, censored = np.round(np.exp(generator.normal(2, 1, size=30)), 2), generator.integers(0, 2, size=30)
    ids = [f"p{k}" for k in range(30)]
    leak = {"OS": time, "cens": censored, "dead": 1 - censored}[name]
    pd.DataFrame({"id": ids, "A": generator.normal(size=30), name: leak}).to_csv(tmp_path / "v.csv", index=False)
    manifest = pd.DataFrame({"case_id": ids, "survival_months": time, "censorship": censored, "event": 1 - censored})
    manifest.to_csv(tmp_path / "m.csv", index=False)
    words = ["--data.manifest", str(tmp_path / "m.csv"), "--data.features", str(tmp_path / "v.csv")]
    words += [] if flag is None else ["--data.event_column", flag]
    assert fit(tmp_path / "run", *words, preset="survival") == 2
    assert f"column {name} duplicates the answer" in capsys.readouterr().err


def test_a_network_given_as_a_preset_gives_a_remedy(capsys):
    assert main(["pathology", "fit", "--config", "abmil_gated"]) == 2
    assert "is a model, not a preset; add --model.network abmil_gated" in capsys.readouterr().err


def test_value_tables_end_to_end(fit, tmp_path):
    generator = np.random.default_rng(0)
    values = generator.normal(size=(40, 5))
    time = np.exp(2 + values[:, 1])
    table = pd.DataFrame(values, columns=list("EDCBA"), index=[f"p{k}" for k in range(40)])
    table.to_csv(tmp_path / "v.csv", index_label="case_id")
    labels = pd.DataFrame({"case_id": table.index, "survival_months": time, "censorship": 0})
    labels.to_csv(tmp_path / "m.csv", index=False)
    (tmp_path / "families.csv").write_text("One,Two\nA,C\nB,\n")
    words = ["--data.manifest", str(tmp_path / "m.csv"), "--data.features", str(tmp_path / "v.csv")]
    words += ["--data.order", "family", "--data.families", str(tmp_path / "families.csv"), "--data.clip", "3"]
    assert fit(tmp_path / "run", *words, preset="survival", epochs=1) == 0
    model = seqssm.load(tmp_path / "run", accelerator="cpu")
    assert model.summary["token_order"].tolist() == [3, 4, 2, 0, 1]
    frame = model.predict(tmp_path / "v.csv")
    assert len(frame) == 40
    shuffled = table[list("CABED")].head(3)
    shuffled.to_csv(tmp_path / "w.csv", index_label="case_id")
    again = model.predict(tmp_path / "w.csv", figures=tmp_path / "figures")  # columns are found by name
    np.testing.assert_allclose(again["risk"], frame["risk"][:3], atol=1e-6)
    tokens = pd.read_csv(tmp_path / "figures" / "000_p0_attention.csv")
    assert list(tokens["token"]) == list("EDCBA")
    with pytest.raises(seqssm.InputError, match="--manifest: the model reads value tables"):
        model.predict(tmp_path / "v.csv", manifest=str(tmp_path / "m.csv"))
    table.drop(columns="C").to_csv(tmp_path / "x.csv", index_label="case_id")
    with pytest.raises(seqssm.InputError, match="lacks 1 of the model's columns"):
        model.predict(tmp_path / "x.csv")


def test_kfold_over_split_files_tests_every_fold_once(small, cohort, tmp_path, capsys):
    names = list(cohort[1])
    splits = tmp_path / "splits"
    splits.mkdir()
    for fold in range(2):
        test = names[fold * 12 : fold * 12 + 12]
        rest = [name for name in names if name not in test]
        frame = pd.DataFrame({"train": rest, "val": test})  # no test split: val is reported, an inner fraction selects
        frame.to_csv(splits / f"splits_{fold}.csv")
    words = ["pathology", "kfold", "--config", "srmamba", "--folds", str(splits), "--models", "abmil,logistic"]
    words += [*data_of(cohort), *small, "--trainer.max_epochs", "1", "--output", str(tmp_path / "study")]
    whole = (splits / "splits_1.csv").read_text()
    frame.assign(val="").to_csv(splits / "splits_1.csv")
    assert main(words) == 2
    assert "splits_1.csv: fold 1 has no test records" in capsys.readouterr().err
    assert not (tmp_path / "study" / "folds.csv").exists()
    (splits / "splits_1.csv").write_text(whole)
    assert main(words) == 0
    assert "difference" in capsys.readouterr().out
    folds = pd.read_csv(tmp_path / "study" / "folds.csv")
    assert len(folds) == 4
    tested = []
    for fold in range(2):
        run = tmp_path / "study" / "abmil" / f"fold-{fold}_seed-1"
        tested += pd.read_csv(run / "figures" / "test_records.csv")["id"].tolist()
    assert sorted(tested) == sorted(names)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.manifest", "{m}"], "specify --data.manifest FILE and --data.features FOLDER"),
        (["--data.dataset", "musk1", "--data.features", "x"], "--data.dataset and --data.features exclude each other"),
        (["--data.dataset", "musk1", "--data.manifest", "{m}", "--data.features", "{d}"], "exclude each other"),
        (["--data.dataset", "musk2"], "did you mean musk1"),
        (["--data.manifest", "{m}", "--data.features", "{m}x"], "no such folder"),
        (["--data.manifest", "{m}", "--data.features", "{d}", "--data.order", "family"], "requires --data.families"),
        (["--data.manifest", "{m}", "--data.features", "{d}", "--data.fold", "7"], "there are 0 to 4"),
        (["--data.manifest", "{m}", "--data.features", "{d}", "--data.folds", "published"], "public data sets only"),
        (["--data.manifest", "{m}", "--data.features", "{d}", "--model.pool_width", "0"], "at least 1"),
        (["--data.manifest", "{m}", "--data.features", "{d}", "--model.d_in", "9"], "is 9, the data has 6"),
        (["--data.manifest", "{m}", "--data.features", "{d}", "--data.label_column", "grade"], "no column grade"),
    ],
)  # fmt: skip
def test_wrong_options_are_one_line(fit, words, message, cohort, tmp_path, capsys):
    places = {"m": cohort[0] / "manifest.csv", "d": cohort[0]}
    assert fit(tmp_path / "run", *(word.format(**places) for word in words)) == 2
    assert message in capsys.readouterr().err


def test_a_feature_that_equals_the_label_is_refused(fit, tmp_path, capsys):
    made = simulate.cohort(tmp_path / "leak", cases=20, seed=1, width=4)
    for name, one in made.items():
        leak = np.full((len(one.bag), 1), 1 - one.label, dtype=np.float32)  # "lesion" comes first, as class 0
        bag = Bag(name, np.concatenate([one.bag.features, leak], axis=1), one.bag.coords)
        write_bag(tmp_path / "leak" / "h5_files" / f"{name}.h5", bag, "test")
    assert fit(tmp_path / "run", *data_of((tmp_path / "leak",))) == 2
    assert "feature 4 (of 5, from 0) duplicates the answer" in capsys.readouterr().err


def test_cases_without_bags_and_bags_without_cases_are_counted(fit, cohort, tmp_path, capsys):
    rows = (cohort[0] / "manifest.csv").read_text().splitlines()
    (tmp_path / "m.csv").write_text("\n".join([*rows[:-2], "gone,gone,normal,5,0"]) + "\n")
    words = ["--data.manifest", str(tmp_path / "m.csv"), "--data.features", str(cohort[0])]
    assert fit(tmp_path / "run", *words, "--model.network", "mean", epochs=1) == 0
    message = capsys.readouterr().err
    assert "2 bags without a row in the manifest" in message
    assert "1 cases without a bag dropped (first: gone)" in message


def test_balanced_weights_sampled_instances_and_no_validation(fit, cohort, tmp_path):
    words = [*data_of(cohort), "--model.class_weights", "balanced", "--data.max_instances", "20"]
    words += ["--data.inner", "0", "--data.standardise", "false", "--trainer.accumulate_grad_batches", "2"]
    assert fit(tmp_path / "run", *words, epochs=1) == 0
    assert "val_loss" not in (tmp_path / "run" / "log.csv").read_text()


def test_the_regime_of_a_checkpoint(run, capsys):
    assert main(["pathology", "regime", str(run / "best.ckpt")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = [line for line in lines if line and line[-1] in ("convergent", "divergent")]
    assert [row[:2] for row in rows] == [["0", "0"], ["0", "1"]]
    assert all(int(row[2]) + int(row[3]) == 4 for row in rows)


@pytest.mark.parametrize("name", sorted(presets(DOMAIN)))
def test_every_preset_builds_its_model(name):
    config = yaml.safe_load(presets(DOMAIN)[name].path.read_text())
    options = dict(config["model"])
    tokens = 1590 if name == "gbmlgg" else None
    with torch.device("meta"):
        options, _ = without_foreign(PathologyTask, options)
        options["target"] = "classification"
        task = PathologyTask(d_in=1 if tokens else 166, num_classes=2, tokens=tokens, **options)
        model = task.build_model()
    count = sum(parameter.numel() for parameter in model.parameters())
    if name not in ("srmamba", "survival"):
        assert 1000 < count < 200_000
        return
    route = 1024 * 5 + 1024 * 64 + 32 * 1024 + 1024 + 1024 * 17  # convolution, x_proj, dt_proj, A_log and D
    block = 1024 + 512 * 2048 + 1024 * 512 + 2 * route
    around = 166 * 512 + 512 + 1024 + (512 * 128 + 128 + 128 + 1) + (512 * 2 + 2)
    assert count == 2 * block + around


def test_the_models_of_kfold_are_options_that_exist():
    known = {*PathologyTask.own_arguments, *PathologyTask.network_arguments, "order"}
    for flags in DOMAIN.models.values():
        for flag in flags:
            if flag.startswith("--"):
                assert flag.split(".")[1] in known


@pytest.mark.long
def test_the_demo_runs(tmp_path, monkeypatch):
    from seqssm_pathology import demo

    monkeypatch.setattr(demo, "CASES", 16)
    monkeypatch.setattr(demo, "EPOCHS", 1)
    sections = demo.demo(tmp_path)
    assert len(sections) == 2
    assert all(Path(figure).stat().st_size > 2000 for section in sections for figure in section.figures)


def test_a_checkpoint_without_its_description_of_the_data_is_refused(run, cohort, require_refusal_when_emptied):
    require_refusal_when_emptied(run, cohort[0])


# -- bags that cannot be used ------------------------------------------------------------------------------------------


def test_feature_key_of_predict(run, cohort, tmp_path, capsys):
    bag = cohort[1]["made_001"].bag
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["other"] = bag.features
        file["coords"] = bag.coords
    model = seqssm.load(run, accelerator="cpu")
    failed = model.predict(tmp_path / "a.h5")
    assert "--feature-key (predict)" in failed["reason"][0]
    expected = model.predict(cohort[0] / "h5_files" / "made_001.h5")
    found = model.predict(tmp_path / "a.h5", feature_key="other")
    assert found["p_lesion"][0] == pytest.approx(expected["p_lesion"][0], abs=1e-6)


def test_figures_of_the_first_cases_only(run, cohort, tmp_path):
    figures = tmp_path / "figures"
    frame = seqssm.load(run, accelerator="cpu").predict(cohort[0], figures=figures, figures_limit=2)
    assert len(frame) == 24
    assert {path.name.split("_made")[0] for path in figures.iterdir()} == {"000", "001"}
    with pytest.raises(seqssm.InputError, match=r"figures_limit 0: must be in \[1, 2147483647\]"):
        seqssm.load(run, accelerator="cpu").predict(cohort[0], figures_limit=0)
