"""Tables of samples with a column of times: it gives the sampling rate, or contradicts the given one."""

from __future__ import annotations

import re

import pytest
from seqssm_ecg.files import read_recording
from seqssm_ecg.recording import ArraySpec

from seqssm.errors import InputError


def timed(path, name, times):
    lines = [f"{name},I,II", *(f"{time!r},{n % 5},{n % 3}" for n, time in enumerate(times))]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("name", "times", "rate"),
    [
        ("time", [n * 0.01 for n in range(300)], 100.0),
        ("t_ms", [n * 4 for n in range(300)], 250.0),
        ("Time [ms]", [float(n) for n in range(300)], 1000.0),
        ("time", [round(1700000000 + n / 360, 3) for n in range(300)], 360.0),
        ("time", [n * 2.0 for n in range(300)], 500.0),
        ("t_ms", [round(n / 0.8) for n in range(800)], 800.0),
        ("time", [round(n / 75, 2) for n in range(300)], 75.0),
        ("time_s", [(n * 2 - (n % 50 == 7)) / 1000 for n in range(3000)], 500.0),
        ("Elapsed time (s)", [n * 0.01 for n in range(300)], 100.0),
        ("time in s", [n * 0.01 for n in range(300)], 100.0),
        ("time_min", [n / 6000 for n in range(300)], 100.0),
        ("timestamp", [1700000000000000 + n * 10000 for n in range(300)], 100.0),
        ("Temps", [float("nan") if n == 7 else n * 0.01 for n in range(300)], 100.0),
    ],
)
def test_a_column_of_times_gives_the_rate(tmp_path, name, times, rate):
    """It was ignored: without --array-rate-hz an error, and another rate than the column's was accepted."""
    path = timed(tmp_path / "a.csv", name, times)
    assert read_recording(path).rate_hz == pytest.approx(rate, rel=2e-3)
    assert read_recording(path).notes == [f"unused signals: {name}"]
    assert read_recording(path, array=ArraySpec(rate * 1.005)).rate_hz == rate * 1.005
    with pytest.raises(InputError, match=rf"column {re.escape(name)}: [\d.]+ samples per second, but .* as 130 Hz"):
        read_recording(path, array=ArraySpec(130.0))


def test_columns_of_times_that_contradict_each_other(tmp_path):
    """The first one was taken."""
    (tmp_path / "a.csv").write_text("time_s,t_ms,I\n0,0,1\n0.004,2,2\n0.008,4,3\n")
    with pytest.raises(InputError, match="columns time_s and t_ms: 250 and 500 samples per second; remove the wrong"):
        read_recording(tmp_path / "a.csv")
    found = read_recording(tmp_path / "a.csv", array=ArraySpec(250.0))
    assert (found.rate_hz, found.notes[1:]) == (
        250,
        ["column t_ms has 500 samples per second; the given 250 Hz is used"],
    )
    with pytest.raises(
        InputError, match="column time_s: 250 samples per second, but the sampling rate is given as 400"
    ):
        read_recording(tmp_path / "a.csv", array=ArraySpec(400.0))
    (tmp_path / "a.csv").write_text("time_s,time,I\n0,0:00.000,1\n0.004,0:00.004,2\n0.008,0:00.008,3\n")
    assert read_recording(tmp_path / "a.csv").rate_hz == 250


@pytest.mark.parametrize(
    ("names", "first", "second", "rate"),
    [
        ("timestamp,time", lambda n: 4 * n, lambda n: round(n / 256, 6), 256),
        ("time_us,time_ms", lambda n: 1015 * n, lambda n: n, 1e6 / 1015),
        ("time_ms,timestamp_ms", lambda n: 4 * n, lambda n: round(1.7e12 + 4.06 * n), 250),
    ],
)
def test_the_finest_of_columns_of_times_that_differ_a_little_is_used(tmp_path, names, first, second, rate):
    """They were an error, with a given rate, too."""
    lines = [f"{first(n)},{second(n)},{n % 5}" for n in range(300)]
    (tmp_path / "a.csv").write_text("\n".join([f"{names},I", *lines]))
    found = read_recording(tmp_path / "a.csv")
    assert found.rate_hz == pytest.approx(rate, rel=1e-3)
    assert re.fullmatch(r"columns \w+ and \w+ have [\d.]+ and [\d.]+ samples per second; \w+ is used", found.notes[1])
    assert read_recording(tmp_path / "a.csv", array=ArraySpec(rate)).rate_hz == rate


@pytest.mark.parametrize(
    "text",
    [
        "time;I\n12:00:00,000;1\n12:00:00,004;2\n",
        'time,I\n"12:00:00,000",1\n"12:00:00,004",2\n',
        "time;I\n12:00:00,000;1.5\n12:00:00,004;2.5\n",
    ],
)
def test_clock_times_with_decimal_commas(tmp_path, text):
    """The column had no rate, or the samples were no numbers."""
    (tmp_path / "a.csv").write_text(text)
    found = read_recording(tmp_path / "a.csv")
    assert (found.rate_hz, found.values["I"].tolist()[1]) == (250, 2.5 if "." in text else 2)


def test_a_column_that_counts_samples_has_no_rate(tmp_path):
    path = timed(tmp_path / "a.csv", "time", range(300))
    assert read_recording(path, array=ArraySpec(130.0)).rate_hz == 130
    with pytest.raises(InputError, match="arrays need a sampling rate"):
        read_recording(path)
    path = timed(tmp_path / "b.csv", "time", [n * 0.01 + (n > 50) + (n > 90) for n in range(300)])
    assert read_recording(path).notes == [
        "unused signals: time",
        "column time has 2 gaps; samples are taken as evenly spaced",
    ]
