"""Runs and checkpoints of version 0.1.0 still predict, test and resume, and networks still start from the same weights.

The fixtures beside this file (`runs`, `expected`, `hashes.json`) were made by `make_fixtures.py` at version 0.1.0,
commit 3aa128b, and are never made again by later code: they say what that version did. The data are written here, from
NumPy's frozen `RandomState` streams, without code of the package.

Only public surfaces are used: the command line and `seqssm.load`. `build_network` is the one exception.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import seqssm
from seqssm.cli.main import main

HERE = Path(__file__).parent
RTOL, ATOL = 1e-5, 1e-6
BASELINE_RTOL = 1e-3  # DLinear is trained on the spot in hundreds of steps; other CPUs round them differently


@dataclass(frozen=True)
class Run:
    """A run of the old version.

    Attributes:
        domain: of the command line.
        fit: flags that made it. Paths are relative to the folder of `write_data`: a resumed run takes no other file
            than the one that its checkpoint names, so the tests start in a folder with the same files.
        inputs, options: of `predict`.
        resume: flags beside ``--resume RUN``; None where `last.ckpt` is not among the fixtures, for their size.
        stop_at: training step (from 1) at which Ctrl-C stopped the run; None: it ended by itself.
    """

    domain: str
    fit: tuple[str, ...]
    inputs: tuple[str, ...]
    options: tuple[str, ...] = ()
    resume: tuple[str, ...] | None = None
    stop_at: int | None = None


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


TRAINER = "--seed_everything 5 --trainer.accelerator cpu --model.threads 1 --trainer.max_epochs"
SERIES = "--data.file data/series.csv --data.lookback 16 --data.horizon 4 --data.batch_size 16 --data.missing mask"
RECORDS = "--data.manifest data/ecg/manifest.csv --data.window_s 2 --data.batch_size 4"
SLIDES = "--data.manifest data/slides/manifest.csv --data.features data/slides --data.folds 4 --data.batch_size 4"

RUNS = {
    "forecasting_smamba": Run(
        "forecasting",
        words(
            f"--config smamba {SERIES} {TRAINER} 4 --model.d_model 4 --model.d_state 2 --model.layers 1 "
            "--data.future_columns temp --model.quantiles [0.1,0.5,0.9] --model.schedule cosine --model.warmup_steps 3 "
            "--model.weight_decay 0.01 --model.learning_rate 1e-2"
        ),
        ("data/series.csv",),
        words("--future data/future.csv --level 80"),
    ),
    "forecasting_dlinear": Run(
        "forecasting",
        words(
            f"--config smamba {SERIES} {TRAINER} 3 --model.network dlinear --model.schedule halving "
            "--model.learning_rate 1e-2 --data.target a"
        ),
        ("data/series.csv",),
        words("--level 80 --backtest 1"),
        resume=words("--trainer.max_epochs 4"),
    ),
    "ecg_mamba": Run(
        "ecg",
        words(
            f"--config ecg_small {RECORDS} {TRAINER} 8 --model.d_model 3 --model.depth 1 --model.d_state 2 "
            "--model.stem short --model.pool middle --model.schedule constant --model.warmup_steps 2 --data.mix_up 0.2 "
            "--model.learning_rate 2e-2"
        ),
        ("data/ecg/r28.hea", "data/ecg/r29.hea", "data/ecg/r35.hea"),
    ),
    "ecg_stream": Run(  # stopped in the middle of its last epoch
        "ecg",
        words(
            f"--config ecg_stream {RECORDS} {TRAINER} 8 --model.d_model 2 --model.depth 1 --model.d_state 2 "
            "--data.lead_set 2 --model.loss weighted_bce --model.label_smoothing 0.1 --model.warmup_steps 3 "
            "--model.learning_rate 2e-2"
        ),
        ("data/ecg/r28.hea", "data/ecg/r29.hea", "data/ecg/r35.hea"),
        resume=(),
        stop_at=37,
    ),
    "pathology_srmamba": Run(
        "pathology",
        words(
            f"--config srmamba {SLIDES} {TRAINER} 4 --model.d_model 4 --model.layers 1 --model.d_state 2 "
            "--model.rate 3 --model.pool_width 4 --model.class_weights balanced --model.learning_rate 5e-3"
        ),
        ("data/slides/h5_files/s03.h5", "data/slides/h5_files/s08.h5", "data/slides/h5_files/s11.h5"),
        words("--manifest data/slides/new.csv"),
    ),
    "pathology_survival": Run(
        "pathology",
        words(
            f"--config survival {SLIDES} {TRAINER} 4 --model.network abmil_gated --model.d_model 4 "
            "--model.pool_width 4 --data.bins 3 --data.max_instances 6 --model.alpha 0.1 --model.learning_rate 5e-3"
        ),
        ("data/slides/h5_files/s03.h5", "data/slides/h5_files/s11.h5"),
        resume=words("--trainer.max_epochs 5"),
    ),
}
STREAMS = {"ecg_stream": "data/ecg/r29.hea"}  # run -> record that `seqssm ecg stream` takes piece by piece
RESUMABLE = [name for name, run in RUNS.items() if run.resume is not None]
LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")


# -- data ------------------------------------------------------------------------------------------------------------


def write_data(folder: Path) -> None:
    """Write all inputs into `folder`, the same bytes of numbers on every machine."""
    write_series(folder)
    write_records(folder / "ecg")
    write_slides(folder / "slides")


def write_series(folder: Path) -> None:
    """``series.csv``: 160 hours of two series and of ``temp``, two cells empty; ``future.csv``: ``temp`` afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.RandomState(1)
    rows, ahead = 160, 4
    walk = np.cumsum(random.randint(-3, 4, rows))
    temp = random.randint(50, 250, rows + ahead)
    noise = random.randint(-9, 10, rows)
    lines, future = ["date,temp,b,a"], ["date,temp"]
    for hour in range(rows + ahead):
        date = f"2024-03-{1 + hour // 24:02d} {hour % 24:02d}:00:00"
        if hour >= rows:
            future.append(f"{date},{temp[hour] / 10:.1f}")
            continue
        b = "" if hour in (40, 41) else f"{walk[hour] / 4:.2f}"
        daily = min(hour % 24, 24 - hour % 24)
        lines.append(f"{date},{temp[hour] / 10:.1f},{b},{(10 * daily + temp[hour] // 5 + noise[hour]) / 10:.1f}")
    (folder / "series.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "future.csv").write_text("\n".join(future) + "\n", encoding="utf-8")


def write_records(folder: Path) -> None:
    """36 WFDB records of 3 s at 100 Hz, 16 bits, and ``manifest.csv``: FAST has more beats, DOWN points downwards."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.RandomState(2)
    count, samples = 36, 300
    manifest = ["path,split,FAST,DOWN"]
    for number in range(count):
        fast, down = number % 2, number // 2 % 2
        phase = (np.arange(samples) + random.randint(0, 40)) % (45 if fast else 80)
        beat = np.maximum(0, 900 - 150 * np.abs(phase - 6)) * (-1 if down else 1)
        table = beat[:, None] * (np.arange(len(LEADS)) + 4) // 12 + random.randint(-80, 81, (samples, len(LEADS)))
        name = f"r{number:02d}"
        lines = [f"{name} {len(LEADS)} 100 {samples}"]
        for lead, column in zip(LEADS, table.T):
            checksum = (int(column.sum()) + 2**15) % 2**16 - 2**15
            lines.append(f"{name}.dat 16 1000(0)/mV 16 0 {column[0]} {checksum} 0 {lead}")
        (folder / f"{name}.hea").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (folder / f"{name}.dat").write_bytes(table.astype("<i2").tobytes())
        split = "train" if number < 20 else "val" if number < 28 else "test"
        manifest.append(f"{name}.hea,{split},{fast},{down}")
    (folder / "manifest.csv").write_text("\n".join(manifest) + "\n", encoding="utf-8")


def write_slides(folder: Path) -> None:
    """24 bags of 5 to 12 patches as HDF5 with coordinates; ``manifest.csv`` with label and survival; ``new.csv``."""
    h5py = pytest.importorskip("h5py")
    (folder / "h5_files").mkdir(parents=True, exist_ok=True)
    random = np.random.RandomState(3)
    manifest = ["slide_id,case_id,label,survival_months,censorship"]
    for number in range(24):
        name, lesion = f"s{number:02d}", number % 2
        size = random.randint(5, 13)
        features = random.randint(-200, 201, (size, 4)).astype(np.float32) / 100
        features[: size // 2, 0] += 2 * lesion
        coords = np.stack([random.permutation(size), random.randint(0, 6, size)], axis=1) * 256
        with h5py.File(folder / "h5_files" / f"{name}.h5", "w") as file:
            file["features"] = features
            file["coords"] = coords.astype(np.int64)
            file["coords"].attrs["patch_size_level0"] = 256
        months = (random.randint(20, 500) // (1 + lesion)) / 10
        label = "lesion" if lesion else "normal"
        manifest.append(f"{name},{name},{label},{months:.1f},{int(random.randint(0, 3) == 0)}")
    (folder / "manifest.csv").write_text("\n".join(manifest) + "\n", encoding="utf-8")
    (folder / "new.csv").write_text("slide_id,case_id\ns03,p1\ns08,p2\ns11,p1\n", encoding="utf-8")


# -- what a run does ---------------------------------------------------------------------------------------------------


def read_table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, keep_default_na=False, na_values=[""])


def predictions(name: str, model: Path, folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table of ``seqssm predict``, and the frame of `seqssm.load`, by way of ``cli.csv`` and ``loaded.csv``."""
    run = RUNS[name]
    assert main(["predict", str(model), *run.inputs, *run.options, "--output", str(folder / "cli.csv")]) == 0
    frame = seqssm.load(model).predict(list(run.inputs), **as_keywords(run.options))
    frame.to_csv(folder / "loaded.csv", index=False)
    return read_table(folder / "cli.csv"), read_table(folder / "loaded.csv")


def as_keywords(options: tuple[str, ...]) -> dict[str, Any]:
    """Flags of the command line, each with one value, as `predict` of `seqssm.load` takes them."""
    many, numbers = ("level",), ("backtest",)
    pairs = {flag.lstrip("-"): value for flag, value in zip(options[::2], options[1::2])}
    return {k: [v] if k in many else int(v) if k in numbers else v for k, v in pairs.items()}


def stream(name: str, model: Path, folder: Path) -> pd.DataFrame:
    """The rows of ``seqssm ecg stream``, the record in pieces of 0.37 s, by way of ``stream.csv``."""
    output = folder / "stream.csv"
    assert main(["ecg", "stream", str(model), STREAMS[name], "--chunk-s", "0.37", "--output", str(output)]) == 0
    return read_table(output)


def evaluated(name: str, run: Path) -> dict[str, Any]:
    """What ``seqssm <domain> test RUN`` writes to `metrics.json`."""
    assert main([RUNS[name].domain, "test", str(run)]) == 0
    return json.loads((run / "metrics.json").read_text(encoding="utf-8"))["test"]


def resumed(name: str, run: Path) -> dict[str, Any]:
    """Continue a run to its end; its log, best epoch and final weights."""
    domain, more = RUNS[name].domain, RUNS[name].resume
    assert main([domain, "fit", "--resume", str(run), *more]) == 0
    last, best = (torch.load(run / file, weights_only=True) for file in ("last.ckpt", "best.ckpt"))
    with open(run / "log.csv", newline="", encoding="utf-8") as file:
        rows = [{k: float(v) for k, v in row.items() if not k.endswith("seconds")} for row in csv.DictReader(file)]
    weights = last["state_dict"]
    return {
        "log": rows,
        "steps": last["global_step"],
        "best_epoch": best["epoch"],
        "sha256": weights_sha(weights),
        "sums": {
            key: [digits(value.double().sum()), digits(value.double().abs().sum())] for key, value in weights.items()
        },
    }


def weights_sha(weights: dict[str, torch.Tensor]) -> str:
    """A hash of all weights, bit by bit, whatever their order."""
    digest = hashlib.sha256()
    for key in sorted(weights):
        digest.update(f"{key} {tuple(weights[key].shape)} {weights[key].dtype}\n".encode())
        digest.update(weights[key].contiguous().numpy().tobytes())
    return digest.hexdigest()


def digits(value: Any) -> float:
    """Nine digits of a number."""
    return float(f"{float(value):.9g}")


# -- networks ----------------------------------------------------------------------------------------------------------


def build_network(domain: str, kwargs: dict[str, Any]) -> torch.nn.Module:
    """A new network, or the layer `seqssm.Mamba` where `domain` is "seqssm"; random numbers are drawn from seed 0.

    THE ONLY PLACE THAT MUST BE ADAPTED when the package is rearranged: how the training task of a domain is found, and
    how it builds its network from its arguments (`kwargs` are those of the command line, ``--model.x``).
    """
    if domain == "seqssm":
        torch.manual_seed(0)
        return seqssm.Mamba(**kwargs)
    from seqssm.domain import domains, resolve
    from seqssm.training import migration
    from seqssm.training.networks import without_foreign

    one = domains()[domain]
    cls = resolve(one.task)
    kwargs, _ = without_foreign(cls, migration.options(one, "model", kwargs, stored=True))
    task = cls(**kwargs)
    torch.manual_seed(0)
    return task.build_model()


def fingerprint(module: torch.nn.Module) -> dict[str, Any]:
    """Names, shapes and order of the weights, and sums of their initial values; of a Mamba layer an output too."""
    state = module.state_dict()
    names = [[name, list(value.shape), str(value.dtype)] for name, value in state.items()]
    found: dict[str, Any] = {
        "names_sha": sha_of(names),
        "params_sha": sha_of([name for name, _ in module.named_parameters()]),
        "n_params": sum(parameter.numel() for parameter in module.parameters()),
        "sum": digits(sum(value.double().sum() for value in state.values())),
        "abs_sum": digits(sum(value.double().abs().sum() for value in state.values())),
    }
    if isinstance(module, seqssm.Mamba):  # layers of one set of weights may differ in their orders alone
        place = torch.arange(23 * module.in_proj.in_features, dtype=torch.float64).view(1, 23, -1)
        with torch.no_grad():
            y = module(torch.cos(0.7 * place).float()).double()
        found["output"], found["output_abs"] = digits((y * torch.sin(0.3 * place)).sum()), digits(y.abs().sum())
    return found


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


def sha_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


# -- comparison --------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("name", RUNS)
def test_an_old_checkpoint_predicts_the_same_table(name, copy, tmp_path):
    table = read_table(HERE / "expected" / f"{name}.csv")
    for found in predictions(name, copy(name) / "best.ckpt", tmp_path):
        require_same_table(found, table)


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
