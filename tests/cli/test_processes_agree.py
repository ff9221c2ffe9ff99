"""Two processes give the figures of one, in every domain: trained, calibrated, validated, tested and predicted."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from seqssm.cli.main import main

PAIR = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
LAUNCHERS = ("torchrun", "srun")
CASES = ("toy", "forecasting", "ecg", "pathology", "dna", "dna labels")  # the first word is the domain
FLAGS = {
    "toy": ["--config", "tiny", "--data.rows", "61"],
    "forecasting": ["--config", "smamba", "--data.lookback", "24", "--data.horizon", "6", "--model.d_model", "16"],
    "ecg": ["--config", "ecg_small", "--model.d_model", "16", "--model.depth", "1", "--data.window_s", "4"],
    "pathology": ["--config", "srmamba", "--model.d_model", "8", "--model.layers", "1", "--model.pool_width", "8"],
    "dna": ["--config", "tiny", "--model.d_model", "8", "--model.n_layers", "1", "--data.context", "64"],
    "dna labels": ["--config", "finetune", "--model.d_model", "8", "--model.n_layers", "2", "--model.attn_period", "2"],
}
FLAGS["dna labels"] += ["--model.attn_offset", "1", "--model.mixer", "mamba", "--model.d_state", "4"]
COMMON = ["--trainer.accelerator", "cpu", "--trainer.max_epochs", "1", "--data.batch_size", "6"]
COMMON += ["--model.learning_rate", "0"]  # initial weights are kept, so that rounding in the optimiser is not compared


def made(folder: Path, name: str) -> tuple[list[str], list[str]]:
    """(data flags, inputs of `predict`) for small simulated data of a domain."""
    folder.mkdir()
    if name == "forecasting":
        from seqssm_forecasting import simulate as series

        frame = series.series(173, 3)
        frame.loc[[125, 145], "driver"] = None  # a window with a gap weighs less than the others in its batch
        frame.to_csv(folder / "my.csv", index=False)
        flags = ["--data.file", str(folder / "my.csv"), "--data.missing", "forward"]
        return flags, [str(folder / "my.csv"), "--missing", "forward"]
    if name == "ecg":
        from seqssm_ecg import simulate as recordings

        recordings.folder(folder, 37, seed=3, seconds=5.0, rate_hz=100.0)
        return ["--data.manifest", str(folder / "manifest.csv")], [str(folder)]
    if name == "pathology":
        from seqssm_pathology import simulate as slides

        slides.cohort(folder, cases=31, seed=3, width=6)
        flags = ["--data.manifest", str(folder / "manifest.csv"), "--data.features", str(folder)]
        return flags, [str(folder), "--manifest", str(folder / "manifest.csv")]
    if name.startswith("dna"):
        from seqssm_dna import simulate as genomes
        from seqssm_dna.files import write_fasta

        fasta, table = folder / "my.fa", folder / "my.csv"
        write_fasta(fasta, [(f"r{k}", "ACGTTGCAN"[k:] * (90 + 7 * k)) for k in range(7)])
        genomes.promoters(60, seed=3).to_csv(table, index=False)
        contigs = ["--data.val_contigs", "[r1, r2, r3]", "--data.test_contigs", "[r4, r5, r6]"]
        flags = ["--data.fasta", str(fasta), *contigs] if name == "dna" else ["--data.train", str(table)]
        return flags, [str(fasta)]
    path = folder / "numbers.txt"
    path.write_text("".join(f"r{n} {n / 7:.3f} {n / 5:.3f} 1\n" for n in range(13)), encoding="utf-8")
    return [], [str(path)]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def run_pair(commands: list[list[str]], folder: Path) -> None:
    """Run command lines in two processes, numbered as torchrun and srun number them, in turn."""
    list_file = folder / "commands.json"
    turns = [(free_port(), LAUNCHERS[turn % 2], argv) for turn, argv in enumerate(commands)]
    list_file.write_text(json.dumps(turns), encoding="utf-8")
    children = [
        subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("pair.py")), str(list_file), str(rank)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    printed = [child.communicate(timeout=300)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0], "\n".join(printed)


def require_close(one, two, place: str = "") -> None:
    """Equal names, counts and words; figures to 1e-6."""
    if isinstance(one, dict):
        assert one.keys() == two.keys(), place
        for name in one:
            require_close(one[name], two[name], f"{place}.{name}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), place
        for number, pair in enumerate(zip(one, two)):
            require_close(*pair, f"{place}[{number}]")
    elif isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6, equal_nan=True, msg=lambda text: f"{place}: {text}")
    elif isinstance(one, float):
        assert two == pytest.approx(one, rel=1e-6, abs=1e-6, nan_ok=True), place
    else:
        assert one == two, place


def metrics(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text(encoding="utf-8"))


@pytest.fixture
def small(toy, one_thread, monkeypatch):
    """Install the toy; one thread and frozen batch statistics, as in each of the two processes."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import pair

    monkeypatch.setattr(pair._BatchNorm, "__init__", pair.still_statistics())


