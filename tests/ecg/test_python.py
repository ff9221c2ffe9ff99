"""The domain from Python: frames, arrays, features, plain Lightning, importable networks."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch import Trainer
from seqssm_ecg import EcgData, EcgMamba, EcgTask, ResidualCnn, simulate
from seqssm_ecg.files import write_wfdb

import seqssm
from seqssm.errors import InputError

CLASSES = list(simulate.CLASSES)
P = [f"p_{name}" for name in CLASSES]


@pytest.fixture(scope="module")
def model(trained):
    return seqssm.load(trained, "cpu")


def test_arrays_in_memory_give_what_files_give(model, tmp_path):
    values = simulate.recording(["AF"], 9.0, 250.0, 5)
    write_wfdb(tmp_path, "r", values, 250.0)
    expected = model.predict(tmp_path)[P].to_numpy()
    table = np.stack(list(values.values()))
    for data in (table, table.T, [table], table[None], dict(reversed(values.items())), [values]):
        found = model.predict(data, array_rate_hz=250.0)
        assert found["id"].tolist() == ["array 0"]
        np.testing.assert_allclose(found[P].to_numpy(), expected, atol=2e-3)
    found = model.predict(1000 * table, array_rate_hz=250.0, array_unit="uV")
    np.testing.assert_allclose(found[P].to_numpy(), expected, atol=2e-3)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (np.zeros((12, 500)), {}, r"need a sampling rate: .*fit --data\.array_rate_hz"),
        (np.zeros((7, 500)), {"array_rate_hz": 100.0}, r"pass its leads .*fit --data\.array_leads"),
        (np.zeros(500), {"array_rate_hz": 100.0}, r"has shape \(500,\)"),
        ([["a"]], {"array_rate_hz": 100.0}, "not an array of numbers"),
        (np.ones((12, 500)) + 1j, {"array_rate_hz": 100.0}, "holds complex128, not real numbers"),
        (np.ones((12, 500), dtype=bool), {"array_rate_hz": 100.0}, "holds bool, not real numbers"),
        (np.zeros((12, 500)), {"array_rate_hz": 100.0}, "all leads flat"),
    ],
)
def test_a_bad_array_keeps_its_row(model, data, options, message):
    table = model.predict(data, **options)
    assert table["status"].tolist() == ["failed"]
    assert table["reason"].str.contains(message).all()


def test_features_are_one_vector_per_record(model, made, tmp_path):
    write_wfdb(tmp_path, "long", simulate.recording([], 30.0, 250.0, 5), 250.0)
    table = model.embed([made / "M00000.hea", tmp_path / "long.hea"])
    features = [name for name in table if name.startswith("e")]
    assert len(features) == 16
    assert np.isfinite(table[features].to_numpy()).all()


def test_a_manifest_in_memory(made, monkeypatch):
    monkeypatch.chdir(made)
    frame = pd.read_csv(made / "manifest.csv")
    small = {"d_model": 8, "depth": 1, "d_state": 4, "threads": 1}
    found = seqssm.fit("ecg", data=frame, model=small, trainer={"max_epochs": 1, "accelerator": "cpu"})
    assert "auroc" in found.test().metrics
    assert len(found.predict(made / "M00000.hea")) == 1


@pytest.mark.parametrize("network", ["mamba", "cnn"])
def test_plain_lightning(made, tmp_path, network):
    data = EcgData(manifest=str(made / "manifest.csv"), window_s=4)
    task = EcgTask(network=network, d_model=8)
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(task, datamodule=data)
    assert task.hparams["classes"] == CLASSES
    assert (task.hparams["lead_set"], task.hparams["window_s"]) == (12, 4)


def test_networks_are_importable_classes():
    x = torch.randn(2, 3, 500)
    assert EcgMamba(leads=3, window=500, d_model=8, depth=1)(x).shape == (2, 8)
    assert ResidualCnn(leads=3, d_model=8)(x).shape == (2, 16)
    for arguments in ({"network": "bogus"}, {"network": "cnn", "depth": 2}, {"d_modl": 3}, {"d_model": 0}):
        with pytest.raises(InputError):
            EcgTask(classes=["a"], lead_set=12, window_s=1, sampling_rate_hz=100, **arguments).build_model()


def test_options_from_python_have_the_types_of_python(model):
    """NumPy's numbers were an internal error of each record, and dicts one of the whole call."""
    values = np.stack(list(simulate.recording(["AF"], 9.0, 250.0, 5).values()))
    leads = list(simulate.recording(["AF"], 9.0, 250.0, 5))
    expected = model.predict(values, array_rate_hz=250)[P].to_numpy()
    for rate in (np.float32(250), np.float16(250), np.int64(250), torch.tensor(250.0)):
        found = model.predict(values, array_rate_hz=rate, array_leads=np.array(leads))
        np.testing.assert_array_equal(found[P].to_numpy(), expected)
    own = {f"own {name}": row for name, row in zip(leads, values)}
    found = model.predict(own, array_rate_hz=250, lead_map={f"own {name}": name for name in leads})
    np.testing.assert_array_equal(found[P].to_numpy(), expected)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (None, {}, r"expected files, or data in memory, not None"),
        (5, {}, r"expected files, or data in memory, not 5 \(int\)"),
        ({}, {}, "no inputs: the dict is empty"),
        (iter([]), {}, "no inputs: the list is empty"),
        ([], {}, "no inputs: the list is empty"),
        ("a", {"batch_size": True}, r"batch_size: expected a whole number, not True \(bool\)"),
        ("a", {"array_leads": {"I": 1}}, "array_leads: expected a list, not dict"),
        ("a", {"lead_map": 3}, "--lead-map 3: expected NAME=LEAD"),
    ],
)
def test_arguments_of_predict_are_checked(model, data, options, message):
    with pytest.raises(InputError, match=message):
        model.predict(data, **options)


