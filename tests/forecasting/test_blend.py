"""The blend: its weights against other optimisers, unchanged training, contents of checkpoints and tables."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from seqssm_forecasting.blend import Blend, ErrorProducts, convex_weights
from seqssm_forecasting.model import DLinear, SMamba
from seqssm_forecasting.task import ForecastingTask

import seqssm
from seqssm.cli.main import main
from seqssm.nn.stages import attach
from seqssm.training import checkpoint
from seqssm.training.teacher import in_place_of

from .conftest import SMALL

SMALL = [word for word in SMALL if word not in ("--model.blend", "false")]


@pytest.fixture(scope="module")
def trained(my_csv, tmp_path_factory):
    """A tested run of the preset for own files, with its blend; not to be changed."""
    folder = tmp_path_factory.mktemp("blend") / "run"
    command = ["forecasting", "fit", "--config", "smamba", "--data.file", str(my_csv), "--output", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "0")
        patch.delenv("PL_GLOBAL_SEED")
        assert main([*command, *SMALL]) == 0
        assert main(["forecasting", "test", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("seed", range(6))
def test_weights_are_those_of_a_general_optimiser(seed):
    generator = np.random.default_rng(seed)
    errors = generator.normal(size=(200, 3)) @ generator.normal(size=(3, 3))
    products = errors.T @ errors / 200
    found = convex_weights(torch.from_numpy(products)).numpy()
    rule = {"type": "eq", "fun": lambda w: w.sum() - 1}
    best = minimize(lambda w: w @ products @ w, np.full(3, 1 / 3), bounds=[(0, 1)] * 3, constraints=rule, tol=1e-12)
    assert found.min() >= 0
    assert found.sum() == pytest.approx(1)
    assert found @ products @ found == pytest.approx(best.fun, rel=1e-5)


def test_equal_members_have_equal_weights_and_no_errors_select_the_network():
    one = torch.ones(3, 3, dtype=torch.float64)
    assert convex_weights(one) @ one @ convex_weights(one) == pytest.approx(1)
    assert convex_weights(torch.zeros(3, 3, dtype=torch.float64)).tolist() == [1, 0, 0]


def test_each_step_has_its_own_weights_and_masked_targets_do_not_count():
    torch.manual_seed(0)
    y = torch.randn(50, 2, 2)
    good, bad = y.clone(), torch.randn(50, 2, 2)
    good[..., 1] = torch.randn(50, 2)
    bad[..., 1] = y[..., 1]
    there = torch.rand(50, 2, 2) > 0.3
    products = ErrorProducts(2, 2)
    for rows in (slice(0, 20), slice(20, 50)):
        part = [f[rows].masked_fill(~there[rows], 99.0) for f in (good, bad)]
        products.update(part, y[rows], there[rows])
    torch.testing.assert_close(products.weights(), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), atol=1e-4, rtol=0)


def test_the_forecast_is_the_weighted_sum_of_its_members():
    network, linear = DLinear(12, 4), DLinear(12, 4)
    model = Blend(network, 4, linear)
    x = torch.randn(3, 2, 12)
    torch.testing.assert_close(model(x), network(x))
    model.weights.copy_(torch.tensor([0.5, 0.3, 0.2])[:, None])
    torch.testing.assert_close(model(x), 0.5 * network(x) + 0.3 * linear(x) + 0.2 * x[..., -1:])
    assert [name for name, one in model.named_parameters() if one.requires_grad] == [
        f"network.{part}.{kind}" for part in ("seasonal", "trend") for kind in ("weight", "bias")
    ]


def test_the_network_is_trained_as_without_the_blend(trained, my_csv, tmp_path):
    command = ["forecasting", "fit", "--config", "smamba", "--data.file", str(my_csv), *SMALL]
    assert main([*command, "--model.blend", "false", "--output", str(tmp_path / "alone")]) == 0
    alone, blend = (checkpoint.read_checkpoint(run)["state_dict"] for run in (tmp_path / "alone", trained))
    assert all(torch.equal(value, blend[name.replace("model.", "model.network.", 1)]) for name, value in alone.items())
    weights = blend["model.weights"]
    assert weights.shape == (3, 6)
    torch.testing.assert_close(weights.sum(0), torch.ones(6))
    assert weights.min() >= 0


@pytest.mark.parametrize("blend", ["true", "false"])
def test_a_warm_start_takes_the_network_and_says_so(trained, my_csv, tmp_path, capsys, blend):
    """The weights and DLinear of a blend, which are fitted again, were called new and, with other names, unused."""
    command = ["forecasting", "fit", "--config", "smamba", "--data.file", str(my_csv), *SMALL]
    command += ["--model.init_from", str(trained), "--model.blend", blend, "--output", str(tmp_path / "next")]
    assert main([*command, "--trainer.max_epochs", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [name.removeprefix("model.") for name in checkpoint.read_checkpoint(trained)["state_dict"]]
    others = [name for name in names if not name.startswith("network.")]
    listed = f"{len(others)} ({', '.join(others)})"
    assert any(line.startswith(f"  loaded: {len(names) - len(others)} (") for line in lines)
    assert "  new: 0" in lines
    assert ("  unused: 0" if blend == "true" else f"  unused: {listed}") in lines
    assert (f"  set by the fit: {listed}" in lines) == (blend == "true")


def test_the_tables_show_the_blend_its_members_and_its_weights(trained):
    test = json.loads((trained / "metrics.json").read_text())["test"]
    rows = {row["model"]: row["mse"] for row in test["tables"][0]["rows"]}
    assert list(rows) == ["blend", "smamba", "dlinear", "last value", "seasonal naive (24)"]
    assert test["metrics"]["mse"] == rows["blend"]
    title, table = test["tables"][-1]["title"], test["tables"][-1]["rows"]
    assert title.startswith("Weights of the blend by step ahead")
    assert [set(row) for row in table] == [{"step", "smamba", "dlinear", "last value"}] * 6
    assert rows["blend"] < 1.05 * min(rows[name] for name in ("smamba", "dlinear", "last value"))


def test_the_intervals_are_those_of_the_blend(trained, my_csv):
    """Computed from the checkpoint alone: the scores of the blended forecasts on the validation windows."""
    from seqssm_forecasting import intervals
    from seqssm_forecasting.data import ForecastingData

    content = checkpoint.read_checkpoint(trained)
    task = checkpoint.build_task(content, trained)
    data = ForecastingData(file=str(my_csv), lookback=24, horizon=6, split="70/10/20")
    data.setup()
    batch = data.val_set.__getitems__(list(range(len(data.val_set))))
    with torch.no_grad():
        forecast = task.model(batch["x"], batch["marks"])
    score = (forecast - batch["y"]).abs() / intervals.window_std(batch["x"])[..., None]
    expected, _ = intervals.quantiles(score)
    kept = content["seqssm"]["data"]["intervals"]
    torch.testing.assert_close(kept["knots"], expected, rtol=1e-4, atol=1e-5)
    assert kept["stride"] == 1


def test_an_interrupted_fit_continues_with_the_same_blend(trained, my_csv, tmp_path):
    command = ["forecasting", "fit", "--config", "smamba", "--data.file", str(my_csv), *SMALL]
    run = tmp_path / "run"
    assert main([*command, "--output", str(run), "--trainer.max_epochs", "1"]) == 0
    assert main(["forecasting", "fit", "--resume", str(run), "--trainer.max_epochs", "2"]) == 0
    resumed, whole = (torch.load(one / "last.ckpt", weights_only=True)["state_dict"] for one in (run, trained))
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())


def test_dlinear_alone_blends_with_the_last_value_and_quantiles_do_not_blend(my_csv, tmp_path, capsys):
    small = [word for pair in zip(SMALL[::2], SMALL[1::2]) if "d_" not in pair[0] for word in pair]
    command = ["forecasting", "fit", "--config", "smamba", "--data.file", str(my_csv), *small]
    assert main([*command, "--model.network", "dlinear", "--output", str(tmp_path / "linear")]) == 0
    assert seqssm.load(tmp_path / "linear").network.weights.shape == (2, 6)
    assert main(["forecasting", "test", str(tmp_path / "linear")]) == 0
    capsys.readouterr()
    words = ["--model.quantiles", "[0.1,0.5,0.9]", "--output", str(tmp_path / "quantiles")]
    assert main([*command, "--trainer.max_epochs", "1", *words]) == 0
    assert "--model.blend: not used, because the model forecasts quantiles" in capsys.readouterr().out


def test_students_of_a_blend_are_summed_in_training_and_in_prediction():
    """`distill` of the default preset once failed: a task trains the network of a blend alone."""
    torch.manual_seed(0)
    one, two = (Blend(SMamba(8, 3, d_model=8, layers=1, use_norm=False), 3, None).eval() for _ in range(2))
    x = torch.randn(2, 4, 8)
    with torch.no_grad():
        wanted = one.network(x) + two.network(x)
        attach(two, [one], ForecastingTask.head)
        torch.testing.assert_close(two.network(x), wanted)
        torch.testing.assert_close(two(x), wanted)


@pytest.mark.parametrize("blend", [False, True])
def test_a_student_learns_the_forecast_of_a_blend_unless_it_is_the_network_of_one(blend):
    task = ForecastingTask(lookback=12, horizon=4, network="dlinear", blend=blend)
    task.configure_model()
    network = DLinear(12, 4)
    teacher = Blend(network, 4, DLinear(12, 4))
    teacher.weights.copy_(torch.tensor([0.5, 0.3, 0.2])[:, None])
    batch = {"x": torch.randn(3, 2, 12), "y": torch.randn(3, 2, 4)}
    with in_place_of(task, teacher):
        _, wanted = task.step(batch)
    torch.testing.assert_close(wanted, network(batch["x"]) if blend else teacher(batch["x"]))
