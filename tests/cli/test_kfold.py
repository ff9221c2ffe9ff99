"""`kfold`: its runs, their table, and resumption after an interruption."""

from __future__ import annotations

import csv
import json
import statistics
from pathlib import Path
from types import SimpleNamespace

import pytest

from seqssm.cli.main import main
from seqssm.errors import InputError
from seqssm.metrics.metric import Metric
from seqssm.metrics.summary import summarise
from seqssm.training import run
from seqssm.training.kfold import require_choices

STUDY = ["toy", "kfold", "--config", "tiny", "--output", "study", "--trainer.max_epochs", "1"]


def folds(path="study/folds.csv"):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_fold_seed_and_model_in_its_own_run_and_one_table(toy, capsys):
    assert main([*STUDY, "--folds", "2", "--seeds", "3", "--models", "net,wide,mean"]) == 0
    table = folds()
    assert [(row["fold"], row["seed"], row["model"]) for row in table] == [
        (fold, seed, model) for fold in "01" for seed in "3" for model in ("net", "wide", "mean")
    ]
    for row in table[:2]:
        kept = Path("study", row["model"], f"fold-{row['fold']}_seed-{row['seed']}", "metrics.json")
        assert json.loads(kept.read_text(encoding="utf-8"))["test"]["metrics"]["mse"] == float(row["mse"])
    written = json.loads(Path("study/metrics.json").read_text(encoding="utf-8"))["kfold"]
    wide = [float(row["mse"]) for row in table if row["model"] == "wide"]
    net = [float(row["mse"]) for row in table if row["model"] == "net"]
    assert written["metrics"]["wide.mse"] == pytest.approx(statistics.fmean(wide), rel=1e-12)
    line = next(r for r in written["tables"][0]["rows"] if (r["metric"], r["model"]) == ("mse", "wide"))
    differences = [w - n for w, n in zip(wide, net)]
    assert line["std"] == pytest.approx(statistics.stdev(wide), rel=1e-12)
    assert line["difference"] == pytest.approx(statistics.fmean(differences), rel=1e-12)
    assert line["wins"] == f"{sum(d < 0 for d in differences)} of 2"
    printed = capsys.readouterr().out.split("mean and standard deviation over the runs")[1]
    assert "wide" in printed
    assert line["wins"] in printed


def test_a_single_model_is_that_of_the_config(toy):
    assert main(STUDY) == 0
    assert [(row["fold"], row["seed"], row["model"]) for row in folds()] == [("", "7", "preset")]
    assert (
        main([*STUDY[:-4], "--output", "single", "--seeds", "7", "--models", "net", "--trainer.max_epochs", "1"]) == 0
    )
    assert folds("single/folds.csv")[0]["mse"] == folds()[0]["mse"]


def test_resume_runs_only_what_is_missing(toy, monkeypatch, capsys):
    whole = [*STUDY, "--seeds", "1,2", "--models", "net,mean"]
    assert main([*whole[:5], "undisturbed", *whole[6:]]) == 0
    fits = []
    fit = run.fit

    def counted(*arguments, **options):
        fits.append(arguments)
        if len(fits) == 2:
            raise KeyboardInterrupt
        return fit(*arguments, **options)

    monkeypatch.setattr(run, "fit", counted)
    capsys.readouterr()
    assert main(whole) == 130
    assert capsys.readouterr().err.strip().endswith("--resume")
    assert main(whole) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*whole, "--resume"]) == 0
    assert len(fits) == 3, "one interrupted, and each of two seeds once"
    assert folds() == folds("undisturbed/folds.csv")
    assert main([*whole, "--resume", "--data.rows", "30"]) == 2
    assert "different options" in capsys.readouterr().err


def test_a_continuation_with_other_models_keeps_the_rows_of_the_others(toy, capsys):
    """With fewer models, the others were left out of the table without a word, while `predict` still averaged them."""
    assert main([*STUDY, "--folds", "2", "--seeds", "1,2", "--models", "net,mean"]) == 0
    whole = folds()
    capsys.readouterr()
    assert main([*STUDY, "--folds", "2", "--seeds", "2", "--models", "wide", "--resume"]) == 0
    assert "8 further runs of the study, kept in its table (mean, net)" in capsys.readouterr().out
    table = folds()
    assert [row["model"] for row in table[:2]] == ["wide", "wide"]
    order = ("fold", "seed", "model")
    assert sorted(table[2:], key=lambda row: [row[one] for one in order]) == sorted(
        whole, key=lambda row: [row[one] for one in order]
    )
    assert len(json.loads(Path("study/metrics.json").read_text(encoding="utf-8"))["kfold"]["tables"][0]["rows"]) >= 3


