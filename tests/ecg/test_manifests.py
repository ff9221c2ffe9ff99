"""Manifests: splits, folds and patients follow the table or are an error; duplicates; every dialect."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from seqssm_ecg import simulate
from seqssm_ecg.data import EcgData
from seqssm_ecg.files import write_wfdb
from seqssm_ecg.unlabelled import EcgRecordings

from seqssm.errors import InputError

from .manifests import COUNT, SPLIT, data_of, frame, labels


def test_splits_are_those_of_the_table(records, capsys):
    data = data_of(records, frame(split=SPLIT))
    assert [len(data.split[name]) for name in ("train", "val", "test")] == [12, 6, 6]
    assert "split: by the column split" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"split": [*SPLIT[:-1], ""]}, "line 25: no split, but 23 other rows have one"),
        ({"split": ["", "", *SPLIT[2:]]}, "line 2, line 3: no split, but 22 other rows have one"),
        ({"fold": ["", *[n % 4 for n in range(1, COUNT)]]}, "line 2: no fold, but 23 other rows have one"),
        ({"fold": [n % 2 for n in range(COUNT)]}, "has 2 folds, at least three are required"),
        ({"fold": [n % 4 + 0.5 for n in range(COUNT)]}, "line 2, column fold: '0.5' is not an integer"),
        (
            {"split": SPLIT, "patient": ["p1"] * 4 + [f"p{n}" for n in range(4, COUNT)]},
            r"the patient p1 is in both train \(line 2\) and val \(line 4\)",
        ),
        (
            {"split": SPLIT, "patient": ["P  1", "P1", "p 1", *[f"p{n}" for n in range(4, COUNT + 1)]]},
            r"the patient p 1, which is probably P  1, is in both train \(line 2\) and val \(line 4\)",
        ),
        (
            {"fold": [n % 4 for n in range(COUNT)], "patient": ["p1"] * 4 + [f"p{n}" for n in range(4, COUNT)]},
            r"the patient p1 is in both train \(line 2\) and val \(line 4\)",
        ),
        (
            {"split": SPLIT, "path": ["s00.hea"] * COUNT, "fast": [1] * COUNT},
            r"the record s00.hea is in both train \(line 2\) and val",
        ),
    ],
)
def test_a_split_that_cannot_be_honoured_is_refused(records, columns, message):
    with pytest.raises(InputError, match=message) as error:
        data_of(records, frame(**columns), deduplicate=False)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (
            {"fold": [n % 4 for n in range(COUNT)]},
            {"val_fold": 7},
            "--data.val_fold 7: expected one of the folds 0, 1, 2, 3",
        ),
        ({"fold": [n % 4 for n in range(COUNT)]}, {"val_fold": 1, "test_fold": 1}, "are both 1"),
        ({}, {"val_fold": 1}, "the table has no folds"),
        ({"split": SPLIT}, {"test_fold": 1}, "conflicts with the column split"),
        ({"split": SPLIT}, {"fold": 0, "folds": 3}, "the column split is incompatible with cross-validation"),
        ({"role": SPLIT}, {"split_column": "role", "val_fold": 1}, "conflicts with the column role; remove"),
        ({"role": SPLIT}, {"split_column": "role", "fold": 0, "folds": 3}, "the column role is incompatible with"),
        ({"fold": [n % 4 for n in range(COUNT)]}, {"fold": 0, "folds": 3}, "has 4 folds, not 3"),
        (
            {"fold": [n % 4 for n in range(COUNT)], "patient": ["p"] * COUNT},
            {"fold": 0, "folds": 4},
            r"the patient p is in both fold 0 \(line 2\) and fold 1 \(line 3\)",
        ),
    ],
)
def test_options_that_contradict_the_table_are_refused(records, columns, options, message):
    with pytest.raises(InputError, match=message):
        data_of(records, frame(**columns), **options)


def test_folds_of_the_table(records, capsys):
    folds = [n % 4 for n in range(COUNT)]
    data = data_of(records, frame(fold=folds))
    assert {data.labelled[k].fold for k in data.split["test"]} == {3}
    assert {data.labelled[k].fold for k in data.split["val"]} == {2}
    data = data_of(records, frame(fold=folds), val_fold=3)
    assert {data.labelled[k].fold for k in data.split["test"]} == {2}
    data = data_of(records, frame(fold=[n % 6 for n in range(COUNT)]), fold=1, folds=3)  # two folds make one
    assert {data.labelled[k].fold for k in data.split["test"]} == {1, 4}
    assert "fold 1 of 3, test 1 and 4 and validation 2 and 5 of the table" in capsys.readouterr().out


def test_patients_are_kept_together_and_missing_ones_reported(records, capsys):
    patients = [f"p{n // 3}" for n in range(COUNT - 3)] + [""] * 3
    data = data_of(records, frame(patient=patients))
    parts = [{data.labelled[k].group for k in data.split[name]} for name in ("train", "val", "test")]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    printed = capsys.readouterr().out
    assert "3 rows without a patient: each is treated as a separate patient" in printed
    assert "split: at random by patient" in printed
    assert data.identities("train")[0].keys() == {"id", "patient", "samples"}


def test_further_columns(records, capsys):
    with pytest.raises(InputError, match="label_columns"):
        data_of(records, frame(device=["x"] * COUNT))
    data = data_of(records, frame(device=["x"] * COUNT), label_columns=["fast"])
    assert data.classes.names == ["fast"]
    assert "columns ignored: device" in capsys.readouterr().out
    with pytest.raises(InputError, match="has no column fsat; did you mean fast"):
        data_of(records, frame(), label_columns=["fsat"])


@pytest.mark.parametrize("name", ["status", "notes", "id"])
def test_classes_may_have_the_names_of_columns_of_the_prediction_table(records, name):
    assert data_of(records, frame().rename(columns={"fast": name})).classes.names == [name]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_dialects(records, separator, encoding):
    text = frame().to_csv(index=False, sep=separator)
    data = data_of(records, text.encode(encoding), f"d{len(separator)}.csv")
    assert data.classes.names == ["fast"]
    assert sum(len(part) for part in data.split.values()) == COUNT


def test_workbooks(records):
    pytest.importorskip("openpyxl", reason="openpyxl is not installed: pip install 'seqssm[excel]'")
    frame(fold=[n % 4 for n in range(COUNT)], yes=[n % 3 == 0 for n in range(COUNT)]).to_excel(
        records / "m.xlsx", index=False
    )
    data = EcgData(manifest=str(records / "m.xlsx"), window_s=1)
    data.setup("fit")
    assert data.classes.names == ["fast", "yes"]
    assert {data.labelled[k].fold for k in data.split["test"]} == {3}


def test_a_url_in_a_manifest_is_refused(records):
    with pytest.raises(InputError, match="only local files are read"):
        data_of(records, frame(path=["s3://bucket/x"] * COUNT))


PATIENTS = [f"p{n // 2}" for n in range(COUNT)]


@pytest.mark.parametrize("names", [("participant", "subject_id"), ("Patient ID", "patient"), ("patient", "person")])
def test_equal_columns_of_patients_are_used(records, capsys, names):
    data = data_of(records, frame(**dict.fromkeys(names, PATIENTS)))
    assert [record.patient for record in data.labelled] == PATIENTS
    printed = capsys.readouterr().out
    assert "the same patients as in the column" in printed
    assert "split: at random by patient" in printed


def test_an_empty_column_of_patients_is_none(records):
    data = data_of(records, frame(subject_id=PATIENTS, participant=""))
    assert [record.patient for record in data.labelled] == PATIENTS


@pytest.mark.parametrize("names", [("participant", "donor_no"), ("patient", "participant")])
def test_differing_columns_of_patients_are_an_error(records, names):
    table = frame(**{names[0]: PATIENTS, names[1]: range(COUNT)})
    message = f"the columns {names[0]} and {names[1]} may both be patients, and differ; rename or remove one"
    for one in (table, labels("AF", "").assign(**{name: table[name] for name in names})):
        with pytest.raises(InputError, match=message):
            data_of(records, one)


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("is_test", [n % 2 for n in range(COUNT)]),
        ("is_train", [n % 2 > 0 for n in range(COUNT)]),
        ("train", ["yes", "no"] * 12),
        ("set", SPLIT),
        ("cohort", SPLIT),
    ],
)
def test_splits_in_a_column_that_is_not_read_are_an_error(records, capsys, name, cells):
    table = labels("AF", "NORM").assign(**{name: cells})
    message = (
        f"line 1: column {name} may say in which split a record is: --data.split_column {name} splits by it, "
        "--data.split_column none at random"
    )
    for one, options in ((table, {}), (frame(**{name: cells}), {"label_columns": ["fast"]})):
        with pytest.raises(InputError, match=message):
            data_of(records, one, **options)
    with pytest.raises(InputError, match=message):  # pretraining
        EcgRecordings(manifest=str(records / "m.csv"), window_s=1).setup("fit")
    data_of(records, table.assign(split=SPLIT))
    printed = capsys.readouterr().out
    assert f"columns ignored: {name}" in printed
    assert "split: by the column split" in printed


def sizes(data):
    return [len(data.split[name]) for name in ("train", "val", "test")]


@pytest.mark.parametrize("one_hot", [False, True])
def test_a_column_of_the_manifest_is_chosen_as_the_split(records, capsys, one_hot):
    """A column called test of another meaning was an error without a way out."""
    table = frame() if one_hot else labels("AF", "NORM")
    words = table.assign(cohort=SPLIT, split=["adult", "child"] * 12, fold=["A", "B"] * 12)
    data = data_of(records, words, split_column="cohort")
    assert sizes(data) == [12, 6, 6]
    printed = capsys.readouterr().out
    assert "not used, as --data.split_column is cohort: split, fold" in printed
    assert "split: by the column cohort" in printed
    exercise = table.assign(test=["yes", "no"] * 12)
    options = {"label_columns": ["fast"]} if one_hot else {}
    data_of(records, exercise, split_column="none", **options)
    assert "split: at random" in capsys.readouterr().out
    folds = data_of(records, table.assign(part=[n // 2 % 4 for n in range(COUNT)]), split_column="part", test_fold=1)
    assert {folds.labelled[k].fold for k in folds.split["test"]} == {1}
    pretraining = EcgRecordings(manifest=str(records / "m.csv"), window_s=1, split_column="part")
    pretraining.setup("fit")
    assert "test fold 3" in capsys.readouterr().out
    cross = data_of(records, table.assign(split=SPLIT), split_column="none", fold=0, folds=3)
    assert sum(sizes(cross)) == COUNT


@pytest.mark.parametrize("words", [False, True])
def test_validation_comes_from_the_training_patients_if_the_column_has_none(records, capsys, words):
    patients = [f"p{n // 2}" for n in range(COUNT)]
    flags = [int(n >= 18) for n in range(COUNT)]
    table = labels("AF", "NORM").assign(patient=patients, is_test=flags)
    if words:
        table["is_test"] = ["test" if flag else "train" for flag in flags]
    data = data_of(records, table, split_column="is_test")
    assert sizes(data) == [16, 2, 6]
    split_of = {name: {data.labelled[k].patient for k in data.split[name]} for name in data.split}
    assert split_of["test"] == {"p9", "p10", "p11"}
    assert not split_of["train"] & split_of["val"]
    assert (
        "which has no validation records: 10 % of the training records at random by patient" in capsys.readouterr().out
    )
    with pytest.raises(InputError, match=r"the val split is empty: .* --data.split_column none"):
        data_of(records, table.assign(patient="p0", is_test=0), split_column="is_test")


def test_none_is_no_column_even_if_one_has_that_name(records, capsys):
    data_of(records, labels("AF", "NORM").assign(none=SPLIT, split=SPLIT), split_column="none")
    printed = capsys.readouterr().out
    assert "not used, as --data.split_column is none: split" in printed
    assert "split: at random" in printed


@pytest.mark.parametrize(
    ("cells", "options", "message"),
    [
        ({"split": ["adult", "child"] * 12}, {}, "line 2, column split: split 'adult': .* or none for a random split"),
        (
            {"fold": [f"r{n}x" for n in range(COUNT)]},
            {},
            "line 2, column fold: 'r0x' is not a number; .* or none for a random",
        ),
        (
            {"fold": ["0x", *[1, 2, 3] * 8][:COUNT]},
            {},
            "line 2, column fold: '0x' is not a fold such as 1; .* or none for a",
        ),
        (
            {"fold": ["test", *[1, 2, 3] * 8][:COUNT]},
            {},
            "line 2, column fold: 'test' is not a fold such as 1; .*; move rows that are held out of the folds to an",
        ),
        *(
            (
                {name: [n % 3 + first for n in range(COUNT)]},
                {},
                f"line 1: column {name}: if .* are splits, write train, val",
            )
            for name in ("split", "Subset", "set", "data_split")
            for first in (0, 1)
        ),
        (
            {"part": [f"r{n}x" for n in range(COUNT)]},
            {"split_column": "part"},
            r"line 2, column part: 'r0x' \(--data.split_column\)",
        ),
        ({}, {"split_column": "part"}, r"line 1: has no column part \(--data.split_column\)"),
    ],
)
def test_columns_that_are_no_split_name_the_way_out(records, cells, options, message):
    with pytest.raises(InputError, match=message):
        data_of(records, labels("AF", "NORM").assign(**cells), **options)


def test_numbers_of_splits_that_were_chosen_are_folds(records, capsys):
    """A column data_split was ignored, and the column set read as folds without being asked."""
    table = labels("AF", "NORM").assign(data_split=[n % 3 for n in range(COUNT)])
    data = data_of(records, table, split_column="data_split")
    assert {data.labelled[k].fold for k in data.split["test"]} == {2}
    data_of(records, table, split_column="none")
    assert "split: at random" in capsys.readouterr().out
    data_of(records, table.assign(kfold=[n % 4 for n in range(COUNT)]))
    assert "column data_split holds folds (0 to 2) and is not used" in (printed := capsys.readouterr().out)
    assert "if 0 to 2 are splits, write train, val and test" in printed


def test_a_folder_has_no_column_of_splits(records):
    with pytest.raises(InputError, match=r"--data.split_column none: only a manifest has columns of splits"):
        EcgData(folder=str(records), window_s=1, split_column="none").setup("fit")


def test_columns_of_folds_are_read_or_reported(records, capsys):
    """The column kfold was listed as ignored."""
    table = labels("AF", "NORM").assign(kfold=[n % 5 for n in range(COUNT)])
    data = data_of(records, table)
    assert {data.labelled[k].fold for k in data.split["test"]} == {4}
    assert "column kfold read as fold" in capsys.readouterr().out
    data_of(records, table.assign(cv_fold=table.kfold))
    what = "column cv_fold holds folds (0 to 4) and is not used for the split; --data.split_column cv_fold uses them"
    assert what in capsys.readouterr().out
    with pytest.raises(InputError, match=r"the columns kfold and cv_fold hold folds: choose one with --data.split_col"):
        data_of(records, table.assign(cv_fold=[n % 4 for n in range(COUNT)]))
    data = data_of(records, table.assign(kfold=[f"fold{n % 5}" for n in range(COUNT)]))
    assert {data.labelled[k].fold for k in data.split["test"]} == {4}
    assert "validation fold 3 (fold3), test fold 4 (fold4)" in capsys.readouterr().out
    flags = {f"fold_{k}": [int(n % 3 == k) for n in range(COUNT)] for k in range(3)}
    with pytest.raises(InputError, match=r"fold_2 hold folds: if each marks one fold, merge them into one column"):
        data_of(records, labels("AF", "NORM").assign(**flags))


def test_folds_with_names(records, capsys):
    """They were numbers in all messages."""
    sites = labels("AF", "NORM").assign(fold=[("Oslo", "Bergen", "Malmo")[n % 3] for n in range(COUNT)])
    data = data_of(records, sites, fold=1, folds=3)
    assert {data.labelled[k].fold_name for k in data.split["test"]} == {"Malmo"}
    assert "fold 1 of 3, test Malmo and validation Oslo of the table" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"expected one of the folds 0 \(Bergen\), 1 \(Malmo\), 2 \(Oslo\)"):
        data_of(records, sites, val_fold=7)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (("AF; n/a", "NORM"), "missing labels beside others are left out, in 12 cells (first: line 2"),
        (("unknown", "NORM"), "warning: read as a class: unknown; cells of unknown labels are left empty"),
        (("0", "1"), "the labels are 0 and 1; for one class that is present or absent, --data.label_columns labels"),
    ],
)
def test_doubtful_labels_are_reported(records, capsys, cells, message):
    data_of(records, labels(*cells))
    assert message in capsys.readouterr().out


def test_columns_with_other_cells_are_no_splits(records, capsys):
    data_of(records, labels("AF", "NORM").assign(test=["stress", "rest"] * 12, device="dev"))
    assert "columns ignored: test, device" in capsys.readouterr().out


# -- duplicates --------------------------------------------------------------------------------------------------------


def shared_file(folder, tables, spare=0):
    """Records in one signal file, at byte offsets; `spare` further signals each."""
    raw = b""
    for number, table in enumerate(tables):
        lines = [f"q{number} {table.shape[1]} 100 {len(table)}"]
        for lead in range(table.shape[1]):
            name = ["I", "II"][lead] if lead < 2 else f"X{lead}"
            lines.append(f"all.dat 16+{len(raw)} 1000/mV 16 0 0 0 0 {name}")
        (folder / f"q{number}.hea").write_text("\n".join(lines) + "\n")
        raw += table.astype("<i2").tobytes()
    (folder / "all.dat").write_bytes(raw)


def test_records_in_one_file_are_duplicates_only_if_their_samples_are_equal(tmp_path, capsys):
    random = np.random.default_rng(0)
    base = simulate.recording([], 2.0, 100.0, 1)
    tables = [
        np.stack([base["I"], base["II"], random.normal(0, 1, 200)], 1) * 1000 + random.integers(-50, 50, (200, 3))
        for _ in range(20)
    ]
    tables.append(tables[3].copy())
    tables[20][:, 2] += 1  # only the third signal differs, which is not a lead
    shared_file(tmp_path, [table.round() for table in tables])
    table = pd.DataFrame({"path": [f"q{n}" for n in range(21)], "fast": [n % 2 for n in range(21)]})
    data = data_of(tmp_path, table)
    assert sum(len(part) for part in data.split.values()) == 20
    printed = capsys.readouterr().out
    assert "1 duplicate records dropped, 1 of them with other labels: q20 (= q3)" in printed


def test_a_duplicate_in_another_format_and_order_is_detected(records, tmp_path, capsys):
    values = simulate.recording([], 2.0, 100.0, 0)
    write_wfdb(records, "other", dict(reversed(values.items())), 100.0, suffix=".dat")
    table = pd.concat([frame(), pd.DataFrame({"path": ["other"], "fast": [0]})])
    data_of(records, table)
    assert "other (= s00.hea)" in capsys.readouterr().out


def test_implausible_records_are_left_out_or_kept(records, capsys):
    values = simulate.recording([], 2.0, 100.0, 99)
    write_wfdb(records, "flat", {lead: 0 * row for lead, row in values.items()}, 100.0)
    table = pd.concat([frame(), pd.DataFrame({"path": ["flat"], "fast": [0]})])
    data = data_of(records, table)
    assert sum(len(part) for part in data.split.values()) == COUNT
    assert "flat.hea: is implausible as an ECG: all leads flat" in capsys.readouterr().out
    data = data_of(records, table, implausible="keep")
    assert sum(len(part) for part in data.split.values()) == COUNT + 1


def test_columns_by_other_names(records, capsys):
    table = frame().rename(columns={"path": "File Name"}).assign(label=["a", "b"] * (COUNT // 2)).drop(columns="fast")
    table = table.assign(**{"Patient ID": [f"{n // 2}" for n in range(COUNT)]})
    data = data_of(records, table)
    printed = capsys.readouterr().out
    for line in (
        "File Name read as path",
        "label read as labels",
        "Patient ID read as patient",
        "at random by patient",
    ):
        assert line in printed
    assert data.classes.names == ["a", "b"]
    data_of(records, frame())
    assert "split: at random by record, as there are no patients" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"the patient 3 is in both train \(line 2\) and val \(line 4\)"):
        data_of(
            records, frame(split=SPLIT, subject_id=["3", "4", "3.0", "4.0"] + [f"{n}" for n in range(5, COUNT + 1)])
        )


def test_a_column_that_says_in_which_split_a_row_is_is_not_a_class(records):
    """It was a class, and the records were split at random."""
    for name in ("is_train", "test", "Validation_set"):
        with pytest.raises(InputError, match=f"line 1: column {name} is the name of a split, not of a class"):
            data_of(records, frame(**{name: [int(n < 6) for n in range(COUNT)]}))
    data = data_of(records, frame(test=[n // 2 % 2 for n in range(COUNT)]), label_columns=["fast", "test"])
    assert data.classes.names == ["fast", "test"]


def test_words_for_splits_are_those_of_every_domain(records):
    words = (["Training"] * 2 + ["dev", "holdout"]) * 6
    data = data_of(records, frame(split=words))
    assert [len(data.split[name]) for name in ("train", "val", "test")] == [12, 6, 6]
