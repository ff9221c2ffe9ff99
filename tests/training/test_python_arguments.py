"""Arguments of the Python functions: other types are one-line errors, which name the argument and no preset's file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import seqssm
from seqssm.api import _file_option
from seqssm.cli.main import main
from seqssm.domain import Option, find_domain
from seqssm.errors import InputError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "hybrid"}, r'^model: expected .*, as in {"network": "hybrid"}, or a task, not .hybrid. \(str\)'),
        ({"model": 3}, r"^model: expected a dict of options or a task, not 3 \(int\)"),
        ({"data": 3}, r"^data: expected a file, a data frame, a dict of options or a data module, not int"),
        ({"trainer": "cpu"}, r"^trainer: expected a dict of options, .* not .cpu."),
        ({"trainer": {"early_stopping": 3}}, r"^trainer, early_stopping: expected a dict of options, not 3"),
        ({"trainer": {"callbacks": [object()]}}, r"^trainer: the option callbacks cannot be of the type object"),
        ({"preset": 3}, r"^preset: expected the name of a preset or a YAML file, not 3"),
        ({"preset": ["tiny"]}, r"^preset: expected .*, not list"),
        ({"output": 3}, r"^output: expected a folder, not 3"),
        ({"overwrite": "no"}, r"^overwrite: expected True or False, not .no."),  # it replaced the run
        ({"model": {"d_modle": 4}}, r"^unknown option model.d_modle; did you mean model.d_model\?"),
        ({"model": {"d_model": "x"}}, r"^model.d_model: expected int.*, not x"),
        ({"data": {"rowz": 4}}, r"^unknown option data.rowz; did you mean data.rows\?"),
        ({"trainer": {"max_epoch": 4}}, r"^unknown option trainer.max_epoch; did you mean trainer.max_epochs\?"),
        ({"trainer": {"early_stopping": {"patienc": 4}}}, r"^unknown option early_stopping.patienc; did you mean"),
    ],
)
def test_wrong_arguments_of_fit_are_named(toy, arguments, message):
    """They were AttributeErrors and TypeErrors, or blamed on the preset's file."""
    with pytest.raises(InputError, match=message):
        seqssm.fit("toy", **{"preset": "tiny", **arguments})
    assert not any(Path().iterdir())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: seqssm.load(3), "^path: expected a checkpoint or the folder of a run, not int"),
        (lambda: seqssm.find(3), "^name: expected the name of a data set, not 3"),
    ],
)
def test_wrong_arguments_of_the_other_functions_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize(
    ("domain", "preset", "option"),
    [
        ("dna", "finetune", "train"),
        ("dna", "splice", "train"),
        ("dna", "pretrain", "fasta"),
        ("ecg", "pretrain", "manifest"),
        ("forecasting", "smamba", "file"),
    ],
)
def test_a_file_is_that_of_the_data_of_the_preset(domain, preset, option):
    """It was data.fasta in all of dna, an unknown option of the presets of labelled sequences."""
    assert _file_option(find_domain(domain), preset) == option


def test_frames_and_files_reach_the_data_of_the_preset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^none.csv: no such file"):
        seqssm.fit("dna", preset="finetune", data="none.csv")
    frame = pd.DataFrame({"dna": ["ACGT"], "x": [1]})
    for data in (frame, {"train": frame}):
        with pytest.raises(InputError, match=r"^DataFrame: has no column"):
            seqssm.fit("dna", preset="finetune", data=data)
    for data in ({"reference": frame}, {"train": frame, "reference": frame}):
        with pytest.raises(InputError, match=r"data: reference cannot be a DataFrame; .* only train can be one"):
            seqssm.fit("dna", preset="finetune", data=data)


def test_a_section_without_class_keeps_the_class_of_the_preset(tmp_path, monkeypatch, capsys):
    """With init_args, it was an unknown option init_args."""
    monkeypatch.chdir(tmp_path)
    command = ["dna", "fit", "--config", "finetune", "--config", "own.yaml", "--output", "run"]
    for text, message in (
        ("data: {init_args: {train: none.csv}}", "none.csv: no such file"),
        ("data: {train: none.csv}\nmodel: {init_args: {d_model: 16}}", "none.csv: no such file"),
        (
            "model: {init_args: {d_model: 16}, n_layers: 1}",
            "own.yaml: model.n_layers is given next to init_args",
        ),
        ("data: {class_path: seqssm_dna.sequences.SequenceData, train: a}", "data.train is given next to class_path"),
        ("model: {d_modle: 16}", "seqssm: own.yaml: unknown option model.d_modle"),  # and not of the preset
        ("data: {val_fraction: x}", "seqssm: own.yaml: data.val_fraction: expected float"),
    ):
        Path("own.yaml").write_text(text)
        assert main(command) == 2
        assert message in capsys.readouterr().err


