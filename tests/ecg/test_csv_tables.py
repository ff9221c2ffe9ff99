"""CSV files of samples: separators, names and units, header blocks, empty lines; no cell is shown in an error."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from seqssm_ecg import simulate
from seqssm_ecg.csv_tables import csv_blocks, read_head
from seqssm_ecg.files import ArraySpec, read_recording
from seqssm_ecg.leads import LEADS

from seqssm.errors import InputError


@pytest.fixture
def values():
    return simulate.recording(["PVC"], 2.0, 250.0, seed=1)


def test_csv_arrays_name_their_leads(tmp_path):
    (tmp_path / "a.csv").write_text("ii,I,resp\n1,2,9\n3,,9\n5,6,9\n")
    found = read_recording(tmp_path / "a.csv", array=ArraySpec(100.0))
    assert found.values["II"].tolist() == [1, 3, 5]
    assert np.isnan(found.values["I"]).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I;II\n1,5;2\n3;4,25\n", [1.5, 3]),
        ("I\tII\n1.5\t2\n3\t4\n", [1.5, 3]),
        ("1.5,2\n3,4\n", [1.5, 3]),
        ("\ufeffI,II\n1.5,2\n3,4\n", [1.5, 3]),
        ("time;DI;DII\n0;1,5;2\n1;3,0;4\n", [1.5, 3]),
        ('I,II\n"1,5",2\n3,"-0,125"\n', [1.5, 3]),
        ('I\n"1,5"\n3\n', [1.5, 3]),
    ],
)
def test_dialects_of_csv_arrays(tmp_path, text, expected):
    (tmp_path / "a.csv").write_text(text)
    leads = None if "I" in text else ("I", "II")
    found = read_recording(tmp_path / "a.csv", array=ArraySpec(100.0, leads))
    assert found.values["I"].tolist() == expected
    assert found.notes == (["unused signals: time"] if "time" in text else [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I (uV),II (uV)\n1000,2000\n3000,4000\n", [2.0, 4.0]),
        ("I_mV,II_mV\n1,2\n3,4\n", [2.0, 4.0]),
        ("'sample #','II','V5'\n0,2,0.5\n1,4,0.5\n", [2.0, 4.0]),
        ("I;II\nµV;µV\n1000,5;2000,5\n3000;4000\n", [2.0005, 4.0]),
        ('"I, mV","II, mV"\n1,2\n3,4\n', [2.0, 4.0]),
        ('"I, uV";"II, uV"\n1000,5;2000,5\n3000;4000\n', [2.0005, 4.0]),
        ("I (uV),II (uV)\n1000,2000\n3000,4000\n@", [2.0, 4.0]),
    ],
)
def test_units_in_the_names_of_csv_columns(tmp_path, text, expected):
    """The advice was --lead-map 'I (mV)=II', which read lead I as II; a unit was ignored."""
    (tmp_path / "a.csv").write_text(text.rstrip("@"), encoding="utf-8")
    spec = ArraySpec(100.0, ("I", "II") if text.endswith("@") else None)
    found = read_recording(tmp_path / "a.csv", array=spec)
    np.testing.assert_allclose(found.values["II"], expected)


def test_units_that_differ_are_an_error(tmp_path):
    (tmp_path / "a.csv").write_text("I (uV),II (mV)\n1,2\n")
    with pytest.raises(InputError, match=r"leads differ in unit \(mV, uV\)"):
        read_recording(tmp_path / "a.csv", array=ArraySpec(100.0))
    (tmp_path / "a.csv").write_text("I (mV)\n1\n")
    with pytest.raises(InputError, match="the unit is mV in the file, but is given as uV"):
        read_recording(tmp_path / "a.csv", array=ArraySpec(100.0, None, "uV"))


def test_the_advice_on_lead_names_cannot_be_pasted_into_a_wrong_lead(tmp_path):
    (tmp_path / "a.csv").write_text("sample #,MLII (mV)\n0,1\n1,2\n")
    with pytest.raises(InputError, match=r"--lead-map 'sample #=LEAD', or .*LEAD is one of I, II"):
        read_recording(tmp_path / "a.csv", array=ArraySpec(100.0))
    with pytest.raises(InputError, match="LEAD is not one of"):
        read_recording(tmp_path / "a.csv", {"sample #": "LEAD"}, ArraySpec(100.0))
    for name in ("MLII", "mlii (mV)"):
        assert read_recording(tmp_path / "a.csv", {name: "II"}, ArraySpec(100.0)).values["II"].tolist() == [1, 2]


WATCH = """Name,Jane Doe
Date of Birth,"Jan 1, 1960"
Classification,Sinus Rhythm
Symptoms,
Device,"Watch6,1"
Sample Rate,512.5 hertz


