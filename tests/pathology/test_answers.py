"""Answers in the formats of portals and spreadsheets: event words, decimal commas, several labels, patients."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from seqssm_pathology import manifest as m
from seqssm_pathology import splits
from seqssm_pathology.answers import Columns
from seqssm_pathology.data import BagData
from seqssm_pathology.fitting import reported
from seqssm_pathology.heads import ClassHead
from seqssm_pathology.patients import barcode_of

from seqssm.errors import InputError


def table(tmp_path, text: str, name: str = "m.csv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def survival(tmp_path, cells: list[str], **columns):
    """Cases with these flags in the column ``status``."""
    rows = "".join(f'c{k},{k + 1}.5,"{cell}"\n' for k, cell in enumerate(cells))
    path = table(tmp_path, f"case_id,survival_months,status\n{rows}")
    return m.read_manifest(path, "survival", Columns(**(columns or {"event": "status"})))


@pytest.mark.parametrize(
    ("cells", "censored", "message"),
    [
        (["1:DECEASED", "0:LIVING"], [0, 1], "1:DECEASED = event (1)"),
        (["1:Recurred/Progressed", "0:DiseaseFree"], [0, 1], "0:DiseaseFree = censored (1)"),
        (["Dead", "Alive", "alive"], [0, 1, 1], "Dead = event (1)"),
        (["deceased", "LIVING"], [0, 1], "deceased = event"),
        (["TRUE", "FALSE"], [0, 1], "TRUE = event (1)"),
        (["yes", "No"], [0, 1], "yes = event"),
        (["1", "0"], [0, 1], None),
        (["1.0", "0,0"], [0, 1], None),
    ],
)
def test_event_words(cells, censored, message, tmp_path, capsys):
    found = survival(tmp_path, cells)
    assert [case.censored for case in found.cases.values()] == censored
    err = capsys.readouterr().err
    assert message in err if message else "read as" not in err


def test_words_mean_the_same_in_a_column_of_censoring(tmp_path, capsys):
    found = survival(tmp_path, ["Dead", "Alive"], censored="status")
    assert [case.censored for case in found.cases.values()] == [0, 1]
    assert "suggests" not in capsys.readouterr().err
    flags = survival(tmp_path, ["TRUE", "FALSE"], censored="status")  # values override the column's name
    assert [case.censored for case in flags.cases.values()] == [1, 0]
    assert "warning: column name status suggests 1 = event, but 1, true and yes are" in capsys.readouterr().err


def test_a_missing_column_of_flags_names_both_options(tmp_path):
    path = table(tmp_path, "case_id,survival_months,event\na,1,1\n")
    with pytest.raises(
        InputError, match=r"--data.censor_column sets another name \(1 = censored\), --data.event_column"
    ):
        m.read_manifest(path, "survival", Columns())


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["Dead", "1"], r"mixes words and flags \(Dead \(1\), 1 \(1\)\)"),
        (["a", "b", "b"], r"no known flag \(b \(2\), a \(1\)\)"),
        (["Dead", "Perhaps", "Alive"], r"line 3: status is 'Perhaps'; .*the column has Dead \(1\), Perhaps \(1\)"),
        (["Dead", "[Not Available]"], r"line 3: status is \[Not Available\], a placeholder for a missing value"),
    ],
)
def test_other_flags_are_refused_with_the_values_seen(cells, message, tmp_path):
    with pytest.raises(InputError, match=message):
        survival(tmp_path, cells)


def test_dropping_rows_is_suggested_only_if_rows_remain(tmp_path):
    path = table(tmp_path, "case_id,survival_months,censorship\na,x,0\nb,y,1\n")
    with pytest.raises(InputError, match="no row is usable") as error:
        m.read_manifest(path, "survival")
    assert "invalid drop" not in str(error.value)


def test_decimal_commas_and_marks(tmp_path, capsys):
    text = 'case_id,survival_months,censorship\na,"13,7",1\nb,"20,490000000000002",0\nc,"0,5",1\n'
    found = m.read_manifest(table(tmp_path, text), "survival")
    assert [case.time for case in found.cases.values()] == [13.7, 20.490000000000002, 0.5]
    assert "decimal comma" in capsys.readouterr().err
    text = "case_id;survival_months;censorship\na;1.013,7;1\nb;20,5;0\n"
    found = m.read_manifest(table(tmp_path, text), "survival")
    assert [case.time for case in found.cases.values()] == [1013.7, 20.5]
    dropped = table(tmp_path, 'case_id,survival_months,censorship\na,"13,7",1\nb,unknown,0\nc,"0,5",1\n')
    assert len(m.read_manifest(dropped, "survival", invalid="drop").cases) == 2


def test_numbers_with_many_values_are_not_classes(tmp_path):
    rows = "".join(f"c{k},{value:.3f}\n" for k, value in enumerate(np.random.default_rng(0).normal(size=40)))
    with pytest.raises(InputError, match="40 different numbers in 40 cases: this is a regression target"):
        m.read_manifest(table(tmp_path, f"case_id,label\n{rows}"), "classification")
    grades = "".join(f"c{k},{k % 3}.5\n" for k in range(40))
    found = m.read_manifest(table(tmp_path, f"case_id,label\n{grades}"), "classification")
    assert found.classes == ["0.5", "1.5", "2.5"]


@pytest.mark.parametrize("mark", [";", "|"])
def test_several_labels_are_suggested(mark, tmp_path, capsys):
    labels = ["a", "b", "c", f"a{mark}b", f"b{mark}c", f"a{mark}c"] * 3
    rows = "".join(f'c{k},"{label}"\n' for k, label in enumerate(labels))
    m.read_manifest(table(tmp_path, f"case_id,label\n{rows}"), "classification")
    assert "To learn a, b, c separately, make a yes/no column of each" in capsys.readouterr().err
    m.read_manifest(table(tmp_path, "case_id,label\na,x;1\nb,y;2\nc,x;1\nd,y;2\n"), "classification")
    assert "separately" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("labels", "what"),
    [(["['a', 'b']", "['a']"], "is a list of labels"), (["1,0", "0,1"], "is a vector of 2 numbers without names")],
)
def test_lists_and_vectors_are_not_classes(labels, what, tmp_path):
    rows = "".join(f'c{k},"{label}"\n' for k, label in enumerate(labels * 6))
    with pytest.raises(InputError, match=f"line 2, column label: .* {what}"):
        m.read_manifest(table(tmp_path, f"case_id,label\n{rows}"), "classification")


def test_workbooks(tmp_path):
    pytest.importorskip("openpyxl", reason="openpyxl is not installed: pip install 'seqssm[excel]'")
    frame = pd.DataFrame({"slide_id": ["007.svs", "b"], "case_id": ["007", "008"], "label": [1, 2]})
    frame.to_excel(tmp_path / "m.xlsx", index=False)
    found = m.read_manifest(tmp_path / "m.xlsx", "classification")
    assert [(case.id, case.slides, case.label) for case in found.cases.values()] == [
        ("007", ["007"], "1"),
        ("008", ["b"], "2"),
    ]


def test_an_invalid_workbook_gives_a_remedy(tmp_path):
    pytest.importorskip("openpyxl", reason="openpyxl is not installed: pip install 'seqssm[excel]'")
    (tmp_path / "m.xlsx").write_bytes(b"PK\x03\x04\x00\x00binary")
    with pytest.raises(InputError, match=r"save the table again as \.xlsx or as CSV"):
        m.read_manifest(tmp_path / "m.xlsx", "classification")


# -- slides of a patient -----------------------------------------------------------------------------------------------


def slides_of(tmp_path, patients: int = 12, each: int = 3):
    rows = "".join(f"s{p}_{k},P{p},{'abc'[k % 3]}\n" for p in range(patients) for k in range(each))
    return table(tmp_path, f"slide_id,case_id,label\n{rows}")


@pytest.mark.parametrize("level", ["auto", "slide"])
def test_labels_per_slide_make_each_slide_a_record(level, tmp_path, capsys):
    found = m.read_manifest(slides_of(tmp_path), "classification", level=level)
    assert (found.level, len(found.cases), found.classes) == ("slide", 36, ["a", "b", "c"])
    assert ("differs between the slides of 12 of 12 cases" in capsys.readouterr().err) == (level == "auto")
    for fold in range(4):
        parts = splits.make_split(found, 4, fold, 1)
        patients = [{found.cases[name].patient for name in names} for names in parts.values()]
        assert sum(len(own) for own in patients) == 12
        assert sorted(name for names in parts.values() for name in names) == sorted(found.cases)
    train, val = splits.inner_split(found, parts["train"], 0.2, 1)
    assert not {found.cases[name].patient for name in train} & {found.cases[name].patient for name in val}


def test_a_few_contradictions_are_an_error_that_names_the_option(tmp_path):
    text = "slide_id,case_id,label\na,A,1\nb,A,0\n" + "".join(f"s{k},B{k // 2},1\n" for k in range(20))
    with pytest.raises(InputError, match=r"lines 2 and 3: case A has two values of label: 1, 0; --data\.level slide"):
        m.read_manifest(table(tmp_path, text), "classification")
    with pytest.raises(InputError, match="two values of label"):
        m.read_manifest(slides_of(tmp_path), "classification", level="case")


def test_split_files_of_slides_and_patients(tmp_path):
    found = m.read_manifest(slides_of(tmp_path), "classification")
    path = table(tmp_path, ",train,test\n0,P0,P2\n1,s1_0,\n2,s1_1,\n", "splits_0.csv")
    assert splits.read_split(path, found)["train"] == ["s0_0", "s0_1", "s0_2", "s1_0", "s1_1"]
    path = table(tmp_path, ",train,test\n0,s0_0,s0_1\n", "splits_1.csv")
    with pytest.raises(InputError, match="slides of case P0 are in train and test"):
        splits.read_split(path, found)


def barcodes(tmp_path, column: str = "slide_id"):
    ids = [f"TCGA-AB-{p:04d}-01Z-00-DX{k}" for p in range(9) for k in (1, 2)]
    return table(tmp_path, f"{column},label\n" + "".join(f"{name},{k // 2 % 2}\n" for k, name in enumerate(ids)))


@pytest.mark.parametrize("column", ["slide_id", "case_id"])
def test_patients_of_barcodes_stay_together_with_a_warning(column, tmp_path, capsys):
    found = m.read_manifest(barcodes(tmp_path, column), "classification")
    assert len(found.cases) == 18
    assert "9 patients have several cases by their barcodes (first: TCGA-AB-0000)" in capsys.readouterr().err
    parts = splits.make_split(found, 3, 0, 1)
    patients = [{name[:12] for name in names} for names in parts.values()]
    assert sum(len(own) for own in patients) == 9
    names = list(found.cases)
    path = table(tmp_path, f",train,test\n0,{names[0]},{names[1]}\n", "splits_0.csv")
    splits.read_split(path, found)
    assert "1 patients (barcodes) are in two splits (first: TCGA-AB-0000, in train and test)" in capsys.readouterr().err


def test_barcodes_in_the_split_of_a_run(cohort):
    data = BagData(manifest=str(cohort[0] / "manifest.csv"), features=str(cohort[0]))
    data.setup()
    rows = data.identities("test")
    assert rows[0].keys() == {"id", "slide", "patient"}
    assert barcode_of("TCGA-02-0001-01Z-00-DX1.abc") == "TCGA-02-0001"
    assert barcode_of("C3L-00004-21") == "C3L-00004"
    assert barcode_of("TCGA-02-00015") is None
    assert barcode_of("made_001") is None


def test_the_split_files_of_all_folds_are_checked(tmp_path, capsys):
    """A study detects an unusable last fold before it trains the first one."""
    known = m.read_manifest(table(tmp_path, "case_id,label\na,1\nb,0\nc,1\nd,0\n"), "classification")
    for fold, text in enumerate(["a,b,c", "b,c,d", "c,d,c"]):
        table(tmp_path, f",train,val,test\n0,{text}\n", f"splits_{fold}.csv")
    for fold in range(3):
        with pytest.raises(InputError, match=r"splits_2\.csv: case c is in train and in test; it belongs to one split"):
            splits.read_split_files(tmp_path, fold, known)
    table(tmp_path, ",train,val,test\n0,c,d,a\n", "splits_2.csv")
    capsys.readouterr()
    path, parts = splits.read_split_files(tmp_path, 1, known)
    assert (path.name, parts) == ("splits_1.csv", {"train": ["b"], "val": ["c"], "test": ["d"]})
    message = capsys.readouterr().err
    assert message.count("in no split and not used") == 1, "the other folds are checked without messages"


@pytest.mark.parametrize(
    ("time", "words"),
    [
        ("1e300", "survival_months is 1e300: above 1e+100 in magnitude"),
        ("1e30", "survival_months is 1e+30, longer than a human life in seconds (4e+09); give times in months"),
        ("5000000000", "survival_months is 5e+09, longer than"),
        ("0", "times must be greater than 0"),
        ("-3", "times must be greater than 0"),
        ("1e999", "survival_months is 1e999: above 1e+100 in magnitude"),
    ],
)
def test_impossible_survival_times(tmp_path, time, words):
    rows = [f"s{n},{n + 1},{n % 2},{40 + n}" for n in range(12)] + [f"s12,{time},0,50"]
    path = table(tmp_path, "\n".join(["slide_id,survival_months,censorship,age", *rows]) + "\n")
    with pytest.raises(InputError, match=re.escape(words)):
        m.read_manifest(path, "survival")
    assert len(m.read_manifest(path, "survival", invalid="drop").cases) == 12
    path = table(tmp_path, path.read_text().replace(f"s12,{time}", "s12,4e9"))
    assert m.read_manifest(path, "survival").cases["s12"].time == 4e9


def test_impossible_covariates(tmp_path):
    rows = [f"s{n},{n + 1},{n % 2},{'1e300' if n == 5 else 40 + n}" for n in range(12)]
    path = table(tmp_path, "\n".join(["slide_id,survival_months,censorship,age", *rows]) + "\n")
    with pytest.raises(InputError, match=r"line 7: age is 1e300: above 1e\+100 in magnitude"):
        m.read_manifest(path, "survival", m.Columns(covariate="age"))


# -- columns of split files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names", ["train,valid,test", "Train,Validation,Test", "training,dev,testing", "train,val,test"]
)
def test_split_columns_by_common_names(names, tmp_path):
    known = m.read_manifest(table(tmp_path, "case_id,label\na,1\nb,0\nc,1\n"), "classification")
    path = table(tmp_path, f",{names}\n0,a,b,c\n", "splits_0.csv")
    assert splits.read_split(path, known) == {"train": ["a"], "val": ["b"], "test": ["c"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (",train,other,test\n0,a,b,c\n", "column other contains ids, but train, val and test are the splits"),
        (",train,val,valid\n0,a,b,c\n", "the columns val and valid are the same split"),
    ],
)
def test_ids_in_other_columns_are_not_lost(text, message, tmp_path):
    known = m.read_manifest(table(tmp_path, "case_id,label\na,1\nb,0\nc,1\n"), "classification")
    with pytest.raises(InputError, match=message):
        splits.read_split(table(tmp_path, text, "splits_0.csv"), known)


FLAGGED = ",train,val,test\na,True,False,False\nb,False,True,False\nc,False,False,True\nd,False,False,False\n"


@pytest.mark.parametrize(
    "text",
    [
        FLAGGED,
        "slide_id" + FLAGGED,
        FLAGGED.replace("True", "1").replace("False", "0"),
        FLAGGED.replace("False", ""),
    ],
)
def test_flags_of_clam_are_splits(text, tmp_path, capsys):
    """``splits_0_bool.csv``: a row per slide."""
    known = m.read_manifest(table(tmp_path, "case_id,label\na,1\nb,0\nc,1\nd,1\n"), "classification")
    (tmp_path / "folds").mkdir()
    table(tmp_path / "folds", text, "splits_0_bool.csv")
    table(tmp_path / "folds", ",train,val,test\n0,1,1,0\n1,0,0,1\n", "splits_0_descriptor.csv")
    path, found = splits.read_split_files(tmp_path / "folds", 0, known)
    assert path.name == "splits_0_bool.csv"
    assert found == {"train": ["a"], "val": ["b"], "test": ["c"]}
    assert "1 cases of the manifest are in no split and not used (first: d)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (FLAGGED.replace("b,False", "b,True"), "case b is in train and in val"),
        (FLAGGED.replace("c,", "z,"), "line 4: test id z is not in m.csv"),
        (FLAGGED.replace("a,", "x,").replace("b,", "y,").replace("c,", "z,").replace("d,", "w,"),
         r"its splits are flags \(false, true\), but no column contains ids of the manifest"),
        (FLAGGED.replace("True", "False"), "the training split is empty"),
        (",train,val,test\nlow,12,3,4\nhigh,9,2,3\n", r"holds numbers of slides per class \(a descriptor of CLAM\)"),
    ],
)  # fmt: skip
def test_flags_that_cannot_be_read(text, words, tmp_path):
    known = m.read_manifest(table(tmp_path, "case_id,label\na,1\nb,0\nc,1\nd,1\n"), "classification")
    with pytest.raises(InputError, match=words):
        splits.read_split(table(tmp_path, text, "splits_0.csv"), known)


def test_a_folder_of_descriptors_is_no_folder_of_splits(tmp_path):
    table(tmp_path, ",train,val,test\n0,12,3,4\n", "splits_0_descriptor.csv")
    with pytest.raises(InputError, match="contains only CLAM's descriptors, the numbers of slides per class"):
        splits.split_file(tmp_path, 0)


def test_cases_in_no_split_are_counted(tmp_path, capsys):
    known = m.read_manifest(table(tmp_path, "case_id,label\na,1\nb,0\nc,1\n"), "classification")
    splits.read_split(table(tmp_path, ",train,test\n0,a,b\n", "splits_0.csv"), known)
    assert "1 cases of the manifest are in no split and not used (first: c)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["1", "2"], "event is '2' in 6 rows"),
        (["lebend", "dead"], "event is 'lebend' in 6 rows"),
        (["alive", "verstorben"], "event is 'verstorben' in 6 rows"),
    ],
)
def test_flags_with_one_unknown_value_are_refused_even_with_drop(tmp_path, flags, words):
    rows = [f"s{n},{n + 1},{flags[n % 2]}" for n in range(12)]
    path = tmp_path / "m.csv"
    path.write_text("\n".join(["slide_id,survival_months,event", *rows]) + "\n")
    with pytest.raises(InputError, match=words):
        m.read_manifest(path, "survival", m.Columns(event="event"), invalid="drop")


@pytest.mark.parametrize(
    "flags",
    [
        ["no death", "death"],
        ["Not dead", "Dead"],
        ["survived", "died"],
        ["non-event", "event"],
        ["no relapse", "relapse"],
        ["censored", "uncensored"],
        ["lost to follow-up", "died"],
    ],
)
def test_words_for_events_and_censoring(tmp_path, flags):
    rows = [f"s{n},{n + 1},{flags[n % 2]}" for n in range(12)]
    path = tmp_path / "m.csv"
    path.write_text("\n".join(["slide_id,survival_months,event", *rows]) + "\n")
    found = m.read_manifest(path, "survival", m.Columns(event="event"))
    assert [case.censored for case in found.cases.values()] == [1, 0] * 6


@pytest.mark.parametrize("word", ["Not reported", "not reported", "Unknown", "[Not Available]", "NA", "'--", ""])
@pytest.mark.parametrize("flags", [["no death", "death"], ["0", "1"], ["LIVING", "DECEASED"], ["no", "yes"]])
def test_flags_that_are_missing_are_not_censored(tmp_path, flags, word):
    """Neither refused as a third kind of flag, nor censored: a row without an answer, which --data.invalid drops."""
    rows = [f"s{n},{n + 1},{word if n == 7 else flags[n % 2]}" for n in range(12)]
    path = table(tmp_path, "\n".join(["slide_id,survival_months,event", *rows]) + "\n")
    columns = m.Columns(event="event")
    words = f"event is {word}, a placeholder for a missing value" if word else "empty event"
    with pytest.raises(InputError, match=rf"line 9: {re.escape(words)}; --data.invalid drop drops 1 of 12 rows"):
        m.read_manifest(path, "survival", columns)
    found = m.read_manifest(path, "survival", columns, invalid="drop")
    assert {name: case.censored for name, case in found.cases.items()} == {
        f"s{n}": 1 - n % 2 for n in range(12) if n != 7
    }


def test_a_class_name_with_a_comma_is_quoted_in_messages(capsys):
    head = ClassHead("label", classes=("a", "b, rare", "c, absent"))
    cases = [m.Case(f"c{n}", [], label="a" if n else "b, rare") for n in range(3)]
    assert reported(head, cases, "case") == '2 of class a, 1 of class "b, rare", 0 of class "c, absent"'
    assert 'no training case of class "c, absent": never predicted' in capsys.readouterr().err


def test_a_class_called_unknown_is_a_class_and_reported(tmp_path, capsys):
    rows = [f"s{n},{['a', 'b', 'Unknown'][n % 3]}" for n in range(30)]
    path = table(tmp_path, "\n".join(["slide_id,label", *rows]) + "\n")
    found = m.read_manifest(path, "classification")
    assert Counter(case.label for case in found.cases.values()) == {"a": 10, "b": 10, "Unknown": 10}
    assert "label is 'Unknown' in 10 cases, which is a class of its own" in capsys.readouterr().err


def test_placeholders_for_missing_labels_and_misspelt_labels(tmp_path, capsys):
    labels = ["LUAD"] * 6 + ["LUSC"] * 6 + ["LUDA", "luad"]
    path = tmp_path / "m.csv"
    path.write_text("\n".join(["slide_id,label", *(f"s{n},{name}" for n, name in enumerate(labels))]) + "\n")
    m.read_manifest(path, "classification")
    message = capsys.readouterr().err
    assert "possibly misspelt: LUDA 1 (did you mean LUAD?), luad 1 (did you mean LUAD?)" in message
    for word in ("Not Reported", "[Not Available]", "'--"):
        path.write_text(f"slide_id,label\ns0,a\ns1,b\ns2,{word}\n")
        with pytest.raises(InputError, match=r"line 4: label is .*, a placeholder for a missing value"):
            m.read_manifest(path, "classification")


def test_a_dash_beside_a_plus_is_an_absent_label(tmp_path):
    """It was unknown, and the plus present."""
    text = "case_id,EGFR,KRAS\na,+,1\nb,-,-\nc,+,0\nd,,1\n"
    found = m.read_manifest(table(tmp_path, text), "labels", Columns(labels=("EGFR", "KRAS")))
    assert [case.labels for case in found.cases.values()] == [(1, 1), (0, None), (1, 0), (None, 1)]
    mixed = m.read_manifest(
        table(tmp_path, text.replace("d,,1", "d,neg,1").replace("b,-,-", "b,-,0")),
        "labels",
        Columns(labels=("EGFR", "KRAS")),
    )
    assert [case.labels[0] for case in mixed.cases.values()] == [1, None, 1, 0]  # others are marked: it may be unknown
    several = Columns(several=(("EGFR", "classification"), ("KRAS", "label")))
    found = m.read_manifest(table(tmp_path, text), "several", several)
    assert [case.targets["EGFR"] for case in found.cases.values()] == ["+", "-", "+", None]
