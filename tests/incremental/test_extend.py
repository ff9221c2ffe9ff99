"""`extend` on made data: nothing changes before training, results are ordinary checkpoints, what is refused is said."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
import torch
from seqssm_dna.tokens import reverse_complement_ids

import seqssm
from seqssm.cli.main import main
from seqssm.domain import domains
from seqssm.incremental import accuracy
from seqssm.incremental.controls import LinearProbe, nearest_mean
from seqssm.incremental.learn import Recipe
from seqssm.incremental.procedure import Request, extend
from seqssm.incremental.records import Reader
from seqssm.training import teacher
from seqssm.training.checkpoint import build_task, read_checkpoint
from seqssm.training.class_means import ClassInputs, ClassMeans, means_of
from tests.incremental.sequences import labelled, write_all

SMALL = ["--model.network", "stem", "--model.d_model", "16", "--model.n_layers", "1", "--model.d_state", "4"]
SMALL += [
    "--model.threads",
    "1",
    "--model.warmup_steps",
    "0",
    "--trainer.max_epochs",
    "4",
    "--trainer.accelerator",
    "cpu",
]
SMALL += ["--model.mixer", "mamba", "--model.learning_rate", "0.01", "--model.echo", "none"]
LEARN = Recipe(steps=80, learning_rate=0.01)
ETF = ["--model.head", "etf", "--model.max_classes", "6", "--model.projector", "base"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread_for_all():
    """Fits and extensions of the module's fixtures take one thread, as those of its tests."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Files of made sequences and two runs: `etf` with a base branch, `linear`; not to be changed."""
    folder = tmp_path_factory.mktemp("extend")
    write_all(folder)
    before = dict(os.environ)
    for name, flags in (("etf", ETF), ("linear", ["--model.class_means", "false"])):
        fit = ["dna", "fit", "--config", "finetune", "--data.train", str(folder / "train.csv"), *SMALL, *flags]
        assert main([*fit, "--output", str(folder / name)]) == 0
    os.environ.clear()
    os.environ.update(before)
    return folder


@pytest.fixture(autouse=True)
def _quiet(monkeypatch, one_thread):
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")


def request_of(runs, output, **options):
    model = options.pop("model", runs / "etf")
    support = options.pop("support", [runs / "support.csv"])
    return Request(model, support, output, accelerator="cpu", **options)


@pytest.fixture(scope="module")
def bigger(runs, tmp_path_factory):
    """The ETF run with the class acca, and the outcome."""
    output = tmp_path_factory.mktemp("bigger") / "bigger.ckpt"
    done = extend(
        domains()["dna"],
        request_of(runs, output, evaluate=[runs / "evaluate.csv"], recipe=LEARN),
    )
    return output, done


def test_a_fit_keeps_class_means(runs):
    content = read_checkpoint(runs / "etf")
    means = ClassMeans.from_dict(content["seqssm"]["class_means"])
    assert means.names == ["gcgc", "tata"]
    assert sum(means.counts) == len(pd.read_csv(runs / "etf" / "split.csv").query("split == 'train'"))
    task = build_task(content, runs / "etf")
    logits = task.model.classify(means.pooled, means.tokens)
    assert logits.argmax(1).tolist() == [0, 1]
    assert "class_means" not in read_checkpoint(runs / "linear")["seqssm"]


