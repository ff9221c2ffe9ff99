"""HDF5 recordings: layouts of records and leads, units, and integers with a scale."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from seqssm_ecg.files import inputs, open_recording, read_recording
from seqssm_ecg.recording import ArraySpec

from seqssm.errors import InputError

from .hospital_files import RATE, made_values


@pytest.fixture(scope="module")
def values():
    return made_values()


def test_hdf5_files_of_many_records_and_of_single_leads(tmp_path, values):
    table = np.stack(list(values.values()), axis=1)
    padded = np.zeros((3, 1000, 12))
    padded[:, 125:875] = table * np.array([1, 2, 3])[:, None, None]
    with h5py.File(tmp_path / "exams.hdf5", "w") as file:
        file["tracings"], file["exam_id"] = padded, [17, 5, 11]
    paths = list(inputs([tmp_path / "exams.hdf5"]))
    assert [path.name for path in paths] == ["17", "5", "11"]
    found = read_recording(paths[1], array=ArraySpec(RATE))
    np.testing.assert_allclose(found.values["V5"], 2 * values["V5"], atol=1e-6)
    assert found.notes == ["zero padding removed: 1 s"]
    with pytest.raises(InputError, match=r"has 3 recordings; name one, e\.g\. exams\.hdf5/17"):
        open_recording(tmp_path / "exams.hdf5", array=ArraySpec(RATE))
    with pytest.raises(InputError, match="no such recording"):
        open_recording(tmp_path / "exams.hdf5" / "99", array=ArraySpec(RATE))
    with pytest.raises(InputError, match="--array-rate-hz"):
        open_recording(paths[0])
    with h5py.File(tmp_path / "leads.h5", "w") as file:
        file["rest/I"], file["rest/strip_II"], file["rest/fs"] = values["I"], values["II"], float(RATE)
    lone = read_recording(tmp_path / "leads.h5")
    assert (lone.leads, lone.rate_hz) == (("I",), RATE)
    np.testing.assert_allclose(lone.values["I"], values["I"], atol=1e-6)


def test_hdf5_descriptions_of_leads(tmp_path, values):
    table = np.stack(list(values.values()))
    backwards = np.array(list(values)[::-1], dtype="S4")
    with h5py.File(tmp_path / "names.h5", "w") as file:
        file["ecg"], file["lead_names"], file["fs"] = table[::-1], backwards, "250 Hz"
    np.testing.assert_allclose(read_recording(tmp_path / "names.h5").values["V5"], values["V5"], atol=1e-6)
    with h5py.File(tmp_path / "leads.h5", "w") as file:
        for lead, row in values.items():
            file[f"ecg/{lead}"] = row * 1000
            file[f"ecg/{lead}"].attrs.update(fs=RATE, unit="uV")
    np.testing.assert_allclose(read_recording(tmp_path / "leads.h5").values["V5"], values["V5"], atol=1e-6)
    with h5py.File(tmp_path / "leads.h5", "a") as file:
        file["ecg/V6"].attrs["unit"] = "mV"
    with pytest.raises(InputError, match=r"leads differ in unit \(mV, uV\)"):
        open_recording(tmp_path / "leads.h5")
    with h5py.File(tmp_path / "table.h5", "w") as file:
        file["ecg"] = table
        file["ecg"].attrs.update(fs=RATE, units=["uV"] + ["mV"] * 11)
    with pytest.raises(InputError, match=r"leads differ in unit \(mV, uV\)"):
        open_recording(tmp_path / "table.h5")
    with h5py.File(tmp_path / "people.h5", "w") as file:
        file["tracings"], file["name"] = np.stack([table, table]), np.array(["Doe", "Roe"], "S3")
    assert [path.name for path in inputs([tmp_path / "people.h5"])] == ["0", "1"]


GAINS = np.linspace(100, 1200, 12)
ZEROS = np.arange(12.0) * 10 - 60
SCALES = [  # attributes, digital values per millivolt, digital zero
    ({"adc_gain": GAINS, "baseline": ZEROS}, GAINS, ZEROS),
    ({"adc_gain": GAINS, "adc_zero": 5, "units": "mV"}, GAINS, 5 + 0 * ZEROS),
    ({"adc_gain": 0.2, "units": "uV"}, 200 + 0 * GAINS, 0 * ZEROS),
    ({"scale_factor": 5.0, "add_offset": -40.0, "unit": "uV"}, 200 + 0 * GAINS, 8 + 0 * ZEROS),
    ({"units": "uV", "gain": 1.0, "offset": 0}, 1000 + 0 * GAINS, 0 * ZEROS),
]


@pytest.mark.parametrize(("attributes", "gain", "zero"), SCALES)
@pytest.mark.parametrize("layout", ["table", "leads", "array"])
def test_integers_in_hdf5_are_converted_to_millivolts(tmp_path, values, attributes, gain, zero, layout):
    table = np.stack(list(values.values()))
    digital = np.rint(table * gain[:, None] + zero[:, None]).astype(np.int16)
    digital[:, 7] = -32768  # missing
    with h5py.File(tmp_path / "a.h5", "w") as file:
        if layout == "leads":
            for number, (lead, row) in enumerate(zip(values, digital)):
                own = {name: one[number] if np.ndim(one) else one for name, one in attributes.items()}
                file[f"ecg/{lead}"] = row
                file[f"ecg/{lead}"].attrs.update(fs=RATE, **own)
        else:
            file["ecg"] = digital.T if layout == "table" else digital[None]
            file["ecg"].attrs.update(fs=RATE, leads=list(values), **attributes)
    found = read_recording(tmp_path / "a.h5").values
    for number, lead in enumerate(values):
        assert np.isnan(found[lead][7])
        rest = np.delete(np.arange(len(table[0])), 7)
        np.testing.assert_allclose(found[lead][rest], table[number, rest], atol=0.51 / gain[number])


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"gain": 200}, "integer samples with gain 200, which no convention defines: give adc_gain"),
        ({"scale": 0.005, "units": "mV"}, "integer samples with scale 0.005"),
        ({"offset": 100, "units": "uV"}, "integer samples with offset 100"),
        ({"adc_gain": 0}, "adc_gain is 0"),
        ({"adc_gain": [1.0, 2.0]}, "adc_gain is not a number, or one per lead"),
        ({"adc_gain": np.nan}, "adc_gain is missing or not finite"),
        ({"scale_factor": "5"}, "scale_factor is not a number"),
        ({"adc_gain": 200, "units": "adu"}, "unit 'adu': expected mV, uV or V"),
    ],
)
def test_integers_in_hdf5_without_a_defined_scale_are_refused(tmp_path, values, attributes, message):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["ecg"] = np.zeros((12, 500), np.int16)
        file["ecg"].attrs.update(fs=RATE, leads=list(values), **attributes)
    with pytest.raises(InputError) as error:
        open_recording(tmp_path / "a.h5", array=ArraySpec(unit="mV"))
    assert message in str(error.value)
    with h5py.File(tmp_path / "b.h5", "w") as file:  # one gain per record
        file["ecg"], file["gain"] = np.zeros((3, 12, 500), np.int16), [1.0, 2.0, 3.0]
    with pytest.raises(InputError, match="gain is not a number, or one per lead"):
        open_recording(tmp_path / "b.h5" / "1", array=ArraySpec(RATE))
