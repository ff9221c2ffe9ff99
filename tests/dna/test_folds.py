"""Folds of tables of labelled sequences: read, merged, named, or refused."""

from __future__ import annotations

import re

import pytest
from seqssm_dna.labelled import LabelColumns, read_labelled
from seqssm_dna.sequences import SequenceData
from seqssm_dna.splits import require_folds, split_labelled

from seqssm.errors import InputError

from .conftest import csv, letters


@pytest.mark.parametrize("name", ["Fold", "kfold"])
def test_the_folds_of_a_table_are_those_of_kfold(write, name):
    """`kfold` drew random folds beside them."""
    rows = [(letters(20, k), "ab"[k % 2], 1 + k // 2 % 3) for k in range(24)]
    path = write(csv(rows, f"sequence,label,{name}"), "a.csv")
    refused = rf"column {name} holds folds \(1 to 3\): run kfold --folds 3, or pass"
    with pytest.raises(InputError, match=refused):
        split_labelled(read_labelled(path), 0.1, 0.1, 0)
    found = read_labelled(path)
    assert f"test fold 2 of 3, 3 in the column {name}" in split_labelled(found, 0.1, 0.1, 0, 2, 3)
    assert [split == "test" for split in found.splits] == [row[2] == 3 for row in rows]
    with pytest.raises(InputError, match=f"column {name} has 3 folds, not 4: use --data.folds 3, or pass"):
        require_folds(read_labelled(path), 4)
    drawn = read_labelled(path, columns=LabelColumns(split="none"))
    assert "at random" in split_labelled(drawn, 0.1, 0.1, 0, 2, 3)
    named = read_labelled(path, columns=LabelColumns(split=name))
    with pytest.raises(InputError, match=refused):
        split_labelled(named, 0.1, 0.1, 0)


def test_folds_that_cannot_be_used(write, tmp_path):
    rows = [(letters(20, k), "ab"[k % 2], k % 3, k // 2) for k in range(12)]
    path = write(csv(rows, "sequence,label,fold,family"), "a.csv")
    found = read_labelled(path, columns=LabelColumns(group="family"))
    with pytest.raises(InputError, match=r"line 3: group '0' is in fold 0 \(line 2\) and in 1"):
        require_folds(found, 3)
    rows[4] = (*rows[4][:2], "", 2)
    with pytest.raises(InputError, match="line 6: column fold: no fold, as other rows have"):
        require_folds(read_labelled(write(csv(rows, "sequence,label,fold,family"), "b.csv")), 3)
    rows = [(letters(20, k), "ab"[k % 2], k % 3, k % 4) for k in range(12)]
    found = read_labelled(write(csv(rows, "sequence,label,fold,outer_fold"), "c.csv"))
    with pytest.raises(InputError, match=r"the columns fold and outer_fold hold folds: choose one with --data.split_"):
        require_folds(found, 3)
    with pytest.raises(InputError, match="the columns fold and outer_fold hold folds: choose one"):
        split_labelled(found, 0.1, 0.1, 0)
    chosen = read_labelled(tmp_path / "c.csv", columns=LabelColumns(split="outer_fold"))
    assert "test fold 3 of 4, 3 in the column outer_fold" in split_labelled(chosen, 0.1, 0.1, 0, 3, 4)


@pytest.mark.parametrize("cell", ["0x", "-1", "2.5", "fold 1", "A"])
def test_a_damaged_fold_is_named(write, cell):
    """Random folds were drawn without a remark."""
    rows = [(letters(20, k), "ab"[k % 2], cell if k == 3 else k % 3) for k in range(12)]
    with pytest.raises(InputError, match=rf"line 5: column fold: '{re.escape(cell)}' is not a fold such as 0; correct"):
        require_folds(read_labelled(write(csv(rows, "sequence,label,fold"), "a.csv")), 3)


@pytest.mark.parametrize(
    ("name", "cell"), [("fold", "fold{}"), ("cv", "{}"), ("split", "{}"), ("CV partition", "Part {}")]
)
def test_names_of_folds_are_read(write, name, cell):
    """Random folds were drawn without a remark; ``split`` with numbers needed an option that no message named."""
    rows = [(letters(20, k), "ab"[k % 2], cell.format(1 + k // 2 % 3)) for k in range(24)]
    path = write(csv(rows, f"sequence,label,{name}"), "a.csv")
    found = read_labelled(path)
    shown = re.escape(f"{cell.format(1)} in the column {name}")
    assert re.search(f"test fold 0 of 3, {shown}", split_labelled(found, 0.1, 0.1, 0, 0, 3))
    assert [split == "test" for split in found.splits] == [k // 2 % 3 == 0 for k in range(24)]
    if name == "split":
        with pytest.raises(
            InputError, match=r"column split holds folds \(1 to 3\): if 1 to 3 are splits, write .*run kfold --folds 3"
        ):
            split_labelled(read_labelled(path), 0.1, 0.1, 0)


def test_sites_are_folds(write):
    """Folds with names were replaced by random ones without a remark."""
    sites = ("north", "south", "east")
    rows = [(letters(20, k), "ab"[k % 2], sites[k // 2 % 3], sites[k // 2 % 3]) for k in range(24)]
    path = write(csv(rows, "sequence,label,fold,site"), "a.csv")
    for column in (None, "site"):
        found = read_labelled(path, columns=LabelColumns(split=column))
        how = split_labelled(found, 0.1, 0.1, 0, 2, 3)
        assert f"test fold 2 of 3, south in the column {column or 'fold'}" in how
        assert [split == "test" for split in found.splits] == [row[2] == "south" for row in rows]
    flags = [(letters(20, k), "ab"[k % 2], *(int(k % 3 == one) for one in range(3))) for k in range(24)]
    with pytest.raises(
        InputError, match="hold folds: if each marks one fold, merge them into one column of fold numbers; otherwise"
    ):
        require_folds(read_labelled(write(csv(flags, "sequence,label,fold_1,fold_2,fold_3"), "b.csv")), 3)


def test_what_folds_replace_is_said(write):
    """Splits of the table were dropped, and folds merged, without a remark."""
    rows = [(letters(20, k), "ab"[k % 2], k // 2 % 4, ("train", "test")[k % 5 == 0], k % 6) for k in range(48)]
    found = read_labelled(write(csv(rows, "sequence,label,fold,split,patient_id"), "a.csv"))
    how = split_labelled(found, 0.1, 0.1, 0, 1, 2)
    assert "test fold 1 of 2, 1 and 3 in the column fold, in place of the splits of the table" in how
    assert "column patient_id is not used; group_column patient_id keeps the rows of a patient_id in one split" in (
        found.notes
    )


def test_folds_beside_splits_are_reported(write):
    rows = [(letters(20, k), "ab"[k % 2], k // 2 % 3, ("train", "test")[k % 5 == 0]) for k in range(24)]
    found = read_labelled(write(csv(rows, "sequence,label,fold,split"), "a.csv"))
    assert split_labelled(found, 0.1, 0.1, 0).startswith("as in the file")
    assert "column fold holds folds (0 to 2) and is not used for the split; kfold --folds 3 uses it" in found.notes


@pytest.mark.parametrize(
    ("name", "cells", "advice"),
    [
        (
            "set",
            "012",
            "set holds folds .0 to 2.: if 0 to 2 are splits, .* run kfold --folds 3 --data.split_column set",
        ),
        ("set", ("train", "val", "test"), "column set holds splits: pass --data.split_column set, or --data.split_col"),
        ("is_train", "10", "column is_train holds splits: pass --data.split_column is_train"),
    ],
)
def test_no_random_split_in_place_of_that_of_the_table(write, name, cells, advice):
    """A note was printed, and the split was random."""
    rows = [(letters(20, k), "ab"[k % 2], cells[k // 2 % len(cells)]) for k in range(24)]
    path = write(csv(rows, f"sequence,label,{name}"), "a.csv")
    with pytest.raises(InputError, match=advice):
        split_labelled(read_labelled(path), 0.1, 0.1, 0)
    if cells != "012":
        found = read_labelled(path)
        assert "test fold 0 of 3, at random" in split_labelled(found, 0.1, 0.1, 0, 0, 3)
        assert f"column {name} holds splits and is not used, as there are folds" in found.notes


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("test", ["0", "1"]),
        ("train", ["0", "1"]),
        ("comment", ["valid", "test"]),
        ("is_train", ["1"]),
        ("fold", ["TIM", "Rossmann"]),
        ("fold", ["2", "5", "9"]),
        ("cv", [str(k) for k in range(24)]),
        ("fold_id", [str(k) for k in range(48)]),
    ],
)
def test_columns_that_need_not_divide_the_table_are_reported(write, name, cells):
    """They were refused: results of an assay, folds of proteins, numbers of the rows."""
    rows = [(letters(20, k), "ab"[k % 2], cells[k // 2 % len(cells)]) for k in range(48)]
    if len(cells) == 48:
        rows = [(*row[:2], k) for k, row in enumerate(rows)]
    found = read_labelled(write(csv(rows, f"sequence,label,{name}"), "a.csv"))
    assert split_labelled(found, 0.1, 0.1, 0).startswith("random")
    assert any(note.startswith(f"column {name} ") and "not used" in note for note in found.notes)


@pytest.mark.parametrize(("name", "cells"), [("data set", ("train", "test")), ("Split set", "012")])
def test_names_of_columns_are_quoted_in_commands(write, name, cells):
    rows = [(letters(20, k), "ab"[k % 2], cells[k // 2 % len(cells)]) for k in range(24)]
    with pytest.raises(InputError, match=f"--data.split_column '{name}', or"):
        split_labelled(read_labelled(write(csv(rows, f"sequence,label,{name}"), "a.csv")), 0.1, 0.1, 0)


def test_a_column_of_splits_beside_files_of_the_splits_is_reported(write, capsys):
    """Rows that it marks as test were trained on without a remark."""
    rows = [(letters(20, k), "ab"[k % 2], ("train", "test")[k // 2 % 2]) for k in range(24)]
    train = write(csv(rows, "sequence,label,set"), "a.csv")
    test = write(csv([(letters(20, k), "ab"[k % 2]) for k in range(24, 36)], "sequence,label"), "b.csv")
    data = SequenceData(train=str(train), test=str(test))
    data.setup("fit")
    assert "column set holds splits and is not used, as every file is a split" in "".join(capsys.readouterr())
    chosen = SequenceData(train=str(train), test=str(test), split_column="none")
    chosen.setup("fit")
    assert "column set" not in "".join(capsys.readouterr())


@pytest.mark.parametrize("cell", ["{}.37", "x", "{}%"])
def test_a_column_called_fold_with_other_cells_is_reported(write, cell):
    """Random folds were drawn without a remark on the column."""
    rows = [(letters(20, k), "ab"[k % 2], cell.format(k)) for k in range(12)]
    found = read_labelled(write(csv(rows, "sequence,label,fold"), "a.csv"))
    assert found.folds is None
    assert "column fold is not used: its cells are no folds" in found.notes


@pytest.mark.parametrize("column", ["label", "sequence"])
def test_a_column_with_another_meaning_is_no_split(write, column):
    path = write(csv([(letters(20, k), "ab"[k % 2]) for k in range(12)], "sequence,label"), "a.csv")
    with pytest.raises(InputError, match=f"split_column {column}: the column has another meaning"):
        read_labelled(path, columns=LabelColumns(split=column))