def require_refused(argv: list[str], launcher: str, capsys) -> None:
    """A command in one of two processes of a launcher, without --trainer.devices, is one line and exit code 2."""
    import pair

    capsys.readouterr()
    with pytest.MonkeyPatch.context() as own:
        for name, value in pair.environment(launcher, 0, 1).items():
            own.setenv(name, value)
        assert main(argv) == 2, argv
    message = capsys.readouterr().err.strip()
    assert f"{launcher} started 2 processes, --trainer.devices asks for 1: pass --trainer.devices 2" in message
    assert len(message.splitlines()) == 1, message


@pytest.mark.parametrize("cases", [CASES[:1], pytest.param(CASES[1:], marks=pytest.mark.long)], ids=["toy", "domains"])
def test_two_processes_give_the_figures_of_one(small, tmp_path, capsys, cases):
    """Fit (with its validation and calibration), test and predict, started by torchrun and by srun.

    Every domain has three commands, and the launchers take turns, so that each launcher starts each kind of command.
    """
    commands: list[list[str]] = []
    fits = {}
    for case in cases:
        domain, name = case.split()[0], case.replace(" ", "_")
        flags, inputs = made(tmp_path / f"data-{name}", case)
        fits[name] = fit = [domain, "fit", *FLAGS[case], *flags, *COMMON]
        assert main([*fit, "--output", f"{name}-one"]) == 0
        commands.append([*fit, *PAIR, "--output", f"{name}-shared"])
        shutil.copytree(f"{name}-one", f"{name}-two")
        assert main([domain, "test", f"{name}-one"]) == 0
        commands.append([domain, "test", f"{name}-two", *PAIR])
        predict = ["predict", f"{name}-one", *inputs, "--batch-size", "2", "--output"]
        assert main([*predict, f"{name}-one.parquet"]) == 0
        commands.append([*predict, f"{name}-two.parquet"])
    run_pair(commands, tmp_path)
    for name in fits:
        one, two = (torch.load(f"{name}-{run}/best.ckpt", weights_only=True) for run in ("one", "shared"))
        require_close(one["state_dict"], two["state_dict"], name)  # including thresholds
        require_close(one["seqssm"]["data"], two["seqssm"]["data"], name)  # used by prediction, with intervals
        logs = [pd.read_csv(f"{name}-{run}/log.csv").filter(like="val_").to_dict("list") for run in ("one", "shared")]
        require_close(*logs, name)
        require_close(metrics(Path(f"{name}-one")), metrics(Path(f"{name}-two")), name)
        tables = [pd.read_parquet(f"{name}-{run}.parquet").to_dict("list") for run in ("one", "two")]
        require_close(*tables, name)
    for turn, (name, fit) in enumerate(fits.items()):
        before = Path(f"{name}-one/metrics.json").read_bytes()
        require_refused([*fit, "--output", f"{name}-new"], LAUNCHERS[turn % 2], capsys)
        require_refused([fit[0], "test", f"{name}-one"], LAUNCHERS[1 - turn % 2], capsys)
        assert Path(f"{name}-one/metrics.json").read_bytes() == before
        assert not Path(f"{name}-new").exists()


def test_a_batch_that_the_processes_do_not_divide_is_refused(toy, capsys):
    fit = ["toy", "fit", "--config", "tiny", *PAIR, "--output", "run", "--data.batch_size"]
    assert main([*fit, "7"]) == 2
    assert "--data.batch_size 7: not divisible by the 2 processes that share a batch; pass 6 or 8" in (
        capsys.readouterr().err
    )
    assert main([*fit, "1"]) == 2
    assert "pass 2" in capsys.readouterr().err
    assert not Path("run").exists()
