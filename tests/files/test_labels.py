"""Cells with labels: lists as packages show them, separators in brackets, lists where one class is expected."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pandas as pd
import pytest

from seqssm.errors import InputError
from seqssm.files.cells import split_names
from seqssm.files.labels import read_label_cells, require_one_class
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


@pytest.mark.parametrize("cell", ["AF; n/a", "nan|AF"])
def test_a_missing_label_beside_another_is_part_of_a_list(cell):
    """The cell was a class of its own."""
    assert read(cell) == [["AF"]]
    with pytest.raises(InputError, match=r"m.csv: line 2: .* is a list of labels; expected .* Several: elsewhere"):
        require_one_class(["AF", cell], Path("m.csv"), lambda row: f"line {row + 1}", "Several: elsewhere")
    require_one_class(["AF;SR", "-;SR"], Path("m.csv"), str, "")


def test_names_of_classes_with_a_part_like_a_missing_value():
    for cells in (["wt|wt", "wt|null", "null|null"], ["K", "Na;K", "Na|Ca"], ["pos", "neg; null"]):
        require_one_class(cells, Path("m.csv"), str, "")


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


VECTORS = ["[1. 0.]", "[1., 0.]", "tensor([1., 0.])", "tensor([1, 0, 0])", "[ True False]", "[True, False]",
           "[nan  1.]", "0.1 0.9", "[1e-3 9.99e-1]"]  # fmt: skip


@pytest.mark.parametrize("cell", VECTORS)
def test_a_single_vector_among_names_is_refused(cell):
    """It was a class per number."""
    with pytest.raises(InputError, match=r"row 2, column labels: .* is a vector of \d numbers without names"):
        read("AF", cell, "NORM; AF")
    with pytest.raises(InputError, match=r"m.csv: line 2: .* is a (list of labels|vector of \d numbers)"):
        require_one_class(["AF", cell], Path("m.csv"), lambda row: f"line {row + 1}", "")


def test_integers_among_names_are_refused_and_among_integers_are_names():
    with pytest.raises(InputError, match=r"row 1, .*'tensor\(\[1, 0\]\)' is a vector of 2 numbers without names"):
        read("tensor([1, 0])", "AF")
    assert read("[1, 0]", "[3 4]", "[2]") == [["1", "0"], ["3", "4"], ["2"]]


DAMAGED = {
    "b'AF'": "is a Python bytes object; decode the column before",
    "[b'AF', b'SR']": "is a Python bytes object",
    "b'AF,SR'": "is a Python bytes object",
    "np.bytes_(b'AF')": "is a Python bytes object",
    "['AF', 'SR'": "is a list that is not closed, probably truncated",
    "['AF'": "is a list that is not closed",
    "[AF, SR": "is a list that is not closed",
    "'AF', 'SR']": "is a list that is not closed",
    "{'AF': 1, 'SR'": "is a list that is not closed",
    "array(['AF', 'SR']": "is a list that is not closed",
    "['AF', 'SR')": "is a list that is not closed",
    "[[1. 0.]\n [0. 1.]]": "is nested",
    "tensor(1)": "is the printed text of an object",
    "['AF' ... 'SR']": "is abbreviated",
    "[[0.123 0.877] ... [0.5 0.5]]": "is abbreviated",
    "array(1)": "is the printed text of an object",
    "<Label.AF: 1>": "is the printed text of an object",
    "Series([], dtype: object)": "is the printed text of an object",
    "['AF', 'SR']\nCategories (2, object): ['AF', 'SR']": "is the printed text of an object",
    "AF: 1, SR: 0": "is a list of flags without braces",
    "AF=1;SR=0": "is a list of flags without braces",
    "<class 'str'>": "is the printed text of an object",
    "0    AF\n1    SR\nName: labels, dtype: object": "is the printed text of an object",
}


@pytest.mark.parametrize(("cell", "message"), DAMAGED.items())
def test_objects_and_truncated_lists_are_refused(cell, message):
    """They were classes."""
    with pytest.raises(InputError, match=f"row 2, column labels: .* {message}"):
        read("AF", cell)
    with pytest.raises(InputError, match=f"m.csv: line 2: .* {message}"):
        require_one_class(["AF", cell], Path("m.csv"), lambda row: f"line {row + 1}", "")


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
         "AF (new, old)", "array(x)", "frozenset", "E. coli, K-12"]  # fmt: skip


def test_line_breaks_and_wide_separators_separate_and_invisible_characters_do_not_count():
    cells = ["AF\nSR", "AF；SR", "AF、SR", "\ufeffAF", "SR\u200b", "['AF'\n 'SR']"]
    assert read(*cells) == [["AF", "SR"], ["AF", "SR"], ["AF", "SR"], ["AF"], ["SR"], ["AF", "SR"]]


def test_names_of_one_class_may_have_brackets_and_commas():
    require_one_class(NAMES, Path("m.csv"), str, "")


@pytest.mark.parametrize(
    ("cell", "names"),
    [
        ("('AF')", ["AF"]),
        ("(AF)", ["AF"]),
        ("np.str_('AF')", ["AF"]),
        ("defaultdict(<class 'int'>, {'AF': 1, 'SR': 0})", ["AF"]),
        ("defaultdict(None, {np.str_('AF'): 1})", ["AF"]),
        ("defaultdict(<function f.<locals>.<lambda> at 0x7f>, {})", []),
        ("OrderedDict([('AF', 1), ('SR', 0)])", ["AF"]),
        ("OrderedDict({'AF': 1})", ["AF"]),
        ("dict_items([('AF', 1), ('SR', 0)])", ["AF"]),
        ("Counter({'AF': 1, 'SR': 0})", ["AF"]),
        ("Counter()", []),
        ("{AF=1, SR=0}", ["AF"]),
        ("{'AF'=>1}", ["AF"]),
        ("[‘AF’, ‘SR’]", ["AF", "SR"]),
        ("[“AF” “SR”]", ["AF", "SR"]),
        ("“AF”; „SR“; «X»", ["AF", "SR", "X"]),
        ("{“AF”: 1, “SR”: 0}", ["AF"]),
        ("Infarctus « ancien »; SR", ["Infarctus « ancien »", "SR"]),
        ("SR; block “left”", ["SR", "block “left”"]),
        ("AF\n“SR”", ["AF", "SR"]),
        ("« AF »; \" SR \"; ' X'", ["AF", "SR", "X"]),
        ("［AF、SR］", ["AF", "SR"]),
        ("- AF\n- SR", ["AF", "SR"]),
        ("AF\tSR", ["AF", "SR"]),
        ("d’AF; Alzheimer's; Graves’", ["d’AF", "Alzheimer's", "Graves’"]),
        ("['O'Brien', 'x']", ["O'Brien", "x"]),
        ("3' UTR; 5'", ["3' UTR", "5'"]),
        ("'Candidatus' Liberibacter; x", ["'Candidatus' Liberibacter", "x"]),
    ],
)
def test_further_notations(cell, names):
    """They were classes with brackets and quotation marks in their names."""
    assert read(cell) == [names]


ODD = {
    "[[AF], [SR]]": "is nested",
    "[[AF, SR]]": "is nested",
    "[AF, [SR]]": "is nested",
    "[(AF), (SR)]": "is nested",
    "[AF], [SR]": "is nested",
    "('AF');('SR')": "is nested",
    "['AF'],": "is nested",
    "[array(['AF'])]": "is nested",
    "['AF' 'SR', 'X']": "has two names without a separator",
    "['AF', 'SR' 'X']": "has two names without a separator",
    "['AF''SR']": "has two names without a separator",
    "[u'AF' u'SR']": "has two names without a separator",
    "'AF' 'SR'": "has quotation marks around",
    "''AF''": "has quotation marks around",
    "`AF`": "has quotation marks around",
    "'AF": "has quotation marks around",
    "u'AF'": "has quotation marks around",
    '["AF", "SR", "1,0"]': "has the item '1,0', numbers without a name",
    "c('AF', 'SR')": "is the printed text of an object",
    "dict(AF=1, SR=0)": "is the printed text of an object",
    "WrappedArray(AF, SR)": "is the printed text of an object",
    "[AF: 1, SR: 0]": "is a list of flags without braces",
}


@pytest.mark.parametrize(("cell", "message"), ODD.items())
def test_ambiguous_cells_are_refused(cell, message):
    """They were classes with brackets and quotation marks in their names, or joined names."""
    with pytest.raises(InputError, match=f"row 2, column labels: .* {message}"):
        read("AF", cell)
    with pytest.raises(InputError, match=f"m.csv: line 2: .* {message}"):
        require_one_class(["AF", cell], Path("m.csv"), lambda row: f"line {row + 1}", "")


@pytest.mark.parametrize("cell", ["'AF'", "“AF”", "('AF')", "defaultdict(<class 'int'>, {'AF': 1})"])
def test_names_of_one_class_have_no_quotation_marks(cell):
    with pytest.raises(InputError, match=r"m.csv: line 2: .*(has quotation marks around|is a list of labels)"):
        require_one_class(["AF", cell], Path("m.csv"), lambda row: f"line {row + 1}", "")


UNITS = ("“", "‘a’ ", "a=", "[a] ", "u'", "- \n", "1", "1.", "[", "]", "'", '"', "a ", "a' ", "]=x)")
ENDS = (("[", "]"), ("[[", "x]]"), ("array([", "])"), ("defaultdict(<", ">, {})"), ("[‘", "’]"))
LONG = [first + unit * (10_000 // len(unit)) + last for unit in UNITS for first, last in ENDS]
LONG += ["1" * 10_000, "array(" + "['a'],=" * 1_000 + ")"]


def test_long_cells_end():
    """Numbers of 20 digits in brackets took minutes: each digit doubled the ways to read them."""
    for cell in ["[[" + "1" * 20 + "x]]", *LONG]:
        with contextlib.suppress(InputError):
            read("AF", cell)
        with contextlib.suppress(InputError):
            require_one_class(["AF", cell], Path("m.csv"), str, "")


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        (["{'AF': 1, 'SR': 0}", "{'AF': None, 'SR': 1}"], [["AF"], ["SR"]]),
        (["{'AF': 1, 'SR': 0}", "{'AF': nan, 'SR': 1}"], [["AF"], ["SR"]]),
        (["{'AF': '1', 'SR': '0'}", "{'AF': 'False', 'SR': 'True'}"], [["AF"], ["SR"]]),
        (["{'AF': 'yes', 'SR': 'no'}", "{'AF': 0, 'SR': 0}"], [["AF"], []]),
        (["{AF: 0, SR: 0}"], [[]]),
        (["{'AF': 100.0, 'SR': 0.0}", "{'SR': 0.0}", "{'AF': 15.0, 'SR': None}"], [["AF", "SR"], ["SR"], ["AF"]]),
        (["{'AF': 0.0}"], [["AF"]]),
    ],
)
def test_flags_likelihoods_and_missing_values_in_dicts(cells, names):
    """A missing value or a word in one row made every 0 of the column a label."""
    assert read(*cells) == names


@pytest.mark.parametrize("value", ["2", "-1", "0.5", "'maybe'", "100", "[1]"])
def test_a_value_that_is_not_a_flag_names_its_row(value):
    with pytest.raises(InputError, match=r"row 3, column labels: .* has the value .* for 'SR'; expected 0 or 1"):
        read("{'AF': 1, 'SR': 0}", "{'AF': 0, 'SR': 1}", f"{{'AF': 0, 'SR': {value}}}")
    with pytest.raises(InputError, match=r"row 2, .* has the value -1 for 'SR'; expected a likelihood from 0 to 100"):
        read("{'AF': 100.0, 'SR': 0.0}", "{'SR': -1}")


@pytest.mark.parametrize("cell", ["['AF' nan 'SR']", "['AF', nan, 'SR']", "{'AF' 'SR'}", "['AF', None, 'SR']"])
def test_missing_items_are_not_classes(cell):
    assert read(cell, "[nan]") == [["AF", "SR"], []]


@pytest.mark.parametrize("name", ["AV-block 1:2", "1:2 block", "pH=7", "pH=7; pH=8", "grade: 1", "1:1; 2:1"])
def test_names_with_numbers_after_colons_stay(name):
    assert read(name) == [name.split("; ")]


@pytest.mark.parametrize("cell", ["{AF},{SR}", "(AF), (SR)", "{AF}; {SR} | {LBBB}", "(AF),{SR}"])
def test_groups_of_any_brackets_are_nested(cell):
    """They were classes with brackets; [AF], [SR] was an error."""
    with pytest.raises(InputError, match=r"row 2, column labels: .* is nested"):
        read("AF", cell)
    with pytest.raises(InputError, match=r"line 2: .* is nested"):
        require_one_class(["AF", cell], Path("m.csv"), lambda row: f"line {row + 1}", "")


@pytest.mark.parametrize("name", ["'t Hooft", "’t Hooft", "'s-Gravenhage", "'n huis"])
def test_an_apostrophe_at_the_beginning_is_part_of_a_name(name):
    """It was an error, as an opening quotation mark."""
    assert read(name, f"{name}; AF") == [[name], [name, "AF"]]
    require_one_class([name, "AF"], Path("m.csv"), str, "")
    with pytest.raises(InputError, match="has quotation marks around"):
        read("'AF")


def test_intervals_in_a_column_of_intervals_are_names():
    """(0, 5) beside (5, 10] was two labels, or an error."""
    cells = ["(0, 5)", "(5, 10]", "[10, 12]", "(12.5, inf)"]
    assert read(*cells) == [[cell] for cell in cells]
    assert read("(0, 5], (5, 10)", "(0, 5]") == [["(0, 5]", "(5, 10)"], ["(0, 5]"]]
    require_one_class(cells, Path("m.csv"), str, "")
    with pytest.raises(
        InputError, match=r"line 1: '\(0, 5\)' is a list of labels, or an interval .* '0 to 5'\. Several"
    ):
        require_one_class(["(0, 5)", "(5, 10)"], Path("m.csv"), lambda row: f"line {row + 1}", "Several: elsewhere")


@pytest.mark.parametrize("cell", ["AF; n/a", "['AF', nan]", "AF;np.nan", "AF|?", "['AF', 'NA']"])
def test_missing_labels_beside_others_are_reported(cell):
    """They were left out without a word."""
    names, notes = read_label_cells(table_of_frame(pd.DataFrame({"labels": ["SR", cell]}), text=True), "labels")
    assert names == [["SR"], ["AF"]]
    assert len(notes) == 1
    assert "missing labels beside others are left out, in 1 cell (first: row 2, column labels" in notes[0]


def test_known_labels_are_not_missing():
    table = table_of_frame(pd.DataFrame({"labels": ["?;AF", "n/a"]}), text=True)
    assert read_label_cells(table, "labels", whole={"?"}) == ([["?", "AF"], ["n/a"]], [])
