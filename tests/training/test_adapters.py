"""Low-rank adapters in every domain: they and the head are trained, all else stays; DNA has its own tests."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from seqssm_ecg import simulate as recordings
from seqssm_forecasting import simulate as series
from seqssm_pathology import simulate as slides

import seqssm
from seqssm.compress.compare import record
from seqssm.compress.distil import Request, Sizes, distil
from seqssm.domain import domains
from seqssm.errors import InputError
from seqssm.training.adapters import merged
from seqssm.training.checkpoint import build_task, read_checkpoint

pytest.importorskip("peft", reason="peft is not installed: pip install 'seqssm[adapters]'")
SMALL = {
    "ecg": {"d_model": 16, "depth": 1, "learning_rate": 0.01},
    "forecasting": {"d_model": 16, "d_ff": 16, "blend": False, "learning_rate": 0.01},
    "pathology": {"d_model": 16, "learning_rate": 0.01},
}
FITTED = ("head", "thresholds", "temperature")  # trained or calibrated in each fit


@pytest.fixture(scope="module")
def fit(tmp_path_factory):
    """Fit a small model of a domain on made data; return its run folder."""
    folder = tmp_path_factory.mktemp("adapters")
    recordings.folder(folder / "ecg", 20, seed=3, seconds=3.0)
    slides.cohort(folder / "slides", cases=14, seed=8, width=6)
    data = {
        "ecg": {"manifest": str(folder / "ecg" / "manifest.csv"), "window_s": 3.0},
        "forecasting": {"file": str(folder / "walks.csv"), "lookback": 24, "horizon": 6},
        "pathology": {"manifest": str(folder / "slides" / "manifest.csv"), "features": str(folder / "slides")},
    }
    series.walks(200, 3, seed=1).to_csv(folder / "walks.csv", index=False)

    def run(domain, name, **model):
        output = folder / domain / name
        model = {**SMALL[domain], **model}
        seqssm.fit(domain, data=data[domain], model=model, trainer={"max_epochs": 1}, output=output, overwrite=True)
        return output

    return run


@pytest.mark.parametrize("domain", SMALL)
def test_adapters_and_head_are_trained_and_nothing_else(domain, fit):
    base = fit(domain, "base")
    adapted = fit(domain, "adapted", init_from=str(base), lora=2)
    before, after = (read_checkpoint(run)["state_dict"] for run in (base, adapted))
    changed = {name for name, value in after.items() if "lora_B" in name and value.abs().max() > 0}
    assert len(changed) == sum("lora_B" in name for name in after) > 0, "each adapter has a gradient"
    for name, value in before.items():
        layer, _, kind = name.rpartition(".")
        now = after[name] if name in after else after[f"{layer}.base_layer.{kind}"]
        if not any(word in name for word in FITTED):
            assert torch.equal(now, value), name
    assert not torch.equal(after["model.head.weight"], before["model.head.weight"])
    # merged weights are those of a plain network, from which a further fit can start
    task, plain = (build_task(read_checkpoint(run), run) for run in (adapted, base))
    plain.model.load_state_dict(merged(dict(task.model.state_dict())))
    again = read_checkpoint(fit(domain, "again", init_from=str(adapted), freeze="backbone"))["state_dict"]
    for name, value in plain.model.state_dict().items():
        if not any(word in name for word in FITTED):
            assert torch.equal(again[f"model.{name}"], value), name


def test_a_checkpoint_with_adapters_needs_peft(fit, monkeypatch):
    adapted = fit("forecasting", "adapted", lora=2)
    assert any("lora_A" in name for name in read_checkpoint(adapted)["state_dict"]), "they are kept apart"
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"best.ckpt: low-rank adapters .*: pip install 'seqssm\[adapters\]'"):
        seqssm.load(adapted)


def test_students_of_an_adapted_teacher_are_trained_whole(fit, tmp_path, one_thread):
    """They had the adapters of the teacher, and random weights that were frozen."""
    base = fit("forecasting", "base")
    adapted = fit("forecasting", "adapted", init_from=str(base), lora=2)
    done = distil(Request(adapted, tmp_path / "set.ckpt", students=1, control=False))
    about = json.loads((tmp_path / "set" / "student-1" / "about.json").read_text())
    assert about["trained_parameters"] == about["parameters"]
    content = read_checkpoint(tmp_path / "set" / "student-1")
    assert content["seqssm"]["hparams"]["lora"] == 0
    assert not any("lora" in name for name in content["state_dict"])
    plain = Sizes(record(domains()["forecasting"], base / "best.ckpt"), base)
    assert done.flops == plain.teacher // plain.records, "adapters, which are merged for use, are not counted"


def test_a_network_without_projections_is_refused(fit):
    with pytest.raises(InputError, match=r"--model.lora 2: this network has no projection named in_proj"):
        fit("pathology", "pooling", network="abmil", lora=2)
