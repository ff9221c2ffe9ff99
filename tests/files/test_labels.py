"""Cells with labels: lists as packages show them, separators in brackets, lists where one class is expected."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from seqssm.errors import InputError
from seqssm.files.labels import read_label_cells, require_one_class, split_names
from seqssm.files.tables import table_of_frame


def read(*cells):
    return read_label_cells(table_of_frame(pd.DataFrame({"labels": cells}), text=True), "labels")[0]


@pytest.mark.parametrize(
    "cell",
    [
        "array(['AF', 'NORM'], dtype='<U4')",
        "array(['AF',\n       'NORM'], dtype=object)",
        "Index(['AF', 'NORM'], dtype='object')",
        "CategoricalIndex(['AF', 'NORM'], categories=['AF', 'LBBB', 'NORM'], ordered=False, dtype='category')",
        "[np.str_('AF'), np.str_('NORM')]",
        "dict_keys(['AF', 'NORM'])",
        "{np.str_('AF'): np.int64(1), 'NORM': 1, 'LBBB': np.int64(0)}",
        "[AF, NORM]",
        "(AF, NORM)",
    ],
)
def test_lists_as_packages_show_them(cell):
    assert read(cell) == [["AF", "NORM"]]
    with pytest.raises(InputError, match=r"m.csv: line 2: .* is a list of labels; expected .* Several: elsewhere"):
        require_one_class(["AF", cell], Path("m.csv"), lambda row: f"line {row + 1}", "Several: elsewhere")


def test_sets():
    assert [set(one) for one in read("frozenset({'AF', 'NORM'})", "{'AF'}", "frozenset()", "set()")] == [
        {"AF", "NORM"},
        {"AF"},
        set(),
        set(),
    ]


def test_abbreviated_lists_are_refused():
    with pytest.raises(InputError, match="is abbreviated; expected all names of classes"):
        read("AF", "array(['AF', ..., 'NORM'], dtype='<U4')")


@pytest.mark.parametrize(
    ("cell", "names"),
    [
        ("AF (paroxysmal, new)", ["AF (paroxysmal, new)"]),
        ("AF (paroxysmal, new), NORM", ["AF (paroxysmal, new)", "NORM"]),
        ("t(9;22); del(5q)", ["t(9;22)", "del(5q)"]),
        ("(TG)n,(CA)n", ["(TG)n", "(CA)n"]),
        ("[Eubacterium] rectale, [Clostridium]", ["[Eubacterium] rectale", "[Clostridium]"]),
        ("(0.0, 0.5]", ["(0.0, 0.5]"]),
        ("[AF (x, y), NORM]", ["AF (x, y)", "NORM"]),
        ("AF (new, NORM", ["AF (new", "NORM"]),  # never closed
        ("1) AF, 2) NORM", ["1) AF", "2) NORM"]),
    ],
)
def test_a_separator_in_brackets_belongs_to_the_name(cell, names):
    assert split_names(cell) == names
    assert read(cell) == [names]


NAMES = ["[Eubacterium] rectale", "(0.0, 0.5]", "[10, 20)", "2,4-D", "[2,4-D]", "(-inf, 3.0]", "[AF]", "t(9;22)",
         "AF (new, old)", "array(x)", "frozenset", "[a], [b]", "E. coli, K-12"]  # fmt: skip


def test_names_of_one_class_may_have_brackets_and_commas():
    require_one_class(NAMES, Path("m.csv"), str, "")
