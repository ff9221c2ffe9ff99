"""Prediction: rows, notes, failures, challenge files, pages; Python equals the command; long and many records."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from seqssm_ecg import simulate
from seqssm_ecg.files import write_wfdb

import seqssm
from seqssm.cli.main import main

CLASSES = list(simulate.CLASSES)
P = [f"p_{one}" for one in CLASSES]


def predict(trained, inputs, output, *more, code=0):
    argv = ["predict", str(trained), *map(str, inputs), "--output", str(output), "--accelerator", "cpu"]
    assert main([*argv, *map(str, more)]) == code
    return pd.read_csv(output, dtype={"id": str, "notes": str, "reason": str})


def test_rows(trained, made, tmp_path):
    table = predict(trained, [made], tmp_path / "p.csv")
    expected = ["index", "id", *P, *(f"positive_{one}" for one in CLASSES)]
    assert list(table) == [*expected, "seconds", "notes", "status", "reason"]
    assert table["id"].tolist() == [f"M{n:05d}" for n in range(60)]
    assert (table["seconds"] == 5).all()
    assert table[P].to_numpy().min() >= 0
    assert table[P].to_numpy().max() <= 1
    network = seqssm.load(trained)
    limits = network.network.thresholds.numpy()
    np.testing.assert_array_equal(table[[f"positive_{one}" for one in CLASSES]], table[P] >= limits)
    frame = network.predict(made, batch_size=7)
    np.testing.assert_allclose(frame[P], table[P], atol=1e-5)


@pytest.mark.parametrize("options", [(), ("--window-s", 2)])
def test_the_records_with_notes_are_counted(trained, tmp_path, capsys, options):
    for number in range(3):
        values = simulate.recording([], 5.0, 250.0, number)
        del values["III"]
        write_wfdb(
            tmp_path / "in", f"r{number}", values if number else {**values, "III": values["II"] - values["I"]}, 250.0
        )
    table = predict(trained, [tmp_path / "in"], tmp_path / "p.csv", *options)
    found = table.loc[table["notes"].notna(), "id"].nunique()
    assert found >= 2
    assert f"{found} of 3 records have notes on leads or signals (column notes)" in capsys.readouterr().err


def test_a_record_gets_the_same_probabilities_in_any_form(trained, tmp_path):
    values = simulate.recording(["AF"], 5.0, 250.0, 77)
    write_wfdb(tmp_path / "a", "r", values, 250.0)
    write_wfdb(tmp_path / "b", "r", dict(reversed(values.items())), 250.0, suffix=".dat")
    upper = {lead.upper(): row for lead, row in values.items()}
    write_wfdb(tmp_path / "c", "r", upper, 250.0)
    np.save(tmp_path / "r.npy", np.stack(list(values.values())).T * 1000)
    wfdb = predict(trained, [tmp_path / "a", tmp_path / "b", tmp_path / "c"], tmp_path / "w.csv")
    array = predict(
        trained,
        [tmp_path / "r.npy"],
        tmp_path / "n.csv",
        "--array-rate-hz",
        250,
        "--array-unit",
        "uV",
        "--format",
        "table",
    )
    for row in (wfdb.iloc[1], wfdb.iloc[2], array.iloc[0]):
        np.testing.assert_allclose(row[P].astype(float), wfdb.iloc[0][P].astype(float), atol=2e-3)


def test_any_length_and_reduced_leads(trained, tmp_path):
    values = simulate.recording([], 61.0, 250.0, 5)
    write_wfdb(tmp_path, "long", values, 250.0)
    write_wfdb(tmp_path, "short", {lead: row[:400] for lead, row in values.items()}, 250.0)
    write_wfdb(tmp_path, "two", {lead: values[lead][:1500] for lead in ("I", "II")}, 250.0)
    write_wfdb(tmp_path, "blink", {lead: row[:100] for lead, row in values.items()}, 250.0)
    table = predict(trained, [tmp_path], tmp_path / "p.csv", code=3).set_index("id")
    assert table["seconds"][["long", "short", "two"]].tolist() == [61, 1.6, 6]
    assert table["notes"]["two"].startswith("computed III aVR aVL aVF; missing, set to 0: V1")
    assert "shorter than a second" in table["reason"]["blink"]
    alone = predict(trained, [tmp_path / "short.hea"], tmp_path / "q.csv")
    np.testing.assert_allclose(alone.loc[0, P].astype(float), table.loc["short", P].astype(float), atol=1e-4)


def test_bad_records_keep_their_rows_and_the_others_are_predicted(trained, made, tmp_path):
    random = np.random.default_rng(3)
    folder = tmp_path / "records"
    folder.mkdir()
    for number in range(40):
        for suffix in (".hea", ".mat"):
            content = bytearray((made / f"M{number:05d}{suffix}").read_bytes())
            if number % 2 == 0 and suffix == (".hea" if number % 4 else ".mat"):
                if number % 3 == 0:
                    content = content[: int(random.integers(0, len(content)))]
                else:
                    content[int(random.integers(0, len(content)))] ^= 0xFF
            (folder / f"M{number:05d}{suffix}").write_bytes(content)
    table = predict(trained, [folder], tmp_path / "p.csv", code=3)
    assert len(table) == 40
    odd = table.iloc[1::2]
    assert (odd["status"] == "ok").all()
    failed = table[table["status"] == "failed"]
    assert len(failed) >= 15
    assert failed["reason"].str.contains("M000").all()
    assert not failed["reason"].str.contains("internal").any()
    assert failed[P].isna().all(axis=None)


@pytest.mark.parametrize(("name", "message"), [("other", "contains no recordings"), ("none", "no such file")])
def test_a_folder_of_something_else_is_one_line(trained, tmp_path, capsys, name, message):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.txt").write_text("x")
    argv = ["predict", str(trained), str(tmp_path / name), "--output", str(tmp_path / "p.csv")]
    assert main(argv) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1


def test_challenge_files_are_written_and_scored(trained, made, tmp_path, capsys):
    table = predict(trained, [made], tmp_path / "p.csv", "--format", "challenge")
    found = (tmp_path / "p_challenge" / "M00003.csv").read_text().splitlines()
    assert found[:2] == ["#M00003", ",".join(CLASSES)]
    np.testing.assert_allclose([float(v) for v in found[3].split(",")], table.loc[3, P].astype(float), atol=1e-6)
    assert [int(v) for v in found[2].split(",")] == [table.loc[3, f"positive_{one}"] for one in CLASSES]
    more = ["--format", "challenge", "--challenge-folder", str(tmp_path / "else")]
    predict(trained, [made / "M00001.hea", made / "M00001.mat"], tmp_path / "q.csv", *more, code=3)
    assert [path.name for path in (tmp_path / "else").iterdir()] == ["M00001.csv"]


def test_a_wrong_option_is_one_line(trained, made, tmp_path, capsys):
    for more, printed in (
        (["--lead-map", "MLII"], "NAME=LEAD"),
        (["--lead-map", "MLII=II", "MLII=V1"], "--lead-map: MLII appears twice, as II and as V1"),
        (["--lead-map", "MLII=V9"], "V9 is not one of I, II"),
        (["--attribution-class", "XX"], "--attribution-class has no effect without --figures"),
        (["--attribution-class", "XX", "--figures", "f"], "--attribution-class XX: the model has NORM"),
        (["--challenge-folder", "x"], "has no effect without --format challenge"),
        (["--paper-speed", "0"], "--paper-speed 0.0: must be in [5, 200]"),
        (["--page-layout", "9x9"], "9x9"),
        (["--page-layout", "6x2"], "--page-layout has no effect without --figures"),
    ):
        argv = ["predict", str(trained), str(made / "M00000"), "--output", str(tmp_path / "p.csv"), *more]
        assert main([*argv, "--overwrite"]) == 2
        assert printed in capsys.readouterr().err


def test_pages(trained, made, tmp_path):
    more = ["--figures", tmp_path / "pages"]
    predict(trained, [made / "M00000", made / "M00001"], tmp_path / "p.csv", *more)
    assert len(list((tmp_path / "pages").glob("*.png"))) == 2
    more = ["--figures", tmp_path / "why", "--attribution-class", "AF"]
    predict(trained, [made / "M00000"], tmp_path / "q.csv", *more)
    plain, coloured = (next((tmp_path / name).glob("00000*.png")) for name in ("pages", "why"))
    assert width(coloured) > width(plain)  # bars of the leads: only where they were asked for
    predict(trained, [made / "M00000"], tmp_path / "r.csv", *more[:2], "--attribution-class", "highest", "--overwrite")


def width(path):
    from matplotlib.image import imread

    return imread(path).shape[1]


def test_a_checkpoint_without_its_description_of_the_data_is_refused(trained, made, require_refusal_when_emptied):
    require_refusal_when_emptied(trained, made)