def test_a_frame_is_a_recording_with_a_column_per_lead(model):
    values = simulate.recording(["AF"], 9.0, 250.0, 5)
    expected = model.predict(values, array_rate_hz=250)[P].to_numpy()
    found = model.predict(pd.DataFrame(values).iloc[:, ::-1], array_rate_hz=250)
    np.testing.assert_array_equal(found[P].to_numpy(), expected)
    with pytest.raises(InputError, match="a manifest cannot be predicted: pass its recordings"):
        model.predict(pd.DataFrame({"path": ["a.npy"], "labels": ["AF"]}))


def test_the_hint_after_a_fit_has_the_rate_of_arrays(tmp_path):
    """Without it, every record failed."""
    rows = []
    for number in range(12):
        values = np.stack(list(simulate.recording([CLASSES[number % 2]], 4.0, 100.0, number).values()))
        np.save(tmp_path / f"r{number}.npy", values)
        rows.append({"path": f"r{number}.npy", "labels": CLASSES[number % 2], "rate_hz": 100})
    pd.DataFrame(rows).to_csv(tmp_path / "m.csv", index=False)
    data = EcgData(manifest=str(tmp_path / "m.csv"), window_s=2)
    data.setup("fit")
    assert data.predict_words() == [str(tmp_path), "--array-rate-hz", "100"]


def test_a_frame_with_a_lead_twice_is_no_recording(model):
    """The second column replaced the first."""
    frame = pd.DataFrame(simulate.recording(["AF"], 9.0, 250.0, 5))
    found = model.predict(pd.concat([frame, -frame[["I"]]], axis=1), array_rate_hz=250)
    assert (found.status[0], found.reason[0]) == ("failed", "array 0: duplicate lead I")
    with pytest.raises(InputError, match="lead map V1=FOO: FOO is not one of I"):
        model.predict(frame, array_rate_hz=250, lead_map={"V1": "FOO"})
    with pytest.raises(InputError, match="batch_size None: must be at least 1"):
        model.predict(frame, array_rate_hz=250, batch_size=None)


def test_arrays_with_a_line_per_lead(model, tmp_path):
    """A CSV file with leads in rows took the first samples for leads, and ended in an internal error if it had few."""
    values = np.stack(list(simulate.recording(["AF"], 9.0, 250.0, 5).values()))
    expected = model.predict(torch.tensor(values, requires_grad=True), array_rate_hz=250)[P].to_numpy()
    np.savetxt(tmp_path / "rows.csv", values, delimiter=",")
    np.savetxt(tmp_path / "columns.csv", values.T, delimiter=",")
    np.savetxt(tmp_path / "short.csv", values[:, :2], delimiter=",")
    found = model.predict([tmp_path / f"{name}.csv" for name in ("rows", "columns", "short")], array_rate_hz=250)
    np.testing.assert_allclose(found[P].to_numpy()[:2], np.repeat(expected, 2, axis=0), atol=1e-6)
    assert "is shorter than a second (2 samples)" in found.reason[2]


def test_a_column_of_times_of_a_data_frame_gives_the_rate(model):
    """The option won in silence, and without it the frame was refused."""
    values = pd.DataFrame(simulate.recording(["AF"], 9.0, 250.0, 5))
    expected = model.predict(values, array_rate_hz=250)[P].to_numpy()
    timed = values.assign(time=np.arange(len(values)) / 250)
    np.testing.assert_array_equal(model.predict(timed)[P].to_numpy(), expected)
    refused = model.predict(timed, array_rate_hz=500)
    assert "column time: 250 samples per second, but the sampling rate is given as 500 Hz" in refused["reason"].iloc[0]
