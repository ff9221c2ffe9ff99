"""`seqssm export`: graphs equal the model at other lengths than the example's, and no loop is unrolled."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from seqssm.cli.main import main
from seqssm.errors import InputError
from seqssm.nn.mamba import Mamba
from seqssm.nn.mamba2 import Mamba2
from seqssm.tools import export as exporting
from seqssm.tools.export import Graph, compare, onnx_of, program, program_of

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'seqssm[export]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'seqssm[export]'")
RUNS = Path(__file__).parents[1] / "compat" / "runs"
LENGTHS = (11, 7, 40)
LAYERS = {
    "bidirectional": lambda: Mamba(8, ordering="bidirectional"),
    "stride": lambda: Mamba(8, ordering=["forward", {"stride": 5}], merge="mean"),
    "mamba2": lambda: Mamba2(32, ordering="reverse", head_dim=16, d_state=8),
}


def graph_of(layer: nn.Module, width: int) -> Graph:
    def inputs(batch: int, length: int) -> dict[str, torch.Tensor]:
        return {"x": torch.randn(batch, length, width, generator=torch.Generator().manual_seed(length))}

    return Graph(layer.eval(), inputs, {"x": {0: "batch", 1: "length"}}, ("y",), {}, LENGTHS)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_scans_any_length(name, tmp_path):
    torch.manual_seed(0)
    layer = LAYERS[name]()
    path = tmp_path / "layer.onnx"
    graph = graph_of(layer, layer.d_model)
    exported, run = onnx_of(graph)
    assert len(compare(graph, run, path)) == len(LENGTHS)
    content = onnx.load_from_string(exported)
    nodes = [node.op_type for part in (content.graph, *content.functions) for node in part.node]
    assert nodes.count("Scan") >= 1
    assert len(nodes) < 400  # not a node per step
    assert [axis.dim_param for axis in content.graph.input[0].type.tensor_type.shape.dim][:2] == ["batch", "length"]


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_graph_that_differs_is_an_error(value, tmp_path):
    def run(inputs):
        return [np.full(tuple(inputs["x"].shape), value, np.float32)]

    with pytest.raises(InputError, match="differs from the model at length 11"):
        compare(graph_of(Mamba(8), 8), run, tmp_path / "layer.onnx")


@pytest.mark.parametrize("form", ["onnx", "torch", "safetensors"])
def test_a_failed_check_leaves_the_previous_file(form, tmp_path, capsys, monkeypatch):
    path = tmp_path / f"model{exporting.SUFFIXES[form][0]}"
    path.write_bytes(b"earlier")
    if form == "safetensors":
        monkeypatch.setattr("safetensors.torch.load", lambda content: defaultdict(lambda: torch.tensor(torch.nan)))
    else:
        monkeypatch.setattr(exporting, f"{'onnx' if form == 'onnx' else 'program'}_of", lambda graph: (b"", spoilt))
    command = ["export", str(RUNS / "ecg_mamba"), "--format", form, "--output", str(path), "--overwrite"]
    assert main(command) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("seqssm: ")
    assert [one.read_bytes() for one in tmp_path.iterdir()] == [b"earlier"]


def spoilt(inputs: Mapping[str, torch.Tensor]) -> list[np.ndarray]:
    return [np.zeros(1, np.float32)]


def test_a_file_beside_the_checkpoint_is_kept(tmp_path, capsys):
    shutil.copytree(RUNS / "ecg_mamba", tmp_path / "run")
    command = ["export", str(tmp_path / "run"), "--format", "safetensors"]
    assert [main(command), main(command), main([*command, "--overwrite"])] == [0, 2, 0]
    assert "best.safetensors: already exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    "run", ["ecg_mamba", "forecasting_smamba", pytest.param("pathology_srmamba", marks=pytest.mark.long)]
)
def test_a_trained_model_becomes_a_graph(run, tmp_path, capsys):
    path = tmp_path / "model.onnx"
    assert main(["export", str(RUNS / run), "--output", str(path)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("largest difference") == 3
    about = json.loads(onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map["seqssm"])
    constant = {"ecg_mamba": "preprocess", "forecasting_smamba": "mean", "pathology_srmamba": "scaler"}[run]
    assert constant in about
    assert about["domain"] == run.partition("_")[0]
    if run == "pathology_srmamba":
        assert about["outputs"].startswith("probabilities: ")


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("samples", [200, 900])
def test_the_steps_of_an_ecg_graph_give_its_input(causal, samples):
    """The metadata had the sections of the filter, but neither its method nor its padding."""
    from scipy import signal
    from seqssm_ecg.preprocess import Preprocess, resample

    preprocess = Preprocess(rate_hz=100, band_hz=(0.5, 40), causal=causal)
    x = raw = np.random.default_rng(0).normal(size=(12, samples)).cumsum(axis=1)
    known = {"scipy": SimpleNamespace(signal=signal), "filter_sections": preprocess.sections(), "samples": samples}
    calls = [step for step in preprocess.steps() if step.startswith("x = ")]
    resampling, filtering = (step.removeprefix("x = ") for step in calls)
    x = eval(filtering, {**known, "x": raw})
    x = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
    np.testing.assert_allclose(x, preprocess.scaled(raw), atol=1e-5)
    made = eval(resampling.partition(" if ")[0], {**known, "x": raw, "up": 1, "down": 5})
    np.testing.assert_allclose(made[:, : samples // 5], resample(raw, 500, 100), atol=1e-4)
    assert Preprocess(normalise="global", mean=0.25, std=2.0).steps()[-1] == "(x - 0.25) / 2.0"


def test_calendar_marks_follow_from_the_ranges_of_a_forecasting_graph(tmp_path):
    """The metadata named the marks without their scale."""
    from seqssm_forecasting.calendar import MARKS, marks

    assert main(["export", str(RUNS / "forecasting_smamba"), "--output", str(tmp_path / "m.onnx")]) == 0
    found = onnxruntime.InferenceSession(tmp_path / "m.onnx").get_modelmeta().custom_metadata_map["seqssm"]
    about = json.loads(found)
    assert "(value - low) / (high - low) - 0.5" in about["inputs"]
    dates = pd.date_range("2024-02-27 05:00", periods=400, freq="7h")
    (kind,) = [kind for kind, names in MARKS.items() if list(names) == about["calendar_marks"]]
    for name, own in zip(about["calendar_marks"], marks(dates, kind).T):
        low, high = about["calendar_ranges"][name]
        np.testing.assert_allclose((getattr(dates, name) - low) / (high - low) - 0.5, own, atol=1e-6)


def classifier_graph(name):
    from seqssm_dna.classifier import GenomeClassifier
    from seqssm_dna.export import export
    from seqssm_dna.model import GenomeLM
    from seqssm_dna.rivals import GruLM
    from seqssm_dna.stem import StemEncoder

    torch.manual_seed(0)
    windows = {"head_dim": 8, "attn_period": 2, "attn_offset": 1, "attn_window": 7}
    encoder = {
        "stem": lambda: StemEncoder(16, 1, 7, positions=20),
        "hybrid": lambda: GenomeLM(16, 1, "mamba", conv_layers=2),
        "windows": lambda: GenomeLM(16, 2, "mamba3", **windows),
        "gru": lambda: GruLM(16, 1),
    }[name]()
    head = {"class_head": "etf", "max_classes": 5, "projector": "dual"} if name == "windows" else {}
    model = GenomeClassifier(encoder, 3, average_strands=True, **head).eval()
    summary = {"max_length": 40, "classes": ["a", "b", "c"], "unit": "", "lower": "upper"}
    summary |= {"context": 40, "trim_n": False}
    return export(SimpleNamespace(model=model), summary, False)


@pytest.mark.parametrize("network", ["stem", "hybrid", pytest.param("windows", marks=pytest.mark.long)])
def test_a_classifier_of_sequences_becomes_a_graph(network, tmp_path):
    graph = classifier_graph(network)
    assert graph.metadata["context"] == 40
    assert len(compare(graph, onnx_of(graph)[1], tmp_path / "dna.onnx")) == 3


def test_a_network_that_has_no_graph_for_every_length_is_an_error():
    with pytest.raises(InputError, match=r"GRU layers.*--format safetensors"):
        program(classifier_graph("gru"))


def test_steps_of_a_stream_equal_the_whole_recording(tmp_path, capsys):
    path = tmp_path / "step.onnx"
    assert main(["export", str(RUNS / "ecg_stream"), "--streaming", "--output", str(path)]) == 0
    session = onnxruntime.InferenceSession(path)
    import seqssm

    model = seqssm.load(RUNS / "ecg_stream", "cpu").network
    first = session.get_inputs()[0]
    stride, steps = first.shape[2], 25
    x = torch.randn(1, first.shape[1], stride * steps, generator=torch.Generator().manual_seed(3))
    states = {one.name: np.zeros([1, *one.shape[1:]], np.float32) for one in session.get_inputs()[1:]}
    for k in range(steps):
        now, *new = session.run(None, {"x": x[..., k * stride : (k + 1) * stride].numpy(), **states})
        states = dict(zip(states, new))
    with torch.no_grad():
        whole = (model(x) / model.temperature).sigmoid()
    assert np.abs(now - whole.numpy()).max() < 1e-4


def test_an_exported_torch_program_is_read_back(tmp_path):
    torch.manual_seed(0)
    graph = graph_of(LAYERS["bidirectional"](), 8)
    assert len(compare(graph, program_of(graph)[1], tmp_path / "layer.pt2")) == len(LENGTHS)


def test_weights_have_a_description(tmp_path):
    from safetensors import safe_open

    path = tmp_path / "ecg.safetensors"
    assert main(["export", str(RUNS / "ecg_mamba"), "--format", "safetensors", "--output", str(path)]) == 0
    with safe_open(path, "pt") as opened:
        about = json.loads(opened.metadata()["seqssm"])
        assert opened.get_tensor("head.weight").shape[0] == len(about["data"]["classes"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.ckpt"], "no such run or checkpoint"),
        ([str(RUNS / "ecg_mamba"), "--streaming"], "this model is not causal"),
        ([str(RUNS / "pathology_srmamba"), "--streaming"], "needs the whole bag"),
        ([str(RUNS / "ecg_mamba"), "--format", "safetensors", "--streaming"], "has weights only"),
        ([str(RUNS / "ecg_mamba"), "--format", "tflite"], "invalid choice"),
        ([str(RUNS / "ecg_mamba"), "--format", "torch"], "--output must end in .pt2 or .pt"),
    ],
)
def test_what_cannot_be_exported_is_one_line(words, message, tmp_path, capsys):
    path = tmp_path / (
        "out.safetensors" if "safetensors" in words else "out.txt" if "must end" in message else "out.onnx"
    )
    assert main(["export", *words, "--output", str(path)]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
    assert not path.exists()


@pytest.mark.parametrize("form", ["onnx", "torch", "safetensors"])
def test_a_compressed_model_is_refused(form, tmp_path, capsys):
    content = torch.load(RUNS / "ecg_mamba" / "best.ckpt", weights_only=True)
    content["seqssm"]["compression"] = {"layers": {}}
    torch.save(content, tmp_path / "small.ckpt")
    assert main(["export", str(tmp_path / "small.ckpt"), "--format", form]) == 2
    assert "small.ckpt: is compressed; export the original checkpoint" in capsys.readouterr().err


def test_a_missing_package_is_named(monkeypatch, capsys):
    monkeypatch.setattr(exporting, "NEEDED", ("onnx", "no_such_package"))
    assert main(["export", str(RUNS / "ecg_mamba")]) == 2
    assert "requires missing packages (no_such_package): pip install 'seqssm[export]'" in capsys.readouterr().err
