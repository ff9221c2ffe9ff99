"""What a run keeps of its inputs: contents of the same shape that have changed are noticed, copies are not."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from seqssm.domain import find_domain, resolve
from seqssm.training.unchanged import INPUTS, digests, trained_on


def write_genome(folder: Path, seed: int) -> dict:
    letters = random.Random(1).choices("ACGT", k=6000)
    letters[100] = "ACGT"[seed]
    (folder / "g.fa").write_text(">one\n" + "".join(letters) + "\n")
    return {"fasta": str(folder / "g.fa"), "context": 64}


def write_bags(folder: Path, seed: int) -> dict:
    from seqssm_pathology import simulate
    from seqssm_pathology.files import read_bag, write_bag

    simulate.cohort(folder, cases=12, seed=3, width=4)
    path = sorted(folder.glob("**/*.h5"))[0]
    bag = read_bag(path)
    bag.features[0, 0] += seed
    write_bag(path, bag, "simulated")
    return {"manifest": str(folder / "manifest.csv"), "features": str(folder), "folds": 3}


def write_values(folder: Path, seed: int) -> dict:
    from seqssm_pathology import simulate

    simulate.cohort(folder, cases=12, seed=3, width=4)
    ids = pd.read_csv(folder / "manifest.csv")["case_id"].unique()
    table = pd.DataFrame(np.arange(len(ids) * 3.0).reshape(-1, 3), ids, ["A", "B", "C"])
    table.iloc[0, 0] += seed + 0.5
    table.to_csv(folder / "values.csv", index_label="case_id")
    return {"manifest": str(folder / "manifest.csv"), "features": str(folder / "values.csv"), "folds": 3}


def write_signals(folder: Path, seed: int) -> dict:
    from seqssm_ecg import simulate

    simulate.folder(folder, 12, seed=3, seconds=2.0)
    if seed:
        signal = sorted(folder.glob("**/*.mat"))[0]
        content = bytearray(signal.read_bytes())
        content[-2] ^= 1
        signal.write_bytes(bytes(content))
    return {"manifest": str(folder / "manifest.csv"), "deduplicate": False, "checksums": "ignore"}


def write_covariates(folder: Path, seed: int) -> dict:
    rows = np.arange(120)
    table = pd.DataFrame({"date": pd.date_range("2024-01-01", periods=120, freq="h"), "y": rows % 7.0, "p": rows % 5.0})
    table.loc[3, "p"] += seed
    table.to_csv(folder / "v.csv", index=False)
    return {"file": str(folder / "v.csv"), "lookback": 12, "horizon": 3, "future_columns": ["p"]}


def write_statics(folder: Path, seed: int) -> dict:
    options = write_covariates(folder, 0)
    (folder / "s.csv").write_text(f"id,size\ny,{3 + seed}\n")
    return {**options, "static_file": str(folder / "s.csv")}


@pytest.mark.parametrize(
    ("domain", "write"),
    [
        ("dna", write_genome),
        ("pathology", write_bags),
        ("pathology", write_values),
        ("ecg", write_signals),
        ("forecasting", write_covariates),
        ("forecasting", write_statics),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_changed_contents_of_equal_shape_are_noticed_and_copies_are_not(tmp_path, one_thread, domain, write):
    found = []
    for name, seed in (("first", 0), ("changed", 1)):
        (tmp_path / name).mkdir()
        options = write(tmp_path / name, seed)
        shutil.copytree(tmp_path / name, tmp_path / f"{name}-copied")
        for folder in (tmp_path / name, tmp_path / f"{name}-copied"):
            own = {
                key: value.replace(str(tmp_path / name), str(folder)) if isinstance(value, str) else value
                for key, value in options.items()
            }
            data = resolve(find_domain(domain).data)(**own)
            data.setup("fit")
            found.append((digests(data)[INPUTS], [data.identities(split) for split in ("train", "val", "test")]))
    assert found[0] == found[1]
    assert found[2] == found[3]
    assert found[0][1] == found[2][1], "the records are the same"
    assert found[0][0].keys() == found[2][0].keys() == {"train", "val", "test"}
    changed = [split for split in found[0][0] if found[0][0][split] != found[2][0][split]]
    assert changed, "their contents are not"
    assert changed == ["train"] or domain != "dna"


def test_records_that_a_run_was_trained_on_are_found():
    """After a change of the data, records of the training split were tested without a word."""

    class Data:
        positional = ()

        def __init__(self, *rows):
            self.rows = list(rows)

        def identities(self, split):
            assert split in ("test", "val")
            return self.rows

    kept = [
        {"split": "train", "id": "1", "patient": "p", "hash": "a"},
        {"split": "val", "id": "2", "patient": "q", "hash": "b"},
        {"split": "test", "id": "3", "patient": "r", "hash": "a"},  # the same record twice, from the beginning
        {"split": "test", "id": "4", "patient": "s", "hash": "d"},
    ]
    same = [{name: value for name, value in row.items() if name != "split"} for row in kept[2:]]
    assert trained_on(kept, Data(*same)) == []
    assert trained_on(kept, Data(*same, {"id": "5", "patient": "t", "hash": "e"})) == []
    assert trained_on(kept, Data(*same, {"id": "5", "patient": "p", "hash": "e"})) == ["5"]
    assert trained_on(kept, Data({"id": "2", "patient": "", "hash": "x"})) == ["2"]
    assert trained_on(kept, Data({"id": "2", "patient": "q", "hash": "b"}), "val") == []
    assert trained_on(kept, Data({"id": "1", "patient": "p", "hash": "b"}), "val") == ["1"]
    lines = Data({"id": "2", "patient": "", "hash": "x"}, {"id": "1", "patient": "", "hash": "b"})
    lines.positional = ("id",)  # the numbers of lines
    assert trained_on(kept, lines) == ["1"]
