"""Real bags: the shared sets, the folder of broken files, the commands of the README. Needs SEQSSM_DATA."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from seqssm_pathology import manifest as m
from seqssm_pathology import splits
from seqssm_pathology.answers import Columns
from seqssm_pathology.data import BagData
from seqssm_pathology.files import list_bags, read_bag
from seqssm_pathology.ranges import Profile, Ranges
from seqssm_pathology.values import by_family, read_values

import seqssm
from seqssm import orders
from seqssm.cli.main import main
from seqssm.errors import InputError
from seqssm.files.datasets import search

pytestmark = pytest.mark.skipif(
    search("pathology", "musk1") is None, reason="SEQSSM_DATA names no folder with pathology/musk1 in it"
)

WIDTHS = {"musk1": 166, "elephant": 230, "ucsb_breast": 708}
HASHES = {
    "musk1": "acd66db922cae8ae351137b5d354b4f4a547d32eb50a13d67c93528b461ecf73",
}
"""SHA-256 of the float32 features of all bags, in the order of labels.csv."""
REFUSED = {
    "empty.h5": "no patches",
    "nan.h5": "3 of 40 patches",
    "coords_too_short.h5": "expected one x, y per patch",
    "no_features.h5": "the encoder has not been run",
    "truncated.h5": "corrupt",
    "zero_bytes.h5": "0 bytes",
    "not_hdf5.h5": "not an HDF5 file",
}


def folder(name: str) -> Path:
    found = search("pathology", name)
    if found is None:
        pytest.skip(f"pathology/{name} is not in SEQSSM_DATA")
    return found


@pytest.fixture(autouse=True)
def _no_seed_left_behind(one_thread, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.delenv("PL_GLOBAL_SEED")


def edge(name: str) -> Path:
    return folder("edge_cases") / name


# -- files -----------------------------------------------------------------------------------------------------------


def test_every_edge_case_is_read_or_refused_as_expected():
    expected = json.loads(edge("expected.json").read_text())
    good = read_bag(edge("bags/good.h5"))
    for name in expected:
        if name.startswith("manifests/"):
            continue
        path = edge(f"bags/{name}")
        if name in REFUSED:
            with pytest.raises(InputError, match=REFUSED[name]) as error:
                read_bag(path)
            assert str(path) in str(error.value)
            continue
        bag = read_bag(path)
        assert bag.features.dtype == np.float32
        if name in ("batch_axis.h5", "batch_axis_both.h5", "float64.h5", "plain_tensor.pt", "dict.pt"):
            np.testing.assert_allclose(bag.features, good.features, rtol=1e-6)
    assert read_bag(edge("bags/nan.h5"), invalid="drop").dropped == 3
    assert read_bag(edge("bags/other_key.h5")).features.shape == (40, 166)  # feats, as STAMP writes it
    assert read_bag(edge("bags/other_key.h5"), key="feats").features.shape == (40, 166)
    assert read_bag(edge("bags/trident_attrs.h5")).patch == 512
    assert read_bag(edge("bags/plain_tensor_batch_axis.pt")).features.shape == (40, 166)
    assert read_bag(edge("bags/one_instance_1d.h5")).features.shape == (1, 166)


def test_shuffled_coordinates_are_visited_row_by_row():
    good, shuffled = read_bag(edge("bags/good.h5")), read_bag(edge("bags/shuffled_coords.h5"))
    order = orders.row_major(torch.from_numpy(shuffled.coords)).numpy()
    np.testing.assert_array_equal(shuffled.features[order], good.features)


MANIFESTS = {
    "svs_suffix": 20, "index_column": 20, "string_labels": 92, "missing_bag": 11, "several_slides_per_case": 10,
    "ids_ending_in_svs_letters": 3,
}  # fmt: skip


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests(name):
    found = m.read_manifest(edge(f"manifests/{name}.csv"), "classification")
    assert len(found.cases) == MANIFESTS[name]
    if name == "ids_ending_in_svs_letters":
        assert [slide for case in found.cases.values() for slide in case.slides] == ["caseA_vs", "caseB_s", "caseC.vvs"]
    if name == "svs_suffix":
        assert set(found.cases) <= set(list_bags(folder("musk1")))


@pytest.mark.parametrize(
    ("name", "target", "message"),
    [
        ("duplicate_slide", "classification", "two values of label"),
        ("no_label", "classification", "no column label"),
        ("nan_label", "classification", "line 5: empty label|line 6: empty label"),
        ("survival_bad", "survival", "survival_months"),
        ("survival_conflict", "survival", "two values of time"),
    ],
)
def test_broken_manifests(name, target, message):
    with pytest.raises(InputError, match=message):
        m.read_manifest(edge(f"manifests/{name}.csv"), target)


def test_survival_manifests(capsys):
    plain = m.read_manifest(edge("manifests/survival_ok.csv"), "survival")
    events = m.read_manifest(
        edge("manifests/survival_event_column.csv"), "survival", Columns(time="survival_days", event="event")
    )
    assert [case.censored for case in plain.cases.values()] == [case.censored for case in events.cases.values()]
    assert "inverted" not in capsys.readouterr().err
    inverted = Columns(event="censorship")
    flipped = m.read_manifest(folder("gbmlgg") / "labels.csv", "survival", inverted)
    assert len(flipped.cases) == 569
    assert "suggests 1 = censored" in capsys.readouterr().err
    assert len(m.read_manifest(edge("manifests/survival_bad.csv"), "survival", invalid="drop").cases) == 37


@pytest.mark.parametrize(
    ("name", "message"),
    [("splits_case_straddles", "musk1_000 is in train and in val"), ("splits_unknown_id", "musk1_999 is not in")],
)
def test_broken_splits(name, message):
    known = m.read_manifest(folder("musk1") / "labels.csv", "classification")
    with pytest.raises(InputError, match=message):
        splits.read_split(edge(f"manifests/{name}.csv"), known)
    assert splits.read_split(edge("manifests/splits_empty_val.csv"), known)["val"] == []


@pytest.mark.parametrize("name", WIDTHS)
def test_features_of_the_sets_do_not_contain_the_label(name):
    found = m.read_manifest(folder(name) / "labels.csv", "classification")
    bags = list_bags(folder(name))
    assert set(bags) == set(found.cases)
    digest = hashlib.sha256()
    for case in found.cases:
        bag = read_bag(bags[case])
        assert bag.features.shape[1] == WIDTHS[name]
        digest.update(bag.features.astype("<f4").tobytes())
    if name in HASHES:
        assert digest.hexdigest() == HASHES[name]


def test_the_leaked_column_is_refused(tmp_path):
    """The set as in some public copies, with the label as column 167."""
    from seqssm_pathology.files import Bag, write_bag

    found = m.read_manifest(folder("musk1") / "labels.csv", "classification")
    for case, file in list_bags(folder("musk1")).items():
        bag = read_bag(file)
        label = np.full((len(bag), 1), float(found.cases[case].label), dtype=np.float32)
        write_bag(tmp_path / f"{case}.h5", Bag(case, np.concatenate([bag.features, label], axis=1)), "leak")
    data = BagData(manifest=str(folder("musk1") / "labels.csv"), features=str(tmp_path))
    with pytest.raises(InputError, match=r"feature 166 \(of 167, from 0\) duplicates the answer"):
        data.setup("fit")


def test_published_folds_test_every_bag_once():
    tested = []
    for fold in range(10):
        data = BagData(dataset="musk1", folds="published", fold=fold, inner=0.0)
        data.setup("fit")
        assert len(data.val_set) == 0
        tested += [case.id for case in data.test_set.cases]
    assert len(tested) == len(set(tested)) == 92


def test_glioma_bins_come_from_the_training_split():
    edges = []
    for fold in range(5):
        data = BagData(dataset="gbmlgg", target="survival", folds="published", fold=fold, inner=0.0, order="family")
        data.setup("fit")
        assert (data.tokens, data.num_classes) == (1590, 4)
        assert not {case.id for case in data.train_set.cases} & {case.id for case in data.test_set.cases}
        edges.append(list(data.heads[0].edges)[1:-1])
    low, high = np.min(edges, axis=0), np.max(edges, axis=0)
    np.testing.assert_allclose(low, [8.87, 16.75, 32.2], atol=0.05)
    np.testing.assert_allclose(high, [9.99, 17.66, 33.3], atol=0.05)
    table = read_values(folder("gbmlgg") / "genomics.h5")
    order = by_family(table.columns, folder("gbmlgg") / "gene_signatures.csv")
    assert sorted(order.tolist()) == list(range(1590))


# -- commands --------------------------------------------------------------------------------------------------------


def test_the_readmes_commands_on_musk1(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["pathology", "fit", "--config", "musk1", "--trainer.max_epochs", "3", "--output", "run"]) == 0
    assert main(["pathology", "test", "run"]) == 0
    assert "logistic " in capsys.readouterr().out
    bags = folder("musk1") / "h5_files"
    assert main(["predict", "run/best.ckpt", str(bags), "--output", "out.csv"]) == 0
    table = pd.read_csv("out.csv")
    assert len(table) == 92
    assert list(table["id"]) == sorted(os.path.splitext(name)[0] for name in os.listdir(bags))


def test_predictions_of_broken_files_keep_their_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["pathology", "fit", "--config", "musk1", "--trainer.max_epochs", "1", "--output", "run"]) == 0
    files = [str(path) for path in sorted(edge("bags").iterdir())]
    assert main(["predict", "run", *files, "--output", "out.csv"]) == 3
    table = pd.read_csv("out.csv", keep_default_na=False).set_index("id")  # one file is called nan
    assert len(table) == len(files)
    failed = set(table.index[table["status"] == "failed"])
    assert failed == {name.rsplit(".", 1)[0] for name in REFUSED} | {"wrong_dim", "extra_label_column"}


def test_a_heat_map_of_the_real_region(tmp_path, monkeypatch):
    """The bag has no label: the map comes from a model trained on simulated slides of its width."""
    from seqssm_pathology import simulate

    monkeypatch.chdir(tmp_path)
    simulate.cohort(tmp_path / "made", cases=15, seed=1, width=46)
    words = ["--config", "srmamba", "--data.manifest", "made/manifest.csv", "--data.features", "made"]
    words += ["--model.d_model", "16", "--model.layers", "1", "--trainer.max_epochs", "1", "--output", "run"]
    assert main(["pathology", "fit", *words]) == 0
    frame = seqssm.load("run", accelerator="cpu").predict(folder("cmu1_region") / "h5_files", figures="figs")
    assert frame["patches"][0] == 142
    attention = pd.read_csv(next(Path("figs").glob("*_attention.csv")))
    assert attention["x"].between(384, 1792).all()
    assert attention["y"].between(128, 2816).all()
    assert next(Path("figs").glob("*_heat.png")).stat().st_size > 5000


@pytest.mark.parametrize("name", ["musk1", "elephant", "ucsb_breast", "gbmlgg"])
def test_bags_of_other_encoders_are_unusual_and_held_out_bags_are_not(name):
    root = folder(name)
    if name == "gbmlgg":
        bags = list(read_values(root / "genomics.h5").values.astype(np.float64))
    else:
        bags = [read_bag(file).features.astype(np.float64) for file in list_bags(root).values()]
    rng = np.random.default_rng(0)
    changes = {
        "held out": lambda x: x,
        "times 20": lambda x: 20 * x,
        "times 0.01": lambda x: 0.01 * x,
        "zeros": np.zeros_like,
        "one norm": lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True),
        "repeated": lambda x: np.repeat(x, 50, axis=0),
        "permuted": lambda x: rng.permutation(x.T).T,
        "noise": lambda x: rng.normal(size=(20, x.shape[-1])),
        "one patch": lambda x: np.repeat(x[:1], 20, axis=0),
    }
    counts: dict[str, int] = dict.fromkeys(changes, 0)
    for fold in range(10):
        held = np.arange(len(bags)) % 10 == fold
        ranges = Ranges.fit([Profile.of(bag) for bag, out in zip(bags, held) if not out])
        for bag in (bag for bag, out in zip(bags, held) if out):
            for what, change in changes.items():
                if bag.ndim == 2 or what not in ("repeated", "one norm", "noise", "one patch"):
                    counts[what] += bool(ranges.remark(Profile.of(change(bag))))
    print(name, len(bags), counts)
    assert counts["held out"] < 0.01 * len(bags)
    assert counts["times 20"] == counts["times 0.01"] == counts["zeros"] == len(bags)
    if name == "gbmlgg":  # its columns are z-scores, and are matched by name
        return
    assert counts["repeated"] == counts["held out"]
    assert counts["one norm"] == counts["one patch"] == len(bags)
    assert counts["permuted"] > 0.9 * len(bags)
    assert counts["noise"] > 0.9 * len(bags)
