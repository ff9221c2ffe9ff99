"""The challenge's files: written, read by the scorers' rules, and scored by the command."""

from __future__ import annotations

import json

import numpy as np
import pytest
from seqssm_ecg import metrics
from seqssm_ecg.files import find_recordings
from seqssm_ecg.headers import read_header
from seqssm_ecg.outputs import read_output, write_output

from seqssm.cli.main import main
from seqssm.errors import InputError

GROUPS = [("426783006",), ("713427006", "59118001"), ("164889003",)]


def written(tmp_path, text):
    path = tmp_path / "r.csv"
    path.write_text(text)
    return path


def test_a_written_file_is_read_back(tmp_path):
    codes = [group[0] for group in GROUPS]
    path = write_output(tmp_path / "r.csv", "r", codes, [1, 0, 1], [0.91, 0.2, 0.5])
    assert path.read_text().splitlines()[:3] == ["#r", ",".join(codes), "1,0,1"]
    decisions, scores, trouble = read_output(path, GROUPS, 2021)
    assert decisions.tolist() == [True, False, True]
    assert scores == pytest.approx([0.91, 0.2, 0.5])
    assert trouble is None


def test_equivalents_are_joined_and_missing_classes_are_0(tmp_path):
    text = "#r\n59118001,713427006,426783006\nT,0,0\n0.5,0.1,0.3\n"
    decisions, scores, _ = read_output(written(tmp_path, text), GROUPS, 2021)
    assert decisions.tolist() == [False, True, False]
    assert scores == pytest.approx([0.3, 0.3, 0.0])
    joined = "#r\n713427006|59118001\n1\n0.7\n"
    assert read_output(written(tmp_path, joined), GROUPS, 2021)[1] == pytest.approx([0, 0.7, 0])


@pytest.mark.parametrize(("year", "one", "score"), [(2020, False, 0.4), (2021, True, 0.2)])
def test_the_years_differ_in_1_0_and_in_nan(tmp_path, year, one, score):
    text = "#r\n713427006,59118001,164889003\n0,0,1.0\nnan,0.4,oops\n"
    decisions, scores, _ = read_output(written(tmp_path, text), GROUPS, year)
    assert decisions.tolist() == [False, False, one]
    assert scores == pytest.approx([0, score, 0])


@pytest.mark.parametrize("text", ["", "#r\n1,2\n0\n0.1,0.2\n", "nothing of the kind"])
def test_a_malformed_file_is_all_negative_and_reported(tmp_path, text):
    decisions, scores, trouble = read_output(written(tmp_path, text), GROUPS, 2020)
    assert not decisions.any()
    assert not scores.any()
    assert "r.csv" in trouble


@pytest.mark.parametrize(
    ("text", "score", "message"),
    [
        ("\ufeff#r\n426783006\n1\n0.7\n", 0.7, None),  # with a byte-order mark
        ("#r\n426783006\n1\n7.5\n", 7.5, "outside [0, 1]"),
        ("#r\nSB\n1\n0.7\n", 0.0, "none of the scored classes"),
    ],
)
def test_marks_ranges_and_other_classes(tmp_path, text, score, message):
    path = tmp_path / "r.csv"
    path.write_text(text, encoding="utf-8")
    _, scores, trouble = read_output(path, GROUPS, 2021)
    assert scores[0] == score
    assert message is None if trouble is None else message in trouble


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"none\.csv: no output file"):
        read_output(tmp_path / "none.csv", GROUPS, 2021)


@pytest.fixture
def scored(made, tmp_path):
    """(labels, outputs, weights): perfect outputs of the made records."""
    codes = ["426783006", "164889003", "427084000", "164909002", "427172004"]
    names = ["426783006", "164889003", "427084000", "733534002|164909002", "427172004|17338001"]
    table = np.full((5, 5), 0.4) + 0.6 * np.eye(5)
    lines = ["," + ",".join(names)]
    lines += [f"{name}," + ",".join(str(cell) for cell in row) for name, row in zip(names, table)]
    (tmp_path / "weights.csv").write_text("\n".join(lines))
    for path in find_recordings(made):
        has = [int(code in read_header(path).codes) for code in codes]
        write_output(tmp_path / "out" / f"{path.stem}.csv", path.stem, codes, has, [0.9 * one + 0.05 for one in has])
    return made, tmp_path / "out", tmp_path / "weights.csv"


def test_the_command_scores_a_perfect_folder_1(scored, tmp_path, capsys):
    labels, outputs, weights = scored
    argv = ["ecg", "score", str(labels), str(outputs), "--weights", str(weights), "--draws", "10"]
    assert main([*argv, "--output", str(tmp_path / "m.json")]) == 0
    printed = capsys.readouterr().out
    assert "challenge" in printed
    assert "60 records" in printed
    found = json.loads((tmp_path / "m.json").read_text())["metrics"]
    for name in ("challenge", "auroc", "auprc", "f1", "f2", "g2", "accuracy"):
        assert found[name] == pytest.approx(1.0)


def test_sinus_only_scores_0_and_negatives_below(scored, capsys):
    labels, outputs, weights = scored
    for path in outputs.glob("*.csv"):
        write_output(path, path.stem, ["426783006"], [1], [1.0])
    assert main(["ecg", "score", str(labels), str(outputs), "--weights", str(weights), "--draws", "0"]) == 0
    lines = dict(line.split() for line in capsys.readouterr().out.splitlines()[:9])
    assert float(lines["challenge"]) == 0
    for path in outputs.glob("*.csv"):
        write_output(path, path.stem, ["426783006"], [0], [0.0])
    assert main(["ecg", "score", str(labels), str(outputs), "--weights", str(weights), "--draws", "0"]) == 0
    lines = dict(line.split() for line in capsys.readouterr().out.splitlines()[:9])
    assert float(lines["challenge"]) < 0
    assert float(lines["accuracy"]) == 0


@pytest.mark.parametrize(
    ("change", "message"), [("remove", "no output file"), ("empty", "contains no headers"), ("one", "two folders")]
)
def test_what_cannot_be_scored_is_one_line(scored, tmp_path, capsys, change, message):
    labels, outputs, weights = scored
    folders = [str(labels), str(outputs)]
    if change == "remove":
        next(outputs.glob("*.csv")).unlink()
    if change == "empty":
        (tmp_path / "nothing").mkdir()
        folders[0] = str(tmp_path / "nothing")
    if change == "one":
        folders.pop()
    assert main(["ecg", "score", *folders, "--weights", str(weights)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_false_alarms_on_records_without_labels_cost_nothing():
    weights = np.eye(3)
    truth = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0]])
    assert metrics.challenge_score(weights, truth, np.array([[1, 0, 0], [0, 1, 0], [1, 1, 1]]), 0) == 1
