"""The steps between file and network: gaps, flat leads, resampling, filters, scaling, windows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from seqssm_ecg import simulate
from seqssm_ecg.augment import Augment
from seqssm_ecg.files import Recording
from seqssm_ecg.leads import LEADS
from seqssm_ecg.preprocess import Preprocess, resample, windows
from seqssm_ecg.quality import assess

from seqssm.errors import InputError


def recording(rate_hz=250.0, seconds=4.0):
    return Recording.of_arrays(Path("r.hea"), rate_hz, simulate.recording([], seconds, rate_hz, seed=2))


def test_gaps_are_closed_flat_and_lost_leads_reported():
    one = recording()
    one.values["V1"][100:120] = np.nan
    one.values["V2"][:] = np.nan
    one.values["V3"][:] = 1.5
    one.values["V4"][0] = np.nan
    table, notes = Preprocess(250.0)(one)
    assert np.isfinite(table).all()
    assert not table[7].any()  # V2
    assert not table[8].any()  # V3: flat, at any level
    printed = "; ".join(notes)
    for part in ("gaps interpolated: V1 V4", "treated as a missing lead: V2", "missing, set to 0: V2"):
        assert part in printed
    assert assess(one, LEADS).notes == ["flat: V3"]


def test_a_recording_without_any_signal_is_refused_and_a_flat_one_is_finite():
    one = recording()
    for row in one.values.values():
        row[:] = np.nan
    with pytest.raises(InputError, match="only missing samples"):
        Preprocess(250.0)(one)
    for row in one.values.values():
        row[:] = 0
    table, _ = Preprocess(250.0)(one)
    assert not table.any()
    assert assess(one, LEADS).implausible == "is implausible as an ECG: all leads flat"


@pytest.mark.parametrize("old", [100.0, 250.0, 257.0, 400.0, 500.0, 1000.0])
def test_resampling_keeps_a_slow_wave_and_the_length(old):
    time = np.arange(round(4 * old)) / old
    made = resample(np.sin(2 * np.pi * 3 * time)[None].astype(np.float32), old, 100.0)
    assert made.shape == (1, round(len(time) * 100 / old))
    expected = np.sin(2 * np.pi * 3 * np.arange(made.shape[1]) / 100)
    np.testing.assert_allclose(made[0, 20:-20], expected[20:-20], atol=0.01)


def test_scaling():
    one = recording()
    table, _ = Preprocess(250.0, normalise="lead")(one)
    np.testing.assert_allclose(table.mean(1), 0, atol=1e-5)
    np.testing.assert_allclose(table.std(1), 1, atol=1e-4)
    table, _ = Preprocess(250.0, normalise="global", mean=0.1, std=0.5)(one)
    np.testing.assert_allclose(table[1], (one.values["II"] - 0.1) / 0.5, atol=1e-5)
    table, _ = Preprocess(250.0, normalise="none")(one)
    np.testing.assert_array_equal(table[1], one.values["II"])


@pytest.mark.parametrize("causal", [False, True])
def test_the_band_pass_removes_wander_and_hum(causal):
    time = np.arange(20000) / 500
    slow, keep, fast = (np.sin(2 * np.pi * hz * time) for hz in (0.05, 8.0, 150.0))
    process = Preprocess(500.0, band_hz=(0.5, 40.0), causal=causal, normalise="none")
    made = process.filtered((slow + keep + fast)[None])[0, 6000:-6000]
    gain = made @ made / (keep[6000:-6000] @ keep[6000:-6000])
    assert gain == pytest.approx(1.0, abs=0.05)
    if not causal:
        np.testing.assert_allclose(made, keep[6000:-6000], atol=0.08)


def test_settings_survive_a_checkpoint():
    process = Preprocess(250.0, 6, "refuse", (None, 40.0), True, "global", 0.1, 2.0, {"MLII": "II"})
    assert Preprocess.from_dict(process.to_dict()) == process


def test_lead_sets():
    assert Preprocess(250.0, 3)(recording())[0].shape[0] == 3
    one = recording()
    one = Recording.of_arrays(one.path, 250.0, {lead: one.values[lead] for lead in ("V1", "V2")})
    with pytest.raises(InputError, match="none of the leads I, II"):
        Preprocess(250.0, 2)(one)
    with pytest.raises(InputError, match="shorter than a second"):
        Preprocess(250.0)(recording(seconds=0.5))


@pytest.mark.parametrize(
    ("samples", "starts"), [(50, [0]), (100, [0]), (101, [0, 1]), (200, [0, 50, 100]), (230, [0, 50, 100, 130])]
)
def test_windows_cover_a_recording(samples, starts):
    assert windows(samples, 100, 50) == starts


def test_augmentation_depends_on_its_seed_and_keeps_shapes():
    import torch

    x, y = torch.ones(6, len(LEADS), 500), torch.eye(6)
    strong = Augment(0.3, 0.2, 0.1, 0.5, 0.4, 0.3)
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        made.append(strong(x, y, 100.0))
    assert torch.equal(made[0][0], made[1][0])
    assert not torch.equal(made[0][0], made[2][0])
    assert made[0][0].shape == x.shape
    np.testing.assert_allclose(made[0][1].sum(1), 1, atol=1e-6)
    assert torch.equal(Augment()(x, y, 100.0)[0], x)
