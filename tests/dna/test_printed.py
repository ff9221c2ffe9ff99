"""The commands printed after a fit of own tables, run as printed."""

from __future__ import annotations

import pandas as pd
import pytest

import seqssm
from seqssm.cli.main import main
from seqssm.errors import InputError
from tests.dna.conftest import letters
from tests.dna.predicting import causal, predict
from tests.printed import commands, run_printed

SMALL = {"d_model": 16, "n_layers": 1, "d_state": 4, "threads": 1}
OWN = {"sequence_column": "oligo", "id_column": "the name", "label_column": "kind"}


@pytest.fixture(autouse=True)
def _here(monkeypatch, tmp_path, one_thread):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")  # removes variables that a command sets


@pytest.fixture
def frame():
    """60 sequences in columns with other than the usual names."""
    rows = [(f"r{n}", letters(30 + n % 3, n), "ab"[n % 2], n / 60) for n in range(60)]
    return pd.DataFrame(rows, columns=["the name", "oligo", "kind", "level"])


def fit(preset, *words):
    small = [word for name, value in SMALL.items() for word in (f"--model.{name}", str(value))]
    own = ["--trainer.max_epochs", "1", "--early_stopping.monitor", "val_loss", "--output", "run", "--overwrite"]
    assert main(["dna", "fit", "--config", preset, *small, *own, *words]) == 0


@pytest.mark.parametrize("preset", ["ecoli_promoters", "yeast_generation"])
def test_a_table_with_own_columns_is_predicted(frame, capsys, preset):
    """The column of the sequences was not kept: predict looked for the usual names only."""
    frame.to_csv("own.csv", index=False)
    columns = [word for name, value in OWN.items() for word in (f"--data.{name}", value)]
    fit(preset, "--data.train", "own.csv", "--data.target", "class", *columns)
    found = run_printed(capsys.readouterr().out)
    assert found["id"].tolist() == frame["the name"].tolist()
    assert set(found["status"]) == {"ok"}


def test_a_fit_of_a_frame_prints_what_a_file_of_it_needs(frame, capsys):
    model = seqssm.fit(
        "dna", preset="ecoli_promoters", data={"train": frame, **OWN}, model=SMALL, trainer={"max_epochs": 1},
        output="run",
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert [words[0] for words in commands(printed)] == ["predict"], "no command can read the test records"
    frame.to_csv("own.csv", index=False)
    assert len(run_printed(printed, "own.csv")) == 60
    assert model.predict(frame)["id"].tolist() == frame["the name"].tolist()


def test_other_files_are_read_by_the_usual_names(write):
    own = {"sequence_column": "Oligo", "id_column": "title"}
    for header in ("Oligo,seq,title", "oligo,x,id", "x,sequence,name"):
        path = write(f"{header}\nACGT,ACGTT,one\n", "other.csv")
        table = predict(causal(), path, summary=own)
        assert (table["id"].tolist(), table["length"].tolist()) == (["one"], [5 if "sequence" in header else 4])
    with pytest.raises(InputError, match=r"has no column Oligo or sequence or seq \(sequence\); it has a, b"):
        predict(causal(), write("a,b\nACGT,one\n", "other.csv"), summary=own)
