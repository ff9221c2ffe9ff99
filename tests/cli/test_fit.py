"""`fit`, `validate`, `test`: the run folder, rejected and misspelt options, resuming and replacing runs."""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path

import pytest
import torch
import yaml

from seqssm.cli.main import main
from seqssm.training.run_folder import RunFolder

FIT = ["toy", "fit", "--config", "tiny"]


def weights(run):
    return torch.load(run / "best.ckpt", weights_only=True)["state_dict"]


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_is_one_folder(run):
    files = {path.name for path in run.iterdir()}
    events = {name for name in files if name.startswith("events.out.tfevents.")}
    assert files - events == {"config.yaml", "best.ckpt", "last.ckpt", "log.csv", "about.json"}
    assert len(events) == 1
    with open(run / "log.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert all(math.isfinite(float(row[name])) for row in rows for name in ("train_loss", "val_loss", "val_mse"))
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert config["model"]["class_path"] == "seqssm_toy.task.ToyTask"
    assert config["model"]["init_args"]["dropout"] == 0.2, "defaults are filled in"
    assert config["seed_everything"] == 7


def test_the_default_folder_is_named_after_domain_and_preset(toy, tmp_path):
    assert main([*FIT, "--trainer.max_epochs", "1"]) == 0
    assert (tmp_path / "here" / "runs" / "toy" / "tiny" / "best.ckpt").is_file()


def test_same_command_same_weights(run, toy):
    assert main([*FIT, "--output", "again"]) == 0
    from pathlib import Path

    assert equal(weights(run), weights(Path("again")))


def test_test_writes_what_it_prints(run, capsys):
    assert main(["toy", "test", str(run)]) == 0
    printed = dict(line.split() for line in capsys.readouterr().out.split("\n\n")[0].splitlines())
    written = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["test"]
    assert written["checkpoint"] == "best.ckpt"
    assert set(printed) == set(written["metrics"]) == {"mse", "r2", "records"}
    assert float(printed["mse"]) == pytest.approx(written["metrics"]["mse"], abs=1e-4)
    assert written["tables"][0]["rows"] == [{"model": "net", "mse": written["metrics"]["mse"]}]


def test_validate_gives_the_figures_of_the_best_epoch(run, capsys):
    assert main(["toy", "validate", str(run / "best.ckpt")]) == 0
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["validate"]["metrics"]
    with open(run / "log.csv", newline="", encoding="utf-8") as file:
        best = min(csv.DictReader(file), key=lambda row: float(row["val_loss"]))
    assert metrics["val_mse"] == pytest.approx(float(best["val_mse"]), rel=1e-6)


def test_test_and_validate_keep_each_others_figures(run):
    assert main(["toy", "test", str(run)]) == 0
    assert main(["toy", "validate", str(run)]) == 0
    assert set(json.loads((run / "metrics.json").read_text(encoding="utf-8"))) == {"test", "validate"}


def test_data_options_may_be_overridden_in_test(run):
    assert main(["toy", "test", str(run), "--data.rows", "40"]) == 0
    assert json.loads((run / "metrics.json").read_text(encoding="utf-8"))["test"]["metrics"]["records"] == 10


def test_a_folder_with_a_run_is_not_touched(run, capsys):
    before = (run / "best.ckpt").read_bytes()
    assert main([*FIT, "--output", str(run)]) == 2
    message = capsys.readouterr().err
    for way in (f"--resume {run}", "--overwrite", "another folder with `--output`"):
        assert way in message
    assert (run / "best.ckpt").read_bytes() == before


def test_overwrite_replaces_the_run_and_nothing_else(run):
    (run / "notes.txt").write_text("mine", encoding="utf-8")
    (run / "metrics.json").write_text("{}", encoding="utf-8")
    assert main([*FIT, "--output", str(run), "--overwrite", "--trainer.max_epochs", "1"]) == 0
    assert (run / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert not (run / "metrics.json").exists(), "figures of the replaced weights"
    assert len((run / "log.csv").read_text(encoding="utf-8").splitlines()) == 2
    assert len(list(run.glob("events.out.tfevents.*"))) == 1


def test_overwrite_with_a_bad_option_leaves_the_old_run(run):
    before = (run / "best.ckpt").read_bytes()
    assert main([*FIT, "--output", str(run), "--overwrite", "--model.d_model", "x"]) == 2
    assert (run / "best.ckpt").read_bytes() == before


def test_resume_of_a_finished_run_changes_nothing(run, capsys):
    before, log = weights(run), (run / "log.csv").read_text(encoding="utf-8")
    assert main(["toy", "fit", "--resume", str(run)]) == 0
    assert equal(before, weights(run))
    assert (run / "log.csv").read_text(encoding="utf-8") == log


def test_resume_with_more_epochs_gives_the_longer_run(run, toy):
    from pathlib import Path

    assert main(["toy", "fit", "--resume", str(run), "--trainer.max_epochs", "5"]) == 0
    assert main([*FIT, "--trainer.max_epochs", "5", "--output", "long"]) == 0
    assert equal(weights(run), weights(Path("long")))
    assert len((run / "log.csv").read_text(encoding="utf-8").splitlines()) == 6


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--model.d_model", "16"], "--model.d_model: the checkpoint has 8, not 16"),
        (["--data.rows", "30"], "--data.rows: the checkpoint has 60, not 30"),
        (["--config", "tiny"], "drop --config"),
        (["--output", "x"], "drop"),
        (["--overwrite"], "drop"),
        (["--trainer.max_epochs", "2"], "--trainer.max_epochs 2: the run already has 3 epochs"),
    ],
)
def test_resume_refuses_what_it_would_ignore(run, capsys, argv, words):
    assert main(["toy", "fit", "--resume", str(run), *argv]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc, in which no folder can be created")
def test_a_path_where_no_folder_can_be_created(toy, capsys):
    assert main([*FIT, "--output", "/proc/none/run"]) == 2
    assert "cannot create a folder here" in capsys.readouterr().err


def test_resume_needs_a_run(toy, tmp_path, capsys):
    assert main(["toy", "fit", "--resume", str(tmp_path)]) == 2
    assert "no run to resume" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["test", "validate"])
