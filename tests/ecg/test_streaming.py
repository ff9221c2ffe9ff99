"""A stream in chunks of any size equals the whole recording, with a state of constant size."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from seqssm_ecg import simulate
from seqssm_ecg.files import read_recording, write_wfdb
from seqssm_ecg.streaming import Stream

import seqssm
from seqssm.cli.main import main
from seqssm.errors import InputError

P = [f"p_{name}" for name in simulate.CLASSES]


@pytest.fixture(scope="module")
def causal(made, tmp_path_factory):
    """A causal run on the simulated records."""
    run = tmp_path_factory.mktemp("stream") / "run"
    before = dict(os.environ)
    argv = ["ecg", "fit", "--config", "ecg_stream", "--data.manifest", str(made / "manifest.csv"), "--output", str(run)]
    argv += ["--model.d_model", "16", "--model.d_state", "4", "--data.window_s", "4", "--trainer.max_epochs", "1"]
    assert main([*argv, "--trainer.accelerator", "cpu", "--model.threads", "1"]) == 0
    os.environ.clear()
    os.environ.update(before)
    return seqssm.load(run, "cpu"), run


@pytest.fixture(scope="module")
def samples(causal, tmp_path_factory):
    """(leads, n) mV at the model's rate: 21.5 s."""
    model, _ = causal
    values = simulate.recording(["PVC"], 21.5, 250.0, 9)
    path = write_wfdb(tmp_path_factory.mktemp("long"), "r", values, 250.0)
    return Stream(model.network, model.summary).preprocess.millivolts(read_recording(path))[0]


@pytest.mark.parametrize("sizes", [(1,), (7, 130, 3), (100,), (2150,)])
def test_chunks_of_any_size_equal_the_whole(causal, samples, sizes):
    model, _ = causal
    stream = Stream(model.network, model.summary)
    found, place, turn = {}, 0, 0
    table = samples[:, :450] if sizes == (1,) else samples
    while place < table.shape[1]:
        size = sizes[turn % len(sizes)]
        found |= {one.second: one.probabilities for one in stream.push(table[:, place : place + size])}
        place, turn = place + size, turn + 1
    assert list(found) == list(range(1, table.shape[1] // 100 + 1))
    for second in found:
        x = torch.from_numpy(stream.preprocess.scaled(table[:, : 100 * second]))[None]
        with torch.no_grad():
            whole = (model.network(x)[0] / model.network.temperature).sigmoid().numpy()
        np.testing.assert_allclose(found[second], whole, atol=1e-5)


@pytest.mark.parametrize("size", [37, 2150])
def test_a_sliding_window_is_the_mean_over_the_tokens_of_its_seconds(causal, samples, size):
    model, _ = causal
    stream = Stream(model.network, model.summary, 5)
    found = [one for at in range(0, samples.shape[1], size) for one in stream.push(samples[:, at : at + size])]
    backbone, x = model.network.backbone, torch.from_numpy(stream.preprocess.scaled(samples))[None]
    with torch.no_grad():
        tokens = backbone._encode(backbone.stem(x), None)[0]
        for one in found:
            first, last = (backbone.stem.tokens(100 * max(0, at)) for at in (one.second - 5, one.second))
            logits = model.network.head(tokens[first:last].mean(0)) / model.network.temperature
            np.testing.assert_allclose(one.recent, logits.sigmoid().numpy(), atol=1e-5)
            if one.second <= 5:
                np.testing.assert_allclose(one.recent, one.probabilities, atol=1e-6)
    assert len(stream.marks) == 6
    with pytest.raises(InputError, match="whole seconds"):
        Stream(model.network, model.summary, 2.5)


def test_memory_does_not_grow(causal, samples):
    model, _ = causal
    stream = Stream(model.network, model.summary, 3)

    def size():
        return len(pickle.dumps((stream.filter, stream.context, stream.states, stream.total, stream.marks)))

    stream.push(samples[:, :400])
    first = size()
    for _ in range(5):
        stream.push(samples[:, :400])
    assert abs(size() - first) < 64
    stream.reset()
    assert stream.samples == 0


def test_a_model_that_looks_ahead_is_refused(trained):
    model = seqssm.load(trained, "cpu")
    with pytest.raises(InputError, match="is not causal"):
        Stream(model.network, model.summary)


def test_bad_samples_are_refused(causal):
    model, _ = causal
    stream = Stream(model.network, model.summary)
    with pytest.raises(InputError, match="expected \\(12 leads, n\\)"):
        stream.push(np.zeros((3, 10)))
    with pytest.raises(InputError, match="not finite"):
        stream.push(np.full((12, 10), np.nan))


def test_the_command(causal, tmp_path, capsys):
    _, run = causal
    path = write_wfdb(tmp_path, "r", simulate.recording([], 5.2, 250.0, 4), 250.0)
    assert main(["ecg", "stream", str(run), str(path), "--output", str(tmp_path / "s.csv")]) == 0
    table = pd.read_csv(tmp_path / "s.csv")
    assert table["second"].tolist() == [1, 2, 3, 4, 5]
    assert list(table) == ["second", *P]
    assert main(["ecg", "stream", str(run), str(path), "--chunk-s", "3"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 6
    assert main(["ecg", "stream", str(run), str(path), "--window-s", "2", "--output", str(tmp_path / "w.csv")]) == 0
    sliding = pd.read_csv(tmp_path / "w.csv")
    assert list(sliding) == ["second", *P, *(f"{name}_window" for name in P)]
    pd.testing.assert_frame_equal(sliding[list(table)], table)
    assert main(["ecg", "stream", str(run)]) == 2