Lead,Lead II
Unit,µV

1000
-500.5
250
"""


@pytest.mark.parametrize(
    "text",
    [
        WATCH,
        WATCH.replace("-500.5", "-500,5"),
        WATCH.replace("-500.5", '"-500,5"').replace("512.5 hertz", '"512,5 Hertz"').replace("Lead,Lead", "Ableitung,"),
        WATCH.replace("Jane Doe", "12\nID\n12345").replace("Lead,", "7\n\nLead,"),
        WATCH.replace(",", ";").replace("-500.5", "-500,5").replace("Unit", "Einheit").replace("\n", "\r\n"),
    ],
)
def test_exports_of_watches(tmp_path, text):
    """The error called them a table with the columns Name, Jane Doe."""
    (tmp_path / "ecg.csv").write_bytes(text.encode())
    found = read_recording(tmp_path / "ecg.csv")
    assert (found.rate_hz, found.leads, found.notes) == (512.5, ("II",), [])
    np.testing.assert_allclose(found.values["II"], [1, -0.5005, 0.25], atol=1e-6)
    with pytest.raises(InputError, match=r"header block: 512.5 samples per second, but .* as 500 Hz"):
        read_recording(tmp_path / "ecg.csv", array=ArraySpec(500.0))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("time,I,II\n", "a.csv: line 1: no samples follow the names of the columns"),
        ("I\nmV\n\n", "a.csv: line 3: no samples follow"),
        ("\n\n", "a.csv: is empty"),
        ('I,II\n"1,500","2,500"\n', "line 2 has text instead of a number, or another decimal mark"),
        ("time,I\n0:00,004,1\n0:00,008,2\n", "a.csv: line 2: 3 values for 2 named columns; numbers with decimal comm"),
    ],
)
def test_tables_without_certain_samples_are_refused(tmp_path, text, message):
    """The errors were those of pandas, or asked for a sampling rate."""
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_recording(tmp_path / "a.csv")


@pytest.mark.parametrize("head", [WATCH[:-18], "II (uV)\n", "\nII\n", ""])
def test_an_empty_line_in_a_single_column_is_a_missing_sample(tmp_path, head):
    """Later samples moved; lines at the end are no samples."""
    (tmp_path / "a.csv").write_bytes(f'{head}\n1000\n\n  \n"500"\nnan\n\n\n'.replace("\n", "\r\n").encode())
    spec = ArraySpec(None if "Jane" in head else 100.0, None if head else ("II",), "uV" if not head else "mV")
    found = read_recording(tmp_path / "a.csv", array=spec)
    unit = 1000 if head == "\nII\n" else 1
    np.testing.assert_array_equal(found.values["II"] / unit, np.float32([1, np.nan, np.nan, 0.5, np.nan]))
    pieces = list(csv_blocks(tmp_path / "a.csv", read_head(tmp_path / "a.csv"), 2))
    assert [one.shape for one in pieces] == [(1, 2), (1, 2), (1, 1)]


@pytest.mark.parametrize(
    "text",
    [
        WATCH.replace("Sample Rate", "Rate").replace(" hertz", ""),
        WATCH.replace("Lead II", "Doe"),
        WATCH.replace("µV", "Doe"),
        WATCH.replace("-500.5", "Doe"),
        "I,II\n1,2\nDoe,3\n",
        "Name,Doe\nJane,Doe\n",
    ],
)
def test_no_error_shows_a_cell_of_a_table(tmp_path, text):
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as error:
        read_recording(tmp_path / "a.csv")
    assert not any(word in str(error.value) for word in ("Doe", "Jane", "1960"))


def test_csv_exports_of_physionet(tmp_path):
    text = "'Elapsed time','II','V5'\n'hh:mm:ss.mmm','mV','mV'\n'{}.998',0.5,1\n'{}.000',0.25,2\n'{}.002',-,3\n"
    (tmp_path / "a.csv").write_text(text.format("1:59:59", "2:00:00", "2:00:00"))
    found = read_recording(tmp_path / "a.csv")
    assert (found.rate_hz, found.leads) == (500.0, ("II", "V5"))
    np.testing.assert_array_equal(found.values["II"], [0.5, 0.25, np.nan])
    (tmp_path / "b.csv").write_text("'Elapsed time','II'\n'seconds','uV'\n0.000,500\n0.004,250\n0.008,1\n")
    found = read_recording(tmp_path / "b.csv")
    assert (found.rate_hz, found.values["II"].tolist()) == (250.0, [0.5, 0.25, np.float32(0.001)])


@pytest.mark.parametrize("encoding", ["cp1252", "utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_encodings_of_spreadsheets(tmp_path, encoding):
    """The unit of `µV` decides on the size of the signal."""
    (tmp_path / "a.csv").write_text("Zeit (s);I [µV]\n0,000;500,5\n0,002;-250,25\n0,004;0,5\n", encoding=encoding)
    found = read_recording(tmp_path / "a.csv")
    assert (found.rate_hz, found.leads) == (500.0, ("I",))
    np.testing.assert_allclose(found.values["I"], [0.5005, -0.25025, 0.0005])


def test_exports_of_a_chest_strap_with_dates(tmp_path):
    """The telephone's times are those of packets; the sensor's are in ns since 2000."""
    rows = [
        f"2023-05-03T10:11:{12 + k // 73 / 2:06.3f};{736_419_072 * 10**9 + k * 7_692_308};{k / 0.13:.6f};{k - 10}"
        for k in range(300)
    ]
    text = "\n".join(["Phone timestamp;sensor timestamp [ns];timestamp [ms];ecg [uV]", *rows])
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match=r"predict --lead-map 'ecg \[uV\]=LEAD'"):
        read_recording(tmp_path / "a.csv")
    found = read_recording(tmp_path / "a.csv", lead_map={"ecg [uV]": "I"})
    assert (found.rate_hz, found.leads) == (130.0, ("I",))
    np.testing.assert_allclose(found.values["I"], (np.arange(300) - 10) / 1000, rtol=1e-6)
    (tmp_path / "b.csv").write_text("timestamp,II\n2024-02-28 23:59:59.996,1\n2024-02-29 00:00:00.000,2\n")
    assert read_recording(tmp_path / "b.csv").rate_hz == 250.0
    (tmp_path / "a.csv").rename(tmp_path / "a.txt")
    with pytest.raises(InputError, match=r"a\.txt: its suffix is of no known format.* table of samples is named \.csv"):
        read_recording(tmp_path / "a.txt")


@pytest.mark.parametrize(
    "text",
    [
        "time,II\n2024-01-01 00:00:00,1\n2024-01-01 00:00:04,2\n2024-01-01 00:00:08,3\n",
        "time_ms,II\n2024-01-01 00:00:00,1\n2024-01-01 00:00:04,2\n2024-01-01 00:00:08,3\n",
        "time,II\n0:00:00,1\n0:00:04,2\n0:00:08,3\n",
        "time,II\n" + "".join(f"2024-01-01 00:00:0{k // 50 / 5 + k % 50 / 1000:.3f},{k}\n" for k in range(400)),
    ],
)
def test_dates_seconds_apart_and_of_packets_have_no_rate(tmp_path, text):
    """Four seconds were taken for milliseconds, and the times of packets for those of samples."""
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match="arrays need a sampling rate"):
        read_recording(tmp_path / "a.csv")


def test_dates_do_not_contradict_a_column_of_times(tmp_path):
    rows = [f"2024-01-01 00:00:{k // 73 * 0.292 + k % 73 / 1000:06.3f},{4 * k},{k}" for k in range(300)]
    (tmp_path / "a.csv").write_text("\n".join(["timestamp,t_ms,II", *rows]))
    assert read_recording(tmp_path / "a.csv").rate_hz == 250.0
    text = "t_ms,Sensor T,II\n" + "".join(f"{4 * k},{36 + k / 100},{k}\n" for k in range(9))
    (tmp_path / "b.csv").write_text(text)
    assert read_recording(tmp_path / "b.csv").rate_hz == 250.0
    text = "timestamp,t_ms,II\n" + "".join(f"2024-01-01 00:00:00.{5 * k:03d},{4 * k},{k}\n" for k in range(9))
    (tmp_path / "c.csv").write_text(text)
    found = read_recording(tmp_path / "c.csv")
    assert found.rate_hz == 250.0
    assert "columns t_ms and timestamp have 250 and 200 samples per second; t_ms is used" in found.notes


def test_one_damaged_byte_does_not_change_the_encoding(tmp_path):
    text = "time (s),I (µV),Größe\n0,500,1\n0.004,250,2\n".encode()
    (tmp_path / "a.csv").write_bytes(text.replace(b"\xc3\xb6", b"\xf6"))
    np.testing.assert_allclose(read_recording(tmp_path / "a.csv").values["I"], [0.5, 0.25])


def test_numbers_of_rows_without_a_name_are_no_lead(tmp_path):
    """R writes a header that is shorter than its rows; a separator at the end of the rows is something else."""
    (tmp_path / "a.csv").write_text('"I";"V5"\n"1";0;0\n"2";0;0\n"3";0,5;-0,25\n')
    found = read_recording(tmp_path / "a.csv", array=ArraySpec(100.0))
    np.testing.assert_array_equal([found.values[lead] for lead in ("I", "V5")], [[0, 0, 0.5], [0, 0, -0.25]])


def test_cells_that_do_not_count_the_rows_are_not_left_out(tmp_path):
    (tmp_path / "a.csv").write_text('"I\n(mV)","II\n(mV)"\n0.0,0.1\n0.5,0.2\n')
    with pytest.raises(InputError):  # names with a line break; I had the values of II
        read_recording(tmp_path / "a.csv", array=ArraySpec(100.0))
    (tmp_path / "a.csv").write_text("II\n1,100\n2,105\n")
    assert read_recording(tmp_path / "a.csv", array=ArraySpec(100.0)).values["II"].tolist() == [100, 105]


QUOTES = "; numbers with decimal commas need quotes"
THOUSANDS = ": the comma before three digits is a decimal mark or a thousands separator"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("II (mV)\n0,000\n0,050\n0,1\n", "line 2: 2 values for 1 named column" + QUOTES),
        ("II\n512,0\n511,0\n", "line 2: 2 values for 1 named column" + QUOTES),
        ("II (uV)\n880\n1,014\n", "line 3: 2 values for 1 named column" + QUOTES),
        ('II (uV)\n"880"\n"1,014"\n', "line 3 has text instead of a number, or another decimal mark"),
        ("I,II\n1,2,\n3,4,\n", "line 2: 3 values for 2 named columns$"),
        ("II\n1,\n5,\n", "line 2: 2 values for 1 named column$"),
        ("I;II;III\n0,1;2\n", "line 2: 2 values for 3 named columns$"),
        ("I (uV);II (uV)\n880;3\n1,014;4\n-2,850;5\n", "line 3" + THOUSANDS),
        ('time,I\n"0,000","880"\n"0,004","1,014"\n', "line 3" + THOUSANDS),
        ("I;II\n0,5;880\n1,014;1,014\n", "line 3" + THOUSANDS),
        (WATCH.replace("-500.5", "-1,500"), "line 13" + THOUSANDS),
    ],
)
def test_commas_that_may_be_of_thousands_or_of_columns_are_refused(tmp_path, text, message):
    """1,014 uV was read as 1.014, and the two integers 512,0 as 512."""
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_recording(tmp_path / "a.csv")


@pytest.mark.parametrize(
    "text", ["I\tII\n1,014\t3\n0,880\t4\n", "time;I\n1,000;1,014\n1,004;0,88\n", "1,014;3;5\n0,88;4;5\n"]
)
def test_one_number_shows_that_the_commas_of_a_column_are_decimal_marks(tmp_path, text):
    (tmp_path / "a.csv").write_text(text)
    found = read_recording(tmp_path / "a.csv", array=ArraySpec(250.0, None if "I" in text else ("I", "II", "III")))
    np.testing.assert_allclose(found.values["I"], [1.014, 0.88], rtol=1e-6)


@pytest.mark.parametrize("between", ["\n\n", "\r\r\n", "\n \n"])
def test_doubled_line_ends_are_no_missing_samples(tmp_path, between):
    (tmp_path / "a.csv").write_bytes(between.join(["I", *(f"0.{k}" for k in range(1, 9))]).encode())
    found = read_recording(tmp_path / "a.csv", array=ArraySpec(100.0))
    np.testing.assert_allclose(found.values["I"], np.arange(1, 9) / 10, rtol=1e-6)


def test_a_list_of_recordings_is_not_a_signal(tmp_path):
    (tmp_path / "a.csv").write_text("path,label,patient\nb.csv,AF,1\n")
    with pytest.raises(InputError, match=r"a.csv: is a table with text, not a signal; pass the recordings that it"):
        read_recording(tmp_path / "a.csv", array=ArraySpec(100.0))


def test_text_in_a_csv_array_is_an_error(tmp_path):
    (tmp_path / "a.csv").write_text("I,II\n1,2\nx,3\n")
    with pytest.raises(InputError, match=r"a.csv: is not a readable array: line 3 has text instead of a number"):
        read_recording(tmp_path / "a.csv", array=ArraySpec(100.0))


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize(("separator", "decimal"), [(",", "."), (";", ","), ("\t", ".")])
@pytest.mark.parametrize("count", [12, 3, 2])
def test_a_line_that_numbers_the_columns_is_not_a_sample(tmp_path, first, separator, decimal, count):
    """It was read as a sample of 0 to 11 mV."""
    table = pd.DataFrame(np.arange(60.0).reshape(-1, 12)[:, :count] / 8).rename(columns=lambda n: n + first)
    table.to_csv(tmp_path / "a.csv", index=False, sep=separator, decimal=decimal)
    found = read_recording(tmp_path / "a.csv", array=ArraySpec(100.0, None if count == 12 else LEADS[:count]))
    np.testing.assert_allclose(found.values["II"], table.iloc[:, 1])
    assert found.notes == ["line 1 numbers the columns, and is not a sample"]


@pytest.mark.parametrize(
    "text",
    [
        "0,1\n1,3\n2,4\n",
        "1,2\n2,5\n3,4\n",
        "0,1,3\n1,2,3\n",
        "2,3,4\n1,2,3\n",
        "0\n1\n2\n",
        "0,1\n3,-2\n",
        "1,2,3\n-4,0,1\n",
    ],
)
def test_samples_that_may_number_the_columns(tmp_path, text):
    """Of two columns, the first may number the samples."""
    (tmp_path / "a.csv").write_text(text)
    lines = text.split()
    found = read_recording(tmp_path / "a.csv", array=ArraySpec(100.0, LEADS[: lines[0].count(",") + 1]))
    assert found.values["I"].tolist() == [float(line.split(",")[0]) for line in lines]
    assert found.notes == []
