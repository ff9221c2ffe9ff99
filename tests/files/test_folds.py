"""Columns of folds: their names, their cells, and what is damaged."""

from __future__ import annotations

import shlex

import pytest

from seqssm.errors import InputError
from seqssm.files.folds import chosen_folds, fold_columns, is_fold_column, read_folds

NAMES = ("fold", "KFold", "CV fold", "strat_fold", "outer-fold", "test_fold", "fold2", "cv", "CV split", "partition")


@pytest.mark.parametrize("name", NAMES)
def test_names_of_folds(name):
    assert is_fold_column(name)


@pytest.mark.parametrize("name", ["fold_change", "log2fold", "manifold", "cvd", "scaffold", "unfolded", "label"])
def test_other_names(name):
    assert not is_fold_column(name)


@pytest.mark.parametrize(
    ("cells", "numbers"),
    [
        (["0", "1", "2", "1"], [0, 1, 2, 1]),
        (["0.0", "1.0", "", "NaN"], [0, 1, None, None]),
        (["fold1", "Fold 2", "fold_3", "FOLD-10"], [1, 2, 3, 10]),
        (["A", "b", "A", "c"], [0, 1, 0, 2]),
        (["II", "I", "", "I", "II"], [1, 0, None, 0, 1]),
        (["1/2", "2/2", "1/2", "2/2"], [0, 1, 0, 1]),
    ],
)
def test_cells_of_folds(cells, numbers):
    found = read_folds("fold", cells)
    assert found is not None
    assert (found.numbers, found.damaged) == (numbers, None)


@pytest.mark.parametrize(
    "cells",
    [
        ["train", "test", "train"],
        ["1.73", "2.41", "0.5", "2"],
        ["1", "1", "1"],
        ["north", "south", "south"],
        ["yes", "no", "yes", "no"],
        ["train", "north", "train", "north"],
        ["", "nan"],
        [],
        ["-1", "-2", "1", "2"],
    ],
)
def test_cells_that_are_no_folds(cells):
    assert read_folds("fold", cells) is None


@pytest.mark.parametrize("cell", ["0x", "-1", "1.5", "fold1", "A", "1e3", "２.０"])
def test_the_first_damaged_cell_is_kept(cell):
    found = read_folds("fold", ["1", "2", "", cell, "3", "?x"])
    assert found is not None
    assert found.damaged == (3, cell)
    assert found.rows([4, 3]).damaged == (1, cell)
    assert found.rows([0, 1]).damaged is None


def test_ambiguous_names_need_three_folds():
    assert list(fold_columns({"cv": ["0", "1"], "fold": ["0", "1"], "partition": ["0", "1", "2"]})) == [
        "fold",
        "partition",
    ]


def test_copies_count_once():
    first, second = ["0", "1", "2"], ["0", "1", "1"]
    assert list(fold_columns({"fold": first, "kfold": first})) == ["fold"]
    found = chosen_folds({"fold": first, "kfold": first, "cv_fold": second}, None)
    assert found is not None
    assert found.others == ("cv_fold",)


def test_merged_folds_are_named():
    found = read_folds("fold", [f"fold{k}" for k in range(10)])
    assert found is not None
    assert found.merged(5, "a.csv")[7] == 2
    assert found.names_of(2, 5) == "fold2 and fold7"
    assert found.names_of(0, 1) == "fold0, fold1, fold2, fold3, fold4 and 5 more"


@pytest.mark.parametrize("cell", ["Osl", "unknown", "7"])
def test_a_name_that_occurs_once_is_damaged(cell):
    """All folds were discarded."""
    found = read_folds("fold", [*["Oslo", "Bergen"] * 8, cell])
    assert found is not None
    assert (found.cells, found.damaged) == ({0: "Bergen", 1: "Oslo"}, (16, cell))


def test_case_and_spaces_do_not_make_another_fold():
    """Oslo and oslo were two folds."""
    found = read_folds("fold", ["Oslo", "oslo ", "Bergen", "Oslo", "bergen", "South  East", "south east"])
    assert found is not None
    assert found.numbers == [1, 1, 0, 1, 0, 2, 2]
    assert [found.cells[k] for k in (0, 1)] == ["Bergen", "Oslo"]


def test_a_missing_fold_is_named_with_its_cell():
    found = read_folds("fold", ["1", "2", "#REF!", "3"])
    assert found is not None
    with pytest.raises(InputError, match=r"row 2: column fold: no fold \('#REF!'\), as other rows have"):
        found.require(lambda row: f"row {row}", "a.csv")


def test_numbered_records_are_no_folds():
    """Any count that 5 divides was merged into 5 folds."""
    numbers = [f"p{k}" for k in range(60)] * 2
    assert not fold_columns({"partition": numbers, "cv": numbers})
    assert list(fold_columns({"fold": numbers})) == ["fold"]


def test_flags_of_folds_are_to_be_merged():
    flags = {f"fold_{k}": [str(int(row == k)) for row in range(3)] for k in range(3)}
    found = chosen_folds(flags, None)
    assert found is not None
    with pytest.raises(InputError, match="fold_0 and fold_1 and fold_2 hold folds: if each marks one fold, merge them"):
        found.require(str, "a.csv")


@pytest.mark.parametrize("name", ["split", "set", "Data set", "partition", "data_split", "split_set", "set_id"])
@pytest.mark.parametrize("cells", ["012", "123"])
def test_numbers_of_splits_are_not_advised_as_folds_alone(name, cells):
    """0, 1 and 2 for train, val and test: three folds of them would test on what is meant for training."""
    found = chosen_folds({name: list(cells) * 4}, None)
    assert found is not None
    with pytest.raises(InputError, match=f"if {cells[0]} to {cells[2]} are splits, write train, val and test"):
        found.merged(5, "a.csv")
    chosen = chosen_folds({name: list(cells) * 4}, name)
    assert chosen is not None
    assert len(chosen.require(str, "a.csv")) == 12
    if name != "split":  # the name of which is that of the default column
        with pytest.raises(InputError, match=f"if they are folds, pass --data.split_column {shlex.quote(name)}"):
            found.require(str, "a.csv")


@pytest.mark.parametrize(("cell", "known"), [("test", True), ("-1", True), ("", True), ("0x", False)])
def test_rows_held_out_of_the_folds_have_a_way_out(cell, known):
    """The advice was random folds, which use these rows."""
    found = read_folds("fold", [*"012012", cell])
    assert found is not None
    with pytest.raises(InputError) as error:
        found.require(str, "a.csv")
    assert ("move rows that are held out of the folds to another file" in str(error.value)) == known


def test_a_column_set_with_other_numbers_holds_no_folds():
    assert fold_columns({"set": list("0123"), "SET": list("678")}) == {}
    assert chosen_folds({"cv_fold": list("012")}, None) is not None