def test_a_model_option_other_than_the_checkpoints_is_an_error(run, capsys, command):
    assert main(["toy", command, str(run), "--model.d_model", "16"]) == 2
    assert "--model.d_model: the checkpoint has 8, not 16" in capsys.readouterr().err
    assert main(["toy", command, str(run), "--model", "seqssm_toy.task.TinTask"]) == 2


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--model.d_modell", "16"], "unknown option --model.d_modell; did you mean --model.d_model?"),
        (["--data.batchsize=4"], "unknown option --data.batchsize; did you mean --data.batch_size?"),
        (["--trainer.max_epoch", "3"], "did you mean --trainer.max_epochs?"),
        (["--early_stopping.patients", "3"], "did you mean --early_stopping.patience?"),
        (["--modle.d_model", "16"], "did you mean --model?"),
        (["--ouput", "x"], "did you mean --output?"),
        (["--model.d_model", "wide"], "--model.d_model: expected int or null, not wide"),
        (["--model.schedule", "cosin"], "--model.schedule: expected one of constant, halving, cosine, not cosin"),
        (["--trainer.default_root_dir", "x"], "--output DIR"),
        (["--model.init_from"], "--model.init_from needs a value"),
        (["--trainer.accelerator", "abacus"], "accelerator"),
        (["--early_stopping.monitor", "val_auc"], "no such metric; there are: val_loss, val_mse"),
        (
            ["--early_stopping.monitor", "last_epoch", "--early_stopping.patience", "2"],
            "needs --early_stopping.patience null",
        ),
        (["--early_stopping.patience", "0"], "--early_stopping.patience 0: must be in [1, 2147483647]"),
        (["--data.batch_size", "0"], "seqssm: --data.batch_size 0: must be at least 1"),
        (["--data.num_workers", "-1"], "seqssm: --data.num_workers -1: must be at least 0"),
        (["--seed_everything", "-4"], "--seed_everything -4: must be in [0, 4294967295]"),
        (["--trainer.max_epochs", "0"], "nothing was trained"),
        (["--model.class_path", "os.system"], "class_path os.system: neither a training task"),
        (["--output", ""], "--output: the name is empty"),
        (["--trainer.logger", "true"], "--trainer.logger true would add folders"),
    ],
)
def test_bad_options_are_one_line(toy, capsys, argv, words):
    assert main([*FIT, "--output", "run", *argv]) == 2
    message = capsys.readouterr().err.strip()
    assert words in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: {d_modell: 4}", "mine.yaml: unknown option model.d_modell; did you mean model.d_model?"),
        ("modell: {d_model: 4}", "unknown section 'modell'; did you mean model?"),
        ("model: [", "is not valid YAML"),
        ("just words", "is not a config"),
        ("model: {class_path: seqssm_toy.task.Nothing}", "no such class"),
        ("trainer: {max_epochs: many}", "mine.yaml: trainer.max_epochs: expected int or null, not many"),
        ("model: {d_model: wide}", "mine.yaml: model.d_model: expected int or null, not wide"),
        ("data: 3", "section 'data': expected entries"),
        ("model: {class_path: os.system}", "class_path os.system: neither a training task nor a data module"),
        ("model: {class_path: 3}", "model.class_path 3: expected the full name of a class"),
        ("trainer: {default_root_dir: x}", "trainer.default_root_dir is not used: --output DIR sets the run folder"),
        ("model: {d_model: 4}\ndata: {}\nmodel: {d_model: 8}", "line 3: has the duplicate key 'model'"),
        ("data: {batch_size: -2}", "seqssm: --data.batch_size -2: must be at least 1"),
    ],
)
def test_bad_configs_are_one_line(toy, capsys, tmp_path, text, words):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    assert main(["toy", "fit", "--config", str(path), "--output", "run"]) == 2
    message = capsys.readouterr().err.strip()
    assert words in message
    assert len(message.splitlines()) == 1


