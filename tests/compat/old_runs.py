"""The runs of version 0.1.0: their data, flags and networks, and the recorded results.

`make_fixtures.py` made the fixtures with these functions, and `test_old_checkpoints.py` calls them again. Data are
written here from NumPy's frozen `RandomState` streams, without code of the package. Only public surfaces are used: the
command line and `seqssm.load`. `build_network` is the one exception.
"""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import seqssm
from seqssm.cli.main import main

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Run:
    """A run of the old version.

    Attributes:
        domain: name of the domain on the command line.
        fit: flags of `fit`. Paths are relative to the folder of `write_data`: a resumed run accepts only the file
            that its checkpoint names, so the tests start in a folder with the same files.
        inputs: input files of `predict`.
        options: options of `predict`.
        resume: flags in addition to ``--resume RUN``; None if `last.ckpt` is too large to be a fixture.
        stop_at: training step (from 1) at which Ctrl-C stopped the run; None if it was not interrupted.
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
STREAMS = {"ecg_stream": "data/ecg/r29.hea"}  # run -> record that `seqssm ecg stream` reads in chunks
RESUMABLE = [name for name, run in RUNS.items() if run.resume is not None]
LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")


# -- data ------------------------------------------------------------------------------------------------------------


def write_data(folder: Path) -> None:
    """Write all inputs into `folder`, with the same numbers on every machine."""
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
    import h5py

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


def read_expected(name: str) -> pd.DataFrame:
    """A table in `expected`, with the columns of class outputs named and ordered as by `seqssm.metrics.columns`.

    ``CLASS, CLASS_positive`` of ECG became ``p_CLASS`` and ``positive_CLASS``, ``prediction`` of pathology follows the
    probabilities; version 0.1.0 streamed ``CLASS``.
    """
    table = read_table(HERE / "expected" / f"{name}.csv")
    if name.startswith("ecg"):
        fixed = {"index", "id", "second", "seconds", "notes", "status", "reason"}
        classes = [one for one in table if one not in fixed and not one.endswith("_positive")]
        renames = {one: f"p_{one}" for one in classes} | {f"{one}_positive": f"positive_{one}" for one in classes}
        table = table.rename(columns=renames)
    place = next((k for k, one in enumerate(table) if one.startswith(("p_", "positive_", "prediction"))), 0)
    outputs = [one for prefix in ("p_", "prediction", "positive_") for one in table if one.startswith(prefix)]
    others = [one for one in table if one not in outputs]
    return table[[*others[:place], *outputs, *others[place:]]]


def predictions(name: str, model: Path, folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table of ``seqssm predict`` and the frame of `seqssm.load`, read from ``cli.csv`` and ``loaded.csv``."""
    run = RUNS[name]
    assert main(["predict", str(model), *run.inputs, *run.options, "--output", str(folder / "cli.csv")]) == 0
    frame = seqssm.load(model).predict(list(run.inputs), **as_keywords(run.options))
    frame.to_csv(folder / "loaded.csv", index=False)
    return read_table(folder / "cli.csv"), read_table(folder / "loaded.csv")


def as_keywords(options: tuple[str, ...]) -> dict[str, Any]:
    """Convert command-line flags, each with one value, to keyword arguments of `predict`."""
    many, numbers = ("level",), ("backtest",)
    pairs = {flag.lstrip("-"): value for flag, value in zip(options[::2], options[1::2])}
    return {k: [v] if k in many else int(v) if k in numbers else v for k, v in pairs.items()}


def stream(name: str, model: Path, folder: Path) -> pd.DataFrame:
    """The rows of ``seqssm ecg stream`` for a record in chunks of 0.37 s, read from ``stream.csv``."""
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
        rows = [
            {k: float(v) for k, v in row.items() if v and not k.endswith("seconds")} for row in csv.DictReader(file)
        ]
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
    """A hash of all weights, bit by bit, independent of their order."""
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

    THE ONLY FUNCTION TO ADAPT when the package is rearranged: it finds the training task of a domain and builds the
    network from `kwargs`, which are the arguments ``--model.x`` of the command line.
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
    """Names, shapes and order of the weights, and sums of their initial values; for a Mamba layer, also an output."""
    state = module.state_dict()
    names = [[name, list(value.shape), str(value.dtype)] for name, value in state.items()]
    found: dict[str, Any] = {
        "names_sha": sha_of(names),
        "params_sha": sha_of([name for name, _ in module.named_parameters()]),
        "n_params": sum(parameter.numel() for parameter in module.parameters()),
        "sum": digits(sum(value.double().sum() for value in state.values())),
        "abs_sum": digits(sum(value.double().abs().sum() for value in state.values())),
    }
    if isinstance(module, seqssm.Mamba):  # layers with the same weights may differ in their orders only
        place = torch.arange(23 * module.in_proj.in_features, dtype=torch.float64).view(1, 23, -1)
        with torch.no_grad():
            y = module(torch.cos(0.7 * place).float()).double()
        found["output"], found["output_abs"] = digits((y * torch.sin(0.3 * place)).sum()), digits(y.abs().sum())
    return found


def sha_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


# -- comparison --------------------------------------------------------------------------------------------------------
