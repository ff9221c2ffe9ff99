"""Plausibility: recordings that are flagged in `notes`, refused, or accepted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from seqssm_ecg import simulate
from seqssm_ecg.files import Recording, write_wfdb
from seqssm_ecg.leads import LEADS
from seqssm_ecg.quality import assess

from seqssm.cli.main import main

RATE = 500.0


def values(kind=(), seconds=8.0, seed=3):
    return simulate.recording(list(kind), seconds, RATE, seed)


def quality(table, rate_hz=RATE):
    return assess(Recording.of_arrays(Path("r"), rate_hz, table), LEADS)


@pytest.mark.parametrize("kind", [(), ("AF",), ("STach",), ("LBBB",), ("PVC",), ("AF", "PVC")])
def test_plausible_recordings(kind):
    for factor in (0.1, 1.0, 5.0):  # low voltage to hypertrophy
        found = quality({lead: factor * row + 250.0 for lead, row in values(kind).items()})  # electrodes' offset
        assert found.implausible is None
        assert [note for note in found.notes if not note.startswith("noise: aVL")] == []


def test_ventricular_fibrillation_is_not_noise():
    time = np.arange(4000) / RATE
    wave = np.sin(2 * np.pi * 5 * time + 2 * np.sin(2 * np.pi * 0.7 * time)) * (
        1 + 0.5 * np.sin(2 * np.pi * 0.3 * time)
    )
    assert quality({lead: (k + 1) * 0.2 * wave for k, lead in enumerate(LEADS)}).implausible is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row, _: 1000 * row, r"\d+ mV peak to peak in .*; check gain and unit \(microvolts read as mV\?\)"),
        (lambda row, _: 0.001 * row, r"mV peak to peak at most; .*\(volts read as mV\?\)"),
        (lambda row, _: 0 * row, "all leads flat"),
        (lambda row, _: 0 * row + 7, "all leads flat"),
        (lambda row, random: random.normal(0, 1, len(row)), "noise: I II III"),
        (lambda row, random: random.uniform(-1, 1, len(row)), "noise: I II III"),
        (lambda row, random: random.laplace(0, 0.3, len(row)), "noise: I II III"),
        (lambda row, _: np.where(np.arange(len(row)) == 70, 1e30, row), r"1e\+30 mV in .*: single samples are corrupt"),
    ],
)
def test_implausible_recordings(change, message):
    random = np.random.default_rng(0)
    found = quality({lead: change(row, random) for lead, row in values().items()})
    assert found.implausible is not None
    assert found.implausible.startswith("is implausible as an ECG: ")
    assert pd.Series([found.implausible]).str.contains(message).all(), found.implausible


def test_single_leads_are_flagged_only():
    table = values()
    table["V1"] = 0 * table["V1"]
    table["V2"] = np.random.default_rng(0).normal(0, 1, len(table["V2"]))
    table["V3"] = np.clip(table["V3"], -0.1, 0.2)
    table["V4"] = 0.001 * np.sign(table["V4"])  # the last bit of a converter
    found = quality(table)
    assert found.implausible is None
    assert found.notes[:3] == ["flat: V1 V4", "clipped: V3", "noise: V2"] or found.notes[0] == "flat: V1 V4"
    assert "clipped: V3" in found.notes


def test_one_impossible_sample_in_one_lead_is_enough():
    table = values()
    table["V6"] = table["V6"].copy()
    table["V6"][100] = 1e30
    assert "1e+30 mV in V6" in quality(table).implausible


def test_only_wanted_leads_count():
    table = values()
    table["V6"] = 1e6 * table["V6"]
    assert assess(Recording.of_arrays(Path("r"), RATE, table), LEADS[:6]).implausible is None


def test_missing_samples_are_not_flagged():
    table = {lead: row.copy() for lead, row in values().items()}
    table["I"][:] = np.nan
    table["II"][500:1500] = np.nan
    table["V1"][:10] = np.nan
    found = quality(table)
    assert found.implausible is None
    assert not any(lead in note.split() for note in found.notes for lead in ("I", "II", "V1"))


def test_predictions_are_refused_or_made_on_request(trained, tmp_path):
    good = values()
    np.save(tmp_path / "good.npy", np.stack(list(good.values())))
    np.save(tmp_path / "micro.npy", (1000 * np.stack(list(good.values()))).astype(np.int16))
    np.save(tmp_path / "noise.npy", np.random.default_rng(0).normal(0, 1, (12, 4000)))
    argv = ["predict", str(trained), str(tmp_path), "--array-rate-hz", "500", "--accelerator", "cpu"]
    assert main([*argv, "--output", str(tmp_path / "p.csv")]) == 3
    table = pd.read_csv(tmp_path / "p.csv").set_index("id")
    assert table["status"].to_dict() == {"good": "ok", "micro": "failed", "noise": "failed"}
    assert "microvolts read as mV?" in table["reason"]["micro"]
    assert "pass --accept-implausible" in table["reason"]["noise"]
    assert main([*argv, "--output", str(tmp_path / "q.csv"), "--accept-implausible"]) == 0
    table = pd.read_csv(tmp_path / "q.csv").set_index("id")
    assert (table["status"] == "ok").all()
    assert "is implausible as an ECG" in table["notes"]["micro"]
    assert "noise: I II" in table["notes"]["noise"]


def test_labels_are_scored_whatever_the_quality_of_the_signals(made, tmp_path, capsys):
    from seqssm_ecg.outputs import write_output

    names = ["426783006", "164889003", "427084000", "733534002|164909002", "427172004|17338001"]
    rows = [f"{name}," + ",".join("1" if other == name else "0.3" for other in names) for name in names]
    (tmp_path / "w.csv").write_text("," + ",".join(names) + "\n" + "\n".join(rows) + "\n")
    write_wfdb(tmp_path / "labels", "a", values(seconds=1.0), RATE, {"Dx": "426783006"})
    write_wfdb(tmp_path / "labels", "b", values(seconds=1.0), RATE, {"Dx": "164889003"})
    for path in (tmp_path / "labels").glob("*.mat"):
        path.unlink()
    header = tmp_path / "labels" / "a.hea"
    header.write_text(header.read_text().replace("a 12 500", "a 12 0").replace("1000.0(0)/mV", "0/mV"))
    for name in "ab":
        write_output(tmp_path / "out" / f"{name}.csv", name, ["426783006"], [1], [0.9])
    argv = ["ecg", "score", str(tmp_path / "labels"), str(tmp_path / "out"), "--weights", str(tmp_path / "w.csv")]
    assert main([*argv, "--draws", "0"]) == 0
    assert "2 records" in capsys.readouterr().out


def limb(seed=3):
    """Twelve leads whose limb leads satisfy Einthoven's and Goldberger's equations."""
    table = values(seed=seed)
    one, two = table["I"], table["II"] + 0.6 * np.roll(table["V2"], 9)
    made = {"I": one, "II": two, "III": two - one, "aVR": -(one + two) / 2, "aVL": one - two / 2, "aVF": two - one / 2}
    return {**table, **made}


CONTRADICT = "limb leads contradict Einthoven's equations"


@pytest.mark.parametrize("order", [(1, 0, 2, 3, 4, 5), (4, 0, 3, 1, 5, 2), (0, 1, 2, 4, 3, 5), (5, 4, 3, 2, 1, 0)])
def test_limb_leads_in_another_order_are_flagged(order):
    """Their predictions were those of a record without remarks."""
    table = limb()
    assert quality(table).notes == []
    wrong = {**table, **{LEADS[place]: table[LEADS[other]] for place, other in enumerate(order)}}
    assert any(note.startswith(CONTRADICT) for note in quality(wrong).notes)


@pytest.mark.parametrize("lead", LEADS[:6])
def test_an_inverted_limb_lead_is_flagged(lead):
    table = limb()
    table[lead] = -table[lead]
    assert any(note.startswith(CONTRADICT) for note in quality(table).notes)
    few = {name: table[name] for name in ("I", "II", "III")}
    assert any(note.startswith(CONTRADICT) for note in quality(few).notes) == (lead in few)


def test_limb_leads_that_satisfy_the_equations_in_no_order_are_not_flagged():
    """Noise in a lead, leads that are multiples of one signal, a flat lead."""
    table = limb()
    random = np.random.default_rng(0)
    wave = {lead: (k + 1) * table["II"] for k, lead in enumerate(LEADS)}
    one = {**table, "aVL": table["aVL"] + random.normal(0, 2, len(table["aVL"]))}
    for found in (one, wave, {**table, "I": 0 * table["I"]}):
        assert not any(note.startswith(CONTRADICT) for note in quality(found).notes)


def test_limb_leads_of_other_gains_are_flagged():
    """They fulfil the equations after a gain per lead, as leads that were normalised one by one."""
    table = limb()
    random = np.random.default_rng(0)
    normalised = {lead: row / row.std() for lead, row in table.items()}
    doubled = {**table, "II": 2 * table["II"]}
    for found in (normalised, doubled, {name: doubled[name] for name in ("I", "II", "III")}):
        assert f"{CONTRADICT}, and fit them with other gains (leads normalised one by one?)" in quality(found).notes
    inverted = {
        **normalised,
        "III": -normalised["III"],
        "aVF": normalised["aVF"] + random.normal(0, 0.5, len(table["I"])),
    }
    assert not any(note.startswith(CONTRADICT) for note in quality(inverted).notes)
