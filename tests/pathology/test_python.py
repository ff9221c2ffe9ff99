"""The domain from Python: plain Lightning without the command line, `seqssm.fit`, arrays in memory, embeddings."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch import Trainer
from seqssm_pathology import AbMil, BagData, MambaMIL, PathologyTask, TransMil

import seqssm


def trainer() -> Trainer:
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    return Trainer(max_epochs=1, enable_model_summary=False, num_sanity_val_steps=0, **options)


@pytest.mark.parametrize(("target", "bins"), [("classification", 4), ("survival", 3)])
def test_lightning_alone_trains_and_tests(target, bins, cohort, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = BagData(manifest=str(cohort[0] / "manifest.csv"), features=str(cohort[0]), target=target, bins=bins)
    task = PathologyTask(network="abmil", d_model=8, pool_width=4)
    own = trainer()
    own.fit(task, datamodule=data)
    assert task.hparams["target"] == target
    assert task.hparams["num_classes"] == (2 if target == "classification" else 3)
    assert isinstance(task.model, AbMil)
    own.test(task, datamodule=data, verbose=False)
    scores = {"classification": ["accuracy", "auroc"], "survival": ["c_index", "ibs", "log_rank_p"]}[target]
    assert set(scores) <= set(task.report.metrics)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "bogus"}, "unknown network"),
        ({"network": "srmama"}, "did you mean srmamba"),
        ({"network": "abmil", "stride": 3}, "not an argument of the network abmil, which srmamba has"),
        ({"d_modle": 3}, "no argument d_modle; did you mean d_model"),
        ({"stride": 0}, "--model.stride 0: must be at least 1"),
        ({"network": "transmil", "heads": 3}, "--model.d_model 512 is not divisible by --model.heads 3"),
        ({"pad_to_stride": True, "importance": True}, "remove --model.pad_to_stride"),
        ({"dropout": 1.0}, "--model.dropout 1.0: must be in"),
        ({"alpha": 2.0}, "--model.alpha 2.0: must be in"),
    ],
)
def test_wrong_arguments_are_refused_before_any_data_is_read(options, message):
    with pytest.raises(seqssm.InputError, match=message):
        PathologyTask(**options)


def test_networks_are_classes_whose_signature_is_their_configuration():
    model = MambaMIL(6, 3, stride=4, d_model=8, layers=1, d_state=2)
    assert model.blocks[0].mixer.ordering[1].name == "stride"
    out = model(torch.randn(5, 6), torch.tensor([0, 2, 5], dtype=torch.int32), [2, 3])
    assert out.logits.shape == (2, 3)
    with pytest.raises(TypeError):
        TransMil(6, 3, stride=4)
    with pytest.raises(TypeError):
        MambaMIL(6, 3, strid=4)


def test_old_names_are_accepted(cohort, fit, tmp_path):
    words = ["--data.manifest", str(cohort[0] / "manifest.csv"), "--data.features", str(cohort[0])]
    words += ["--model.rate", "3", "--model.padding", "published", "--model.regime", "positive", "--model.piece", "9"]
    assert fit(tmp_path / "run", *words, epochs=1) == 0
    options = torch.load(tmp_path / "run" / "best.ckpt", weights_only=True)["seqssm"]["hparams"]
    assert options["stride"] == 3
    assert options["pad_to_stride"] is True
    assert options["positive_definite"] is True
    assert options["chunk_size"] == 9
    assert "rate" not in options


def test_arrays_in_memory_and_embeddings(run, cohort):
    model = seqssm.load(run, accelerator="cpu")
    bag = cohort[1]["made_001"].bag
    expected = model.predict(cohort[0] / "h5_files" / "made_001.h5")
    found = model.predict({"a": (bag.features, bag.coords), "b": bag.features, "c": bag.features[:, :3]})
    assert list(found["id"]) == ["a", "b", "c"]
    assert list(found["status"]) == ["ok", "ok", "failed"]
    assert found["p_lesion"][0] == pytest.approx(expected["p_lesion"][0], abs=1e-6)
    assert "width 3; the model was trained on 6" in found["reason"][2]
    with pytest.raises(seqssm.InputError, match="a DataFrame cannot be predicted"):
        model.predict(pd.DataFrame({"x": [1.0]}))
    features = model.embed(cohort[0])
    assert len(features) == 24
    assert features.filter(regex="^e[0-9]").shape[1] == 8
    assert np.isfinite(features["e0"]).all()


def frame_of(cohort) -> pd.DataFrame:
    return pd.read_csv(cohort[0] / "manifest.csv")


SMALL = {"network": "abmil", "d_model": 8, "pool_width": 4}
QUICK = {"max_epochs": 1, "accelerator": "cpu"}


@pytest.mark.parametrize("named", ["path", "path only", "slide_id", "features"])
def test_a_frame_trains_and_tests_like_its_file(cohort, tmp_path, monkeypatch, capsys, named):
    """Bags by a column of paths, by slide ids that are files, or in a folder."""
    folder = cohort[0]
    plain = {"manifest": str(folder / "manifest.csv"), "features": str(folder)}
    expected = seqssm.fit("pathology", data=plain, model=SMALL, trainer=QUICK, output=tmp_path / "a").test().metrics
    frame = frame_of(cohort)
    files = [f"h5_files/{name}.h5" for name in frame["slide_id"]]
    monkeypatch.chdir(folder)
    data: object = frame
    if named == "features":
        data = {"manifest": frame, "features": str(folder)}
    elif named == "slide_id":
        frame["slide_id"] = files
    else:
        frame["path"] = files
        data = frame.drop(columns="slide_id") if named == "path only" else frame
    capsys.readouterr()
    model = seqssm.fit("pathology", data=data, model=SMALL, trainer=QUICK, output=tmp_path / "b")
    assert "seqssm predict" in capsys.readouterr().out
    assert model.test().metrics == expected
    assert list(model.predict("h5_files")["status"]) == ["ok"] * len(frame)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame, "DataFrame: does not specify bags: add a column path, or pass features"),
        (lambda frame: frame.assign(path="no.h5"), "column path: no such file: no.h5"),
        (lambda frame: frame.drop(columns="label").assign(path="manifest.csv"), "has no column label"),
        (lambda frame: frame.iloc[:0], "DataFrame: "),
    ],
)
def test_frames_that_cannot_be_used(cohort, tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(cohort[0])
    with pytest.raises(seqssm.InputError, match=message):
        seqssm.fit("pathology", data=change(frame_of(cohort)), model=SMALL, trainer=QUICK, output=tmp_path / "run")
    assert not (tmp_path / "run" / "best.ckpt").exists()


def test_lightning_alone_takes_a_frame(cohort):
    data = BagData(manifest=frame_of(cohort), features=str(cohort[0]))
    task = PathologyTask(**SMALL)
    trainer().fit(task, datamodule=data)
    assert data.hparams["manifest"] is None
    assert len(data.train_set) > 10
    with pytest.raises(seqssm.InputError, match=r"specify --data.manifest FILE and --data.features FOLDER"):
        BagData().setup()
