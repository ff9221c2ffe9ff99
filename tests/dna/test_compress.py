"""`seqssm compress` with classifiers, causal and masked models of sequences, and models with adapters."""

from __future__ import annotations

import re
import shutil

import pandas as pd
import pytest
import torch
from seqssm_dna.labels_task import SequenceLabels

import seqssm
from seqssm.cli.main import main
from seqssm.training.teacher import Teacher

from .conftest import SMALL

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def compress(tmp_path, monkeypatch, capsys):
    """Compress a run; returns the checkpoint and what was printed."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")

    def make(run, method, *more):
        output = tmp_path / f"{method}.ckpt"
        argv = ["compress", str(run), "--method", method, "--output", str(output), "--overwrite", *map(str, more)]
        capsys.readouterr()
        assert main(argv) == 0, capsys.readouterr().err
        return output, capsys.readouterr().out

    return make


@pytest.fixture(scope="module")
def hybrids(runs, tmp_path_factory):
    """Classifiers with Mamba-2, attention and an MLP: `plain`, `adapted` (low-rank adapters), `binary` (distilled)."""
    folder = tmp_path_factory.mktemp("hybrids")
    flags = ["--model.n_layers", "2", "--model.mixer", "mamba2", "--model.head_dim", "8", "--model.attn_period", "2"]
    flags += ["--model.attn_offset", "1", "--model.mlp_ratio", "1", "--model.learning_rate", "0.03"]
    flags += ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"]
    flags += ["--data.train", str(runs / "made" / "promoters.csv")]
    more = {
        "plain": [],
        "adapted": ["--model.lora", "2"],
        "binary": ["--model.binary", "true", "--model.teacher", str(folder / "plain")],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "1")
        for name, own in more.items():
            output = ["--output", str(folder / name)]
            assert main(["dna", "fit", "--config", "finetune", *SMALL, *flags, *own, *output]) == 0
    return folder


def test_adapters_are_merged(runs, hybrids, compress):
    pytest.importorskip("peft", reason="adapters need peft: pip install 'seqssm[adapters]'")
    labelled = runs / "made" / "promoters.csv"
    adapted = hybrids / "adapted"
    output, printed = compress(adapted, "w8a8", "--calibration", labelled)
    assert "low-rank adapters merged into the weights: 8" in printed
    content = torch.load(output, weights_only=True)
    assert content["seqssm"]["hparams"]["lora"] == 0
    assert [name for name in content["state_dict"] if "lora" in name or "base_layer" in name] == []
    layout = content["seqssm"]["compression"]["layers"]
    roles = {name.rpartition(".")[2]: entry for name, entry in layout.items() if entry["kind"] == "linear"}
    assert set(roles) == {"in_proj", "out_proj", "fc1", "fc2"}
    rotated = [name for name, entry in layout.items() if entry.get("rotated")]
    assert rotated == ["network.backbone.layers.0.mixer.out_proj"]  # the scan, not the attention
    before, after = (seqssm.load(path).predict(labelled) for path in (adapted, output))
    spread = before["p_promoter"].max() - before["p_promoter"].min()
    assert (after["p_promoter"] - before["p_promoter"]).abs().max() < 0.05 * spread + 1e-3


@pytest.mark.parametrize("method", ["w8a8", "w4a16"])
def test_a_classifier(runs, hybrids, compress, method):
    labelled = runs / "made" / "promoters.csv"
    output, printed = compress(hybrids / "plain", method, "--calibration", labelled)
    assert re.search(r"^accuracy .* to ", printed, re.MULTILINE)
    assert "calibrated on 40 records of promoters.csv" in printed
    before, after = (seqssm.load(path).predict(labelled) for path in (hybrids / "plain", output))
    assert (after["status"] == "ok").all()
    assert (after["p_promoter"] - before["p_promoter"]).abs().max() < 0.02


@pytest.mark.parametrize("method", ["w8a8", "w4a8", "w8a16"])
def test_a_causal_model_calibrates_on_windows_of_its_segments(runs, compress, method):
    output, printed = compress(runs / "tiny", method)
    assert re.search(r"calibrated on 1 validation records \(\d\d windows\) of the run", printed)
    before, after = (seqssm.load(path).predict(runs / "made" / "genome.fa") for path in (runs / "tiny", output))
    assert (after["bits_per_base"] - before["bits_per_base"]).abs().max() < 0.02
    assert not after["bits_per_base"].equals(before["bits_per_base"])


def test_a_binary_classifier_is_packed(runs, hybrids, compress, capsys):
    labelled = runs / "made" / "promoters.csv"
    output, printed = compress(hybrids / "binary", "w1")
    assert re.search(r"binary: [\d,]+ of [\d,]+ parameters", printed)
    before, after = (seqssm.load(path).predict(labelled) for path in (hybrids / "binary", output))
    pd.testing.assert_frame_equal(before, after, check_exact=True)
    for run, method, why in (
        ("plain", "w1", "has no weights of one bit; train it with --model.binary true"),
        ("binary", "w8a8", "was trained with --model.binary true; use --method w1"),
    ):
        assert main(["compress", str(hybrids / run), "--method", method, "--output", str(output), "--overwrite"]) == 2
        assert why in capsys.readouterr().err


def test_a_causal_model_learns_from_a_teacher(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    teacher, genome = tmp_path / "teacher.ckpt", str(runs / "made" / "genome.fa")
    shutil.copy(runs / "tiny" / "best.ckpt", teacher)
    fit = ["dna", "fit", "--config", "tiny", *SMALL, "--data.fasta", genome, "--trainer.max_epochs", "1"]
    fit += ["--trainer.limit_train_batches", "2", "--model.teacher", str(teacher), "--output", str(tmp_path / "run")]
    assert main([*fit, "--model.binary", "true"]) == 0
    assert "binary: " in capsys.readouterr().out
    teacher.unlink()
    assert (seqssm.load(tmp_path / "run").predict(genome)["status"] == "ok").all()
    capsys.readouterr()
    assert main([*fit, "--overwrite", "--model.teacher", str(runs / "yeast_generation")]) == 2
    assert "--model.teacher: is from seqssm_dna.conditioned:ConditionedGeneration" in capsys.readouterr().err
    assert main([*fit, "--overwrite", "--model.binary", "true", "--model.lora", "2"]) == 2
    assert "--model.binary true cannot be combined with --model.lora" in capsys.readouterr().err


def test_students_of_a_classifier(runs, hybrids, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    output, labelled = tmp_path / "set.ckpt", runs / "made" / "promoters.csv"
    distill = ["distill", str(hybrids / "plain"), "--output", str(output), "--students", "2", "--budget", "0.9"]
    assert main([*distill, "--no-control", "--trainer.max_epochs", "1"]) == 0, capsys.readouterr().err
    assert "sum of 2" in capsys.readouterr().out
    whole = seqssm.load(output)
    first, second = (seqssm.load(tmp_path / "set" / f"student-{k}").network for k in (1, 2))
    ids = torch.randint(7, 11, (3, 30), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(whole.network(ids), first(ids) + second(ids))
    assert (whole.predict(labelled)["status"] == "ok").all()


def test_labelled_files_evaluate_a_classifier(runs, hybrids, compress, tmp_path):
    table = pd.read_csv(runs / "made" / "promoters.csv").head(16)
    other = tmp_path / "other.csv"
    table.drop(columns=[name for name in ("split",) if name in table]).to_csv(other, index=False)
    _, printed = compress(hybrids / "plain", "w8a8", "--calibration", other, "--test-data", other)
    assert re.search(rf"\b{len(table)} records", printed), printed
    report = seqssm.load(hybrids / "plain").test(other)
    assert 0 <= report.metrics["accuracy"] <= 1


def test_the_numbers_of_a_teacher_are_converted_to_the_students_scale():
    """The student learned standardised values, and wrote them with its own mean and scale."""
    tasks = [SequenceLabels(network="cnn", target="value", classes=["expression"], d_model=8) for _ in range(2)]
    for task, center, scale in zip(tasks, (70.0, 60.0), (8.0, 20.0)):
        task.configure_model()
        task.model.center.fill_(center)
        task.model.scale.fill_(scale)
    student, teacher = tasks
    student.teacher = Teacher(teacher.model, {}, 1.0, 1.0)
    theirs = torch.tensor([[0.0], [1.5]])
    own = (20 * theirs + 60 - 70) / 8
    wanted = student.from_teacher({"logits": theirs})
    assert float(student.soft_loss({"logits": own}, wanted, 1.0)) < 1e-10