def test_unknown_presets_and_missing_files(toy, capsys):
    assert main(["toy", "fit", "--config", "tinny"]) == 2
    assert "did you mean tiny?" in capsys.readouterr().err
    assert main(["toy", "fit", "--config", "some/where.yaml"]) == 2
    assert "no such config file" in capsys.readouterr().err
    assert main(["toy", "fit"]) == 2
    assert "--config PRESET_OR_FILE is required" in capsys.readouterr().err


def test_later_configs_win_key_by_key(toy, tmp_path):
    path = tmp_path / "more.yaml"
    path.write_text("model: {d_model: 5}\ntrainer: {max_epochs: 1}\n", encoding="utf-8")
    assert main([*FIT, "--config", str(path), "--model.dropout", "0", "--output", "run"]) == 0
    with open("run/config.yaml", encoding="utf-8") as file:
        config = yaml.safe_load(file)
    assert config["model"]["init_args"]["d_model"] == 5
    assert config["model"]["init_args"]["learning_rate"] == 0.01
    assert config["model"]["init_args"]["dropout"] == 0


def test_a_second_writer_is_refused(run, capsys):
    with RunFolder(run).lock():
        assert main([*FIT, "--output", str(run), "--overwrite"]) == 2
        assert "is being written by process" in capsys.readouterr().err
        assert main(["toy", "test", str(run)]) == 2
    assert not (run / ".lock").exists()
    assert main(["toy", "test", str(run)]) == 0


def test_a_failed_start_leaves_no_folder(toy):
    from pathlib import Path

    assert main([*FIT, "--output", "new/run", "--model.d_model", "x"]) == 2
    assert not Path("new").exists()


