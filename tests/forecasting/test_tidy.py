"""Irregular files: the effect and report of each policy, and the errors without one."""

from __future__ import annotations

import re
import sys

import numpy as np
import pandas as pd
import pytest
from seqssm_forecasting import files, zones
from seqssm_forecasting.reading import Reading
from seqssm_forecasting.tidy import Policies, tidy

from seqssm.errors import InputError

ROWS = 60
NAN = np.nan


@pytest.fixture
def frame():
    """60 hours of two series whose values encode their row and column."""
    dates = pd.date_range("2024-03-01", periods=ROWS, freq="h")
    return pd.DataFrame({"date": dates, "a": np.arange(ROWS) + 0.25, "b": 100.0 - np.arange(ROWS)})


@pytest.fixture
def run(tmp_path):
    """Write a frame, read it and make it regular."""

    def go(frame, freq=None, reading=None, name="x.csv", **policies):
        path = tmp_path / name
        frame.to_parquet(path) if name.endswith("parquet") else frame.to_csv(path, index=False)
        return tidy(files.read_series(path, reading or Reading()), Policies(**policies), freq)

    return go


def test_a_regular_file_is_unchanged_and_the_evidence_is_reported(run, frame):
    found = run(frame)
    np.testing.assert_array_equal(found.series.values, frame[["a", "b"]].to_numpy())
    assert (found.freq, found.evidence, found.notes) == ("h", "the step of all 59 rows", [])
    assert run(frame, "60min").evidence == "as given"


def test_gaps(run, frame):
    holes = frame.drop(index=[7, 20, 21, 22])
    with pytest.raises(InputError, match=r"line 9, column date: .*4 rows are missing in 2 places; --data\.gaps fill"):
        run(holes)
    found = run(holes, gaps="fill", missing="forward")
    assert found.notes[0] == "4 missing dates in 2 places filled with empty rows"
    assert "8 missing cells filled" in found.notes[1]
    assert "56 of" not in found.evidence
    assert found.evidence == "the step of 53 of 55 rows"
    assert list(found.series.dates) == list(frame["date"])
    assert list(found.series.values[[7, 20, 21, 22], 0]) == [6.25, 19.25, 19.25, 19.25]
    assert not found.measured_in(found.series)[[7, 20, 21, 22]].any()
    assert found.measured_in(found.series).sum() == 2 * 56


def test_gaps_in_calendar_steps(run):
    months = pd.DataFrame({"date": pd.date_range("2019-01-01", periods=40, freq="MS"), "a": np.arange(40.0)})
    found = run(months.drop(index=[5, 17]), gaps="fill", missing="linear")
    assert found.freq == "MS"
    np.testing.assert_allclose(found.series.values[:, 0], np.arange(40))
    days = pd.DataFrame({"date": pd.bdate_range("2024-01-01", periods=40), "a": np.arange(40.0)})
    found = run(days.drop(index=[5, 17]), "B", gaps="fill", missing="linear")
    assert len(found.series) == 40


def test_duplicates(run, frame):
    equal = pd.concat([frame.iloc[:10], frame.iloc[9:]])
    with pytest.raises(
        InputError, match=r"line 12, column date: .* also on line 11 \(1 duplicate date, with equal values"
    ):
        run(equal)
    found = run(equal, duplicates="equal")
    assert found.notes == ["1 duplicate date: one kept"]
    assert len(found.series) == ROWS
    conflict = equal.reset_index(drop=True)
    conflict.loc[10, "a"] = 50.0
    with pytest.raises(InputError, match="1 of them with other values"):
        run(conflict, duplicates="equal")
    for how, value in (("first", 9.25), ("last", 50.0), ("mean", 29.625)):
        found = run(conflict, duplicates=how)
        assert found.series.values[9, 0] == value
        assert "1 with other values" in found.notes[0]


