"""Runs and checkpoints of version 0.1.0 still predict, test and resume, and networks still start from the same weights.

The fixtures beside this file (`runs`, `expected`, `hashes.json`) were made by `make_fixtures.py` at version 0.1.0,
commit 3aa128b, and are never made again by later code: they say what that version did. `old_runs.py`
has their data and flags.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from .old_runs import (
    HERE,
    RESUMABLE,
    RUNS,
    STREAMS,
    build_network,
    evaluated,
    fingerprint,
    predictions,
    read_table,
    resumed,
    stream,
    write_data,
)

RTOL, ATOL = 1e-5, 1e-6
BASELINE_RTOL = 1e-3  # DLinear is trained on the spot in hundreds of steps; other CPUs round them differently


def require_old_order(name: str, file: Path) -> None:
    """Reject a network whose parameters have another order than in the checkpoint `file`, before it is resumed.

    The optimiser's state goes by number. PyTorch does not compare its shapes with the parameters', and the fused AdamW
    of a CPU then writes where it must not: the process, and pytest with it, would die without a word.
    """
    content = torch.load(file, weights_only=True)
    network = build_network(RUNS[name].domain, content["seqssm"]["hparams"])
    new = {f"model.{key}": value.shape for key, value in network.named_parameters()}
    old = {key: value.shape for key, value in content["state_dict"].items() if key in new}
    assert list(new.items()) == list(old.items())


def require_same_table(found: pd.DataFrame, expected: pd.DataFrame, atol: float = ATOL) -> None:
    assert list(found.columns) == list(expected.columns)
    assert len(found) == len(expected)
    for column in expected:
        if pd.api.types.is_numeric_dtype(expected[column]):
            np.testing.assert_allclose(found[column], expected[column], RTOL, atol, err_msg=column)
        else:
            assert found[column].fillna("").tolist() == expected[column].fillna("").tolist(), column


def require_same_figures(found: Any, expected: Any, place: str = "", rtol: float = RTOL) -> None:
    """Every figure of `expected` is in `found`, with its value; titles are free."""
    if isinstance(expected, dict):
        for key, value in expected.items():
            assert key in found, f"{place}.{key}"
            if key != "title":
                require_same_figures(found[key], value, f"{place}.{key}", rtol)
    elif isinstance(expected, list):
        assert len(found) == len(expected), place
        for number, (one, other) in enumerate(zip(found, expected)):
            trained = isinstance(other, dict) and other.get("model") == "dlinear"
            require_same_figures(one, other, f"{place}[{number}]", BASELINE_RTOL if trained else rtol)
    elif isinstance(expected, float):
        assert found is not None, place
        assert math.isclose(found, expected, rel_tol=rtol, abs_tol=ATOL), f"{place}: {found}, not {expected}"
    else:
        assert found == expected, place


# -- tests -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    """A folder in which ``data/`` holds all inputs; not to be changed."""
    folder = tmp_path_factory.mktemp("compat")
    write_data(folder / "data")
    return folder


@pytest.fixture(autouse=True)
def _as_in_the_old_runs(inputs, monkeypatch):
    """The working folder with the data, one thread, nothing in the environment."""
    for name in ("PL_GLOBAL_SEED", "SEQSSM_DATA", "SEQSSM_CHECKPOINT_SECONDS"):
        monkeypatch.setenv(name, "0")
        monkeypatch.delenv(name)  # so that what a command sets is gone afterwards
    monkeypatch.chdir(inputs)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def copy(tmp_path):
    """A function that copies an old run, which the commands write into."""

    def copied(name: str) -> Path:
        return shutil.copytree(HERE / "runs" / name, tmp_path / "run")

    return copied


def expected(name: str) -> dict[str, Any]:
    return json.loads((HERE / "expected" / f"{name}.json").read_text(encoding="utf-8"))


ADDED = {"pathology_survival": ["median_survival"]}
"""Columns that predictions did not have in the old version."""


@pytest.mark.parametrize("name", RUNS)
def test_an_old_checkpoint_predicts_the_same_table(name, copy, tmp_path):
    table = read_table(HERE / "expected" / f"{name}.csv")
    for found in predictions(name, copy(name) / "best.ckpt", tmp_path):
        require_same_table(found.drop(columns=ADDED.get(name, [])), table)


@pytest.mark.parametrize("name", STREAMS)
def test_an_old_checkpoint_takes_a_stream(name, copy, tmp_path):
    table = read_table(HERE / "expected" / f"{name}_stream.csv")
    require_same_table(stream(name, copy(name) / "best.ckpt", tmp_path), table, atol=2e-6)  # six decimals are written


REVISED = {"pathology_survival": ("ibs",)}
"""Figures that were wrong in the old version: S(t) was a step function at the ends of the bins, and is now linear."""
ROWS = {"logistic regression on mean features": "logistic", "ridge Cox on 4 components": "cox"}
"""Baselines that have one name now, in the tables of `test` and in ``kfold --models``."""


def revised(name: str, found: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(found, expected) test figures without those of `REVISED`, and without rows that the old tables did not have."""
    wanted = expected(name)["test"]
    for report in (found, wanted):
        for row in [report["metrics"], *(row for table in report["tables"] for row in table["rows"])]:
            for figure in REVISED.get(name, ()):
                row.pop(figure, None)
            if row.get("model") in ROWS:
                row["model"] = ROWS[row["model"]]
    found["tables"] = found["tables"][: len(wanted["tables"])]  # further tables have been added
    if name in REVISED:
        for new, old in zip(found["tables"], wanted["tables"]):
            models = [row["model"] for row in old["rows"]]
            new["rows"] = [row for row in new["rows"] if row["model"] in models]
    return found, wanted


@pytest.mark.parametrize("name", RUNS)
def test_an_old_run_has_the_same_test_figures(name, copy):
    require_same_figures(*revised(name, evaluated(name, copy(name))))


@pytest.mark.parametrize("name", RESUMABLE)
def test_an_old_run_resumes_to_the_same_weights(name, copy):
    require_old_order(name, HERE / "runs" / name / "last.ckpt")
    found, before = resumed(name, copy(name)), expected(name)["resumed"]
    assert found["steps"] == before["steps"]
    assert found["best_epoch"] == before["best_epoch"]
    require_same_figures(found["log"], before["log"])
    print(f"{name}: {'bit-equal' if found['sha256'] == before['sha256'] else 'equal but for rounding'}")
    if found["sha256"] != before["sha256"]:  # another CPU, or another order of additions
        assert list(found["sums"]) == list(before["sums"])
        for key, (total, absolute) in before["sums"].items():
            assert np.allclose(found["sums"][key], [total, absolute], rtol=0, atol=RTOL * max(1.0, absolute)), key


NETWORKS = json.loads((HERE / "hashes.json").read_text(encoding="utf-8")) if (HERE / "hashes.json").exists() else []


@pytest.mark.parametrize("entry", NETWORKS, ids=lambda entry: entry["key"])
def test_a_new_network_has_the_old_names_and_initial_weights(entry):
    found = fingerprint(build_network(entry["domain"], entry["kwargs"]))
    for key in ("names_sha", "params_sha", "n_params"):
        assert found[key] == entry[key], key
    for key, size in (
        ("sum", "abs_sum"),
        ("abs_sum", "abs_sum"),
        ("output", "output_abs"),
        ("output_abs", "output_abs"),
    ):
        if key in entry:
            assert math.isclose(found[key], entry[key], rel_tol=0, abs_tol=ATOL * entry[size]), key