def test_an_output_that_cannot_be_written_is_one_line(toy, capsys, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert main([*FIT, "--output", str(tmp_path / "file" / "run")]) == 2
    assert "part of the path is a file" in capsys.readouterr().err
    assert main([*FIT, "--output", str(tmp_path / "file")]) == 2
    assert "is a file; --output takes a folder" in capsys.readouterr().err


def test_a_checkpoint_of_another_domain_is_refused_with_the_right_command(run, capsys):
    assert main(["tin", "test", str(run)]) == 2
    assert "seqssm toy test" in capsys.readouterr().err


def test_empty_sections_of_a_config_are_ignored(toy, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("model:\ndata:\n", encoding="utf-8")
    argv = ["--config", str(tmp_path / "mine.yaml"), "--output", "run", "--trainer.max_epochs", "1"]
    assert main(["toy", "fit", *argv, "--data.rows", "few"]) == 2
    assert "--data.rows: expected int, not few" in capsys.readouterr().err
    assert main(["toy", "fit", *argv, "--data.rows", "20"]) == 0


def test_printed_commands_can_be_pasted(toy, capsys):
    assert main([*FIT, "--trainer.max_epochs", "1", "--output", "my run"]) == 0
    assert "seqssm toy test 'my run'" in capsys.readouterr().out
    assert main([*FIT, "--output", "my run"]) == 2
    assert "--resume 'my run'`" in capsys.readouterr().err


def test_divergence_is_reported(toy, capsys):
    assert main([*FIT, "--data.noise", "1e30", "--output", "run"]) == 2
    assert "lower --model.learning_rate" in capsys.readouterr().err


def test_training_without_validation_keeps_the_last_epoch(toy, capsys):
    from pathlib import Path

    assert main([*FIT, "--data.validation", "false", "--output", "run"]) == 0
    assert "best: epoch 2" in capsys.readouterr().out
    assert equal(weights(Path("run")), torch.load("run/last.ckpt", weights_only=True)["state_dict"])


def test_the_last_epoch_is_kept_on_demand(toy, capsys):
    worst = ["--early_stopping.monitor", "val_mse", "--early_stopping.mode", "max"]  # the first epoch
    assert main([*FIT, *worst, "--output", "first"]) == 0
    assert "best: epoch 0" in capsys.readouterr().out
    assert (
        main([*FIT, "--early_stopping.monitor", "last_epoch", "--early_stopping.patience", "null", "--output", "run"])
        == 0
    )
    assert "best: epoch 2\n" in capsys.readouterr().out
    assert equal(weights(Path("run")), torch.load("run/last.ckpt", weights_only=True)["state_dict"])
    assert not equal(weights(Path("run")), weights(Path("first")))


def test_a_run_that_failed_at_once_can_be_restarted(toy, capsys):
    assert main([*FIT, "--output", "run", "--early_stopping.monitor", "val_auc"]) == 2
    assert main([*FIT, "--output", "run"]) == 0


def test_a_damaged_last_checkpoint_is_reported_with_a_remedy(toy, capsys):
    assert main([*FIT, "--output", "run"]) == 0
    last = Path("run/last.ckpt")
    last.write_bytes(last.read_bytes()[:1000])
    capsys.readouterr()
    assert main(["toy", "fit", "--resume", "run"]) == 2
    message = capsys.readouterr().err
    assert "truncated" in message
    assert "fit again with --overwrite (predict and test can still use best.ckpt)" in message


@pytest.mark.parametrize("more", [[], ["--trainer.max_epochs", "5"]])
@pytest.mark.parametrize("damage", ["truncated", "wrong checksum", "missing"])
def test_a_damaged_best_checkpoint_is_reported_with_a_remedy(toy, capsys, damage, more):
    """It exited with 0, also with nothing left to train."""
    assert main([*FIT, "--output", "run"]) == 0
    best, content = Path("run/best.ckpt"), Path("run/best.ckpt").read_bytes()
    half = len(content) // 2
    if damage == "missing":
        best.unlink()
    elif damage == "truncated":
        best.write_bytes(content[:half])
    else:
        best.write_bytes(content[:half] + bytes([content[half] ^ 255]) + content[half + 1 :])
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main(["toy", "fit", "--resume", "run", *more]) == 2
    message = capsys.readouterr().err
    assert f"run/best.ckpt: {'' if damage == 'missing' else 'is '}" in message
    assert damage in message
    assert "fit again with --overwrite (predict and test can still use last.ckpt)" in message
    assert before == {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    assert main(["toy", "test", "run/last.ckpt"]) == 0


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_files_of_the_user_are_not_taken_for_those_of_a_run(toy, capsys, more):
    """`--output .` in a project with its own config.yaml, split.csv and figures."""
    Path("project/figures").mkdir(parents=True)
    mine = [Path("project", name) for name in ("config.yaml", "split.csv", "figures/mine.png")]
    for path in mine:
        path.write_text("mine: 1")
    assert main([*FIT, "--output", "project", *more]) == 2
    assert "project: contains config.yaml, split.csv, figures, which no run has written" in capsys.readouterr().err
    assert all(path.read_text() == "mine: 1" for path in mine)