def test_before_the_first_step_old_logits_are_equal_to_the_bit(runs, tmp_path):
    output = tmp_path / "zero.ckpt"
    extend(domains()["dna"], request_of(runs, output, recipe=Recipe(steps=0)))
    small, large = (build_task(read_checkpoint(path), path).model for path in (runs / "etf", output))
    ids = torch.randint(5, 9, (7, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, after = small(ids), large(ids)
    assert after.shape == (7, 3)
    assert torch.equal(before, after[:, :2])
    assert large.projector.base is not None
    assert not large.projector.new(torch.randn(2, 16, 16)).any()


@pytest.mark.parametrize("turn", [False, True])
def test_support_records_are_read_with_the_augmentation_of_the_training(runs, turn):
    entry = read_checkpoint(runs / "etf")["seqssm"]
    reader = Reader(runs / "etf" / "best.ckpt", entry, {"reverse_complement": turn})
    (plain,) = reader.read(runs / "support.csv", ["gcgc", "tata", "acca"], support=True)
    order = plain["index"].argsort()
    seen = []
    for loader in [*reader.augmented(4, 0), *reader.augmented(4, 0)]:
        (batch,) = loader
        ids = batch["ids"][batch["index"].argsort()]
        turned = [reverse_complement_ids(one.numpy()) for one in plain["ids"][order]]
        for one, same, other in zip(ids.numpy(), plain["ids"][order].numpy(), turned):
            assert (one == same).all() or (one == other).all()
        seen.append(ids)
    assert len(seen) == 8 * turn
    if turn:
        assert len({one.numpy().tobytes() for one in seen[:4]}) > 1, "every copy has its own draws"
        assert all(torch.equal(a, b) for a, b in zip(seen[:4], seen[4:])), "which the seed sets"


def test_the_outcome(bigger):
    _, done = bigger
    assert (done.old, done.new) == (["gcgc", "tata"], ["acca"])
    evaluated = re.fullmatch(r"next: seqssm predict \S+/bigger.ckpt (\S+) --output predictions.csv", done.next)
    assert evaluated is not None
    assert Path(evaluated[1]).name == "evaluate.csv", "it had named genome.fa, which need not exist"
    assert done.shots == {"acca": 6}
    rows = {row.title: row for row in done.rows}
    assert rows["session 0"].classes == 2
    assert rows["session 1"].records == 12
    assert rows["new classes"].after["model"] > 0.5
    assert rows["old classes"].after["model"] > 0.5
    said = accuracy.text(done.rows)
    assert "forgetting" in said
    assert "nearest mean" in said
    lost, old = accuracy.forgetting(done.rows), rows["old classes"]
    for name in accuracy.METHODS:
        assert lost[name] == old.before["model"] - old.after[name], "all start from the same model"


def test_two_extensions_are_equal_to_the_bit(runs, bigger, tmp_path):
    again = tmp_path / "again.ckpt"
    extend(domains()["dna"], request_of(runs, again, recipe=LEARN))
    first, second = (torch.load(path, weights_only=True) for path in (bigger[0], again))
    assert list(first["state_dict"]) == list(second["state_dict"])
    assert all(torch.equal(a, b) for a, b in zip(first["state_dict"].values(), second["state_dict"].values()))
    assert first["seqssm"]["sessions"] == second["seqssm"]["sessions"] == [["gcgc", "tata"], ["acca"]]
    frozen = read_checkpoint(runs / "etf")["state_dict"]
    assert all(torch.equal(value, first["state_dict"][name]) for name, value in frozen.items() if value.ndim > 1)


def test_the_result_predicts_tests_and_is_described(runs, bigger, tmp_path, capsys):
    frame = seqssm.load(bigger[0]).predict(runs / "evaluate.csv")
    assert {"p_gcgc", "p_tata", "p_acca", "prediction"} <= set(frame.columns)
    truth = pd.read_csv(runs / "evaluate.csv")["label"]
    right = (frame["prediction"] == truth).groupby(truth).mean()
    assert right["acca"] == pytest.approx({row.title: row for row in bigger[1].rows}["session 1"].after["model"])
    assert main(["dna", "test", str(bigger[0]), "--output", str(tmp_path / "test")]) == 0
    assert "accuracy" in capsys.readouterr().out
    assert main(["info", str(bigger[0])]) == 0
    said = capsys.readouterr().out
    assert "session 1    acca" in said
    assert "at most 6 classes" in said


def test_it_is_extended_again_from_the_command_line(runs, bigger, tmp_path, capsys):
    argv = ["dna", "extend", str(bigger[0]), "--support", str(runs / "third.csv"), "--steps", "20"]
    assert main([*argv, "--output", str(tmp_path / "third.ckpt"), "--accelerator", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "3 classes before, 4 now; learned from: ggag (5 records)" in said
    assert "pass --evaluate FILE" in said
    entry = read_checkpoint(tmp_path / "third.ckpt")["seqssm"]
    assert entry["sessions"] == [["gcgc", "tata"], ["acca"], ["ggag"]]
    assert entry["class_means"]["names"] == ["gcgc", "tata", "acca", "ggag"]
    assert entry["hparams"]["projector"] == "dual"


def test_it_is_distilled(runs, bigger, tmp_path, capsys):
    """Students had the branch of `extend`, which a fit refuses, and an empty set was left."""
    words = ["--students", "2", "--budget", "0.9", "--no-control", "--trainer.max_epochs", "1"]
    new = pd.read_csv(runs / "support.csv").assign(label="zacca")
    new.to_csv(tmp_path / "new.csv", index=False)
    request = request_of(runs, tmp_path / "last.ckpt", support=[tmp_path / "new.csv"], recipe=Recipe(steps=1))
    extend(domains()["dna"], request)
    every = [pd.read_csv(runs / "train.csv"), new, new.assign(sequence=new["sequence"].str[::-1])]
    pd.concat(every).to_csv(tmp_path / "all.csv", index=False)
    argv = ["distill", str(tmp_path / "last.ckpt"), *words, "--data.train", str(tmp_path / "all.csv"), "--output"]
    assert main([*argv, str(tmp_path / "set.ckpt")]) == 0
    student = read_checkpoint(tmp_path / "set" / "student-2")["seqssm"]["hparams"]
    assert (student["classes"], student["projector"]) == (["gcgc", "tata", "zacca"], "base")
    capsys.readouterr()
    message = "its classes are gcgc, tata, acca; the model's are gcgc, tata; pass data with records of acca\n"
    argv = ["distill", str(bigger[0]), *words, "--data.train", str(runs / "train.csv")]
    assert main([*argv, "--output", str(tmp_path / "other.ckpt")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    before = (tmp_path / "set.ckpt").read_bytes()
    assert main([*argv, "--output", str(tmp_path / "set.ckpt"), "--overwrite"]) == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / "set.ckpt").read_bytes() == before, "a refused command deleted the finished set"
    assert (tmp_path / "set" / "student-2" / "best.ckpt").is_file()
    assert not list(tmp_path.glob(".*"))
    argv = ["distill", str(tmp_path / "last.ckpt"), *words, "--data.train", str(tmp_path / "all.csv")]
    argv += ["--output", str(tmp_path / "set.ckpt"), "--overwrite", "--trainer.max_epochs", "0"]
    assert main(argv) == 2
    assert (tmp_path / "set.ckpt").read_bytes() == before, "the folder of a student that was not trained counted"


def test_a_teacher_of_classes_in_another_order_is_matched_by_name(runs, bigger, tmp_path, monkeypatch):
    """The new class had to be the last one in alphabetical order."""
    teachers, load = [], teacher.load
    monkeypatch.setattr(teacher, "load", lambda *given: teachers.append(load(*given)) or teachers[-1])
    argv = ["distill", str(bigger[0]), "--students", "1", "--no-control", "--trainer.max_epochs", "1"]
    output = tmp_path / "set.ckpt"
    assert main([*argv, "--data.train", str(runs / "evaluate.csv"), "--output", str(output)]) == 0
    assert read_checkpoint(output.with_suffix("") / "student-1")["seqssm"]["hparams"]["classes"] == [
        "acca",
        "gcgc",
        "tata",
    ]
    ids = torch.randint(0, 4, (5, 30), generator=torch.Generator().manual_seed(0))
    whole = build_task(read_checkpoint(bigger[0]), bigger[0]).model.eval()
    network = teachers[0][0].cpu().eval()
    torch.testing.assert_close(network(ids), whole(ids)[:, [2, 0, 1]])
    assert seqssm.load(output).predict(runs / "evaluate.csv")["prediction"].isin(["acca", "gcgc", "tata"]).all()


def test_more_shots(runs, bigger, tmp_path):
    output = tmp_path / "more.ckpt"
    request = request_of(runs, output, model=bigger[0], more_shots=True, recipe=Recipe(steps=3))
    done = extend(domains()["dna"], request)
    assert done.new == []
    means = read_checkpoint(output)["seqssm"]["class_means"]
    assert means["counts"][means["names"].index("acca")] == 12


def test_a_linear_head_keeps_its_rows(runs, tmp_path):
    output = tmp_path / "linear.ckpt"
    request = request_of(runs, output, model=runs / "linear", base=[runs / "train.csv"], recipe=Recipe(steps=10))
    done = extend(domains()["dna"], request)
    assert done.notes[0] == "linear head: the rows of 2 classes are unchanged, 1 added"
    before, after = (read_checkpoint(path)["state_dict"] for path in (runs / "linear", output))
    for name in ("model.head.1.weight", "model.head.1.bias"):
        assert torch.equal(before[name], after[name][:2])
        assert len(after[name]) == 3
    assert "class_means" not in read_checkpoint(output)["seqssm"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"support": "train.csv"}, "the class gcgc exists already; pass --more-shots"),
        ({"model": "linear"}, "holds no class mean of gcgc, tata"),
        ({"model": "linear", "linear_head": "refuse"}, "has a linear head; fit it with --model.head etf"),
        ({"support": "many.csv"}, "its head has 6 directions .*, and there would be 7 classes"),
        ({"support": "protein.csv"}, "line 2"),
        ({"support": "none.csv"}, "no such file"),
        ({"options": {"lower": "mask"}}, "--data.lower mask: the model has upper; drop the option"),
        ({"options": {"dataset": "splice"}}, "--data.dataset: pass the files with --support"),
        ({"options": {"train": "x.csv"}}, "--data.train x.csv: no such file"),
        ({"options": {"trian": "x.csv"}}, "unknown option --data.trian"),
    ],
)
def test_what_is_refused(runs, tmp_path, options, said):
    given = {name: runs / value if name == "model" else value for name, value in options.items()}
    if "support" in given:
        given["support"] = [runs / given["support"]]
    with pytest.raises(seqssm.InputError, match=said) as error:
        extend(domains()["dna"], request_of(runs, tmp_path / "x.ckpt", **given))
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "x.ckpt").exists()


def test_data_of_the_run_that_were_moved(runs, tmp_path, capsys):
    """The path of the checkpoint was read, without a way out."""
    moved, quick = tmp_path / "moved.csv", Recipe(steps=1)
    distill = ["distill", str(runs / "etf"), "--students", "1", "--trainer.max_epochs", "1", "--output"]
    (runs / "train.csv").rename(moved)
    try:
        hint = f"{runs / 'train.csv'}: no such file or folder; if it was moved, give its new path as --data.train"
        notes = extend(domains()["dna"], request_of(runs, tmp_path / "a.ckpt", recipe=quick)).notes
        assert f"the run's own test records cannot be read: {hint}" in notes
        given = {"recipe": quick, "options": {"train": str(moved)}}
        assert extend(domains()["dna"], request_of(runs, tmp_path / "b.ckpt", **given)).rows
        assert main([*distill, str(tmp_path / "c.ckpt")]) == 2
        assert hint in capsys.readouterr().err
        assert main(["dna", "test", str(runs / "etf")]) == 2
        assert hint in capsys.readouterr().err
        assert main([*distill, str(tmp_path / "c.ckpt"), "--data.train", str(moved)]) == 0
        text = moved.read_text()
        moved.write_text(text.replace("gcgc", "tata", 60))
        with pytest.raises(seqssm.InputError, match=r"--data.train: the data are not those of the run \("):
            extend(domains()["dna"], request_of(runs, tmp_path / "d.ckpt", **given))
        moved.write_text(text)
    finally:
        moved.rename(runs / "train.csv")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model.head", "etf"], "requires --model.max_classes"),
        (["--model.max_classes", "9"], "--model.max_classes requires --model.head etf"),
        (["--model.head", "etf", "--model.max_classes", "17"], "2 to 16 classes, the width of the features"),
        (["--model.projector", "dual"], "--model.projector dual: is set by extend"),
        (["--data.target", "labels", "--model.projector", "base"], "requires records with exactly one class each"),
    ],
)
def test_heads_that_cannot_be_fitted(runs, tmp_path, capsys, flags, said):
    fit = ["dna", "fit", "--config", "finetune", "--data.train", str(runs / "train.csv"), *SMALL, *flags]
    assert main([*fit, "--output", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err


def test_other_sciences_have_no_classes_to_extend(finished_run, toy, capsys, tmp_path, monkeypatch):
    argv = ["toy", "extend", str(finished_run), "--support", "x.csv", "--output", str(tmp_path / "x.ckpt")]
    assert main(argv) == 2
    assert "toy has no extend: only single-label classifiers take further classes" in capsys.readouterr().err
    assert main(["toy", "--help"]) == 0
    assert "extend" not in capsys.readouterr().out
    monkeypatch.setitem(vars(toy), "extends", True)  # a model of a domain that has other ones with classes
    assert main(argv) == 2
    assert "is not a single-label classifier" in capsys.readouterr().err


def test_the_domains_with_classifiers_offer_extend():
    for domain in domains().values():
        sources = (
            one.read_text(encoding="utf-8") for one in Path(find_spec(domain.package).origin).parent.glob("*.py")
        )
        assert domain.extends == any("(ClassTask)" in text or "ClassTask," in text for text in sources), domain.name


def test_means_by_hand():
    class Network:
        projector = None

    pooled = torch.tensor([[1.0, 3.0], [3.0, 5.0], [10.0, 0.0]])
    parts = [ClassInputs(pooled, pooled[:, None], torch.tensor([1, 1, 0]))]
    found = means_of(Network(), parts, ["a", "b", "c"])
    assert (found.names, found.counts) == (["a", "b"], [1, 2])
    assert found.pooled.tolist() == [[10, 0], [2, 4]]
    both = found.merged(
        means_of(Network(), [ClassInputs(pooled, pooled[:, None], torch.tensor([2, 0, 0]))], list("abc"))
    )
    assert (both.names, both.counts) == (["a", "b", "c"], [3, 2, 1])
    assert torch.allclose(both.features[0], torch.tensor([23.0, 5.0]) / 3)
    assert both.kept().names == []
    with pytest.raises(seqssm.InputError, match="not consistent"):
        ClassMeans.from_dict({**found.to_dict(), "counts": [1]})


def test_controls_and_averages_over_classes():
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    y = torch.tensor([0, 1, 2] * 20)
    x = centres[y] + 0.3 * torch.randn(60, 2, generator=generator)
    assert torch.equal(nearest_mean(x, centres), y)
    assert torch.equal(LinearProbe(x, y, 3).predict(x), y)
    truth, decided = torch.tensor([0, 0, 0, 0, 1]), torch.tensor([0, 0, 0, 1, 1])
    value, error = accuracy.of_classes(truth, decided, [0, 1, 2])
    assert value == pytest.approx((0.75 + 1) / 2)
    assert error == pytest.approx((0.75 * 0.25 / 4) ** 0.5 / 2)


def test_made_labels_are_told_apart():
    assert set(labelled({"a": "AAA"}, 2, 0)["label"]) == {"a"}
