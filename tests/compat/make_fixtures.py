"""Makes the fixtures of `test_old_checkpoints.py`: `runs`, `expected` and `hashes.json`.

Run once, at version 0.1.0, commit 3aa128b, from a checkout of it:

    OMP_NUM_THREADS=1 python tests/compat/make_fixtures.py

Never run it with later code: the fixtures record what 0.1.0 did. Later formats get separate fixtures. The script
refuses to run with another version.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from pathlib import Path

import old_runs as compat
import torch
from seqssm.task import Task

import seqssm
from seqssm.cli.main import main

KEPT = ("config.yaml", "best.ckpt", "last.ckpt", "log.csv")
ENVIRONMENT = ("PL_GLOBAL_SEED", "SEQSSM_DATA", "SEQSSM_CHECKPOINT_SECONDS")

ECG = {"classes": ["A", "B"], "lead_set": 12, "window_s": 2.0, "sampling_rate_hz": 100.0}
ECG |= {"d_model": 8, "depth": 2, "d_state": 4}
STREAM = {"direction": "forward", "pool": "mean", "positions": False, "causal": True}
FORECASTING = {"lookback": 16, "horizon": 4, "d_model": 8, "d_state": 4, "layers": 2, "heads": 2}
PATHOLOGY = {"target": "classification", "d_in": 6, "outputs": 2, "d_model": 8, "layers": 2, "rate": 3, "d_state": 4}
PATHOLOGY |= {"pool_width": 4, "heads": 2}
MAMBA = {"d_model": 8, "d_state": 4}

NETWORKS = [  # (domain, network, key, arguments)
    ("ecg", "mamba", "bidirectional", ECG),
    ("ecg", "mamba", "bidirectional_sum", {**ECG, "merge": "sum"}),
    ("ecg", "mamba", "pool_head", {**ECG, "pool": "head"}),
    ("ecg", "mamba", "pool_tail", {**ECG, "pool": "tail"}),
    ("ecg", "mamba", "pool_mean", {**ECG, "pool": "mean"}),
    ("ecg", "mamba", "no_positions", {**ECG, "positions": False}),
    ("ecg", "mamba", "forward_tail", {**ECG, "direction": "forward", "pool": "tail"}),
    ("ecg", "mamba", "forward_mean", {**ECG, "direction": "forward", "pool": "mean"}),
    ("ecg", "mamba", "stream", {**ECG, **STREAM}),
    ("ecg", "mamba", "stream_two_leads", {**ECG, **STREAM, "lead_set": 2, "depth": 1}),
    ("ecg", "mamba", "stem_deep", {**ECG, "stem": "deep"}),
    ("ecg", "mamba", "stem_published", {**ECG, "stem": "ecg_mamba", "window_s": 4.0}),
    ("ecg", "mamba", "conv_and_expand", {**ECG, "d_conv": 3, "expand": 1}),
    ("ecg", "cnn", "twelve_leads", ECG),
    ("ecg", "cnn", "two_leads", {**ECG, "lead_set": 2, "d_model": 4}),
    ("forecasting", "smamba", "plain", FORECASTING),
    ("forecasting", "smamba", "d_ff", {**FORECASTING, "d_ff": 12, "use_norm": False}),
    ("forecasting", "smamba", "quantiles", {**FORECASTING, "quantiles": [0.1, 0.5, 0.9]}),
    ("forecasting", "smamba", "known", {**FORECASTING, "future_columns": ["temp"]}),
    ("forecasting", "smamba", "static", {**FORECASTING, "static": 3}),
    (
        "forecasting",
        "smamba",
        "everything",
        {**FORECASTING, "quantiles": [0.1, 0.5, 0.9], "future_columns": ["temp"], "static": 3},
    ),
    ("forecasting", "itransformer", "plain", FORECASTING),
    ("forecasting", "itransformer", "d_ff_quantiles", {**FORECASTING, "d_ff": 12, "quantiles": [0.25, 0.5, 0.75]}),
    ("forecasting", "itransformer", "known_static", {**FORECASTING, "future_columns": ["temp"], "static": 2}),
    ("forecasting", "dlinear", "plain", FORECASTING),
    ("forecasting", "dlinear", "quantiles", {**FORECASTING, "quantiles": [0.1, 0.5, 0.9]}),
    *(("pathology", name, "plain", PATHOLOGY) for name in ("srmamba", "bimamba", "mamba")),
    *(("pathology", name, "importance", {**PATHOLOGY, "importance": True}) for name in ("srmamba", "bimamba", "mamba")),
    *(("pathology", name, "positive", {**PATHOLOGY, "regime": "positive"}) for name in ("srmamba", "bimamba", "mamba")),
    ("pathology", "srmamba", "published", {**PATHOLOGY, "padding": "published"}),
    (
        "pathology",
        "srmamba",
        "importance_positive",
        {**PATHOLOGY, "importance": True, "regime": "positive", "d_conv": 3, "expand": 1.5},
    ),
    ("pathology", "srmamba", "survival", {**PATHOLOGY, "target": "survival", "bins": 4, "outputs": 4}),
    ("pathology", "srmamba", "values", {**PATHOLOGY, "d_in": 1, "tokens": 10}),
    *(("pathology", name, "plain", PATHOLOGY) for name in ("abmil", "abmil_gated", "mean", "max", "transmil")),
    ("pathology", "transmil", "four_heads", {**PATHOLOGY, "heads": 4, "outputs": 3}),
    ("seqssm", "Mamba", "forward", {**MAMBA, "ordering": "forward"}),
    ("seqssm", "Mamba", "reverse", {**MAMBA, "ordering": "reverse"}),
    ("seqssm", "Mamba", "bidirectional", {**MAMBA, "ordering": "bidirectional"}),
    ("seqssm", "Mamba", "bidirectional_mean", {**MAMBA, "ordering": "bidirectional", "merge": "mean"}),
    ("seqssm", "Mamba", "forward_stride", {**MAMBA, "ordering": ["forward", {"stride": 5}]}),
    ("seqssm", "Mamba", "forward_stride_mean", {**MAMBA, "ordering": ["forward", {"stride": 5}], "merge": "mean"}),
    ("seqssm", "Mamba", "stride_pads", {**MAMBA, "ordering": {"stride": 5, "pads": True}}),
    ("seqssm", "Mamba", "three_routes", {**MAMBA, "ordering": ["bidirectional", {"stride": 3}]}),
    ("seqssm", "Mamba", "biases", {**MAMBA, "bias": True, "conv_bias": False, "ordering": "bidirectional"}),
    ("seqssm", "Mamba", "sizes", {"d_model": 20, "d_state": 3, "d_conv": 2, "expand": 1.5, "dt_rank": 3}),
    (
        "seqssm",
        "Mamba",
        "dt_range",
        {**MAMBA, "dt_min": 0.01, "dt_max": 0.2, "dt_init_floor": 0.02, "dt_rank": "auto"},
    ),
]


def network_hashes() -> list[dict]:
    """The content of `hashes.json`."""
    found = []
    for domain, network, variant, arguments in NETWORKS:
        kwargs = arguments if domain == "seqssm" else {"network": network, **arguments}
        marks = compat.fingerprint(compat.build_network(domain, kwargs))
        key = f"{domain}-{network}-{variant}"
        found.append({"key": key, "domain": domain, "network": network, "kwargs": kwargs, **marks})
    assert len({entry["key"] for entry in found}) == len(found)
    return found


def clean() -> None:
    for name in ENVIRONMENT:
        os.environ.pop(name, None)


def fit(run: compat.Run, folder: Path) -> None:
    """Train a run; if it has `stop_at`, Ctrl-C stops it after that step, with a checkpoint."""
    clean()
    step, training_step = 0, Task.training_step

    def counted(task, batch, batch_idx):
        nonlocal step
        step += 1
        if step == run.stop_at:
            os.kill(os.getpid(), signal.SIGINT)
        return training_step(task, batch, batch_idx)

    Task.training_step = counted
    try:
        code = main([run.domain, "fit", *run.fit, "--output", str(folder)])
    finally:
        Task.training_step = training_step
    assert code == (0 if run.stop_at is None else 130)
    clean()


def make(name: str, run: compat.Run, scratch: Path) -> None:
    """Train a run, keep its files, and write the results of the old version."""
    trained = scratch / name
    fit(run, trained)
    kept = compat.HERE / "runs" / name
    kept.mkdir(parents=True)
    for file in KEPT:
        if file != "last.ckpt" or run.resume is not None:
            shutil.copy(trained / file, kept)
    copy = shutil.copytree(kept, scratch / f"{name}_copy")
    tables = scratch / f"{name}_tables"
    tables.mkdir()
    compat.predictions(name, copy / "best.ckpt", tables)
    shutil.copy(tables / "loaded.csv", compat.HERE / "expected" / f"{name}.csv")  # with all digits
    if name in compat.STREAMS:
        compat.stream(name, copy / "best.ckpt", tables)
        shutil.copy(tables / "stream.csv", compat.HERE / "expected" / f"{name}_stream.csv")
    clean()
    found = {"test": compat.evaluated(name, copy)}
    if run.resume is not None:
        clean()
        copy = shutil.copytree(kept, scratch / f"{name}_resumed")
        found["resumed"] = compat.resumed(name, copy)
        require_undisturbed(run, found["resumed"]["sha256"], scratch / f"{name}_whole")
    text = json.dumps(found, separators=(",", ":"), allow_nan=False)
    (compat.HERE / "expected" / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def require_undisturbed(run: compat.Run, sha: str, folder: Path) -> None:
    """Require a resumed run to have bit for bit the weights of an uninterrupted one."""
    clean()
    assert main([run.domain, "fit", *run.fit, "--output", str(folder), *(run.resume or ())]) == 0
    weights = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    assert compat.weights_sha(weights) == sha, folder.name


def make_all() -> None:
    assert seqssm.__version__ == "0.1.0", "the fixtures are those of 0.1.0"
    torch.set_num_threads(1)
    for folder in ("runs", "expected"):
        shutil.rmtree(compat.HERE / folder, ignore_errors=True)
    (compat.HERE / "expected").mkdir()
    lines = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in network_hashes())
    (compat.HERE / "hashes.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        os.chdir(scratch)
        compat.write_data(scratch / "data")
        for key, run in compat.RUNS.items():
            make(key, run, scratch)


if __name__ == "__main__":
    make_all()