def test_an_interrupt_before_the_first_fit_advises_nothing(toy, monkeypatch, capsys):
    """The advised --resume would continue the study that --overwrite was to replace."""
    from seqssm.training import kfold

    assert main([*STUDY, "--models", "mean"]) == 0

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(kfold, "require_models", stop)
    capsys.readouterr()
    assert main([*STUDY, "--models", "mean", "--overwrite"]) == 130
    assert capsys.readouterr().err.strip().splitlines()[-1] == "seqssm: interrupted"


def test_overwrite_repeats_all_runs(toy):
    assert main(STUDY) == 0
    before = folds()
    assert main([*STUDY, "--overwrite", "--seeds", "9"]) == 0
    assert folds() != before
    assert not Path("study/preset/seed-7").exists()


def test_a_folder_of_splits_gives_the_folds(toy, tmp_path):
    splits = tmp_path / "splits"
    splits.mkdir()
    for name in ("splits_0.csv", "splits_2.csv", "splits_2_bool.csv", "notes.txt"):
        (splits / name).write_text(name, encoding="utf-8")
    assert main([*STUDY, "--folds", str(splits), "--models", "mean"]) == 0
    assert [row["fold"] for row in folds()] == ["0", "2"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["tin", "kfold", "--config", "tiny", "--folds", "3"], "tin does not support folds"),
        ([*STUDY, "--models", "nett"], "no such model; did you mean net?"),
        ([*STUDY, "--models", ""], "--models '': expected values"),
        ([*STUDY, "--models", "net,net"], "duplicate value"),
        ([*STUDY, "--seeds", "1;2"], "--seeds 1;2"),
        ([*STUDY, "--seeds", "1,4294967296"], "--seeds 4294967296: must be in [0, 4294967295]"),
        ([*STUDY, "--folds", "1"], "at least 2"),
        ([*STUDY, "--folds", "nowhere"], "expected a number or a folder"),
        ([*STUDY, "--folds", "."], "contains no split files"),
        (["toy", "kfold"], "--config PRESET_OR_FILE is required"),
        ([*STUDY, "--model.d_modell", "3"], "did you mean --model.d_model?"),
    ],
)
def test_refusals_are_one_line(toy, capsys, argv, words):
    assert main(argv) == 2
    message = capsys.readouterr().err.strip()
    assert words in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("domain", "config", "models", "option"),
    [
        ("pathology", "srmamba", "abmil,max", "--model.network abmil"),
        ("pathology", "srmamba", "srmamba_file", "--data.order=hilbert"),
        ("forecasting", "smamba", "smamba,dlinear", "--model.network dlinear"),
        ("forecasting", "smamba", "blend,dlinear", "--model.blend true"),
        ("ecg", "ecg_small", "cnn,forward", "--model.direction bidirectional"),
        ("dna", "tiny", "mamba2,transformer", "--model.mixer mamba2"),
    ],
)
def test_options_that_replace_the_choice_of_a_model_are_refused(capsys, domain, config, models, option):
    """They won: every model of the table was the same one."""
    argv = [domain, "kfold", "--config", config, "--models", models, *option.split(), "--output", "none"]
    assert main(argv) == 2
    flag, value = option.replace("=", " ").split()
    assert f"seqssm: {flag} {value} contradicts --models " in capsys.readouterr().err


def test_numbers_of_a_model_may_be_replaced():
    domain = SimpleNamespace(models={"line": ("--model.network", "line", "--model.learning_rate", "1e-3")})
    require_choices(domain, ["line"], ["--model.learning_rate", "0.1", "--model.network=line"])
    with pytest.raises(InputError, match="contradicts --models line"):
        require_choices(domain, ["line"], ["--model.network=net"])


