"""Recordings whose leads are in several sets or groups: recorded together, one after the other, or at other times."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pydicom
import pytest
from seqssm_ecg import paper
from seqssm_ecg.files import read_recording
from seqssm_ecg.leads import LEADS
from seqssm_ecg.long import LongRecording
from seqssm_ecg.measure import measure, measure_recording
from seqssm_ecg.predict import drawable
from seqssm_ecg.preprocess import Preprocess
from seqssm_ecg.quality import assess
from seqssm_ecg.recording import Recording
from seqssm_ecg.simulate_intervals import Timing, timed_recording

from seqssm.cli.main import main

from .hospital_files import RATE, made_values, write_aecg, write_dicom

SUCCESSIVE = "leads recorded one after the other"


@pytest.fixture(scope="module")
def values():
    return made_values()


def aecg_of(path, *series, starts=range(60)):
    """Write an aECG whose series have the given sets of leads, which start at these seconds."""
    text, whole = write_aecg(path, series[0][0]).read_text(), ""
    for sets in series:
        parts = []
        for number, leads in enumerate(sets):
            part = write_aecg(path, leads).read_text().replace("20120601101500", f"201206011015{starts[number]:02}")
            parts.append(part[part.index("<component><sequenceSet>") : part.index("<derivation>")])
        whole += f"<component><series>{''.join(parts)}</series></component>"
    first, last = text.index("<component><series>"), text.rindex("</AnnotatedECG>")
    path.write_text(text[:first] + whole + text[last:])
    return path


def test_leads_of_an_aecg_that_were_recorded_one_after_the_other(tmp_path, values):
    """Only the set with the longest text was read, and nine leads were set to 0."""
    rows = {lead: row[: RATE * 2] for lead, row in values.items()}
    sets = [dict(list(rows.items())[n : n + 3]) for n in range(0, 12, 3)]
    strip = {"II": values["II"][: RATE * 3]}
    found = read_recording(aecg_of(tmp_path / "a.xml", [*sets, strip, {"VX": rows["I"]}]))
    assert (found.leads, found.samples) == (tuple(rows), RATE * 2)
    assert found.notes == ["leads recorded one after the other", "2 further series not used"]
    for lead, row in rows.items():
        np.testing.assert_allclose(found.values[lead], row, atol=6e-3)


def test_of_equal_series_of_an_aecg_the_first_is_read(tmp_path, values):
    """The one with the longer text of its samples was read."""
    larger = {lead: 9.99 * row for lead, row in values.items()}
    for first, second in ((values, larger), (larger, values)):
        found = read_recording(aecg_of(tmp_path / "a.xml", [first], [second]))
        np.testing.assert_allclose(found.values["V2"], first["V2"], atol=6e-3)


@pytest.mark.parametrize(("begins", "leads"), [(("00", "01"), 2), (("00", "00"), 4), (("", ""), 2)])
def test_relative_times_count_from_those_of_their_series(tmp_path, values, begins, leads):
    """Series of any times were joined as if recorded together, and limb leads were computed from several of them."""
    rows = {lead: row[: RATE * 3] for lead, row in values.items()}
    path = aecg_of(tmp_path / "a.xml", [{"I": rows["I"], "V1": rows["V1"]}], [{"II": rows["II"], "V2": rows["V2"]}])
    text = path.read_text().replace('value="20120601101500"', 'value="0" unit="s"').replace("ABSOLUTE", "RELATIVE")
    parts = text.split("<component><series>")
    for number, begin in enumerate(begins, 1):
        low = f'<effectiveTime><low value="201206011015{begin}"/></effectiveTime>' if begin else ""
        parts[number] = low + parts[number]
    path.write_text("<component><series>".join(parts))
    found = read_recording(path)
    assert len(found.leads) == leads
    assert found.notes == ([] if leads == 4 else ["1 further series not used"])


def dicom_of(path, values, groups, starts):
    """Write a DICOM file with groups of leads, which start at these milliseconds."""
    sets = [pydicom.dcmread(write_dicom(path, {lead: values[lead] for lead in leads.split()})) for leads in groups]
    items = [one.WaveformSequence[0] for one in sets]
    for item, start in zip(items, starts):
        item.MultiplexGroupTimeOffset = start
    sets[0].WaveformSequence = items
    pydicom.dcmwrite(path, sets[0])
    return path


COLUMNS = ("I II III", "aVR aVL aVF", "V1 V2 V3", "V4 V5 V6")


@pytest.mark.parametrize("starts", [(0, 2500, 5000, 7500), (7500, 5000, 2500, 0), (0, 3000, 6999, 10000)])
def test_leads_of_a_dicom_file_that_were_recorded_one_after_the_other(tmp_path, values, starts):
    found = read_recording(dicom_of(tmp_path / "a.dcm", values, COLUMNS, starts))
    assert (set(found.leads), found.notes) == (set(values), [SUCCESSIVE])
    np.testing.assert_allclose(found.values["V6"], values["V6"], atol=6e-3)


def test_recordings_of_other_times_are_not_joined(tmp_path, values):
    """Leads of recordings ten minutes or three years apart became one recording."""
    found = read_recording(dicom_of(tmp_path / "a.dcm", values, COLUMNS, (0, 600_000, 5001, 602_000)))
    assert (found.leads, found.notes) == (("I", "II", "III"), ["3 of 4 waveform groups not used"])
    sets = [{lead: values[lead] for lead in leads.split()} for leads in COLUMNS]
    found = read_recording(aecg_of(tmp_path / "a.xml", sets, starts=(0, 8, 3, 13)))
    assert found.leads == ("I", "II", "III", "V1", "V2", "V3")
    assert found.notes == [SUCCESSIVE, "2 further series not used"]


def test_groups_of_one_time_may_repeat_leads(tmp_path, values):
    """The second group, which has lead II too, was not used: five leads were set to 0."""
    limb, chest = "I II III aVR aVL aVF", "II V1 V2 V3 V4 V5"
    found = read_recording(dicom_of(tmp_path / "a.dcm", values, (limb, chest), (0, 0)))
    assert (found.leads, found.notes) == (tuple(values)[:11], [])
    np.testing.assert_allclose(found.values["V5"], values["V5"], atol=6e-3)
    sets = [{lead: values[lead] for lead in limb.split()}, {lead: 2 * values[lead] for lead in chest.split()}]
    found = read_recording(aecg_of(tmp_path / "a.xml", sets, starts=(7, 7)))
    assert (found.leads, found.notes) == (tuple(values)[:11], [])
    np.testing.assert_allclose(found.values["II"], values["II"], atol=6e-3)
    np.testing.assert_allclose(found.values["V5"], 2 * values["V5"], atol=6e-3)


@pytest.mark.parametrize(
    ("groups", "computed"),
    [
        (("I", "II", "V1"), []),
        (("V1", "I II", "V2"), ["III", "aVR", "aVL", "aVF"]),
        (("II", "I III", "V2"), ["aVR", "aVL", "aVF"]),
        (("I II III", "aVR", "aVL"), ["aVF"]),
    ],
)
def test_leads_are_computed_from_leads_of_one_time_only(tmp_path, values, groups, computed):
    """III was the difference of II and I of different heartbeats."""
    path = dicom_of(tmp_path / "a.dcm", values, groups, (0, 2500, 5000))
    found = read_recording(path)
    table, notes = Preprocess(rate_hz=RATE).millivolts(found)
    missing = [lead for lead in LEADS if lead not in (*found.leads, *computed)]
    made = [f"computed {' '.join(computed)}"] if computed else []
    assert notes == [SUCCESSIVE, *made, f"missing, set to 0: {' '.join(missing)}"]
    for lead, row in zip(LEADS, table):
        np.testing.assert_allclose(row, 0 if lead in missing else values[lead], atol=6e-3, err_msg=lead)
    long = LongRecording(found, Preprocess(rate_hz=RATE))
    np.testing.assert_array_equal(np.concatenate(list(long.millivolts()), axis=1), table)
    assert long.notes == notes
    assert list(drawable(found, found.values)) == [lead for lead in LEADS if lead not in missing]


@pytest.mark.parametrize("rate", [60.0, 80.0])
def test_measurements_are_those_of_leads_of_one_time(trained, tmp_path, monkeypatch, rate):
    """The beats of the four columns were counted as beats of one time: 240 per minute instead of 80."""
    whole, _ = timed_recording(Timing(rate, 160.0, 92.0, 360.0), 20.0, RATE, 4)
    sets, shifted = [], {}
    for number, leads in enumerate(COLUMNS):
        start = round(4.87 * number * RATE)  # columns of 5 s
        shifted |= {lead: whole[lead][start : start + 5 * RATE] for lead in leads.split()}
        sets.append({lead: shifted[lead] for lead in leads.split()})
    dicom_of(tmp_path / "a.dcm", shifted, COLUMNS, (0, 5000, 10000, 15000))
    aecg_of(tmp_path / "b.xml", sets, starts=(0, 5, 10, 15))
    lines, draw = [], paper.draw_page
    monkeypatch.setattr(paper, "draw_page", lambda path, page: lines.append(page.measurements) or draw(path, page))
    argv = ["predict", str(trained), *(str(tmp_path / name) for name in ("a.dcm", "b.xml")), "--accelerator", "cpu"]
    argv += ["--measure", "--output", str(tmp_path / "p.csv")]
    assert main([*argv, "--figures", str(tmp_path / "pages")]) == 0
    table = pd.read_csv(tmp_path / "p.csv")
    assert table["heart_rate_bpm"].tolist() == pytest.approx([rate, rate], abs=3)
    assert lines == [line for line in lines if line.startswith(f"HR {table['heart_rate_bpm'][0]:.0f}/min")]
    assert len(lines) == 2
    assert all("measured on I II III" in notes for notes in table["notes"])
    quality = measure(sets[3], RATE).quality
    assert table["quality_V6"].tolist() == pytest.approx([quality["V6"]] * 2, abs=0.01)
    assert main([*argv, "--window-s", "4", "--overwrite"]) == 0
    assert pd.read_csv(tmp_path / "p.csv")["heart_rate_bpm"].tolist() == pytest.approx([rate] * 4, abs=5)


def test_measurements_are_those_of_the_group_with_the_most_usable_leads(tmp_path):
    """Of two groups of six leads, the first was measured, also if its electrodes were off."""
    whole, _ = timed_recording(Timing(80.0, 160.0, 92.0, 360.0), 20.0, RATE, 4)
    rows = {lead: row[: 6 * RATE] for lead, row in whole.items()}
    rows |= {lead: np.zeros(6 * RATE) for lead in COLUMNS[0].split() + COLUMNS[1].split()}
    halves = [" ".join(COLUMNS[:2]), " ".join(COLUMNS[2:])]
    found = measure_recording(read_recording(dicom_of(tmp_path / "a.dcm", rows, halves, (0, 6000))))
    assert found.values["heart_rate_bpm"] == pytest.approx(80, abs=3)
    assert found.good == tuple(halves[1].split())
    assert found.quality["I"] == 0


def test_limb_leads_of_several_times_are_not_compared():
    """Equations of limb leads hold at one time only."""
    rng = np.random.default_rng(1)
    one, two = np.cumsum(rng.normal(size=(2, 5000)), axis=1) / 50
    recording = Recording.of_arrays("a", 500.0, {"I": 2 * one, "II": two, "III": two - one})
    assert any("Einthoven" in note for note in assess(recording, LEADS).notes)
    recording.groups = (("I",), ("II", "III"))
    assert assess(recording, LEADS).notes == []
