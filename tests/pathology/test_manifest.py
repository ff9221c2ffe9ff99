"""Manifests and splits: names of columns, bad rows, leaks, folds by case."""

from __future__ import annotations

import pytest
from seqssm_pathology import manifest as m
from seqssm_pathology import splits
from seqssm_pathology.answers import Columns

from seqssm.errors import InputError


def table(tmp_path, text: str, name: str = "m.csv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_manifest_of_slides_and_cases(tmp_path):
    text = ",slide_id,case_id,label\n0,a1.svs,A,tumour\n1,a2.svs,A,tumour\n2,b,B,normal\n3,b,B,normal\n"
    found = m.read_manifest(table(tmp_path, text), "classification")
    assert {case.id: case.slides for case in found.cases.values()} == {"A": ["a1", "a2"], "B": ["b"]}
    assert found.classes == ["normal", "tumour"]
    assert found.records_of() == {"a1": ["A"], "a2": ["A"], "b": ["B"], "A": ["A"], "B": ["B"]}


def test_own_column_names_and_numbers_as_labels(tmp_path):
    text = "id,grade\nx,10\ny,2.0\nz,2\n"
    found = m.read_manifest(table(tmp_path, text), "classification", Columns(slide="id", label="grade"))
    assert found.classes == ["2", "10"]
    assert [case.id for case in found.cases.values()] == ["x", "y", "z"]


def test_days_and_an_event_flag(tmp_path):
    text = "slide_id,case_id,days,event\na,A,100,1\nb,B,50,0\n"
    found = m.read_manifest(table(tmp_path, text), "survival", Columns(time="days", event="event"))
    assert [(case.time, case.censored) for case in found.cases.values()] == [(100, 0), (50, 1)]


@pytest.mark.parametrize(
    ("text", "target", "message"),
    [
        ("a,b\n1,2\n", "classification", "has no column slide_id or case_id; it has a, b"),
        ("slide_id,case_id\na,A\n", "classification", "no column label"),
        ("slide_id,label\na,\n", "classification", "line 2: empty label"),
        ("slide_id,case_id,label\n,A,1\n", "classification", "line 2: empty slide_id"),
        (
            "slide_id,case_id,label\na,A,1\nb,A,0\n",
            "classification",
            "lines 2 and 3: case A has two values of label: 1, 0",
        ),
        ("slide_id,case_id,label\na,A,1\na,B,1\n", "classification", "slide a belongs to two cases"),
        ("case_id,survival_months,censorship\na,-1,0\n", "survival", "survival_months is -1"),
        ("case_id,survival_months,censorship\na,0,0\n", "survival", "survival_months is 0"),
        ("case_id,survival_months,censorship\na,,0\n", "survival", "empty survival_months"),
        ("case_id,survival_months,censorship\na,x,0\n", "survival", "'x', not a number"),
        ("case_id,survival_months,censorship\na,inf,0\n", "survival", "not a number"),
        (
            "case_id,survival_months,censorship\na,2,2\n",
            "survival",
            r"censorship has no known flag \(2 \(1\)\)",
        ),
        ("slide_id\n", "classification", "but no rows"),
    ],
)
def test_faults_are_one_line(text, target, message, tmp_path):
    with pytest.raises(InputError, match=message) as error:
        m.read_manifest(table(tmp_path, text), target)
    assert "\n" not in str(error.value)


def test_bad_rows_can_be_dropped_and_are_counted(tmp_path, capsys):
    text = "case_id,survival_months,censorship\na,-1,0\nb,5,0\nc,,1\n"
    found = m.read_manifest(table(tmp_path, text), "survival", invalid="drop")
    assert list(found.cases) == ["b"]
    assert "2 rows without a usable answer dropped" in capsys.readouterr().err


def survival(tmp_path, flip: bool) -> None:
    """Deaths are early; the other cases were followed to the end of the study."""
    rows = [(f"d{k}", 5 + k, 0) for k in range(12)] + [(f"c{k}", 20 + k, 1) for k in range(12)]
    lines = [f"{name},{time},{1 - flag if flip else flag}" for name, time, flag in rows]
    m.read_manifest(table(tmp_path, "case_id,survival_months,censorship\n" + "\n".join(lines) + "\n"), "survival")


def test_a_flag_that_looks_inverted_is_reported(tmp_path, capsys):
    survival(tmp_path, flip=False)
    assert capsys.readouterr().err == ""
    survival(tmp_path, flip=True)
    assert "is the flag inverted?" in capsys.readouterr().err


def test_equal_times_give_no_hint_about_the_flag(tmp_path, capsys):
    rows = "\n".join(f"c{k},5,{k % 2}" for k in range(20))
    m.read_manifest(table(tmp_path, f"case_id,survival_months,censorship\n{rows}\n"), "survival")
    assert capsys.readouterr().err == ""


def test_a_name_that_contradicts_the_values_is_reported(tmp_path, capsys):
    text = "case_id,t,event,cens\na,1,1,0\n"
    m.read_manifest(table(tmp_path, text), "survival", Columns(time="t", censored="event"))
    assert "suggests 1 = event" in capsys.readouterr().err
    m.read_manifest(table(tmp_path, text), "survival", Columns(time="t", event="cens"))
    assert "suggests 1 = censored" in capsys.readouterr().err


# -- splits ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def known(tmp_path):
    rows = [f"s{k}{part}.svs,C{k},{k % 2}" for k in range(12) for part in "ab"]
    return m.read_manifest(table(tmp_path, "slide_id,case_id,label\n" + "\n".join(rows) + "\n"), "classification")


def test_a_clam_split_of_slides_gives_one_of_cases(known, tmp_path):
    path = table(tmp_path, ",train,val,test\n0,s0a,s2a,s3a\n1,s0b,,s4a\n2,C1,,\n", "splits_0.csv")
    assert splits.read_split(path, known) == {"train": ["C0", "C1"], "val": ["C2"], "test": ["C3", "C4"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (",train,val,test\n0,s0a,s0b,s1a\n", "case C0 is in train and in val"),
        (",train,val,test\n0,s0a,s1a,s99\n", "line 2: test id s99 is not in m.csv"),
        (",train,val\n0,,s1a\n", "training split is empty"),
        (",test\n0,s1a\n", "no column train"),
    ],
)
def test_leaks_and_unknown_ids_are_refused(text, message, known, tmp_path):
    with pytest.raises(InputError, match=message):
        splits.read_split(table(tmp_path, text, "splits_0.csv"), known)


def test_split_files_are_found_by_number(tmp_path):
    for name in ("splits_10.csv", "splits_2.csv", "splits_0_bool.csv", "splits_0_descriptor.csv", "other.csv"):
        table(tmp_path, name, name)
    assert splits.split_file(tmp_path, 2).name == "splits_2.csv"  # by the number in its name, as in kfold
    assert splits.split_file(tmp_path, 10).name == "splits_10.csv"
    with pytest.raises(InputError, match=r"--data.fold 0: the folder contains the folds 2, 10"):
        splits.split_file(tmp_path, 0)
    for name in ("splits_1_0.csv", "splits_0_1.csv"):
        table(tmp_path, name, name)
    assert [splits.split_file(tmp_path, fold).name for fold in (0, 1)] == ["splits_0_1.csv", "splits_1_0.csv"]
    with pytest.raises(InputError, match="expected a number, a folder, or a column"):
        splits.split_file(tmp_path / "none", 0)


def test_split_files_that_would_count_twice_are_refused(tmp_path):
    for name, text, message in (
        ("splits_1.csv", "a", "has the content of splits_0.csv"),
        ("splits_00.csv", "b", "has the number of splits_0.csv"),
        ("mine_1.csv", "b", "files of several name patterns: mine_1.csv and splits_0.csv"),
    ):
        table(tmp_path, "a", "splits_0.csv")
        extra = table(tmp_path, text, name)
        with pytest.raises(InputError, match=message.replace(".", r"\.")):
            splits.split_file(tmp_path, 0)
        extra.unlink()


def test_generated_folds_cover_every_case_once_and_are_stratified(known):
    tested = []
    for fold in range(4):
        parts = splits.make_split(known, 4, fold, seed=1)
        assert sum(len(ids) for ids in parts.values()) == 12
        assert len({case for ids in parts.values() for case in ids}) == 12
        for part in ("val", "test"):
            labels = [known.cases[case].label for case in parts[part]]
            assert abs(labels.count("0") - labels.count("1")) <= 1
        tested += parts["test"]
    assert sorted(tested) == sorted(known.cases)
    assert splits.make_split(known, 4, 0, seed=1) == splits.make_split(known, 4, 0, seed=1)
    assert splits.make_split(known, 4, 0, seed=1) != splits.make_split(known, 4, 0, seed=2)
    with pytest.raises(InputError, match="3 to 12"):
        splits.make_split(known, 13, 0, seed=1)
    with pytest.raises(InputError, match="there are 0 to 3"):
        splits.make_split(known, 4, 4, seed=1)


# -- tables of Excel, of R and written by hand -----------------------------------------------------------------------

ROWS = "slide_id,case_id,label\n007 a.svs,007,Tumör\nb,008,normal\n"


@pytest.mark.parametrize(
    "raw",
    [
        ROWS.encode(),
        ROWS.encode("utf-8-sig"),
        ROWS.encode("cp1252"),
        ROWS.encode("utf-16"),
        ROWS.replace(",", ";").encode("cp1252"),
        ROWS.replace(",", "\t").encode(),
        ROWS.replace("\n", "\r\n").encode(),
        ROWS.replace(",", " , ").encode(),
        ROWS.replace("\n", ",\n").encode(),
        ROWS.replace("\n", "\n\n").encode(),
    ],
)
def test_encodings_separators_and_spaces(raw, tmp_path):
    path = tmp_path / "m.csv"
    path.write_bytes(raw)
    found = m.read_manifest(path, "classification")
    assert [(case.id, case.slides, case.label) for case in found.cases.values()] == [
        ("007", ["007 a"], "Tumör"),
        ("008", ["b"], "normal"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slide_id,case_id,label\na,A,1\nb,B,0,foo\n", "line 3: 4 cells where the header has 3"),
        ("slide_id,case_id,label\na,A,1,foo\nb,B,0,foo\n", "line 2: 4 cells where the header has 3"),
        ("slide_id,case_id,label,label\na,A,1,2\n", "line 1: duplicate column name"),
        ('slide_id,case_id,label\na,"A,1\nb,B,0\n', "is not a CSV"),
        ("slide_id,case_id,label\n\n\na,A,1\nb,B\n", "line 5: empty label"),
        ("slide_id,case_id,label\na,A,NA\nb,B,1\n", "line 2: label is NA, a placeholder for a missing value"),
        ("slide_id,case_id,label\na,NA,0\nb,B,1\n", "line 2: empty case_id"),
        ("slide_id,case_id,Label\na,A,1\n", r"did you mean Label\? --data.label_column sets another name"),
        ("a\0b,c\n", "contains a zero byte"),
        ("", "is empty"),
    ],
)
def test_tables_that_would_lose_or_shift_rows_are_refused(text, message, tmp_path):
    with pytest.raises(InputError, match=message):
        m.read_manifest(table(tmp_path, text), "classification")


def test_none_is_a_class(tmp_path):
    found = m.read_manifest(table(tmp_path, "slide_id,label\na,None\nb,Micro\n"), "classification")
    assert found.classes == ["Micro", "None"]


def test_a_misspelt_case_column_is_refused_and_a_missing_one_reported(tmp_path, capsys):
    path = table(tmp_path, "slide_id,whose,label\na1,A,1\na2,A,1\nb,B,0\n")
    with pytest.raises(InputError, match="no column persan"):
        m.read_manifest(path, "classification", Columns(case="persan"))
    assert list(m.read_manifest(path, "classification", Columns(case="whose")).cases) == ["A", "B"]
    assert capsys.readouterr().err == ""
    assert len(m.read_manifest(path, "classification").cases) == 3
    assert "every slide is treated as a separate case" in capsys.readouterr().err


def test_tables_of_stamp_are_read_as_they_are(tmp_path, capsys):
    path = table(tmp_path, "FILENAME,PATIENT,label\na1.svs,A,1\nsub/a2.h5,A,1\nsub\\b.h5,B,0\n")
    assert {case.id: case.slides for case in m.read_manifest(path, "classification").cases.values()} == {
        "A": ["a1", "a2"],
        "B": ["b"],
    }
    printed = capsys.readouterr().err
    assert "column FILENAME read as slide_id" in printed
    assert "column PATIENT read as case_id" in printed


@pytest.mark.parametrize("column", ["patient", "Patient ID", "subject_id", "Participant", "donor.no"])
def test_a_column_of_patients_is_that_of_the_cases_or_keeps_them_in_one_split(column, tmp_path, capsys):
    """Every slide was a case, or the column was ignored: the slides of a patient were in several splits."""
    path = table(tmp_path, f"slide_id,{column},label\na1,A,1\na2,A,1\nb,B,0\n")
    assert list(m.read_manifest(path, "classification").cases) == ["A", "B"]
    assert f"column {column} read as case_id" in capsys.readouterr().err
    rows = "".join(f"s{k},C{k},Q{k // 3},{k % 2}\n" for k in range(18))
    found = m.read_manifest(table(tmp_path, f"slide_id,case_id,{column},label\n{rows}"), "classification")
    assert "6 patients have several cases (first: Q0)" in capsys.readouterr().err
    for fold in range(3):
        parts = splits.make_split(found, 3, fold, 1)
        assert sum(len({found.cases[name].patient for name in names}) for names in parts.values()) == 6
    two = f"slide_id,case_id,{column},label\na1,A,Q1,1\na2,A,Q2,1\nb,B,Q3,0\n"
    with pytest.raises(InputError, match="case A has two patients: Q1 and Q2"):
        m.read_manifest(table(tmp_path, two), "classification")


def test_rows_without_a_patient_are_reported_and_two_columns_of_patients_refused(tmp_path, capsys):
    rows = "".join(f"s{k},C{k},{f'Q{k // 3}' if k < 9 else ''},{k % 2}\n" for k in range(12))
    found = m.read_manifest(table(tmp_path, f"slide_id,case_id,patient_id,label\n{rows}"), "classification")
    assert [case.patient for case in found.cases.values()][6:] == ["Q2"] * 3 + ["C9", "C10", "C11"]
    assert "warning: 3 rows without a patient_id: the case of each is treated as a separate" in capsys.readouterr().err
    found = m.read_manifest(table(tmp_path, "slide_id,patient,label\na,P,1\nb,P,0\nc,,1\n"), "classification")
    assert [case.patient for case in found.cases.values()] == ["P", "P", "c"]
    assert "warning: 1 rows without a patient" in capsys.readouterr().err
    same = "slide_id,patient,participant,label\na,P,1,1\nb,P,1,1\nc,Q,2,0\n"
    assert list(m.read_manifest(table(tmp_path, same), "classification").cases) == ["P", "Q"]
    with pytest.raises(InputError, match="the columns patient and participant may both be patients, and differ"):
        m.read_manifest(table(tmp_path, same.replace("b,P,1", "b,P,3")), "classification")


@pytest.mark.parametrize(
    ("column", "cells", "expected"),
    [
        ("split", ("Training", "dev", "holdout"), "train val test"),
        ("partition", ("Training", "Tuning", "Testing"), "train val test"),
        ("cohort", ("train", "Tuning", "test"), "train val test"),
        ("is_train", ("1", "0", "1.0"), "train test train"),
        ("is_test", ("False", "True", "False"), "train test train"),
        ("val_set", ("no", "yes", ""), "train val -"),
    ],
)
def test_a_column_of_the_manifest_is_the_split(column, cells, expected, tmp_path, capsys):
    """It was not used, and test records were learned."""
    rows = "".join(f"s{k},C{k},{cells[k % 3]},{k % 2}\n" for k in range(12))
    found = m.read_manifest(table(tmp_path, f"slide_id,case_id,{column},label\n{rows}"), "classification")
    parts = splits.split_of(found, column, 0, 1, print)
    assert [
        next((split for split, names in parts.items() if f"C{k}" in names), "-") for k in range(3)
    ] == expected.split()
    assert ("4 cases have no split in the column" in capsys.readouterr().err) == ("-" in expected)
    splits.split_of(found, "3", 0, 1, print)
    assert f"the column {column} is not used; --data.split_column {column} uses it" in capsys.readouterr().out
    with pytest.raises(InputError, match=f"--data.fold 1: the column {column} has one split"):
        splits.split_of(found, column, 1, 1, print)


@pytest.mark.parametrize("name", ["fold", "kfold", "CV fold"])
def test_the_folds_of_the_manifest_are_used(tmp_path, capsys, name):
    """Random folds were drawn beside them."""

    def read(numbers, columns=name):
        rows = "".join(f"s{k},C{k // 2},{numbers(k)},{k // 2 % 2}\n" for k in range(40))
        return m.read_manifest(table(tmp_path, f"slide_id,case_id,{columns},label\n{rows}"), "classification")

    found = read(lambda k: 1 + k // 2 % 5)
    parts = splits.split_of(found, "5", 3, 1, print)
    assert f"the folds are those of the column {name}" in capsys.readouterr().out
    assert parts["test"] == [f"C{k}" for k in range(20) if k % 5 == 3]
    assert parts["val"] == [f"C{k}" for k in range(20) if k % 5 == 4]
    with pytest.raises(InputError, match=f"column {name} has 5 folds, not 3: use --data.folds 5, or pass --data.split"):
        splits.split_of(found, "3", 0, 1, print)
    splits.split_of(found, "3", 0, 1, print, "none")
    assert capsys.readouterr().out == ""
    with pytest.raises(InputError, match=r"--data.fold 5: there are 0 to 4"):
        splits.split_of(found, "5", 5, 1, print)
    with pytest.raises(InputError, match=rf"column {name}: case C0 is in several folds"):
        splits.split_of(read(lambda k: k % 5), "5", 0, 1, print)
    with pytest.raises(InputError, match=rf"case C1: column {name}: no fold, as other rows have"):
        splits.split_of(read(lambda k: "" if k in (2, 3) else k // 2 % 5), "5", 0, 1, print)
    with pytest.raises(InputError, match=rf"case C3: column {name}: '0x' is not a fold such as 0"):
        splits.split_of(read(lambda k: "0x" if k == 6 else k // 2 % 5), "5", 0, 1, print)
    several = read(lambda k: f"{k // 2 % 5},{k // 2 % 4}", f"{name},outer_fold")
    with pytest.raises(InputError, match=f"the columns {name} and outer_fold hold folds: choose one with --data.split"):
        splits.split_of(several, "5", 0, 1, print)
    assert splits.split_of(several, "4", 1, 1, print, "outer_fold")["test"] == [
        f"C{k}" for k in range(20) if k % 4 == 1
    ]
    with pytest.raises(
        InputError, match=r"--data.folds outer_fold: the column holds folds \(0 to 3\); pass --data.folds 4"
    ):
        splits.split_of(several, "outer_fold", 0, 1, print)
    with pytest.raises(
        InputError, match=r"--data.split_column outer_fold has no effect beside --data.folds outer_fold"
    ):
        splits.split_of(several, "outer_fold", 0, 1, print, "outer_fold")
    two = read(lambda k: f"fold{1 + k // 2 % 2}")
    with pytest.raises(
        InputError, match=r"has 2 folds, not 5: at least 3 are needed; pass --data.split_column none for random folds"
    ):
        splits.split_of(two, "5", 0, 1, print)
    capsys.readouterr()
    found = read(lambda k: f"{k // 2 % 5}{'.0' * (k % 2)},{'test' if k // 2 % 5 == 1 else 'train'}", f"{name},split")
    splits.split_of(found, "5", 0, 1, print)
    told = capsys.readouterr().out
    assert f"the folds are those of the column {name}" in told
    assert "the column split is not used; --data.split_column split uses it" in told
    assert "holds folds" not in told
    assert splits.split_of(found, "5", 0, 1, print, "split")["test"] == [f"C{k}" for k in range(20) if k % 5 == 1]


def test_published_folds_are_not_those_of_an_own_manifest(tmp_path):
    """The message named neither the manifest nor its folds."""
    rows = "".join(f"s{k},C{k},f{k % 4},{k // 2 % 2}\n" for k in range(8))
    found = m.read_manifest(table(tmp_path, f"slide_id,case_id,cv_fold,label\n{rows}"), "classification")
    assert splits.no_published(found).endswith(
        "pass --data.folds 4 for the folds of the column cv_fold, or a folder of split files"
    )
    found = m.read_manifest(table(tmp_path, "slide_id,case_id,label\na,A,1\nb,B,0\n"), "classification")
    assert splits.no_published(found).endswith("pass a number, --data.folds 5, or a folder of split files")


def test_columns_of_splits_that_cannot_be_used(tmp_path):
    def read(rows, column="split"):
        found = m.read_manifest(table(tmp_path, f"slide_id,case_id,{column},label\n{rows}"), "classification")
        return splits.split_of(found, column, 0, 1, print)

    with pytest.raises(InputError, match="column split: case B: '2' is not train, val or test"):
        read("a,A,train,1\nb,B,2,0\n")
    with pytest.raises(InputError, match=r"case A is in .* and in .*; it belongs to one split"):
        read("a,A,train,1\na2,A,test,1\nb,B,train,0\n")
    with pytest.raises(InputError, match="column is_train: the training split is empty"):
        read("a,A,0,1\nb,B,0,0\n", "is_train")


def test_numbers_that_are_not_classes_are_reported(tmp_path, capsys):
    rows = "\n".join(f"s{k},{k * 0.37:.3f}" for k in range(1, 9))
    m.read_manifest(table(tmp_path, f"case_id,label\n{rows}\n"), "classification")
    assert "8 classes in 8 cases" in capsys.readouterr().err


def test_an_id_that_names_a_slide_and_another_case_is_refused_in_a_split(tmp_path):
    known = m.read_manifest(table(tmp_path, "slide_id,case_id,label\n1,2,a\n2,1,b\n3,3,a\n"), "classification")
    assert splits.read_split(table(tmp_path, ",train,val\n0,3,NaN\n", "splits_0.csv"), known)["train"] == ["3"]
    with pytest.raises(InputError, match="is a case and also a slide of case 2"):
        splits.read_split(table(tmp_path, ",train\n0,1\n", "splits_1.csv"), known)


def test_a_column_with_another_meaning_is_no_split(tmp_path):
    """It was an internal error."""
    path = table(tmp_path, "slide_id,case_id,label\na,A,1\nb,B,0\n")
    with pytest.raises(InputError, match="split_column label: the column has another meaning"):
        m.read_manifest(path, "classification", m.Columns(split="label"))


@pytest.mark.parametrize("names", [("P0", "p0"), ("007", "7"), ("3", "3.0"), ("P  1", "p 1")])
def test_spellings_of_one_patient_are_kept_in_one_split(names, tmp_path, capsys):
    """They were two patients, one of which could be trained on and the other tested."""
    first, second = names
    rows = "".join(f"s{k},C{k},{first if k % 2 else second},{'train' if k < 4 else 'test'},{k % 2}\n" for k in range(6))
    rows += "".join(f"t{k},D{k},Q{k},train,{k % 2}\n" for k in range(6))
    found = m.read_manifest(table(tmp_path, f"slide_id,case_id,patient,split,label\n{rows}"), "classification")
    assert f"{first} is probably the patient {second}; random splits keep their" in capsys.readouterr().err
    assert found.records_of()[first] == ["C1", "C3", "C5"]  # a file of splits names its own cases
    for fold in range(3):
        parts = splits.make_split(found, 3, fold, 1)
        assert sum("C1" in names or "C0" in names for names in parts.values()) == 1
    alone = "case_id,label\n" + "".join(f"{name},{k % 2}\n" for k, name in enumerate((*names, "A", "B", "C")))
    manifest = m.read_manifest(table(tmp_path, alone), "classification")
    assert manifest.kept_with(first) == manifest.kept_with(second) == first
