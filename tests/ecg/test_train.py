"""Data and task: sources, splits, losses, a run from fit to test, resume, and every preset."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from seqssm_ecg import DOMAIN, metrics, simulate, sources
from seqssm_ecg.data import EcgData
from seqssm_ecg.duplicates import content_hash
from seqssm_ecg.files import open_recording, write_wfdb
from seqssm_ecg.splits import SplitOptions, split_records
from seqssm_ecg.task import EcgTask, asymmetric, soft_challenge

from seqssm.cli.main import main
from seqssm.domain import resolve
from seqssm.errors import InputError
from seqssm.training.presets import presets, read_preset
from seqssm.training.unchanged import digests

SMALL = ["--model.d_model", "16", "--model.depth", "1", "--model.d_state", "4", "--data.window_s", "4"]
SMALL += ["--trainer.accelerator", "cpu", "--model.threads", "1", "--trainer.max_epochs", "2"]
PTBXL_COLUMNS = "ecg_id,patient_id,age,sex,scp_codes,strat_fold,filename_lr,filename_hr"
STATEMENTS = """,description,diagnostic,form,rhythm,diagnostic_class,diagnostic_subclass
NORM,normal,1.0,,,NORM,NORM
IMI,inferior infarction,1.0,,,MI,IMI
NDT,T abnormalities,1.0,1.0,,STTC,STTC
LBBB,left block,1.0,,,CD,CLBBB
LVH,left hypertrophy,1.0,,,HYP,LVH
SR,sinus rhythm,,,1.0,,
"""


@pytest.fixture(scope="module")
def ptbxl(tmp_path_factory):
    """A PTB-XL tree of 40 simulated records."""
    folder = tmp_path_factory.mktemp("ptbxl")
    (folder / "scp_statements.csv").write_text(STATEMENTS)
    lines = [PTBXL_COLUMNS]
    names = ["NORM", "IMI", "NDT", "LBBB", "LVH"]
    for number in range(40):
        name = f"{number:05d}_lr"
        values = simulate.recording([], 3.0, 100.0, number)
        write_wfdb(folder / "records100" / "00000", name, values, 100.0, suffix=".dat")
        codes = {"SR": 0.0} if number == 39 else {names[number % 5]: 100.0, "SR": 0.0}
        lines.append(f'{number},{number // 2}.0,50,0,"{codes}",{number // 4 + 1},records100/00000/{name},none')
    (folder / "ptbxl_database.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize(
    ("task", "classes", "records"),
    [
        ("superclass", 5, 39),
        ("subclass", 5, 39),
        ("diagnostic", 5, 39),
        ("form", 1, 8),
        ("rhythm", 1, 40),
        ("all", 6, 40),
    ],
)
def test_the_tasks_of_a_ptbxl_tree(ptbxl, task, classes, records):
    if task == "form":  # its eight records are in folds 1 to 9, so the usual validation and test folds are empty
        data = EcgData(folder=str(ptbxl), labels=task, window_s=2, val_fold=9, test_fold=7)
    else:
        data = EcgData(folder=str(ptbxl), labels=task, window_s=2)
    data.setup("fit")
    assert len(data.classes.names) == classes
    assert sum(len(part) for part in data.split.values()) == records
    if task == "superclass":
        assert data.classes.names == ["NORM", "MI", "STTC", "CD", "HYP"]
        assert {data.labelled[place].fold for place in data.split["test"]} == {10}
        assert {data.labelled[place].fold for place in data.split["val"]} == {9}
        assert "without a label in this task" in "".join(data.messages)


def test_500_hz_needs_the_other_files(ptbxl):
    with pytest.raises(InputError, match="500 Hz records"):
        EcgData(folder=str(ptbxl), sampling_rate_hz=500).setup("fit")


def test_a_challenge_folder_is_split_by_guessed_patients_without_duplicates(made, tmp_path):
    for name in ("M00000.hea", "M00000.mat"):
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a" / name).write_bytes((made / name).read_bytes())
        (tmp_path / "a" / name.replace("M00000", "twin")).write_bytes((made / name).read_bytes())
    twin = tmp_path / "a" / "twin.hea"
    twin.write_text(twin.read_text().replace("M00000", "twin"))
    entries, bad = sources.challenge(tmp_path)
    assert not bad
    hashes = [content_hash(open_recording(entry.path)) for entry in entries]
    assert [entry.id for entry in entries] == ["M00000", "twin"]
    assert hashes[0] == hashes[1]
    entries, _ = sources.challenge(made)
    split, how = split_records(entries, SplitOptions(), "m")
    assert how == "at random by record, as there are no patients (80, 10 and 10 %)"
    groups = [{entries[place].group for place in split[name]} for name in ("train", "val", "test")]
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    assert [len(split[name]) for name in ("train", "val", "test")] == [48, 6, 6]


def test_folds_visit_every_record_once(made):
    entries, _ = sources.challenge(made)
    tested = [k for fold in range(5) for k in split_records(entries, SplitOptions(fold=fold, folds=5), "m")[0]["test"]]
    assert sorted(tested) == list(range(60))


def test_random_splits_keep_spellings_of_a_patient_together(made):
    """They were divided, or the package refused its own split."""
    entries, _ = sources.challenge(made)
    names = [(f"{n}", f"0{n}", f"p {n}", f"P  {n}")[k % 4] for k in range(60) for n in [k // 4]]
    entries = [replace(one, patient=name, group=f"m\n{name}") for one, name in zip(entries, names)]
    for options in (SplitOptions(), *(SplitOptions(fold=fold, folds=3) for fold in range(3))):
        split, _ = split_records(entries, options, "m")
        part = {place: name for name, places in split.items() for place in places}
        assert len(part) == 60
        assert all(part[k] == part[k + 1] and part[k + 2] == part[k + 3] for k in range(0, 60, 4))


def manifest(tmp_path, made, **columns):
    frame = pd.read_csv(made / "manifest.csv")
    frame["path"] = [str(made / name) for name in frame["path"]]
    for name, values in columns.items():
        frame[name] = values
    return frame


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_manifests(made, tmp_path, suffix):
    frame = manifest(
        tmp_path, made, patient=[n // 2 for n in range(60)], split=["train"] * 40 + ["val"] * 10 + ["test"] * 10
    )
    path = tmp_path / f"m{suffix}"
    frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path)
    data = EcgData(manifest=str(path), window_s=2)
    data.setup("fit")
    assert data.classes.names == list(simulate.CLASSES)
    assert [len(data.split[name]) for name in ("train", "val", "test")] == [40, 10, 10]
    batch = data.train_set.__getitems__([0, 1, 2])
    assert batch["x"].shape == (3, 12, 200)
    np.testing.assert_array_equal(batch["y"].numpy(), frame[list(simulate.CLASSES)].to_numpy()[:3])


def test_a_manifest_of_arrays_with_a_labels_column(made, tmp_path):
    for number in range(12):
        table = np.stack(list(simulate.recording([], 3.0, 125.0, number).values()))
        np.save(tmp_path / f"a{number}.npy", table.T)
    labels = ["AF; STach" if n % 2 else "NORM" for n in range(12)]
    split = ["train"] * 8 + ["val"] * 2 + ["test"] * 2
    frame = pd.DataFrame({"path": [f"a{n}.npy" for n in range(12)], "labels": labels, "split": split, "rate_hz": 125})
    frame.to_csv(tmp_path / "m.csv", index=False)
    data = EcgData(manifest=str(tmp_path / "m.csv"), window_s=2)
    data.setup("fit")
    assert data.classes.names == ["AF", "NORM", "STach"]
    assert data.train_set[0]["y"].tolist() == [[0, 1, 0]]
    assert data.records[0].shape == (12, 300)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns="path"), "no column path"),
        (lambda f: f[["path"]], "no labels"),
        (lambda f: f.assign(AF=2), "neither 0, 1 nor empty"),
        (lambda f: f.assign(split="other"), "expected train, val or test"),
        (lambda f: f.assign(fold="x"), "not a number"),
        (lambda f: f.head(0), "no rows"),
        (lambda f: f.assign(path="none.hea"), "is also on line 2 with other labels"),
        (
            lambda f: f.assign(path=[f"{n}.hea" for n in range(60)]),
            "no record of the train split can be used; first error: ",
        ),
    ],
)
def test_a_bad_manifest_is_one_line(made, tmp_path, change, message):
    change(manifest(tmp_path, made)).to_csv(tmp_path / "m.csv", index=False)
    with pytest.raises(InputError, match=message) as error:
        EcgData(manifest=str(tmp_path / "m.csv"), window_s=2).setup("fit")
    assert len(str(error.value).splitlines()) == 1


def test_unreadable_records_are_left_out_and_counted(made, tmp_path):
    frame = manifest(tmp_path, made)
    frame.loc[3, "path"] = "gone.hea"
    frame.to_csv(tmp_path / "m.csv", index=False)
    data = EcgData(manifest=str(tmp_path / "m.csv"), window_s=2)
    data.setup("fit")
    assert any("1 unusable records dropped" in line and "gone.hea" in line for line in data.messages)
    assert sum(len(part) for part in data.split.values()) == 59


def test_short_records_are_padded_and_their_length_passed_on(made, tmp_path):
    manifest(tmp_path, made).to_csv(tmp_path / "m.csv", index=False)
    data = EcgData(manifest=str(tmp_path / "m.csv"), window_s=8, noise=0.5)
    data.setup("fit")
    batch = data.train_set.__getitems__([0, 1])
    assert batch["lengths"].tolist() == [500, 500]
    assert not batch["x"][..., 500:].any()
    data = EcgData(manifest=str(tmp_path / "m.csv"), window_s=2, normalise="global")
    data.setup("fit")
    whole = data.val_set.__getitems__([0, 1])
    assert whole["record_index"].tolist() == [0] * 4 + [1] * 4
    assert data.preprocess.std != 1


def test_losses():
    torch.manual_seed(0)
    logits, y = torch.randn(6, 3), (torch.rand(6, 3) < 0.5).float()
    task = EcgTask(classes=["a", "b", "c"])
    plain = torch.nn.functional.binary_cross_entropy_with_logits(logits, y)
    assert task.criterion(logits, y) == plain
    p = logits.sigmoid()
    q = (p - 0.05).clamp(min=0)
    direct = -(y * (1 - p) * p.log() + (1 - y) * q**4 * (1 - q).log()).mean()
    torch.testing.assert_close(asymmetric(logits, y), direct)
    weighted = EcgTask(classes=["a", "b", "c"], loss="weighted_bce")
    weighted.positive_weight = torch.tensor([1.0, 5.0, 2.0])
    assert weighted.criterion(logits, y) > plain


def test_the_soft_challenge_score_is_the_score_of_hard_decisions_and_has_a_gradient():
    random = np.random.default_rng(0)
    truth, outputs = (random.random((30, 4)) < 0.4).astype(float), (random.random((30, 4)) < 0.5).astype(float)
    table = np.full((4, 4), 0.3) + 0.7 * np.eye(4)
    soft = soft_challenge(torch.tensor(outputs), torch.tensor(truth), torch.tensor(table), 1)
    assert float(soft) == pytest.approx(metrics.challenge_score(table, truth, outputs, 1))
    p = torch.full((30, 4), 0.5, dtype=torch.float64, requires_grad=True)
    soft_challenge(p, torch.tensor(truth), torch.tensor(table), 1).backward()
    assert p.grad.abs().max() > 0


def test_a_run_from_fit_to_test(trained, capsys):
    assert main(["ecg", "test", str(trained)]) == 0
    printed = capsys.readouterr().out
    for word in ("auroc", "linear on 19 numbers a lead", "training frequencies", "By class"):
        assert word in printed
    figures = json.loads((trained / "metrics.json").read_text())["test"]["metrics"]
    assert {"auroc", "auprc", "f1", "f2", "g2", "accuracy", "calibration_error", "brier"} <= set(figures)
    records = pd.read_csv(trained / "figures" / "test_records.csv")
    assert len(records) == 6
    assert (trained / "figures" / "curves.png").stat().st_size > 10_000


def test_a_trained_model_becomes_a_program_for_any_length(trained, tmp_path):
    """At the length of the training window, learned positions were another path than in the graph."""
    assert main(["export", str(trained), "--format", "torch", "--output", str(tmp_path / "model.pt2")]) == 0


def test_other_labels_of_the_same_records_are_noticed(made, tmp_path):
    table = pd.read_csv(made / "manifest.csv", dtype=str, keep_default_na=False)
    table["path"] = [str(made / path) for path in table["path"]]
    found = []
    table["split"] = ["train"] * 40 + ["val"] * 10 + ["test"] * 10
    for value in ("0", "1"):
        table.loc[0, "PVC"] = value
        table.to_csv(tmp_path / "m.csv", index=False)
        data = EcgData(manifest=str(tmp_path / "m.csv"))
        data.setup("fit")
        found.append((data.identities("train"), data.targets("train")))
    assert found[0][0] == found[1][0]
    assert found[0][1] != found[1][1]
    before = digests(data)
    table[::-1].to_csv(tmp_path / "m.csv", index=False)
    data = EcgData(manifest=str(tmp_path / "m.csv"))
    data.setup("fit")
    assert digests(data) == before, "another order of the rows"


def test_a_resumed_run_equals_an_uninterrupted_one(made, tmp_path):
    base = ["ecg", "fit", "--config", "ecg_small", "--data.manifest", str(made / "manifest.csv"), *SMALL]
    base += ["--model.schedule", "constant", "--data.mix_up", "0.3", "--data.baseline_wander", "0.1"]
    assert main([*base, "--output", str(tmp_path / "whole")]) == 0
    assert main([*base, "--output", str(tmp_path / "part"), "--trainer.max_epochs", "1"]) == 0
    config = yaml.safe_load((tmp_path / "part" / "config.yaml").read_text())
    assert config["model"]["init_args"]["classes"] is None  # the run found them in its data
    assert main(["ecg", "fit", "--resume", str(tmp_path / "part"), "--trainer.max_epochs", "2"]) == 0
    whole, part = (torch.load(tmp_path / run / "last.ckpt", weights_only=True) for run in ("whole", "part"))
    assert whole["state_dict"].keys() == part["state_dict"].keys()
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, part["state_dict"][name]), name


OPTIONS = [
    "--model.network cnn --data.cache none --data.aggregate max --data.window_s 2 --model.label_smoothing 0.1",
    "--model.loss asymmetric --data.normalise global --data.lead_set 3 --model.pool tail --model.merge sum",
    "--model.loss weighted_bce --data.missing_leads refuse --data.lead_set 2 --model.pool head --model.stem deep "
    "--data.time_mask 0.2 --data.mix_up 0.2 --data.window_s 8 --data.stride_s 1",
    "--model.pool middle --model.thresholds youden --data.min_positives 12 --data.normalise none "
    "--data.band_hz [null,30] --data.checksums ignore --data.lead_map {MLII: II}",
]


@pytest.mark.parametrize("options", [OPTIONS[0], *(pytest.param(one, marks=pytest.mark.long) for one in OPTIONS[1:])])
def test_options_go_from_fit_to_prediction(made, tmp_path, options):
    words = options.replace("{MLII: II}", "{MLII:_II}").split()
    words = [word.replace(":_", ": ") for word in words]
    small = [*SMALL[:2], *SMALL[6:]] if "cnn" in words else SMALL  # a CNN has no depth and no states
    argv = ["ecg", "fit", "--config", "ecg_small", "--data.manifest", str(made / "manifest.csv"), *small, *words]
    argv += ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1", "--output", str(tmp_path / "run")]
    assert main(argv) == 0
    assert main(["ecg", "validate", str(tmp_path / "run")]) == 0
    argv = ["predict", str(tmp_path / "run"), str(made), "--output", str(tmp_path / "p.csv"), "--accelerator", "cpu"]
    assert main(argv) == 0
    table = pd.read_csv(tmp_path / "p.csv")
    classes = [f"p_{name}" for name in simulate.CLASSES if f"p_{name}" in table]
    assert classes
    assert np.isfinite(table[classes]).all(axis=None)


def test_a_challenge_folder_with_the_loss_and_thresholds_of_its_score(made, tmp_path, capsys):
    names = ["426783006", "164889003", "427084000", "733534002|164909002", "427172004|17338001", "59931005"]
    table = np.full((6, 6), 0.4) + 0.6 * np.eye(6)
    lines = ["," + ",".join(names)]
    lines += [f"{name}," + ",".join(str(cell) for cell in row) for name, row in zip(names, table)]
    (tmp_path / "weights.csv").write_text("\n".join(lines))
    argv = [
        "ecg",
        "fit",
        "--config",
        "cinc2021_small",
        "--data.folder",
        str(made),
        *SMALL,
        "--model.challenge_term",
        "1",
    ]
    argv += ["--data.weights", str(tmp_path / "weights.csv"), "--output", str(tmp_path / "run")]
    assert main([*argv, "--trainer.max_epochs", "1"]) == 0
    printed = capsys.readouterr().out
    assert "val_challenge" in printed
    assert "without a training record: TInv" in printed
    assert main(["ecg", "test", str(tmp_path / "run")]) == 0
    assert "challenge" in json.loads((tmp_path / "run" / "metrics.json").read_text())["test"]["metrics"]


def test_a_warm_start_trains_the_new_head_only(trained, made, tmp_path, capsys):
    frame = manifest(tmp_path, made).rename(columns={"AF": "other"}).drop(columns="PVC")
    frame.to_csv(tmp_path / "m.csv", index=False)
    argv = ["ecg", "fit", "--config", "ecg_small", "--data.manifest", str(tmp_path / "m.csv"), *SMALL]
    argv += ["--model.init_from", str(trained), "--model.freeze", "backbone", "--output", str(tmp_path / "run")]
    assert main([*argv, "--trainer.max_epochs", "1"]) == 0
    assert "new: 3 (thresholds, head.weight, head.bias)" in capsys.readouterr().out
    old, new = (torch.load(run / "last.ckpt", weights_only=True)["state_dict"] for run in (trained, tmp_path / "run"))
    best = torch.load(trained / "best.ckpt", weights_only=True)["state_dict"]
    assert old.keys() == new.keys()
    for name, value in best.items():
        if "blocks" in name:
            assert torch.equal(value, new[name]), name


def test_another_data_sets_classes_are_refused(trained, made, tmp_path, capsys):
    manifest(tmp_path, made).rename(columns={"AF": "XX"}).to_csv(tmp_path / "m.csv", index=False)
    assert main(["ecg", "test", str(trained), "--data.manifest", str(tmp_path / "m.csv")]) == 2
    assert "unknown to the model" in capsys.readouterr().err


@pytest.mark.long
def test_kfold_with_a_baseline_and_the_cnn(made, tmp_path, capsys):
    argv = ["ecg", "kfold", "--config", "ecg_small", "--data.manifest", str(made / "manifest.csv"), "--folds", "3"]
    argv += ["--models", "cnn,prior", "--output", str(tmp_path / "k"), *SMALL[:2], *SMALL[6:]]
    argv += ["--trainer.max_epochs", "1"]
    assert main([*argv, "--trainer.limit_train_batches", "1"]) == 0
    assert "auroc" in capsys.readouterr().out
    assert len(pd.read_csv(tmp_path / "k" / "folds.csv")) == 6


@pytest.mark.parametrize("name", presets(DOMAIN))
def test_presets_build(name):
    content = read_preset(presets(DOMAIN)[name], DOMAIN)
    model, data = content["model"]["init_args"], content["data"]["init_args"]
    task_class, data_class = (resolve(":".join(content[one]["class_path"].rsplit(".", 1))) for one in ("model", "data"))
    if "dataset" not in data:
        data = {**data, "manifest": "my.csv"}
    rate, window = data.get("sampling_rate_hz", 100.0), data.get("window_s", 10.0)
    data_class(**data)
    known = {"classes": ["a", "b"]} if task_class is EcgTask else {}
    task = task_class(**model, **known, lead_set=12, window_s=window, sampling_rate_hz=rate)
    with torch.device("meta"):
        network = task.build_model()
    count = sum(parameter.numel() for parameter in network.parameters())
    expected = {"ecg_mamba_stem": 26.1e6, "ecg_mamba_stem_light": 6.3e6}
    if name in expected:
        assert count == pytest.approx(expected[name], rel=0.02)
    else:
        assert 5e4 < count < 1e6


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--data.lead_set", "5", "lead_set"),
        ("--data.band_hz", "[40,0.5]", "band_hz"),
        ("--data.window_s", "0", "must be in (0, 86400]"),
        ("--model.thresholds", "challenge", "cinc2020"),
        ("--model.dropout", "2", "must be in"),
        ("--model.pol", "mean", "did you mean --model.pool"),
        ("--model.network", "cmn", "cmn"),
        ("--model.depth", "0", "must be at least 1"),
        ("--data.folder", "somewhere", "--data.manifest and --data.folder exclude each other"),
    ],
)
def test_a_wrong_option_is_one_line(made, tmp_path, capsys, flag, value, message):
    argv = ["ecg", "fit", "--config", "ecg_small", "--data.manifest", str(made / "manifest.csv"), flag, value]
    assert main([*argv, "--output", str(tmp_path / "r"), "--trainer.accelerator", "cpu"]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