def test_unsorted(run, frame):
    with pytest.raises(InputError, match=r"line 3, .*59 steps back.*--data\.unsorted sort"):
        run(frame.iloc[::-1])
    found = run(frame.iloc[::-1], unsorted="sort")
    np.testing.assert_array_equal(found.series.values, frame[["a", "b"]].to_numpy())
    assert found.notes == ["rows sorted by date (59 steps back in time)"]


def test_missing_cells(run, frame):
    frame.loc[[0, 5, 6, 59], "a"] = NAN
    with pytest.raises(InputError, match=r"line 2, column a: no value \(4 such cells in 1 of the columns\)"):
        run(frame)
    masked = run(frame, missing="mask")
    assert np.isnan(masked.series.values).sum() == 4
    assert masked.notes == ["4 missing cells excluded from normalisation, loss and errors (a 4)"]
    assert list(run(frame, missing="forward").series.values[[0, 5, 6, 59], 0]) == [1.25, 4.25, 4.25, 58.25]
    assert list(run(frame, missing="linear").series.values[[0, 5, 6, 59], 0]) == [1.25, 5.25, 6.25, 58.25]
    empty = run(frame.assign(b=NAN), missing="mask")
    assert (empty.series.columns, empty.empty) == (["a"], ["b"])
    assert empty.notes[0] == "series without any value dropped: b"
    with pytest.raises(InputError, match="contain no value"):
        run(frame.assign(a=NAN, b=NAN), missing="mask")


@pytest.mark.parametrize("value", [1e300, -sys.float_info.max])
def test_values_whose_variance_overflows(run, frame, value):
    """Databases write the largest number of the type for missing values."""
    frame.loc[4, "b"] = value
    with pytest.raises(
        InputError, match=r"b is -?1.*, above 1e\+100 in magnitude; --data\.sentinels (\S+) reads"
    ) as found:
        run(frame)
    (sentinel,) = re.findall(r"--data\.sentinels (\S+)", str(found.value))
    assert run(frame, sentinels=(float(sentinel),), missing="forward").series.values[4, 1] == frame["b"][3]


def test_sentinels_are_detected_and_replaced_only_on_request(run, frame):
    frame.loc[[3, 4], "b"] = -9999
    found = run(frame)
    assert found.notes == [
        "b contains -9999 2 times, far from all others: if it encodes a missing value, --data.sentinels -9999"
    ]
    found = run(frame, sentinels=(-9999.0,), missing="forward")
    assert found.notes[0] == "2 cells of -9999 read as missing (b 2)"
    assert list(found.series.values[3:5, 1]) == [98, 98]
    level = frame.assign(b=-9999.0 + np.arange(ROWS))
    assert run(level).notes == [], "regular values of a series are not sentinels"


def test_infinite_numbers_are_refused(run, frame):
    frame.loc[3, "a"] = np.inf
    with pytest.raises(InputError, match="line 5, column a: is infinite"):
        run(frame)
    with pytest.raises(InputError, match="row 4, column a: is infinite"):
        run(frame, name="x.parquet")


# -- long files --------------------------------------------------------------------------------------------------------


def long(frame):
    return frame.melt(id_vars="date", var_name="unique_id", value_name="y").rename(columns={"date": "ds"})


@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
def test_long_equals_wide(run, frame, name):
    table = long(frame)[["unique_id", "ds", "y"]]
    found = run(table, name=name)
    np.testing.assert_array_equal(found.series.values, frame[["a", "b"]].to_numpy())
    assert (found.series.columns, list(found.series.dates)) == (["a", "b"], list(frame["date"]))
    assert found.notes == ["long layout: 2 series (unique_id, ds, y)"]
    mixed = run(table.sample(frac=1, random_state=1), name=name, unsorted="sort").series
    pd.testing.assert_frame_equal(
        pd.DataFrame(mixed.values, columns=mixed.columns)[["a", "b"]], frame[["a", "b"]], check_dtype=False
    )
    renamed = table.set_axis(["shop", "when", "sold"], axis=1)
    reading = Reading(id_column="shop", time_column="when", value_column="sold")
    np.testing.assert_array_equal(run(renamed, reading=reading, name=name).series.values, found.series.values)
    with pytest.raises(InputError, match=r"no column shops \(--data\.id_column\)"):
        run(renamed, reading=Reading(id_column="shops"), name=name)


