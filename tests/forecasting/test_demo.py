"""The demo on fewer rows: tables of `test` and `predict`, and the best possible error."""

from __future__ import annotations

import json

import pytest
from seqssm_forecasting import demo


@pytest.mark.long
def test_the_demo_shows_the_output_of_the_commands(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "ROWS", 1200)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.delenv("PL_GLOBAL_SEED")
    errors, forecast = demo.demo(tmp_path)
    written = json.loads((tmp_path / "run" / "metrics.json").read_text())["test"]
    models = errors.tables[0][1]
    tested = [row["mse"] for row in written["tables"][0]["rows"]]
    assert list(models["mse"][: len(tested)]) == tested
    best = models.iloc[-1]
    assert best["model"].startswith("best possible")
    assert 0 < best["mse"] < min(tested), "no model beats the truth"
    shown = forecast.tables[0][1]
    assert len(shown) == 4 * 4
    assert set(shown["status"]) == {"ok"}
    came = shown["actual"]
    assert came.notna().all()
    assert (shown["yhat"] - came).abs().mean() < came.std()
    assert [path.name for path in errors.figures] == ["error_by_step.png"]
    wider = shown["yhat-lo-95"] < shown["yhat-lo-80"]
    assert (wider | (shown["yhat-lo-95"] == shown["yhat-lo-80"])).all()  # equal where few windows do not overlap
    assert wider.mean() > 0.6
    assert len(forecast.figures) == 4
    assert all(path.stat().st_size > 5000 for path in errors.figures + forecast.figures)


def test_actual_values_are_not_in_the_training_file(tmp_path, monkeypatch):
    """The file that the model is trained on ends where the forecast begins."""
    import pandas as pd
    from seqssm_forecasting import simulate

    calls = []
    monkeypatch.setattr("seqssm.cli.main.run", lambda words: calls.append(words))
    with pytest.raises(FileNotFoundError):  # nothing was run, so there are no outputs to read
        demo.demo(tmp_path)
    made, whole = pd.read_csv(tmp_path / "made.csv"), simulate.series(demo.ROWS, demo.SEED)
    assert len(made) == len(whole) - demo.HORIZON
    assert [words[:2] for words in calls] == [
        ["forecasting", "fit"],
        ["forecasting", "test"],
        *[["predict", calls[2][1]]] * 2,
    ]
