"""The GPU gives the figures of the CPU, in every domain: training, test, prediction. Run by `make gpu-check`."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
import torch

from seqssm.cli.main import main

from .test_processes_agree import CASES, FLAGS, made, metrics

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
CODES = {"w8a8": 0.1, "w4a16": 0.2}  # methods of `compress`, and the largest relative difference of a prediction
SCORED = ["forecasting", "ecg", "pathology"]


def close(one: float, two: float, tolerance: float) -> bool:
    return (math.isnan(one) and math.isnan(two)) or abs(one - two) <= tolerance * max(1.0, abs(one))


def require_close_tables(one: Path, two: Path, tolerance: float) -> None:
    """Equal columns and rows; equal words, and numbers that differ by at most `tolerance` of 1 or of their size."""
    tables = [pd.read_csv(path) for path in (one, two)]
    assert list(tables[0]) == list(tables[1])
    assert len(tables[0]) == len(tables[1]) > 0
    for name in tables[0]:
        left, right = (table[name] for table in tables)
        if pd.api.types.is_float_dtype(left):
            wrong = [pair for pair in zip(left, right) if not close(*pair, tolerance)]
            assert not wrong, (name, wrong[:3])
        elif name not in ("prediction", "predicted", "notes"):  # a decision may change at its threshold
            assert left.astype(str).tolist() == right.astype(str).tolist(), name


def fit_on(device: str, case: str, flags: list[str], output: str, *more: str) -> None:
    fit = [case.split()[0], "fit", *FLAGS[case], *flags, "--data.batch_size", "6", "--model.learning_rate", "1e-3"]
    fit += [] if case in ("toy", "dna") else ["--model.dropout", "0"]  # each device draws its own masks
    if "--trainer.max_epochs" not in more:
        more = (*more, "--trainer.max_epochs", "2")
    assert main([*fit, "--trainer.accelerator", device, *more, "--output", output]) == 0


def losses(run: str) -> list[float]:
    return pd.read_csv(f"{run}/log.csv")["val_loss"].tolist()


@pytest.mark.parametrize("case", CASES)
def test_gpu_and_cpu_agree(toy, tmp_path, case):
    """Trained for two epochs on each; then the model of the CPU tested and used on both, without and with autocast."""
    flags, inputs = made(tmp_path / "data", case)
    for device in ("cpu", "gpu"):
        fit_on(device, case, flags, device)
    assert torch.cuda.max_memory_allocated() > 0
    pairs = zip(losses("cpu"), losses("gpu"), strict=True)
    assert all(close(*pair, 2e-3) for pair in pairs), (losses("cpu"), losses("gpu"))
    for device in ("cpu", "gpu"):
        predict = ["predict", "cpu", *inputs, "--accelerator", device, "--output", f"by-{device}.csv"]
        assert main(predict) == 0
    require_close_tables(Path("by-cpu.csv"), Path("by-gpu.csv"), 1e-4)
    assert main(["predict", "gpu", *inputs, "--accelerator", "cpu", "--output", "back.csv"]) == 0
    found = {}
    for device in ("cpu", "gpu"):
        assert main([case.split()[0], "test", "cpu", "--trainer.accelerator", device]) == 0
        found[device] = [value for value in metrics(Path("cpu"))["test"].values() if isinstance(value, float)]
    assert all(close(*pair, 1e-3) for pair in zip(found["cpu"], found["gpu"], strict=True)), found
    fit_on("gpu", case, flags, "half", "--trainer.precision", "bf16-mixed")
    pairs = zip(losses("gpu"), losses("half"), strict=True)
    assert all(close(*pair, 0.1) for pair in pairs), (losses("gpu"), losses("half"))


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_is_an_uninterrupted_one(toy, tmp_path, case):
    """Weights without influence, such as a bias before a softmax, follow rounding: the losses are compared."""
    flags, _ = made(tmp_path / "data", case)
    fit_on("gpu", case, flags, "whole")
    fit_on("gpu", case, flags, "parts", "--trainer.max_epochs", "1")
    again = [case.split()[0], "fit", "--resume", "parts", "--trainer.max_epochs", "2"]
    assert main(again) == 0
    assert losses("parts") == pytest.approx(losses("whole"), rel=1e-4)


@pytest.mark.parametrize("method", CODES)
@pytest.mark.parametrize("case", SCORED)
def test_compressed_models(toy, tmp_path, case, method):
    flags, inputs = made(tmp_path / "data", case)
    fit_on("gpu", case, flags, "run")
    bags = sorted(map(str, (tmp_path / "data").rglob("*.h5")))  # the validation cases are too few
    more = ["--calibration", *bags] if bags else []
    assert main(["compress", "run", "--method", method, "--output", "small.ckpt", *more]) == 0
    for device in ("cpu", "gpu"):
        predict = ["predict", "small.ckpt", *inputs, "--accelerator", device, "--output", f"by-{device}.csv"]
        assert main(predict) == 0
    require_close_tables(Path("by-cpu.csv"), Path("by-gpu.csv"), CODES[method])


@pytest.mark.parametrize("mixer", ["mamba", "mamba2"])
def test_generation(toy, tmp_path, mixer, capsys):
    """The most probable bases are those of the CPU, step by step."""
    flags, _ = made(tmp_path / "data", "dna")
    more = () if mixer == "mamba2" else ("--model.mixer", "mamba", "--model.d_state", "4")
    fit_on("gpu", "dna", flags, "run", *more)
    texts = {}
    for device in ("cpu", "gpu"):
        output = Path(f"{device}.fa")
        options = ["--length", "60", "--count", "2", "--top-k", "1", "--accelerator", device, "--output", str(output)]
        assert main(["dna", "generate", "run", *options]) == 0
        texts[device] = output.read_text(encoding="utf-8")
    assert texts["cpu"] == texts["gpu"]