def test_ragged_series(run, frame):
    table = long(frame)
    table = table[~((table["unique_id"] == "a") & (table["ds"] < frame["date"][10]))]
    table = table[~((table["unique_id"] == "b") & (table["ds"] > frame["date"][49]))]
    with pytest.raises(InputError, match=r"different spans \(a 2024-03-01 10:00:00 to .*b 2024.*--data\.ragged mask"):
        run(table, ragged="error")
    masked = run(table)
    assert len(masked.series) == ROWS
    assert np.isnan(masked.series.values).sum(0).tolist() == [10, 10]
    assert (~masked.observed_in(masked.series)).sum(0).tolist() == [10, 10]
    assert "20 cells outside the span of their series" in masked.notes[1]
    assert "a from 2024-03-01 10:00:00, b to 2024-03-03 01:00:00" in masked.notes[1]
    hole = table[~((table["unique_id"] == "a") & (table["ds"] == frame["date"][30]))]
    with pytest.raises(InputError, match=r"column a: no value; --data.missing"):
        run(hole)
    inner = run(hole, missing="forward")
    assert np.isnan(inner.series.values).sum(0).tolist() == [10, 10], "outside of its span a series is not filled"
    assert inner.series.values[30, 0] == 29.25
    cut = run(table, ragged="intersect")
    np.testing.assert_array_equal(cut.series.values, frame[["a", "b"]].to_numpy()[10:50])
    assert "20 of 60 dates dropped" in cut.notes[1]


def test_covariates_of_a_long_file(run, frame):
    table = long(frame)
    table["holiday"] = table["ds"].dt.hour % 2
    table["price"] = table["y"] * 2
    found = run(table, reading=Reading(future=("holiday", "price")))
    assert found.series.columns == ["a", "b", "holiday", "price[a]", "price[b]"]
    assert found.series.future == ["holiday", "price[a]", "price[b]"]
    table.loc[table["ds"] > frame["date"][49], "y"] = NAN
    found = run(table, reading=Reading(future=("holiday", "price")))
    assert (len(found.series), len(found.future)) == (50, 10)
    assert np.isnan(found.future.values[:, :2]).all()


# -- zones, formats ----------------------------------------------------------------------------------------------------


def test_offsets_are_brought_to_utc_and_a_zone_gives_local_times(run):
    clock = pd.date_range("2024-03-30 20:00", periods=12, freq="h", tz="Europe/Berlin")  # the night of the change
    frame = pd.DataFrame({"date": [stamp.isoformat() for stamp in clock], "a": np.arange(12.0)})
    found = run(frame)
    assert list(found.series.dates) == list(clock.tz_convert("UTC").tz_localize(None))
    assert (found.series.zone, found.freq) == ("UTC", "h")
    assert "converted to UTC" in found.notes[0]
    found = run(frame, reading=Reading(timezone="Europe/Berlin"))
    assert list(zones.local(found.series.dates, "Europe/Berlin", True).hour[3:8]) == [23, 0, 1, 3, 4]
    assert list(zones.written(found.series.dates, found.series.zone, found.series.utc)) == list(clock)
    plain = frame.assign(date=clock.tz_localize(None))
    with pytest.raises(InputError, match=r"1 row is missing; if the clocks changed here, set --data.timezone"):
        run(plain)
    assert run(plain, reading=Reading(timezone="Europe/Berlin")).freq == "h", "no hour of local time is missing"
    parquet = pd.DataFrame({"date": clock, "a": np.arange(12.0)})
    assert run(parquet, name="x.parquet").series.zone == "Europe/Berlin"


