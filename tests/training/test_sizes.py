"""Absurd sizes are refused at once, with the bound."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from seqssm.cli.main import main
from seqssm.errors import InputError
from seqssm.training import sizes

FIT = ["toy", "fit", "--config", "tiny", "--output", "run"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model.d_model", "1000000000"], "the weights need more than"),
        (["--model.d_model", "1" + "0" * 30], "must be at most 2147483647"),
        (["--data.batch_size", "1000000000"], "--data.batch_size 1000000000: at most 1000000"),
        (["--data.num_workers", "100000"], f"at most {sizes.most_processes()}, for the processors"),
        (["--trainer.accelerator", "cpu", "--trainer.devices", "100000"], "--trainer.devices 100000: at most"),
    ],
)
def test_training_options(toy, capsys, flags, words):
    assert main([*FIT, *flags]) == 2
    message = capsys.readouterr().err.strip()
    assert words in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--batch-size", "100000000000"], "--batch-size 100000000000: at most"),
        (["--num-workers", "100000"], "--num-workers 100000: at most"),
        (["--devices", "100000"], "--devices 100000: at most"),
    ],
)
def test_prediction_options(run, numbers, capsys, flags, words):
    assert main(["predict", str(run), str(numbers(3)), "--output", "out.csv", *flags]) == 2
    assert words in capsys.readouterr().err
    assert not Path("out.csv").exists()


def test_folds(toy, capsys):
    assert main(["toy", "kfold", "--config", "tiny", "--folds", "1000000000", "--output", "study"]) == 2
    assert "--folds 1000000000: at most 10000" in capsys.readouterr().err


def deep(layers: int) -> nn.Module:
    return nn.Sequential(*(nn.Linear(2, 2) for _ in range(layers)))


def test_networks_are_counted_without_being_built():
    state = torch.get_rng_state()
    sizes.require_fits(lambda: deep(3), 3 * 6 * 4, "exactly")
    assert torch.equal(state, torch.get_rng_state()), "initial weights do not depend on the check"
    with pytest.raises(InputError, match="one weight too many"):
        sizes.require_fits(lambda: deep(3), 3 * 6 * 4 - 1, "one weight too many")
    with pytest.raises(InputError, match="more than 20000 weight tensors"):
        sizes.require_fits(lambda: deep(10**9), None, "")
    assert deep(1)[0].weight.device.type == "cpu", "no hook is left"


def test_a_checkpoint_that_would_inflate_is_refused_before_reading(run, tmp_path, capsys):
    path = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(run / "best.ckpt") as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for part in old.infolist():
            new.writestr(part.filename, old.read(part))
        with new.open("best/data/bomb", "w") as file:
            for _ in range(50):
                file.write(bytes(2**20))
    for argv in (["predict", str(path), "x", "--output", "out.csv"], ["toy", "test", str(path)]):
        assert main(argv) == 2
        assert "its members declare" in capsys.readouterr().err


@pytest.mark.parametrize("changed", [{"d_model": 10**9}, {"d_model": 10**40}])
def test_a_checkpoint_whose_sizes_do_not_fit_its_weights(run, tmp_path, capsys, changed):
    content = torch.load(run / "best.ckpt", weights_only=True)
    content["seqssm"]["hparams"] |= changed
    torch.save(content, tmp_path / "changed.ckpt")
    assert main(["toy", "test", str(tmp_path / "changed.ckpt")]) == 2
    message = capsys.readouterr().err.strip()
    assert (
        "the limit for the weights in the file" in message or "a size is too large" in message or "at most" in message
    )
    assert message.startswith(f"seqssm: {tmp_path / 'changed.ckpt'}: ")
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("flag", ["--data.horizon", "--data.lookback"])
def test_more_steps_than_rows(tmp_path, capsys, flag):
    """The minimum number of rows for a long horizon is computed, not found by trial."""
    from seqssm_forecasting import simulate

    simulate.series(173, 3).to_csv(tmp_path / "my.csv", index=False)
    argv = ["forecasting", "fit", "--config", "smamba", "--data.file", str(tmp_path / "my.csv")]
    assert main([*argv, "--output", str(tmp_path / "run"), "--trainer.accelerator", "cpu", flag, "1000000000"]) == 2
    assert "173 rows are too few" in capsys.readouterr().err


def test_more_layers_than_can_be_counted():
    with pytest.raises(InputError, match="at most 1000"):
        sizes.require_depth({"depth": 10**9, "layers": None})


@pytest.mark.parametrize("flag", ["--model.threads", "--trainer.devices", "--trainer.num_nodes"])
def test_counts_of_threads_and_processes(toy, capsys, flag):
    argv = ["toy", "fit", "--config", "tiny", "--output", "run", flag, "1000000000"]
    assert main(argv) == 2
    assert f"seqssm: {flag} 1000000000: at most " in capsys.readouterr().err


@pytest.mark.parametrize("name", ["stride", "layers", "d_model"])
def test_sizes_of_pathology_networks(name):
    from seqssm_pathology import PathologyTask

    with pytest.raises(InputError, match=r"at most|is too large"):
        PathologyTask(**{name: 10**9})


def test_a_backtest_longer_than_the_file():
    from types import SimpleNamespace

    from seqssm_forecasting.history import _ends

    request = SimpleNamespace(summary={"lookback": 12, "horizon": 2}, backtest=10**12, horizon=2, step=1)
    with pytest.raises(InputError, match="at most 187 windows are possible"):
        _ends(200, "a.csv", request)
    request.backtest = 3
    assert _ends(200, "a.csv", request) == [196, 197, 198]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("split_seed", (-1, 2**33)),
        ("bins", (1, 10**9)),
        ("clip", (0.0, -1.0, float("nan"))),
        ("cache_gb", (-1.0, float("nan"), float("inf"))),
        ("max_instances", (0, 10**10)),
    ],
)
def test_options_of_pathology_data(name, values):
    from seqssm_pathology.data import BagData

    for value in values:
        with pytest.raises(InputError, match=rf"--data\.{name} "):
            BagData(manifest="m.csv", features="bags", **{name: value})


@pytest.mark.parametrize("name", ["window_s", "sampling_rate_hz", "stride_s", "gain", "noise", "lead_drop"])
def test_options_of_ecg_data(name):
    from seqssm_ecg.data import EcgData

    for value in (-1.0, 1e9, float("nan"), float("inf")):
        with pytest.raises(InputError, match=rf"--data\.{name} "):
            EcgData(manifest="m.csv", **{name: value})


def test_a_width_of_zero_is_not_the_default():
    from seqssm_forecasting.model import SMamba

    with pytest.raises(InputError, match="d_ff 0: must be at least 1"):
        SMamba(8, 3, d_ff=0)
