"""Numbers of every locale are read correctly or rejected with the line, never off by a factor of 1,000."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from seqssm.errors import InputError
from seqssm.files.notation import is_number
from seqssm.files.numbers import numbers
from seqssm.files.tables import TableOptions, read_table, table_of_frame

FLAGS = {"decimal": "--data.decimal"}


@pytest.fixture
def column(tmp_path):
    """Read cells as the column ``x`` of a table with the given separator, beside other columns."""

    def reader(cells, separator=";", decimal="auto", **others):
        table = {"row": [str(k) for k in range(len(cells))], "x": list(cells), **others}
        path = tmp_path / "t.csv"
        pd.DataFrame(table).to_csv(path, index=False, sep=separator)
        found = read_table(path, TableOptions(separator=separator))
        values, notes = numbers(found, ["x", *others], decimal, FLAGS)
        return list(values[:, 0]), notes

    return reader


@pytest.mark.parametrize(
    ("cells", "wanted", "note"),
    [
        (["1", "-2", "+3", "4e2", ".5", "1.5E-3"], [1, -2, 3, 400, 0.5, 0.0015], None),
        (["0,5", "1,25", "-3"], [0.5, 1.25, -3], "decimal comma"),
        (["900", "1.010", "0,5"], [900, 1010, 0.5], "thousands separators removed from 1 cell (point)"),
        (["1.234.567", "1.010"], [1234567, 1010], "from 2 cells (point)"),
        (["1.234,5", "1.010"], [1234.5, 1010], "from 2 cells (point)"),
        (["1,234.5", "1,010", "7"], [1234.5, 1010, 7], "from 2 cells (comma)"),
        (["1,234,567.5"], [1234567.5], "(comma)"),
        (["12,34,567.5", "5"], [1234567.5, 5], "(comma)"),
        (["1'341.5", "1'010"], [1341.5, 1010], "(apostrophe)"),
        (["1’341,5", "-1’010"], [1341.5, -1010], "(apostrophe)"),
        (["1 341,5", "12"], [1341.5, 12], "(blank)"),
        (["1\u202f341\u00a0567,5", "12"], [1341567.5, 12], "(blank)"),
        (["−5", "5.5"], [-5, 5.5], None),
        (["0.125", "1.125"], [0.125, 1.125], None),
        (["12345.125", "1.125"], [12345.125, 1.125], None),
        (["$1,234.50", "$-3", "7"], [1234.5, -3, 7], "x: currency $ removed from 2 cells"),
        (["1.234,50 €", "0,5", "-3 €"], [1234.5, 0.5, -3], "x: currency € removed from 2 cells"),
        (["EUR 5", "-EUR 5", "5 EUR"], [5, -5, 5], "x: currency EUR removed from 3 cells"),
        (["(12.5)", "(1,234.5)", "7"], [-12.5, -1234.5, 7], "x: brackets or a trailing minus read as negative"),
        (["($1,234.5)", "$(7)", "$ 8"], [-1234.5, -7, 8], "x: currency $ removed from 3 cells"),
        (["12.5-", "1,234.5 -", "+7", "3−"], [-12.5, -1234.5, 7, -3], "as negative in 3 cells"),
        (["12,50-", "1.234,5 €-", "5"], [-12.5, -1234.5, 5], "as negative in 2 cells"),
        (["12.5%", "-3 %", "(4%)", "5%-", ""], [12.5, -3, -4, -5, np.nan], "percent sign removed from 4 cells"),
        (["", "NA", "#N/A", "n/a", "NULL", "-", "1.5"], [np.nan] * 6 + [1.5], None),
    ],
)  # fmt: skip
def test_numbers_are_read_correctly(column, cells, wanted, note):
    found, notes = column(cells)
    np.testing.assert_array_equal(found, wanted)
    assert note is None or any(note in line for line in notes)


@pytest.mark.parametrize(
    ("cells", "row", "words"),
    [
        (["900", "1.010"], 1, "'1.010' is ambiguous: decimal point or thousands separator; give --data.decimal"),
        (["1,010", "900"], 0, "'1,010' is ambiguous: decimal comma or thousands separator"),
        (["1.010", "1,020"], 1, "is ambiguous"),
        (["12,5", "1.5"], 1, "'1.5' contradicts '12,5'"),
        (["1.234.567", "1.5"], 1, "'1.5' contradicts '1.234.567'"),
        (["12,5", "x"], 1, "'x' is not a number"),
        (["1.5", "1.2.3"], 1, "'1.2.3' is not a number"),
        (["1.5", "1,00,0"], 1, "'1,00,0' is not a number"),
        (["1.5", "1_000"], 1, "'1_000' is not a number"),
        (["$5", "€5"], 1, "'€5' is in €, other cells of the column in $; convert them to one currency"),
        (["5 EUR", "5 USD"], 1, "'5 USD' is in USD, other cells"),
        (["5%", "7"], 1, "'7' has no percent sign, unlike other cells"),
        (["1.5", "(-5)"], 1, "'(-5)' is not a number"),
        (["1.5", "-5-"], 1, "'-5-' is not a number"),
        (["1.5", "(5"], 1, "'(5' is not a number"),
        (["1.5", "12.5(3)"], 1, "'12.5(3)' is not a number"),
        (["1.5", "$"], 1, "'$' is not a number"),
        (["1.5", "$ -"], 1, "'$ -' is not a number"),
        (["1.5", "5 - 7"], 1, "'5 - 7' is not a number"),
        (["1.5", "5 %%"], 1, "'5 %%' is not a number"),
        (["($1.010)", "900"], 0, "'($1.010)' is ambiguous: decimal point or thousands separator"),
        (["1.5", "12.5 C"], 1, "'12.5 C' is not a number"),
        (["1.5", "inf"], 1, "infinite"),
        (["1.5", "1e999"], 1, "infinite"),
        (["1,5", "-Infinity"], 1, "infinite"),
    ],
)
def test_other_cells_are_refused_with_their_line(column, cells, row, words):
    with pytest.raises(InputError) as caught:
        column(cells)
    assert words in caught.value.message
    assert caught.value.place == f"line {row + 2}, column x"


def test_ambiguous_columns_follow_the_others(column):
    assert column(["900", "1.010"], y=["2,5", "3"])[0] == [900, 1010]
    assert column(["900", "1,010"], y=["2.5", "3"])[0] == [900, 1010]
    assert column(["900", "1.010"], y=["1.234.567", "3"])[0] == [900, 1010]
    assert column(["1.001", "1.010"], y=["2.5", "3"])[0] == [1.001, 1.01]
    with pytest.raises(InputError, match="is ambiguous: decimal point"):
        column(["900", "1.010"], y=["2.5", "3"])


def test_the_separator_decides_ambiguous_cells(column):
    assert column(["1,000", "1,001"], ",")[0] == [1000, 1001], "quoted in a comma-separated table"
    found, notes = column(["1.001", "1.010"], ",")
    assert found == [1.001, 1.01]
    assert notes == ["'1.001' read with a decimal point, in: x; with --data.decimal comma it separates thousands"]
    with pytest.raises(InputError, match="is ambiguous: decimal point"):
        column(["1.001", "1.010"], ";")


def test_the_option_decides(column):
    assert column(["900", "1.010"], decimal="comma")[0] == [900, 1010]
    assert column(["900", "1.010"], decimal="point")[0] == [900, 1.01]
    assert column(["900", "1,010"], decimal="comma")[0] == [900, 1.01]
    assert column(["900", "1,010"], decimal="point")[0] == [900, 1010]
    with pytest.raises(InputError, match=r"'1.5' is not a number \(a decimal comma"):
        column(["900", "1.5"], decimal="comma")


@pytest.mark.parametrize("decimal", [".", ","])
@pytest.mark.parametrize("thousands", ["", ".", ",", "'", " ", "\u00a0", "\u202f"])
def test_random_columns_of_every_locale_are_read_back_or_refused(column, decimal, thousands):
    """Property: whatever the digits, a column is read as it was written or rejected, never misread."""
    if thousands == decimal:
        return
    generator = np.random.default_rng(4)
    read, refused = 0, []
    for _ in range(60):
        places = int(generator.integers(0, 5))
        values = np.round(generator.normal(0, 10.0 ** generator.integers(0, 7), 8), places)
        cells = [f"{value:,.{places}f}".translate({ord(","): thousands, ord("."): decimal}) for value in values]
        try:
            found, _ = column(cells, ";")
        except InputError as error:
            refused.append(error.message)
            continue
        np.testing.assert_array_equal(found, values)
        read += 1
    assert read > 40
    assert all("is ambiguous" in message for message in refused)


@pytest.mark.parametrize("decimal", [".", ","])
@pytest.mark.parametrize("form", ["{}", "({})", "{}-", "$({})", "({} USD)", "-{}%"])
def test_is_number_agrees_with_what_is_read(column, form, decimal):
    """Property: the filter of other readers accepts exactly what this one reads."""
    for text in ("7", "0.5", "1234.5", "1 234.5"):
        cell = form.format(text.replace(".", decimal))
        assert is_number(cell)
        assert abs(column([cell])[0][0]) == float(text.replace(" ", ""))
    for text in ("", "x", "5 kg", "5/7", "12:30", "2024-01-01"):
        assert not is_number(form.format(text))


def test_typed_columns_are_unchanged():
    frame = pd.DataFrame({"a": [1, None], "b": ["1,5", "2"], "c": pd.to_datetime(["2024-01-01"] * 2)})
    values, _ = numbers(table_of_frame(frame), ["a", "b"])
    np.testing.assert_array_equal(values, [[1, 1.5], [np.nan, 2]])
    with pytest.raises(InputError, match="DataFrame: column c: contains datetime64"):
        numbers(table_of_frame(frame), ["c"])


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_complex_columns_are_refused(dtype):
    table = table_of_frame(pd.DataFrame({"a": [1.0, 2.0], "b": np.array([1 + 2j, 3], dtype)}))
    with pytest.raises(InputError, match=rf"column b: contains {dtype}, not numbers"):
        numbers(table, ["a", "b"])
