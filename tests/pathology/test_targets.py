"""Targets beyond one class: numbers, several labels, several targets at once, survival in a declared unit."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from seqssm_pathology import fitting, metrics, outcomes, predict
from seqssm_pathology.data import BagData
from seqssm_pathology.heads import ClassHead, LabelsHead, NumberHead, SurvivalHead, heads_of, survival_nll
from seqssm_pathology.manifest import Case
from seqssm_pathology.survival import median_time
from sklearn import metrics as oracle
from torch.nn import functional as F

import seqssm
from seqssm.cli.main import main
from seqssm.errors import InputError
from seqssm.metrics.metric import direction, evaluate


def data_of(cohort) -> list[str]:
    return ["--data.manifest", str(cohort[0] / "manifest.csv"), "--data.features", str(cohort[0])]


def report_of(run) -> dict:
    return json.loads((run / "metrics.json").read_text())["test"]


# -- heads -----------------------------------------------------------------------------------------------------------


def test_unknown_targets_are_excluded_from_the_loss():
    torch.manual_seed(0)
    z = torch.randn(4, 2, requires_grad=True)
    head = LabelsHead("labels", labels=("a", "b"), weights=(2.0, 1.0))
    y = torch.tensor([[1, 0], [float("nan"), 1], [0, float("nan")], [1, 1]])
    known = torch.isfinite(y)
    every = F.binary_cross_entropy_with_logits(
        z, torch.nan_to_num(y), reduction="none", pos_weight=torch.tensor([2.0, 1.0])
    )
    loss = head.loss(z, {"labels": y})
    torch.testing.assert_close(loss, every[known].mean())
    loss.backward()
    assert torch.equal(z.grad == 0, ~known)
    number = NumberHead("age", mean=50.0, scale=10.0)
    value = torch.tensor([60.0, float("nan"), 40.0, 50.0], dtype=torch.float64)
    expected = (z[[0, 2, 3], 0].detach() - torch.tensor([1.0, -1.0, 0.0])).square().mean()
    torch.testing.assert_close(number.loss(z[:, :1].detach(), {"value": value}), expected)
    classes = ClassHead("g", "g.", 1, classes=("x", "y"))
    labels = torch.tensor([1, -1, 0, -1])
    torch.testing.assert_close(classes.loss(z, {"label_1": labels}), F.cross_entropy(z[[0, 2]], labels[[0, 2]]))
    survival = SurvivalHead("t", "t.", 2, edges=(0.0, 1.0, 2.0))
    bins, censored = torch.tensor([0, -1, 1, -1]), torch.tensor([0, 1, 1, 1])
    truth = {"bin_2": bins, "censored_2": censored}
    torch.testing.assert_close(survival.loss(z, truth), survival_nll(z[[0, 2]], bins[[0, 2]], censored[[0, 2]]))
    nothing = survival.loss(z, {"bin_2": torch.full((4,), -1), "censored_2": censored})
    assert nothing.item() == 0


def test_heads_survive_a_checkpoint():
    heads = [
        ClassHead("grade", "grade.", 0, classes=("low", "high"), weights=(1.0, 2.0)),
        NumberHead("age", "age.", 1, mean=50.0, scale=9.0),
        SurvivalHead("os", "os.", 2, edges=(0.0, 5.0, 9.0), unit="years", alpha=0.3),
        LabelsHead("labels", "labels.", 3, labels=("EGFR", "KRAS")),
    ]
    found = heads_of({"heads": json.loads(json.dumps(fitting.described(heads)))})
    assert [type(head) for head in found] == [type(head) for head in heads]
    for head, own in zip(found, heads):
        assert (head.columns, head.size, head.outputs) == (own.columns, own.size, own.outputs)
    assert found[2].columns == ["os.risk", "os.S_5_years", "os.S_9_years", "os.median_survival_years"]
    old = heads_of({"target": "survival", "time_column": "t", "edges": [0.0, 1.0, 2.0]})
    assert old[0].columns == ["risk", "S_1", "S_2", "median_survival"]


def test_tables_are_read_back():
    generator = np.random.default_rng(0)
    heads = [
        ClassHead("y", classes=("0", "1", "2")),
        SurvivalHead("t", edges=(0.0, 1.0, 2.0, 3.0), unit="years"),
        LabelsHead("labels", labels=("a", "b")),
        NumberHead("age", mean=3.0, scale=2.0),
    ]
    cases = [
        Case(str(k), [], label=str(k % 3), time=0.5 + k / 10, censored=k % 2, labels=(k % 2 * 1.0, None), value=k * 1.0)
        for k in range(12)
    ]
    for head in heads:
        rows = [fitting.truths([head], case) for case in cases]
        found = {name: np.stack([row[name].numpy() for row in rows]) for name in rows[0]}
        logits = generator.normal(size=(12, head.size)).astype(np.float32)
        one = outcomes.collect(head, logits, found, (found.get("time"), found.get("censored")))
        back = outcomes.of_table(head, outcomes.as_table(head, one))
        assert evaluate(outcomes.table_of(head), back, "interval") == pytest.approx(
            evaluate(outcomes.table_of(head), one, "interval"), nan_ok=True
        )


def test_median_times_by_hand():
    edges = [0.5, 10.0, 20.0, 40.0]
    curves = np.array([[0.9, 0.6, 0.4], [0.25, 0.2, 0.1], [0.9, 0.8, 0.7], [0.5, 0.4, 0.3]])
    found = median_time(curves, edges)
    np.testing.assert_allclose(found[[0, 1, 3]], [30, 10 * 0.5 / 0.75, 10])
    assert np.isnan(found[2])


def test_scores_of_numbers_and_labels():
    generator = np.random.default_rng(1)
    truth, values = generator.normal(size=50), generator.normal(size=50)
    found = evaluate(metrics.REGRESSION, metrics.Measured(truth, values), "test")
    assert found == pytest.approx(
        {
            "mae": oracle.mean_absolute_error(truth, values),
            "rmse": oracle.root_mean_squared_error(truth, values),
            "r2": oracle.r2_score(truth, values),
            "pearson": np.corrcoef(truth, values)[0, 1],
        }
    )
    y, p = generator.integers(0, 2, (60, 3)).astype(float), generator.random((60, 3)).round(1)
    y[:20, 1] = np.nan
    known = [np.isfinite(column) for column in y.T]
    found = evaluate(metrics.LABELS, metrics.Labelled(y, p), "test")
    columns = [(a[k], b[k]) for a, b, k in zip(y.T, p.T, known)]
    clipped = np.clip(p, 1e-15, 1 - 1e-15)
    assert found["auroc"] == pytest.approx(np.mean([oracle.roc_auc_score(a, b) for a, b in columns]))
    expected = np.mean([oracle.average_precision_score(a, b) for a, b in columns])
    assert found["average_precision"] == pytest.approx(expected)
    assert found["f1"] == pytest.approx(np.mean([oracle.f1_score(a, b >= 0.5) for a, b in columns]))
    losses = np.concatenate(
        [-np.log(np.where(a == 1, c[k], 1 - c[k])) for (a, _), c, k in zip(columns, clipped.T, known)]
    )
    assert found["nll"] == pytest.approx(losses.mean())


# -- commands --------------------------------------------------------------------------------------------------------


def require_same_graph(run, data, frame, path, monkeypatch):
    """Export the model, and compare what the graph computes for each bag with the rows of `predict`."""
    items, prepare = [], predict.CasePredictor.prepare

    def kept(self, record):
        items.append(prepare(self, record))
        return items[-1]

    assert main(["export", str(run), "--output", str(path)]) == 0
    monkeypatch.setattr(predict.CasePredictor, "prepare", kept)
    seqssm.load(run, accelerator="cpu").predict(data)
    session = onnxruntime.InferenceSession(path)
    about = json.loads(session.get_modelmeta().custom_metadata_map["seqssm"])
    names = [one.name for one in session.get_outputs()]
    columns = about["columns"] if isinstance(about["columns"], dict) else {names[0]: about["columns"]}
    assert [*columns, "attention"] == names
    for record in items:
        features = record.item.features[record.item.order][None]
        found = dict(zip(names, session.run(None, {"features": features})))
        for name, own in columns.items():
            np.testing.assert_allclose(found[name][0], frame.loc[record.index, own].astype(float), 1e-4, 1e-4)


def test_a_number_from_fit_to_prediction(fit, cohort, tmp_path, monkeypatch):
    run = tmp_path / "run"
    words = [*data_of(cohort), "--data.target", "regression", "--data.label_column", "lesion_percent"]
    assert fit(run, *words, "--model.network", "mean", epochs=8) == 0
    assert main(["pathology", "test", str(run)]) == 0
    report = report_of(run)
    assert set(report["metrics"]) == {"mae", "rmse", "r2", "pearson"}
    assert {row["model"] for row in report["tables"][0]["rows"]} == {"mean", "ridge"}
    interval = {row["metric"]: row for row in report["tables"][1]["rows"]}
    assert interval["mae"]["2.5 %"] <= report["metrics"]["mae"] <= interval["mae"]["97.5 %"]
    model = seqssm.load(run, accelerator="cpu")
    with pytest.raises(InputError, match=r"--figures-cases mad_001: no such case; did you mean made_001"):
        model.predict(cohort[0], figures=tmp_path / "f", figures_cases="made_001, mad_001")
    with pytest.raises(InputError, match=r"--figures-cases x: no such case \(2 such ids: x, y\)"):
        model.predict(cohort[0], figures=tmp_path / "f", figures_cases="x,y")
    frame = model.predict(cohort[0], figures=tmp_path / "f", figures_cases="made_001", map="gradient")
    table = pd.read_csv(cohort[0] / "manifest.csv")
    assert np.corrcoef(frame["prediction"], table["lesion_percent"])[0, 1] > 0.3
    evidence = pd.read_csv(tmp_path / "f" / "001_made_001_attention.csv")["evidence"]
    truth = cohort[1]["made_001"].lesion
    assert evidence[truth].mean() > evidence[~truth].mean()  # in the unit of the column, per patch
    require_same_graph(run, cohort[0], frame, tmp_path / "m.onnx", monkeypatch)


@pytest.mark.parametrize("network", ["clam_mb", "srmamba"])
def test_several_labels_with_gaps(network, fit, cohort, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    words = [*data_of(cohort), "--data.target", "labels", "--data.label_columns", "[EGFR,KRAS]"]
    words += ["--model.class_weights", "balanced"]
    assert fit(run, *words, "--model.network", network, epochs=1) == 0
    assert "EGFR " in capsys.readouterr().err
    assert main(["pathology", "test", str(run)]) == 0
    report = report_of(run)
    assert set(report["metrics"]) == {"auroc", "average_precision", "f1", "nll"}
    assert {row["model"] for row in report["tables"][0]["rows"]} == {network, "logistic"}
    frame = seqssm.load(run, accelerator="cpu").predict(cohort[0])
    assert list(frame.columns[2:6]) == ["p_EGFR", "p_KRAS", "positive_EGFR", "positive_KRAS"]
    if network == "srmamba":
        require_same_graph(run, cohort[0], frame, tmp_path / "m.onnx", monkeypatch)
    for name in ("EGFR", "KRAS"):
        assert frame[f"positive_{name}"].tolist() == (frame[f"p_{name}"] >= 0.5).astype(int).tolist()


def test_several_targets_at_once(fit, cohort, tmp_path, monkeypatch):
    run = tmp_path / "run"
    kinds = {"label": "classification", "lesion_percent": "regression", "survival_months": "survival"}
    kinds |= {"EGFR": "label", "KRAS": "label"}
    table = pd.read_csv(cohort[0] / "manifest.csv", dtype=str, keep_default_na=False)
    table.loc[::5, "label"] = ""
    table.loc[1::6, "survival_months"] = ""
    table.loc[2::7, "lesion_percent"] = ""
    table.to_csv(tmp_path / "m.csv", index=False)
    words = ["--data.manifest", str(tmp_path / "m.csv"), "--data.features", str(cohort[0])]
    words += ["--data.target", "several", "--data.targets", json.dumps(kinds)]
    assert fit(run, *words, "--data.time_unit", "months", epochs=1) == 0
    assert main(["pathology", "test", str(run)]) == 0
    found = report_of(run)
    assert {"label.auroc", "lesion_percent.mae", "survival_months.c_index", "labels.auroc"} <= set(found["metrics"])
    assert {"logistic", "ridge", "cox", "kaplan_meier"} < {row["model"] for row in found["tables"][0]["rows"]}
    assert direction(metrics.METRICS, "lesion_percent.mae") == "min"
    model = seqssm.load(run, accelerator="cpu")
    frame = model.predict(cohort[0], figures=tmp_path / "f", figures_limit=1, map_output="EGFR", map="gradient")
    expected = {"label.prediction", "lesion_percent.prediction", "labels.p_KRAS", "survival_months.risk"}
    assert expected <= set(frame.columns)
    assert "survival_months.median_survival_months" in frame
    assert (frame["status"] == "ok").all()
    require_same_graph(run, cohort[0], frame, tmp_path / "m.onnx", monkeypatch)
    assert main(["pathology", "test", str(run), *words[:4]]) == 0
    written = pd.read_csv(run / "figures" / "test_records.csv")
    assert written["label.label"].isna().any()
    assert written["label.label"].notna().any()


def test_times_longer_than_a_life_and_columns_without_a_unit_are_reported(cohort, tmp_path, capsys):
    """Days in a column of months were read as months without a word; so was an external column without a unit."""
    table = pd.read_csv(cohort[0] / "manifest.csv")
    table["survival_months"] *= 3000 / table["survival_months"].max()
    table["OS"] = table["survival_months"]
    table.to_csv(tmp_path / "m.csv", index=False)
    options = {"manifest": str(tmp_path / "m.csv"), "features": str(cohort[0]), "target": "survival"}
    data = BagData(**options)
    data.setup("fit")
    assert "warning: survival_months is up to 3000 months, more than 100 years" in capsys.readouterr().err
    other = BagData(**options, time_column="OS")
    other.use_summary(data.summary(), external=True)
    other.setup("test")
    printed = capsys.readouterr().err
    assert "warning: OS is up to 3000 months" in printed
    assert "OS is read as months, the unit of the model (--data.time_unit: another one)" in printed


def test_a_column_of_splits_that_is_not_used_is_reported(cohort, tmp_path, capsys):
    table = pd.read_csv(cohort[0] / "manifest.csv")
    table.assign(split="train").to_csv(tmp_path / "m.csv", index=False)
    BagData(manifest=str(tmp_path / "m.csv"), features=str(cohort[0])).setup("fit")
    assert "warning: the column split is not used; --data.split_column split" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("column", "declared", "unit"),
    [pytest.param("os_days", None, "days", marks=pytest.mark.long), ("time", "years", "years")],
)
def test_survival_in_one_declared_unit(column, declared, unit, fit, cohort, tmp_path, capsys):
    """The unit is in the names of the outputs, and a cohort in another one is converted."""
    table = pd.read_csv(cohort[0] / "manifest.csv")
    factor = {"days": 365.25 / 12, "years": 1 / 12}[unit]
    table[column] = table["survival_months"] * factor
    table.drop(columns="survival_months").to_csv(tmp_path / "m.csv", index=False)
    words = ["--data.manifest", str(tmp_path / "m.csv"), "--data.features", str(cohort[0])]
    words += ["--data.time_column", column] + ([] if declared is None else ["--data.time_unit", declared])
    run = tmp_path / "run"
    assert fit(run, *words, "--model.network", "mean", preset="survival", epochs=1) == 0
    frame = seqssm.load(run, accelerator="cpu").predict(cohort[0])
    curve = [name for name in frame if name.startswith("S_")]
    assert all(name.endswith(f"_{unit}") for name in curve)
    assert f"median_survival_{unit}" in frame
    capsys.readouterr()
    test = ["pathology", "test", str(run), *data_of(cohort), "--data.time_column", "survival_months"]
    test += [] if declared is None else ["--data.time_unit", "months"]
    assert main([*test, "--output", str(tmp_path / "t")]) == 0
    assert f"times converted from months to {unit}" in capsys.readouterr().err
    written = pd.read_csv(tmp_path / "t" / "figures" / "test_records.csv")
    np.testing.assert_allclose(written["time"], table["survival_months"] * factor, rtol=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.target", "labels"], "--data.target labels and --data.label_columns belong together"),
        (["--data.label_columns", "[EGFR]"], "--data.target labels and --data.label_columns belong together"),
        (["--data.target", "labels", "--data.label_columns", "EGFR,KRSA"], "no column KRSA"),
        (["--data.target", "several"], "--data.target several and --data.targets belong together"),
        (["--data.target", "labels", "--data.label_columns", "[EGFR,KRSA]"], "no column KRSA"),
        (["--data.target", "labels", "--data.label_columns", "[label]"], "label is 'normal'; expected 1 or 0"),
        (["--data.target", "regression", "--data.label_column", "label"], "label is 'normal', not a number"),
        (["--data.target", "several", "--data.targets", '{"label": "class"}'], "--data.targets"),
        (["--data.target", "several", "--data.targets", '{"none": "label"}'], "no column none"),
        (["--data.target", "several", "--data.targets", '{"label": "regression"}'], "label is 'normal', not a number"),
        (
            ["--data.target", "several", "--data.targets", '{"labels": "classification", "EGFR": "label"}'],
            "--data.targets labels: this is the name of the targets of kind label; rename the column",
        ),
    ],
)
def test_wrong_targets_are_one_line(words, message, fit, cohort, tmp_path, capsys):
    assert fit(tmp_path / "run", *data_of(cohort), *words) == 2
    assert message in capsys.readouterr().err


def test_a_config_needs_a_list_in_the_notation_of_yaml(fit, cohort, tmp_path, capsys):
    config = tmp_path / "own.yaml"
    config.write_text("data:\n  class_path: seqssm_pathology.data.BagData\n  init_args: {label_columns: 'EGFR,KRAS'}\n")
    assert fit(tmp_path / "run", *data_of(cohort), "--config", str(config)) == 2
    assert "not EGFR,KRAS; write [EGFR,KRAS]" in capsys.readouterr().err


def test_a_number_that_is_a_feature_is_refused(fit, tmp_path, capsys):
    generator = np.random.default_rng(0)
    ids, age = [f"p{k}" for k in range(30)], np.round(generator.normal(60, 9, size=30), 1)
    pd.DataFrame({"id": ids, "A": generator.normal(size=30), "age": age}).to_csv(tmp_path / "v.csv", index=False)
    pd.DataFrame({"case_id": ids, "age": age}).to_csv(tmp_path / "m.csv", index=False)
    words = ["--data.manifest", str(tmp_path / "m.csv"), "--data.features", str(tmp_path / "v.csv")]
    assert fit(tmp_path / "run", *words, "--data.target", "regression", "--data.label_column", "age") == 2
    assert "column age duplicates the answer" in capsys.readouterr().err


def test_a_teacher_of_other_classes_is_refused(run, fit, cohort, tmp_path, capsys):
    """Classes renamed so that their order reverses: the AUROC of the student was .25."""
    frame = pd.read_csv(cohort[0] / "manifest.csv")
    frame["label"] = frame["label"].map({"normal": "z_normal"}).fillna(frame["label"])
    frame.to_csv(tmp_path / "renamed.csv", index=False)
    words = ["--data.manifest", str(tmp_path / "renamed.csv"), "--data.features", str(cohort[0])]
    assert fit(tmp_path / "student", *words, "--model.teacher", str(run)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("seqssm: --model.teacher: its classes are ")
    assert "z_normal" in error.partition("; the model's are ")[2]
    assert fit(tmp_path / "student", *words, "--model.init_from", str(run), epochs=1) == 0
    assert "warning: other classes (there " in capsys.readouterr().out


def test_a_teacher_with_another_number_of_time_bins_is_refused_by_the_option(fit, cohort, tmp_path, capsys):
    words = [*data_of(cohort), "--data.target", "survival"]
    assert fit(tmp_path / "teacher", *words, "--data.bins", "3", epochs=1) == 0
    assert fit(tmp_path / "student", *words, "--data.bins", "2", "--model.teacher", str(tmp_path / "teacher")) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error == "seqssm: --model.teacher: was trained with --data.bins 3, not 2"


def test_a_student_tested_on_records_of_its_teacher_is_reported(run, fit, cohort, tmp_path, capsys):
    assert fit(tmp_path / "same", *data_of(cohort), "--model.teacher", str(run), epochs=1) == 0
    assert "too good" not in capsys.readouterr().out
    assert fit(tmp_path / "other", *data_of(cohort), "--data.fold", "1", "--model.teacher", str(run), epochs=1) == 0
    (line,) = [one for one in json.loads((tmp_path / "other/about.json").read_text())["notes"] if "too good" in one]
    assert line.startswith(f"warning: the model of --model.teacher {run} was ")