def test_days_of_local_time(run):
    clock = pd.date_range("2024-03-25", periods=12, freq="D", tz="Europe/Berlin")
    frame = pd.DataFrame({"date": [stamp.isoformat() for stamp in clock], "a": np.arange(12.0)})
    found = run(frame, reading=Reading(timezone="Europe/Berlin"))
    assert (found.freq, found.series.utc) == ("D", False)
    assert list(zones.written(found.series.dates, found.series.zone, False)) == list(clock)


def hours(first, periods, zone="Europe/Berlin"):
    """Local times without offset, as wall clocks show them."""
    clock = pd.date_range(first, periods=periods, freq="h", tz=zone)
    return pd.DataFrame({"date": clock.tz_localize(None), "a": np.arange(float(periods))}), clock


BERLIN = Reading(timezone="Europe/Berlin")


@pytest.mark.parametrize("end", [4, 5, 6, 7, 12])
def test_a_file_may_end_inside_the_repeated_hour(run, end):
    frame, clock = hours("2024-10-26 22:00", end)
    found = run(frame, reading=BERLIN)
    assert list(zones.written(found.series.dates, found.series.zone, True)) == list(clock)


@pytest.mark.parametrize("start", [0, 1, 2, 3])
def test_a_file_may_start_inside_the_repeated_hour(run, start):
    whole, clock = hours("2024-10-27 01:00", 12)
    found = run(whole.iloc[start:], reading=BERLIN)
    assert list(zones.written(found.series.dates, found.series.zone, True)) == list(clock[start:])


def test_a_repeated_hour_that_appears_once_is_resolved_by_the_step(run):
    frame, clock = hours("2024-10-26 22:00", 12)
    with pytest.raises(InputError, match=r"1 row is missing; --data.gaps fill"):
        run(frame.drop(index=5), reading=BERLIN)
    found = run(frame.drop(index=5), reading=BERLIN, gaps="fill", missing="forward")
    assert list(zones.written(found.series.dates, found.series.zone, True)) == list(clock)
    assert "appear once, read as the hour that follows the preceding row: 1 (first: 2024-10-27 02" in found.notes[0]


def test_quarter_hours_in_any_order_of_the_repeated_hour(run):
    clock = pd.date_range("2024-10-27 00:00", periods=40, freq="15min", tz="Europe/Berlin")
    frame = pd.DataFrame({"date": clock.tz_localize(None), "a": np.arange(40.0)})
    assert list(zones.written(run(frame, reading=BERLIN).series.dates, "Europe/Berlin", True)) == list(clock)
    mixed = pd.concat([frame.iloc[20:], frame.iloc[:20]])
    found = run(mixed, reading=BERLIN, unsorted="sort")
    assert found.series.values[:, 0].tolist() == list(range(40))


def test_local_times_that_do_not_exist_are_the_following_hour(run):
    """A clock that was not set forward shows 02:00 at 03:00 local time."""
    frame = pd.DataFrame({"date": pd.date_range("2024-03-31", periods=8, freq="h"), "a": np.arange(8.0)}).drop(index=3)
    found = run(frame, reading=BERLIN)
    assert found.freq == "h"
    assert "local times that do not exist in Europe/Berlin" in found.notes[0]
    with pytest.raises(InputError, match="duplicate date"):
        run(pd.DataFrame({"date": pd.date_range("2024-03-31", periods=8, freq="h"), "a": 1.0}), reading=BERLIN)


def test_days_need_no_midnight(run):
    """In Sao Paulo the clocks went forward at midnight, so 2018-11-04 00:00 does not exist."""
    frame = pd.DataFrame({"date": pd.date_range("2018-10-01", periods=60, freq="D").astype(str), "a": np.arange(60.0)})
    found = run(frame, reading=Reading(timezone="America/Sao_Paulo"))
    assert (found.freq, len(found.series)) == ("D", 60)


