"""`seqssm report` and `seqssm compare` on runs of the toy domain, and their statistics."""

from __future__ import annotations

import html.parser
import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from seqssm.cli.main import main
from seqssm.metrics.records import TestRecords, paired_intervals, reliability, wilson
from seqssm.tools.compare import Compared, different_labels
from seqssm.tools.page import load
from seqssm.tools.report import Run

VOID = {"meta", "img", "br", "link", "input"}


class Page(html.parser.HTMLParser):
    """Headings, links, images and text of a page; tags must be balanced."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open, self.ids, self.links, self.images, self.text, self.code = [], [], [], [], "", ""
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found["href"]] if tag == "a" else []
        self.images += [found] if tag == "img" else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        self.code += data + "\n" if self.open and self.open[-1] == "code" else ""


@pytest.fixture
def tested(run, capsys):
    assert main(["toy", "test", str(run)]) == 0
    assert f"next: seqssm report {run}" in capsys.readouterr().out
    return run


def test_the_page_of_a_run_is_complete(tested, capsys):
    assert main(["report", str(tested)]) == 0
    assert capsys.readouterr().out == f"written: {tested / 'report.html'}\n"
    page = Page(tested / "report.html")
    assert page.links == [f"#{name}" for name in page.ids]
    assert {"test", "training", "data", "configuration", "environment", "repeat"} <= set(page.ids)
    score = json.loads((tested / "metrics.json").read_text())["test"]["metrics"]["mse"]
    assert f"{score:.4f}" in page.text
    for words in ("lower is better", "beside the mean", "best.ckpt", torch.__version__, "learning_rate", "parameters"):
        assert words in page.text
    assert [image["src"][:22] for image in page.images] == ["data:image/png;base64,"]
    assert "train_loss" in page.images[0]["alt"]
    assert "x: epoch" in page.images[0]["alt"]


def test_the_commands_of_the_page_repeat_the_run(tested):
    assert main(["report", str(tested), "--output", "page.html"]) == 0
    lines = [line for line in Page(Path("page.html")).code.splitlines() if line.startswith("seqssm toy fit")]
    typed, again = lines[-2:]
    assert shlex.split(typed)[1:5] == ["toy", "fit", "--config", "tiny"]
    assert main(shlex.split(again)[1:]) == 0
    one, two = (torch.load(folder / "best.ckpt")["state_dict"] for folder in (tested, Path(f"{tested}-again")))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_run_without_a_test_names_the_command(run):
    assert main(["report", str(run)]) == 0
    assert f"seqssm toy test {run}" in Page(run / "report.html").code


def test_a_damaged_file_of_a_run_is_one_line(run, capsys):
    for name, content, message in (
        ("log.csv", b"\0\0\n", "is damaged"),
        ("log.csv", b"", "is damaged: it is not a table"),
        ("log.csv", b"epoch,step,seconds\n0,x,1\n", "is damaged: it has no valid column step"),
        ("log.csv", b"epoch,step,seconds\n", "is damaged"),
        ("config.yaml", b"- 1\n", "is damaged: expected a mapping"),
    ):
        (run / name).write_bytes(content)
        capsys.readouterr()
        assert main(["report", str(run)]) == 2
        printed = capsys.readouterr().err
        assert f"{run / name}: {message}" in printed
        assert printed.count("\n") == 1


def test_notes_about_the_data_reach_the_page(toy, capsys, monkeypatch):
    import seqssm_toy.data

    from seqssm.files.notes import note

    setup = seqssm_toy.data.ToyData.setup

    def telling(self, stage):
        setup(self, stage)
        note("3 records <without> a label dropped")

    monkeypatch.setattr(seqssm_toy.data.ToyData, "setup", telling)
    assert main(["toy", "fit", "--config", "tiny", "--output", "run"]) == 0
    assert json.loads(Path("run/about.json").read_text())["notes"] == ["3 records <without> a label dropped"]
    assert main(["report", "run"]) == 0
    assert "3 records <without> a label dropped" in Page(Path("run/report.html")).text
    assert main(["toy", "fit", "--resume", "run"]) == 0  # nothing left to train: the record keeps its first command
    about = json.loads(Path("run/about.json").read_text())
    assert about["command"] == "seqssm toy fit --config tiny --output run"
    assert about["resumed"] == ["seqssm toy fit --resume run"]
    assert main(["toy", "fit", "--config", "tiny", "--output", "run", "--overwrite"]) == 0
    assert not Path("run/report.html").exists()


def test_a_study_has_a_page(toy):
    study = ["toy", "kfold", "--config", "tiny", "--seeds", "1,2", "--models", "net,mean", "--output"]
    assert main([*study, "one"]) == 0
    assert main(["report", "one"]) == 0
    page = Page(Path("one/report.html"))
    assert "One row per fold, seed and model" in page.text
    command = "seqssm toy kfold --config study-1.yaml --seeds 1,2 --models net,mean --output one-again"
    assert page.code.splitlines()[-1] == command
    assert "\n  max_epochs:" in page.code, "the configuration, as YAML that can be saved"
    shutil.copytree("one", "two")
    assert main(["compare", "one", "two", "--output", "table.csv"]) == 0
    for command in (["compare", "one", "two"], ["report", "one"], ["export", "one/net/seed-1"]):
        assert main([*command, "--output", "table.csv"]) == 2, "an existing file is kept"
        assert main([*command, "--output", "one/net/seed-1/best.ckpt", "--overwrite"]) == 2
    rows = [line.split(",") for line in Path("table.csv").read_text().splitlines()]
    place = {name: k for k, name in enumerate(rows[0])}
    same = [row for row in rows[1:] if row[place["model"]] == "two/net"]
    assert [float(row[place["difference"]]) for row in same] == [0.0] * len(same)
    assert len(same) == 3


def test_studies_of_other_records_are_not_paired(toy, capsys):
    """Folds of another table, or of other labels, were subtracted by their numbers."""
    assert main(["toy", "kfold", "--config", "tiny", "--seeds", "1,2", "--models", "net,mean", "--output", "one"]) == 0
    shutil.copytree("one", "two")
    for study, records in (("one", "test,b\ntest,c\n"), ("two", "test,c\ntest,b\n")):
        for seed in (1, 2):
            Path(study, "net", f"seed-{seed}", "split.csv").write_text("split,id\n" + records)
    capsys.readouterr()
    assert main(["compare", "one", "two"]) == 0
    assert "2 of 2" in (printed := capsys.readouterr().out) or "0 of 2" in printed
    assert "Without differences" not in printed
    folds = Path("two/folds.csv").read_text()
    Path("two/folds.csv").write_text(folds.replace(",1,", ",8,").replace(",2,", ",9,"))
    assert main(["compare", "one", "two"]) == 0
    assert "two: no fold and seed in common" in capsys.readouterr().out
    Path("two/folds.csv").write_text(folds)
    Path("two/net/seed-2/split.csv").write_text("split,id\ntest,b\ntest,d\n")
    assert main(["compare", "one", "two"]) == 0
    printed = capsys.readouterr().out
    assert "two: different test records (1 in common, 2 here, 2 in one) (with seed 2)" in printed
    assert "two/net" in printed
    assert "difference = model - one/net" in printed, "the models of the first study are still paired"


def test_runs_are_compared_by_difference_and_direction(tested, tmp_path, capsys):
    other = tmp_path / "other"
    assert main(["toy", "fit", "--config", "tiny", "--seed_everything", "9", "--output", str(other)]) == 0
    assert main(["toy", "test", str(other)]) == 0
    for folder in (tested, other):
        (folder / "split.csv").write_text("split,id\ntrain,a\ntest,b\ntest,c\n")
    capsys.readouterr()
    assert main(["compare", str(tested), str(other), "--output", "table.csv"]) == 0
    printed = capsys.readouterr().out
    assert "difference = run - run, on the same 2 records" in printed
    first, second = (json.loads((f / "metrics.json").read_text())["test"]["metrics"]["mse"] for f in (tested, other))
    row = next(
        line.split(",") for line in Path("table.csv").read_text().splitlines() if line.startswith("mse,lower,other")
    )
    assert [float(cell) for cell in row[3:]] == pytest.approx([second, second - first])
    (other / "split.csv").write_text("split,id\ntest,b\ntest,d\n")
    assert main(["compare", str(tested), str(other)]) == 0
    printed = capsys.readouterr().out
    assert "different test records (1 in common, 2 here, 2 in run)" in printed
    assert " difference" not in printed.splitlines()[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["report", "nowhere"], "nowhere: no such run or checkpoint"),
        (["report", "empty"], "empty: contains no run"),
        (["report", "RUN", "--output", "empty"], "empty: is a folder"),
        (["compare", "RUN"], "compare needs two or more different runs"),
        (["compare", "RUN", "RUN"], "compare needs two or more different runs"),
        (["compare", "RUN", "COPY"], "has not been tested; run: seqssm toy test"),
    ],
)
def test_errors_are_one_line(run, words, message, capsys):
    Path("empty").mkdir()
    shutil.copytree(run, "copy")
    assert main([{"RUN": str(run), "COPY": "copy"}.get(word, word) for word in words]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


def test_a_figure_describes_itself(tmp_path):
    from seqssm.plot.canvas import new_axes, save

    figure, axes = new_axes(3, 2)
    axes.plot([1, 2], label="model & co")
    axes.legend()
    axes.set_title("Costs in \\$", loc="left")
    axes.set_xlabel("step")
    _, alt = load(save(figure, tmp_path / "some_figure.png"))
    assert alt == "Costs in $; x: step; curves: model & co"
    figure, _ = new_axes(3, 2)
    assert load(save(figure, tmp_path / "some_figure.png"))[1] == "some figure"


def test_calibrated_probabilities_lie_on_the_diagonal():
    random = np.random.default_rng(0)
    p = random.random(40_000)
    found = reliability("a", random.random(40_000) < p, p)
    assert found.count.sum() == 40_000
    assert found.error < 0.01
    assert ((found.low < found.predicted) & (found.predicted < found.high)).mean() >= 0.8
    assert reliability("b", random.random(40_000) < p / 2, p).error == pytest.approx(0.25, abs=0.01)
    found = reliability("c", np.array([1, 0, np.nan, 0]), np.array([0.9, 0.1, 0.5, 0.1]))
    assert (found.count.tolist(), found.observed.tolist()) == ([2, 1], [0, 1]), "an unknown label"


def test_the_wilson_interval_has_published_values():
    low, high = wilson(np.array([0.0, 0.2]), np.array([10, 50]))  # Newcombe 1998, method 3
    assert low == pytest.approx([0.0, 0.1124], abs=1e-4)
    assert high == pytest.approx([0.2775, 0.3304], abs=1e-4)


def test_paired_intervals_match_the_formula_and_the_records():
    random = np.random.default_rng(1)
    a = random.normal(size=500)
    b = a + random.normal(0.1, 0.2, 500)
    ids = [str(k) for k in range(500)]
    order = random.permutation(500)
    first = TestRecords(ids, lambda index: {"mean": a[index].mean()})
    other = TestRecords([ids[k] for k in order], lambda index: {"mean": b[order][index].mean()})
    low, high = paired_intervals(first, other, ["mean", "absent"], draws=2000)["mean"]
    half = 1.96 * (b - a).std() / 500**0.5
    assert (low, high) == pytest.approx(((b - a).mean() - half, (b - a).mean() + half), abs=half / 5)


@pytest.mark.parametrize("command", ["report", "compare"])
def test_a_study_without_a_finished_run_is_one_line(command, tmp_path, capsys):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "kfold.yaml").write_text("config: []\noverrides: []\n")
    assert main([command, str(tmp_path / "a"), *([str(tmp_path / "b")] if command == "compare" else [])]) == 2
    printed = capsys.readouterr().err
    assert "is a kfold study without a finished run; kfold --resume continues it" in printed
    assert printed.count("\n") == 1


def test_runs_with_other_labels_of_the_same_records_are_not_paired():
    def of(names, **labels):
        found = {name: (np.array(own, dtype=float), np.zeros(3)) for name, own in labels.items()}
        return Compared("run", Run(None, None), {}, TestRecords(names, lambda index: {}, found), set(names))

    first = of(["a", "b", "c"], AF=[1, 0, 0])
    assert different_labels(first, of(["c", "a", "b"], AF=[0, 1, 0])) == "", "another order"
    assert different_labels(first, of(["c", "a", "b"], AF=[1, 1, 0])) == "different labels of 1 of 3 records"
    more = of(["a", "b", "c"], AF=[1, 0, 0], MI=[0, 0, 0])
    assert different_labels(first, more) == "different classes (AF, MI, not AF)"
    assert different_labels(first, of(["a", "b", "c"])) == "", "no classes"
    gap = of(["a", "b", "c"], AF=[1, np.nan, 0])
    assert different_labels(gap, of(["c", "a", "b"], AF=[0, 1, np.nan])) == "", "the same label is unknown"
    assert different_labels(first, gap) == "different labels of 1 of 3 records"


def test_a_test_of_another_checkpoint_has_a_folder_of_its_own(tested, tmp_path, capsys):
    """`test small.ckpt` beside a run replaced the run's results; in a folder without a run, those of another model."""
    before = (tested / "metrics.json").read_bytes()
    shutil.copy(tested / "best.ckpt", tested / "small.ckpt")
    assert main(["toy", "test", str(tested / "small.ckpt")]) == 0
    assert main(["toy", "test", str(tested / "last.ckpt")]) == 0
    assert (tested / "metrics.json").read_bytes() == before
    found = json.loads((tested / "test-small" / "metrics.json").read_text())["test"]
    assert found["metrics"] == json.loads(before)["test"]["metrics"]
    assert main(["toy", "test", str(tested / "best.ckpt")]) == 0, "the result of the run"
    assert json.loads((tested / "metrics.json").read_text()) == json.loads(before)
    assert main(["report", str(tested)]) == 0
    assert "Test of another checkpoint: small" in (tested / "report.html").read_text()
    for name in ("last.ckpt", "small.ckpt"):
        assert main(["toy", "test", str(tested / name), "--output", str(tested)]) == 2
    assert "run: contains the results of best.ckpt; choose another --output" in capsys.readouterr().err
    assert (tested / "metrics.json").read_bytes() == before
    assert main(["toy", "test", str(tested / "last.ckpt"), "--output", str(tested / "test-small")]) == 2
    assert "test-small: contains the test of small.ckpt; choose another --output" in capsys.readouterr().err
    shutil.copy(tested / "best.ckpt", tmp_path / "alone.ckpt")
    (tmp_path / "split.csv").write_text("mine")
    for words in ([], ["--output", str(tmp_path)]):
        assert main(["toy", "test", str(tmp_path / "alone.ckpt"), *words]) == 0
    assert (tmp_path / "split.csv").read_text() == "mine"
    assert main(["compare", str(tested), str(tmp_path / "test-alone"), str(tested / "test-small")]) == 0
    assert "test-small" in capsys.readouterr().out