def test_null_where_a_value_is_needed(tmp_path, monkeypatch, capsys):
    """It was an internal error: jsonargparse accepts null for any option of a config."""
    monkeypatch.chdir(tmp_path)
    for text, message in (
        ("data: {val_fraction: null}", "seqssm: own.yaml: data.val_fraction: expected float, not null"),
        (
            "trainer: {accumulate_grad_batches: null}",
            "own.yaml: trainer.accumulate_grad_batches: expected int, not null",
        ),
        ("data: {train: none.csv}\ntrainer: {max_time: null}", "none.csv: no such file"),
    ):
        Path("own.yaml").write_text(text)
        assert main(["dna", "fit", "--config", "finetune", "--config", "own.yaml", "--output", "run"]) == 2
        assert message in capsys.readouterr().err


def test_genomes_are_no_data_frames():
    frame = pd.DataFrame({"sequence": ["ACGT"], "label": ["a"]})
    with pytest.raises(InputError, match=r'genomes are read from files \(fasta\); .*preset="finetune"'):
        seqssm.fit("dna", data=frame)
    with pytest.raises(
        InputError, match="data: train cannot be a DataFrame; with the preset tiny, only fasta can be one"
    ):
        seqssm.fit("dna", data={"train": frame})


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (int, "x", "chunk_size 'x': expected a whole number"),
        (int, 2.5, "chunk_size 2.5: expected a whole number"),
        (int, True, "chunk_size True: expected a whole number"),
        (int, [1], r"chunk_size \[1\]: expected a whole number"),
        (float, "0.5", "chunk_size '0.5': expected a number"),
        (bool, "no", "chunk_size 'no': expected True or False"),
        (bool, 1, "chunk_size 1: expected True or False"),
    ],
)
def test_options_of_predict_have_a_type(kind, value, message):
    """They ended in an internal error of each record, or were rounded."""
    with pytest.raises(InputError, match=rf"^{message}$"):
        Option("--chunk-size", "", kind).of_python(value)
    good = {int: np.int64(3), float: np.float32(3), bool: np.bool_(False)}[kind]
    found = Option("--chunk-size", "", kind).of_python(good)
    assert (type(found), found) == (kind, good.item())
    assert Option("--chunk-size", "", kind).of_python(None) is None


def test_options_of_text_are_those_of_the_command_line():
    """Numbers, lists and dicts ended in errors of Python."""
    one, several = Option("--name", ""), Option("--names", "", many=True)
    pairs, file = Option("--map", "", many=True, pairs=True), Option("--file", "", metavar="PATH")
    assert one.of_python(Path("a")) == "a"
    assert one.of_python(5) == "5"
    assert several.of_python(("a", 1, Path("b"))) == ["a", "1", "b"]
    assert several.of_python(np.array([80, 90])) == ["80", "90"]
    assert several.of_python(np.array(80)) == ["80"]
    assert pairs.of_python({"MLII": "II", 1: "V1"}) == ["MLII=II", "1=V1"]
    assert pairs.of_python({"a": (0, 50), "b": [None, 1.5]}) == ["a=0:50", "b=:1.5"]
    assert pairs.of_python("MLII=II,A=V1") == ["MLII=II", "A=V1"]
    for option, value, message in (
        (one, ["a"], r"name \['a'\]: expected text"),
        (file, {}, "file {}: expected a file"),
        (file, True, "file True: expected a file"),
        (several, {"a": "b"}, "names: expected a list, not dict"),
        (several, {"a", "b"}, "names: expected a list, not set"),
        (several, [None], "names None: expected text"),
        (several, [["a"]], r"names \['a'\]: expected text"),
    ):
        with pytest.raises(InputError, match=rf"^{message}$"):
            option.of_python(value)


@pytest.mark.parametrize(("name", "root"), [(None, None), ("etth1", 3), ("etth1", ["a"])])
def test_arguments_of_find_have_a_type(name, root):
    with pytest.raises(InputError, match="expected"):
        seqssm.find(name, root)