@pytest.mark.parametrize(("zone", "day"), [("America/Sao_Paulo", "2018-11-04"), ("America/Santiago", "2018-08-12")])
def test_days_without_midnight_begin_an_hour_later(run, zone, day):
    """pandas' daily means of hours in such a zone have one date at 01:00; so do files that were written from them."""
    hours = pd.date_range("2018-07-15 12:00", "2018-12-15", freq="h", tz="UTC").tz_convert(zone)
    daily = pd.Series(1.0, index=hours).resample("D").sum()
    assert f"{day} 01:00" in str(daily.index[daily.index.hour == 1][0])
    frame = pd.DataFrame({"ds": daily.index, "a": daily.to_numpy()})
    typed = run(frame, name="x.parquet")
    text = run(frame.assign(ds=frame["ds"].astype(str)), reading=Reading(timezone=zone))
    for found in (typed, text):
        assert (found.freq, len(found.series)) == ("D", len(daily))
        written = zones.written(found.series.dates, found.series.zone, found.series.utc)
        assert [str(one) for one in written] == [str(one) for one in daily.index]


def test_date_formats_and_other_encodings(tmp_path):
    path = tmp_path / "x.csv"
    lines = [f"{day:02d}.12.2024;{day},5;{day}" for day in range(1, 20)]
    path.write_bytes(("Datum;Größe;b\n" + "\n".join(lines) + "\n").encode("cp1252"))
    with pytest.raises(
        InputError, match=r"'01\.12\.2024' is not a date.*--data\.date_format for other forms, perhaps '%d.%m.%Y'"
    ):
        files.read_series(path, Reading(encoding="cp1252"))
    (series,) = files.read_series(path, Reading(date_format="%d.%m.%Y"))
    assert (series.columns, series.values[0, 0]) == (["Größe", "b"], 1.5)
    assert str(series.dates[18]) == "2024-12-19 00:00:00"
    assert {"columns separated by semicolons", "decimal comma in numbers"} <= set(series.notes)
    assert any("read as Windows-1252; --data.encoding" in note for note in series.notes)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"encoding": "klingon"}, "encoding klingon"),
        ({"encoding": "base64"}, "encoding base64"),
        ({"separator": "xy"}, "separator xy"),
        ({"comment": "//"}, "--data.comment //"),
        ({"skip_rows": -1}, "--data.skip_rows -1"),
        ({"timezone": "Berlin"}, "timezone Berlin"),
    ],
)
def test_refused_options(given, words):
    with pytest.raises(InputError, match=words):
        Reading(**given)


def test_a_wrong_date_does_not_fill_the_memory(run, frame):
    frame["date"] = frame["date"].astype(str)
    frame.loc[59, "date"] = "9024-03-03 11:00:00"
    with pytest.raises(InputError):
        run(frame, gaps="fill", missing="forward")


def test_damaged_parquet_and_npz_are_one_line(tmp_path, frame):
    frame.to_parquet(tmp_path / "x.parquet")
    np.savez(tmp_path / "x.npz", data=np.arange(60.0).reshape(20, 3, 1))
    generator = np.random.default_rng(4)
    for name in ("x.parquet", "x.npz"):
        good = np.frombuffer((tmp_path / name).read_bytes(), dtype=np.uint8)
        refused = []
        for _ in range(100):
            damaged = good.copy()[: generator.integers(1, len(good))] if generator.random() < 0.3 else good.copy()
            damaged[generator.integers(0, len(damaged), 3)] = generator.integers(0, 256, 3)
            path = tmp_path / f"damaged{name[1:]}"
            path.write_bytes(damaged.tobytes())
            try:
                tidy(files.read_series(path), Policies(missing="mask", unsorted="sort", gaps="fill", duplicates="last"))
            except InputError as error:
                refused.append(str(error))
        assert len(refused) > 20
        assert not any("\n" in line for line in refused)