@pytest.mark.parametrize(
    ("domain", "words", "message"),
    [
        (
            "dna",
            "--config tiny --data.fasta x.fa --models mamba,mamba2 --model.network gru",
            "mamba: the network gru",
        ),
        ("dna", "--config tiny --data.fasta x.fa --models mamba2 --model.network gru", "mamba2: the network gru has"),
        (
            "dna",
            "--config tiny --data.fasta x.fa --models hybrid,mamba",
            "hybrid,mamba: with these options they are the",
        ),
        (
            "ecg",
            "--config ecg_small --data.manifest m.csv --models mamba,forward --model.direction forward",
            "mamba,forward: ",
        ),
        (
            "pathology",
            "--config srmamba --data.manifest m.csv --data.features f --models srmamba,srmamba_positive"
            " --model.positive_definite true",
            "srmamba,srmamba_positive: with these options they are the same model",
        ),
        (
            "forecasting",
            "--config smamba --data.file x.csv --models smamba,smamba_reference --model.engine reference",
            "smamba,smamba_reference: with these options they are the same model",
        ),
    ],
)
def test_models_that_are_the_same_network_are_refused(tmp_path, monkeypatch, capsys, domain, words, message):
    """The choice of a model was dropped with the options that its network does not have: its rows were equal."""
    monkeypatch.chdir(tmp_path)
    assert main([domain, "kfold", *words.split(), "--output", "none"]) == 2
    assert f"seqssm: --models {message}" in capsys.readouterr().err
    assert not Path("none").exists()


def test_options_that_one_model_rejects_are_detected_before_any_training(toy, capsys):
    argv = ["pathology", "kfold", "--config", "srmamba", "--data.manifest", "m.csv", "--data.features", "bags"]
    argv += ["--models", "mean,logistic,transmil", "--model.d_model", "12", "--output", "study"]
    assert main(argv) == 2
    printed = capsys.readouterr()
    assert printed.err.strip() == "seqssm: --model.d_model 12 is not divisible by --model.heads 8"
    assert printed.out == ""
    assert not Path("study").exists()


def test_a_later_model_that_cannot_be_set_up_is_refused_before_the_first_is_trained(toy, monkeypatch, capsys):
    from seqssm_toy.task import ToyTask

    setup = ToyTask.setup

    def refuse(self, stage):
        setup(self, stage)
        if self.hparams["d_model"] == 16:
            raise InputError("not for these data")

    monkeypatch.setattr(ToyTask, "setup", refuse)
    assert main([*STUDY, "--models", "net,wide", "--seeds", "1,2"]) == 2
    printed = capsys.readouterr()
    assert printed.err.strip() == "seqssm: not for these data"
    assert printed.out == "kfold: 4 runs; each model is set up on the data first\n"
    assert not Path("study").exists()
    assert main([*STUDY, "--models", "wide", "--seeds", "1"]) == 2
    assert capsys.readouterr().out == "kfold: 1 run; each model is set up on the data first\n"
    assert main([*STUDY, "--models", "net", "--seeds", "1,2"]) == 0
    assert main([*STUDY, "--models", "wide", "--resume"]) == 2
    assert len(folds()) == 2


def test_a_study_without_test_records_is_refused_before_it_is_trained(toy, capsys):
    assert main([*STUDY, "--data.rows", "1", "--models", "mean"]) == 2
    assert capsys.readouterr().err.strip() == "seqssm: the data set has no test part"
    assert not Path("study").exists()


@pytest.mark.parametrize("option", ["max_epochs", "max_steps", "limit_train_batches", "limit_test_batches"])
def test_a_study_that_trains_or_tests_nothing_is_refused(toy, capsys, option):
    assert main([*STUDY, f"--trainer.{option}", "0"]) == 2
    assert f"seqssm: --trainer.{option} 0: every run is t" in capsys.readouterr().err
    assert not Path("study").exists()


def test_a_study_that_tests_less_than_a_batch_is_refused(toy, capsys):
    assert main([*STUDY, "--trainer.limit_test_batches", "0.001"]) == 2
    assert "seqssm: --trainer.limit_test_batches 0.001: less than one of " in capsys.readouterr().err
    assert not Path("study").exists()


