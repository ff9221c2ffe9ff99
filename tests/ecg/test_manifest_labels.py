"""Labels of manifests: separators, notations, rare names, missing and contradicting labels."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from seqssm_ecg import simulate
from seqssm_ecg.data import EcgData
from seqssm_ecg.files import write_wfdb
from seqssm_ecg.labels import OWN_CLASSES, Classes

from seqssm.errors import InputError

from .manifests import COUNT, data_of, frame, labels


def test_labels_are_split_at_separators_never_at_blanks(records, capsys):
    data = data_of(records, labels("59118001,426783006", "426783006", "atrial fibrillation; sinus rhythm", "a|b"))
    assert data.classes.names == ["426783006", "59118001", "a", "atrial fibrillation", "b", "sinus rhythm"]
    assert "classes: 426783006 12, 59118001 6, a 6, atrial fibrillation 6, b 6, sinus rhythm 6" in (
        capsys.readouterr().out
    )


def test_rare_classes_are_reported_with_the_nearest_name(records, capsys):
    table = labels("slow", "fast")
    table.loc[[1, 2], "labels"] = ["fsat", "SLOW"]
    data_of(records, table)
    printed = capsys.readouterr().out
    assert "classes: SLOW 1, fast 11, fsat 1, slow 11" in printed
    assert "classes with fewer than 5 records, or possibly misspelt: SLOW 1 (did you mean slow?), fsat 1" in printed
    assert "fsat 1 (did you mean fast?)" in printed


def test_a_class_name_with_a_comma_is_quoted_in_messages(records, capsys):
    table = frame(
        **{"status 15, sinus": [n % 3 > 0 for n in range(COUNT)], "rare, odd": [n == 0 for n in range(COUNT)]}
    )
    data_of(records, table.astype({"status 15, sinus": int, "rare, odd": int}))
    printed = capsys.readouterr().out
    assert 'classes: fast 12, "status 15, sinus" 16, "rare, odd" 1' in printed
    assert 'possibly misspelt: "rare, odd" 1' in printed


def test_empty_labels_are_unknown_and_an_empty_list_is_negative(records, capsys):
    data = data_of(records, labels("AF", "", "AF", "[]"))
    printed = capsys.readouterr().out
    assert "6 records without a known label dropped" in printed
    assert "write [] for a record without any class" in printed
    assert sum(len(part) for part in data.split.values()) == COUNT - 6
    assert float(sum(part.y.sum() for part in (data.train_set, data.val_set, data.test_set))) == 12


def test_a_comma_in_brackets_belongs_to_the_class(records):
    assert data_of(records, labels("AF (paroxysmal, new)", "NORM")).classes.names == ["AF (paroxysmal, new)", "NORM"]


def test_labels_as_programs_write_them(records, capsys):
    cells = ("['AF', 'atrial flutter']", '["AF"]', "{'SR': 100.0, 'AF': 0.0}", "nan")
    assert data_of(records, labels(*cells)).classes.names == ["AF", "SR", "atrial flutter"]
    printed = capsys.readouterr().out
    assert "6 records without a known label dropped" in printed
    assert "classes: AF 18, SR 6, atrial flutter 6" in printed
    assert data_of(records, labels("426783006.0", "59118001")).classes.names == ["426783006", "59118001"]
    data_of(records, labels("AF", "af"))
    assert "AF 12 (did you mean af?)" in capsys.readouterr().out


def test_a_record_on_two_rows_with_other_labels_is_refused(records, capsys):
    twice = pd.concat([labels("AF"), labels("SR").head(1)])
    with pytest.raises(InputError, match=rf"line {COUNT + 2}: the record s00.hea is also on line 2 with other labels"):
        data_of(records, twice)
    data_of(records, pd.concat([labels("AF"), labels("AF").head(1)]))
    assert "1 duplicate records dropped: s00.hea (= s00.hea)" in capsys.readouterr().out
    write_wfdb(records, "copy", simulate.recording([], 2.0, 100.0, 0), 100.0)
    data_of(records, pd.concat([labels("AF"), labels("SR").head(1).assign(path="copy")]))
    assert "1 duplicate records dropped, 1 of them with other labels: copy (= s00.hea)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("cells", "counts", "note"),
    [
        (("{'AF': 1, 'SR': 0}", "{'AF': 0, 'SR': 1}"), "AF 12, SR 12", "labels are dicts of 0 and 1: names with 0 are"),
        (
            ('{"AF": true, "SR": false}', '{"SR": true}'),
            "AF 12, SR 12",
            "labels are dicts of 0 and 1: names with 0 are",
        ),
        (("{'AF': {'p': 1}}", "{'SR': {'p': 1}}"), "AF 12, SR 12", "labels are dicts: every name counts"),
        (("{'AF': 100.0, 'SR': 0.0}", "{'SR': 50.0}"), "AF 12, SR 24", "every name counts, whatever its value"),
        (("{'AF': 0.0}", "{'SR': 0.0}"), "AF 12, SR 12", "every name counts, whatever its value"),
    ],
)
def test_dicts_of_flags_and_of_likelihoods(records, capsys, cells, counts, note):
    """A name with 0 was present in dicts of 0 and 1, too."""
    table = pd.DataFrame({"path": [f"s{n:02d}.hea" for n in range(COUNT)], "labels": [*cells] * (COUNT // 2)})
    data_of(records, table)
    printed = capsys.readouterr().out
    assert f"classes: {counts}" in printed
    assert note in printed


@pytest.mark.parametrize(
    ("cells", "classes"),
    [
        (("['AF' 'SR']", "['AF']"), ["AF", "SR"]),  # NumPy; Python joins them to AFSR
        (("[AF, SR]", "[AF]"), ["AF", "SR"]),
        (("{AF: 1, SR: 0}", "{AF: 0, SR: 1}"), ["AF", "SR"]),
        (("[1, 2]", "[2]"), ["1", "2"]),
    ],
)
def test_lists_of_numpy_and_without_quotes(records, cells, classes):
    assert data_of(records, labels(*cells)).classes.names == classes


@pytest.mark.parametrize(
    "cells",
    [("1,0", "0,1", ""), ("[1, 0]", "[0, 0]", "nan"), ("[0.0, 1.0]", "[1.0, 0.0]"), ("1 0", "0 1"), ("[1 0]", "[1 1]")],
)
def test_vectors_without_names_of_classes_are_refused(records, cells):
    """They were read as the classes 0 and 1."""
    with pytest.raises(
        InputError, match=r"line 2, column labels: .* is a vector of 2 numbers without names of classes"
    ):
        data_of(records, labels(*cells))


def test_a_column_of_class_names_is_named_in_the_error(records):
    table = frame().assign(rhythm=["AF", "SR"] * (COUNT // 2)).drop(columns="fast")
    for options in ({}, {"label_columns": ["rhythm"]}):
        with pytest.raises(InputError, match="a column with the names of classes must be called labels"):
            data_of(records, table, **options)


def test_placeholders_are_no_classes(records, capsys):
    """``n/a`` and ``-`` were classes."""
    data = data_of(records, labels("AF", "SR", "N/A", "?", "AF; n/a", "None"))
    printed = capsys.readouterr().out
    assert set(data.classes.names) == {"AF", "None", "SR"}
    assert "8 records without a known label dropped" in printed
    assert "None is a class; records without any class are written as []" in printed
    with pytest.raises(InputError, match=r"line 3, column labels: '-' is no class: leave the cell empty if the labels"):
        data_of(records, labels("AF", "-", "SR", "AF"))


@pytest.mark.parametrize("cell", ["{'AF': None, 'SR': None}", "[None]", "['n/a']", "['']", ";", "{'AF': nan}"])
def test_lists_of_missing_labels_are_unknown(records, capsys, cell):
    """They were records without any class."""
    data_of(records, labels("AF", cell, "SR", "[]"))
    assert "6 records without a known label dropped" in capsys.readouterr().out


@pytest.mark.parametrize("value", ["None", "nan", "''", "'n/a'"])
def test_an_unknown_value_of_a_dict_is_not_zero(records, value):
    with pytest.raises(InputError, match="line 3, column labels: a value of the dict is missing: leave its name out"):
        data_of(records, labels("AF", f"{{'AF': {value}, 'SR': 1}}", "SR"))


def test_names_of_a_challenges_classes_are_read_as_its_codes():
    """Under `--data.labels cinc2021`, a manifest with names gave negatives for the classes that it named."""
    classes = Classes(["AF", "PVC|VPB"], [("164889003",), ("427172004", "17338001")])
    labels = ["af", "vpb", "PVC|VPB", "427172004|17338001", "17338001", "other"]
    first = "427172004"
    assert classes.translated(labels) == ["164889003", first, first, first, "17338001", "other"]
    assert classes.without_columns(["AF", "other"]) == [first]
    assert classes.without_columns(["17338001"]) == ["164889003"]
    classes.vector(["other"])
    assert classes.described("no class has a training record", OWN_CLASSES).startswith(
        "no class has a training record: the labels are other 1, the classes AF, PVC|VPB, ...; the preset ecg_small"
    )
    assert Classes([], []).described("no class") == "no class"


WEIGHTS = b",164889003,427172004|17338001,426783006\n164889003,1,.5,0\n427172004|17338001,.5,1,0\n426783006,0,0,1\n"


@pytest.fixture
def challenge(records):
    """Options of a data module with the classes of a small challenge table."""
    (records / "weights.csv").write_bytes(WEIGHTS)
    return {"labels": "cinc2021", "weights": str(records / "weights.csv")}


def test_a_name_of_no_challenge_class_is_warned_of(records, challenge, capsys):
    """`AFib` counted as a negative of AF, in a list of codes outside the challenge."""
    data_of(records, labels("AF", "NSR", "AFib", "427084000"), **challenge)
    printed = capsys.readouterr().out
    assert "warning: neither a class of cinc2021 nor a SNOMED code, counted as negative: AFib 6\n" in printed
    data_of(records, labels("AF", "NSR", "PVC", "427084000"), **challenge)
    assert "SNOMED" not in capsys.readouterr().out


@pytest.mark.parametrize("cell", ["4.26783E+08", "59118001,4e+08", "4,26783E+08"])
def test_codes_without_their_digits_are_refused(records, cell):
    """A spreadsheet's 4.26783E+08 was a class."""
    with pytest.raises(InputError, match=r"line 3, column labels: '\S+' is a code whose digits a spreadsheet has lost"):
        data_of(records, labels("59118001", cell))


def test_paths_of_windows_are_found(records):
    table = labels("AF", "NORM")
    data = data_of(records, table.assign(path=".\\" + table.path))
    assert [record.path for record in data.labelled] == [records / name for name in table.path]


def test_classes_of_a_challenge_without_a_column_are_unknown_in_a_test(records, challenge, capsys):
    """A manifest with columns of a few classes counted as negatives of the others."""
    table = frame().rename(columns={"fast": "AF"}).assign(NSR=lambda table: 1 - table["AF"])
    data = data_of(records, table, **challenge)
    assert "no column for the classes PVC|VPB: no record has them" in capsys.readouterr().out
    other = EcgData(manifest=str(records / "m.csv"), window_s=1, **challenge)
    other.use_summary(data.summary(), external=True)
    other.setup("test")
    assert "no column for the classes PVC|VPB: their labels are unknown" in capsys.readouterr().out
    place = data.classes.names.index("PVC|VPB")
    assert np.isnan(other.test_set.y[:, place].numpy()).all()
    assert not np.isnan(np.delete(other.test_set.y.numpy(), place, axis=1)).any()
