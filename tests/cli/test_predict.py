"""`predict`: its table, options and errors."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest

import seqssm
from seqssm.cli.main import main
from seqssm.errors import InputError
from seqssm.files.disk import require_no_pipes

from .predicting import MIXED, parts, predict, rows

COLUMNS = ["index", "id", "unit", "value", "steps", "status", "reason"]


def test_every_record_has_its_rows_in_input_order(run, numbers, capsys):
    assert predict(run, numbers(10), "--output", "out.csv", "--batch-size", 3) == 0
    table = rows("out.csv")
    assert list(table[0]) == COLUMNS
    assert [(row["index"], row["id"], row["steps"]) for row in table] == [
        (str(n), f"r{n}", str(step)) for n in range(10) for step in (1, 2)
    ]
    assert {(row["status"], row["reason"]) for row in table} == {("ok", "")}
    printed = capsys.readouterr()
    assert "10 records: 10 ok, 0 failed" in printed.err
    assert printed.out == "written: out.csv\n"
    assert not parts(Path("out.csv").absolute()).exists()


def test_failed_records_keep_their_rows_and_give_exit_code_3(run, numbers, capsys):
    clean, mixed = numbers(12), numbers(12, MIXED, "mixed.txt")
    assert predict(run, mixed, "--output", "out.csv", "--batch-size", 4) == 3
    message = capsys.readouterr().err
    lines = message[message.index("12 records") :].splitlines()
    assert lines[0] == "12 records: 6 ok, 6 failed"
    assert lines[1:5] == [
        "  marked: is marked as bad",
        f"  words: {mixed}: line 4: x1 is not a number",
        "  no: x1 is refused",
        "  ...; the column reason of out.csv lists all",
    ]
    table = {row["index"]: row for row in rows("out.csv")}
    assert list(table) == [str(n) for n in range(12)]
    reasons = {int(index): row["reason"] for index, row in table.items() if row["status"] == "failed"}
    assert reasons == {
        2: "is marked as bad",
        3: f"{mixed}: line 4: x1 is not a number",
        5: "x1 is refused",
        6: "found unusable late",
        8: "internal error (ZeroDivisionError: a bug in the package)",
        9: "internal error (KeyError: 'prepare-bug')",
    }
    assert all(table[str(n)]["value"] == "" for n in reasons)
    with open(message.split("tracebacks are in ")[1].strip(), encoding="utf-8") as file:
        assert file.read().count("Traceback") == 2
    assert predict(run, clean, "--output", "clean.csv", "--batch-size", 1) == 0
    alone = [row for row in rows("clean.csv") if int(row["index"]) not in reasons]
    good = [row for row in rows("out.csv") if row["status"] == "ok"]
    assert [float(row["value"]) for row in good] == pytest.approx([float(row["value"]) for row in alone], rel=1e-5)


def test_allow_failed(run, numbers):
    assert predict(run, numbers(3, {1: "x bad 0 0"}), "--output", "out.csv", "--allow-failed") == 0
    assert [row["status"] for row in rows("out.csv")] == ["ok", "ok", "failed", "ok", "ok"]


def test_parquet_holds_the_same_table(run, numbers):
    path = numbers(9, {4: "x bad 0 0"})
    assert predict(run, path, "--output", "out.csv", "--batch-size", 2) == 3
    assert predict(run, path, "--output", "out.parquet", "--batch-size", 2) == 3
    frame = pd.read_parquet("out.parquet")
    assert list(frame.columns) == COLUMNS
    assert frame["index"].dtype == "int64"
    assert frame["value"].dtype == "float32"
    text = pd.read_csv(
        "out.csv", dtype={"value": "float32"}, keep_default_na=False, na_values={"value": "", "steps": ""}
    )
    assert frame["value"].equals(text["value"]), "the digits of the CSV give the same float32 back"
    assert frame["id"].tolist() == text["id"].tolist()


def test_load_gives_the_same_frame(run, numbers):
    path = numbers(7, {3: "x bad 0 0"})
    assert predict(run, path, path, "--output", "out.parquet", "--scale", 2) == 3
    model = seqssm.load(run / "best.ckpt")
    frame = model.predict([path, path], scale=2.0)
    pd.testing.assert_frame_equal(frame, pd.read_parquet("out.parquet"), check_dtype=False)
    one = model.predict(str(path))
    assert one["index"].tolist() == [0, 0, 1, 1, 2, 2, 3, 4, 4, 5, 5, 6, 6]
    with pytest.raises(seqssm.InputError, match="toy has no option scales; did you mean scale"):
        model.predict(path, scales=1)
    with pytest.raises(seqssm.InputError, match="unit mile: expected one of m, km"):
        model.predict(path, unit="mile")


def test_load_refuses_what_the_command_refuses(run, numbers):
    for options, words in (
        ({"accelerator": "tpu"}, "accelerator tpu: expected one of auto"),
        ({"precision": "8"}, "precision 8"),
    ):
        with pytest.raises(seqssm.InputError, match=words):
            seqssm.load(run, **options)
    with pytest.raises(seqssm.InputError, match="batch_size 0: must be at least 1"):
        seqssm.load(run).predict(numbers(2), batch_size=0)


def test_no_records_give_a_table_without_rows(run, numbers):
    assert predict(run, numbers(0), "--output", "out.csv") == 0
    assert Path("out.csv").read_text(encoding="utf-8") == ",".join(COLUMNS) + "\n"
    assert seqssm.load(run).predict(numbers(0)).columns.tolist() == COLUMNS


def test_loader_processes_change_nothing(run, numbers):
    path = numbers(12, MIXED)
    assert predict(run, path, "--output", "one.csv", "--batch-size", 2) == 3
    assert predict(run, path, "--output", "two.csv", "--batch-size", 2, "--num-workers", 2) == 3
    assert Path("one.csv").read_bytes() == Path("two.csv").read_bytes()


def test_a_killed_loader_process_is_reported_and_resumable(run, numbers, capsys):
    path = numbers(6, {5: "k kill-loader 0 0"})
    assert predict(run, path, "--output", "out.csv", "--batch-size", 1, "--num-workers", 1) == 2
    assert "a loader process was killed" in capsys.readouterr().err
    assert not Path("out.csv").exists()
    assert (parts(Path("out.csv").absolute()) / "job.json").is_file()


def test_figures_only_when_asked(run, numbers, capsys):
    path = numbers(4, {1: "x bad 0 0", 2: "undrawable 1 1 1"})
    assert predict(run, path, "--output", "out.csv", "--allow-failed") == 0
    assert os.listdir() == ["out.csv"]
    assert predict(run, path, "--output", "two.csv", "--figures", "figs", "--allow-failed") == 0
    assert sorted(os.listdir("figs")) == ["0.png", "3.png"]
    assert Path("one.csv" if Path("one.csv").exists() else "out.csv").read_bytes() == Path("two.csv").read_bytes()
    assert "tracebacks are in" in capsys.readouterr().err


def test_mixed_precision_is_close(run, numbers):
    assert predict(run, numbers(5), "--output", "a.csv") == 0
    assert predict(run, numbers(5), "--output", "b.csv", "--precision", "bf16") == 0
    a, b = (pd.read_csv(name)["value"] for name in ("a.csv", "b.csv"))
    assert (a - b).abs().max() < 0.05
    assert not a.equals(b)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "--output FILE is required"),
        (["--output", "out.txt"], "--output must end in .csv or .parquet"),
        (["--output", "out.csv", "--sclae", "2"], "unknown option --sclae; did you mean --scale?"),
        (["--output", "out.csv", "--temper", "2"], "--temper is an option of the domain tin, not of toy"),
        (["--output", "out.csv", "--scale", "much"], "--scale"),
        (["--output", "out.csv", "--unit", "mile"], "--unit"),
        (["--output", "out.csv", "--batch-size", "0"], "--batch-size 0"),
        (["--output", "out.csv", "--devices", "many"], "--devices many"),
        (["--output", "out.csv", "--accelerator", "gpu"], "--accelerator gpu"),
        (["--output", "out.csv", "--precision", "8"], "--precision"),
        (["--output", "file/out.csv"], "part of the path is a file"),
        (["--output", "."], "is a folder; --output takes a file"),
    ],
)
def test_bad_flags_are_one_line_and_leave_nothing(run, numbers, capsys, argv, words, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    Path("file").write_text("", encoding="utf-8")
    assert predict(run, numbers(2), *argv) == 2
    message = capsys.readouterr().err.strip()
    assert words in message
    assert len(message.splitlines()) == 1
    assert os.listdir() == ["file"]


@pytest.mark.parametrize("place", [0, 3])
def test_an_unusable_file_is_reported_before_anything_is_predicted(run, numbers, capsys, place):
    assert predict(run, numbers(4, {place: "broken"}), "--output", "out.csv", "--batch-size", 1) == 2
    assert f"line {place + 1}: cannot be used at all" in capsys.readouterr().err
    assert os.listdir() == []
    assert predict(run, "missing.txt", "--output", "new/out.csv") == 2
    assert os.listdir() == []


def test_help_adds_the_options_of_the_checkpoints_domain(run, capsys):
    assert predict(run, "--help") == 0
    page = capsys.readouterr().out
    assert "--scale" in page
    assert "--batch-size" in page
    assert "--temper" not in page
    assert main(["toy", "predict", "--help"]) == 0
    assert "--scale" in capsys.readouterr().out


def test_options_may_appear_anywhere(run, numbers):
    path = numbers(2)
    assert main(["toy", "predict", "--scale", "2", "--output", "a.csv", str(run), str(path)]) == 0
    assert main(["predict", str(run), "--output=b.csv", str(path), "--scale=2"]) == 0
    assert Path("a.csv").read_bytes() == Path("b.csv").read_bytes()


def test_the_domains_own_predict_refuses_another_domains_checkpoint(run, numbers, capsys):
    assert main(["tin", "predict", str(run), str(numbers(1)), "--output", "out.csv"]) == 2
    assert "use seqssm toy predict" in capsys.readouterr().err


def test_the_input_is_never_overwritten(run, numbers, capsys):
    """If the output were the input, `--overwrite` would delete the user's data."""
    own = Path(numbers(3)).rename("own.csv")
    before = own.read_bytes()
    Path("link.csv").symlink_to(own)
    for name in ("own.csv", "./own.csv", "link.csv"):
        assert predict(run, own, "--output", name, "--overwrite") == 2
        assert "is also an input; choose a different --output" in capsys.readouterr().err
    assert own.read_bytes() == before


def test_a_finished_output_is_kept_without_overwrite(run, numbers, capsys):
    path = numbers(2)
    assert predict(run, path, "--output", "out.csv") == 0
    before = Path("out.csv").read_bytes()
    for flags in ([], ["--resume"]):
        assert predict(run, path, "--output", "out.csv", "--scale", 2, *flags) == 2
        assert "already exists; choose another --output" in capsys.readouterr().err
    assert Path("out.csv").read_bytes() == before
    assert predict(run, path, "--output", "out.csv", "--scale", 2, "--overwrite") == 0
    assert Path("out.csv").read_bytes() != before


def test_a_pipe_as_input_is_refused_at_once(run, tmp_path, capsys):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    wanted = "pipe: is a pipe or a device; inputs are read several times: save it to a file"
    assert predict(run, pipe, "--output", "out.csv") == 2
    assert wanted in capsys.readouterr().err
    for value in (str(pipe), [str(pipe)], {"a": str(pipe)}, f"a={pipe}"):
        with pytest.raises(InputError, match=wanted):
            require_no_pipes([None, 3, "no such file", value])
    require_no_pipes([str(tmp_path), __file__, "x\0y"])