def test_torchrun_is_refused(toy, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(STUDY) == 2
    assert "--trainer.devices" in capsys.readouterr().err


def test_summary_counts_wins_by_the_direction_and_skips_missing_figures():
    rows = [
        {"fold": None, "seed": 1, "model": "a", "auc": 0.5, "loss": 1.0},
        {"fold": None, "seed": 2, "model": "a", "auc": 0.6, "loss": 2.0},
        {"fold": None, "seed": 1, "model": "b", "auc": 0.7, "loss": 0.5, "p": 0.1},
        {"fold": None, "seed": 2, "model": "b", "auc": None, "loss": 2.5},
    ]
    declared = (Metric("auc", better="max"), Metric("loss", better="min"), Metric("p"))
    table = summarise(rows, declared).set_index(["metric", "model"])
    assert table.loc[("p", "b"), "wins"] == "", "a figure without a direction has no winner"
    assert table.loc[("auc", "b"), "wins"] == "1 of 1"
    assert table.loc[("auc", "b"), "runs"] == 1
    assert table.loc[("auc", "b"), "difference"] == pytest.approx(0.2)
    assert table.loc[("loss", "b"), "wins"] == "1 of 2"
    assert table.loc[("loss", "b"), "difference"] == pytest.approx(0.0)
    assert table.loc[("loss", "a"), "mean"] == pytest.approx(1.5)
    assert table.loc[("loss", "a"), "std"] == pytest.approx(0.5**0.5)


def test_runs_with_such_names_outside_a_study_are_kept(toy, capsys):
    """`kfold --output runs` once removed runs/toy/big_seed-1 of another training."""
    mine = Path("runs/toy/big_seed-1/best.ckpt")
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    assert main([*STUDY[:-4], "--output", "runs", "--trainer.max_epochs", "1"]) == 0
    assert mine.read_text() == "mine"
    assert main(["toy", "fit", "--config", "tiny", "--trainer.max_epochs", "1", "--output", "single"]) == 0
    before = Path("single/best.ckpt").read_bytes()
    assert main([*STUDY[:-4], "--output", "single", "--resume"]) == 2
    assert "contains a run that is not a kfold study" in capsys.readouterr().err
    assert Path("single/best.ckpt").read_bytes() == before


@pytest.mark.parametrize(
    ("domain", "preset", "count", "words"),
    [
        ("pathology", "srmamba", 2, "m.csv: --folds 2: 3 to 8 are possible"),
        ("pathology", "srmamba", 9, "m.csv: --folds 9: 3 to 8 are possible"),
        ("ecg", "ecg_small", 2, "--folds 2: at least 3 are needed"),
        ("ecg", "ecg_small", 8, "m.csv: --folds 8: the test split of fold"),
        ("dna", "splice", 9, "--folds 9: at most 8, the number of different sequences"),
    ],
)
def test_folds_that_the_records_do_not_allow_are_refused_before_anything_is_printed(
    tmp_path, monkeypatch, capsys, domain, preset, count, words
):
    """Pathology named --data.folds, after its first line; the others trained until a fold had no records."""
    monkeypatch.chdir(tmp_path)
    rows = [f"r{n}.hea,S{n},P{n},{'ab'[n % 2]},{'ACGT'[n % 4] * 9}{'ACGT'[n // 4]}" for n in range(8)]
    Path("m.csv").write_text("\n".join(["path,slide_id,case_id,label,sequence", *rows]), encoding="utf-8")
    data = {
        "pathology": ["--data.manifest", "m.csv", "--data.features", "."],
        "ecg": ["--data.manifest", "m2.csv"],
        "dna": ["--data.train", "m.csv"],
    }[domain]
    labels = "\n".join(["path,labels", *(f"r{n}.hea,{'ab'[n % 2]}" for n in range(8))])
    Path("m2.csv").write_text(labels, encoding="utf-8")
    assert main([domain, "kfold", "--config", preset, *data, "--folds", str(count), "--output", "study"]) == 2
    printed = capsys.readouterr()
    assert words.replace("m.csv", "m2.csv" if domain == "ecg" else "m.csv") in printed.err
    assert len(printed.err.strip().splitlines()) == 1
    assert printed.out == ""
    assert not Path("study").exists()
