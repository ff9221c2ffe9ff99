"""Hospital files: every format gives the WFDB recording; damage is one line; patient data stay in the file."""

from __future__ import annotations

import gzip
from pathlib import Path

import edfio
import h5py
import numpy as np
import pandas as pd
import pydicom
import pytest
from seqssm_ecg import simulate
from seqssm_ecg.files import find_recordings, inputs, open_recording, read_recording, write_wfdb
from seqssm_ecg.formats import FILES
from seqssm_ecg.hospital.xli import decode_xli
from seqssm_ecg.leads import LEADS
from seqssm_ecg.predict import named

import seqssm
from seqssm.cli.main import main
from seqssm.errors import InputError

from .hospital_files import (
    RATE,
    STORED,
    WRITERS,
    made_values,
    write_aecg,
    write_dicom,
    write_edf,
    write_hdf5,
    write_muse,
    write_philips,
    xli,
)

SECRETS = ("Doe-Miller", "1951", "MRN-4711")


@pytest.fixture(scope="module")
def values():
    return made_values()


@pytest.fixture(scope="module")
def folder(values, tmp_path_factory):
    """One file of each format, with the same recording."""
    made = tmp_path_factory.mktemp("hospital")
    for name, write in WRITERS.items():
        write(made / name, values)
    return made


# -- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_recording_of_wfdb(folder, values, name):
    found = read_recording(folder / name)
    assert (found.rate_hz, found.samples, found.age, found.sex) == (RATE, 3 * RATE, 61, "female")
    for lead in found.leads:
        np.testing.assert_allclose(found.values[lead], values[lead], atol=6e-4)
    assert set(found.leads) == (set(STORED) if "muse" in name else set(LEADS))
    if not name.endswith("h5"):
        assert found.identity["patient_id"] == "MRN-4711"
        assert "Doe-Miller" in found.identity["patient_name"]
        assert "1951" in found.identity["birth_date"]
    assert not any(secret in repr(found) for secret in SECRETS)


def test_a_table_says_which_reader_opens_what(folder):
    used = {row.name for row in FILES if row.reader is not None} - {"WFDB", "array"}
    assert used == {"EDF", "DICOM", "HL7 aECG", "GE MUSE XML", "Philips XML", "HDF5"}
    assert [path.name for path in find_recordings(folder, every_format=True)] == sorted(WRITERS)
    assert find_recordings(folder) == []


def test_spellings_of_each_format(tmp_path, values):
    short = {lead: values[lead] for lead in ("II", "V2")}
    cases = (
        write_dicom(tmp_path / "no_suffix", short, meaning=""),
        write_dicom(tmp_path / "e.dcm", short, meaning="Lead {} (Einthoven)", group=("MEDIAN BEAT", "RHYTHM")),
        write_aecg(tmp_path / "m.xml", short, ("0.005", "mV"), "hl7:"),
        write_muse(tmp_path / "u.xml", short, ("II", "V2"), "", "utf-16"),
        write_philips(tmp_path / "p.xml", values, "Uncompressed", "utf-16"),
        write_hdf5(tmp_path / "h.hdf5", short, transposed=True),
        write_edf(tmp_path / "x.edf", short, "mV", "{}"),
    )
    for path in cases:
        found = read_recording(path)
        for lead in short:
            np.testing.assert_allclose(found.values[lead], values[lead], atol=6e-4, err_msg=path.name)
    assert "waveform groups not used" in open_recording(tmp_path / "e.dcm").notes[0]
    assert {path.name for path in inputs([tmp_path])} == {path.name for path in cases}


def test_the_recording_is_read_and_not_a_representative_beat(tmp_path, values):
    brief = {lead: 0.5 * row[: RATE // 2] for lead, row in values.items()}
    parts = [write_aecg(tmp_path / "a.xml", rows).read_text() for rows in (brief, values)]
    series = [text[text.index("<component><series>") : text.rindex("</AnnotatedECG>")] for text in parts]
    coded = series[0].replace("<series>", '<series><code code="REPRESENTATIVE_BEAT"/>')
    for name, first in (("coded", coded), ("without_code", series[0])):
        (tmp_path / f"{name}.xml").write_text(parts[1].replace(series[1], first + series[1]))
    muse = [write_muse(tmp_path / "a.xml", rows).read_text("latin-1") for rows in (brief, values)]
    wave = muse[0][muse[0].index("<Waveform><WaveformType>Rhythm") : muse[0].index("</RestingECG>")]
    wave = wave.replace("<WaveformType>Rhythm</WaveformType>", "")
    (tmp_path / "muse.xml").write_text(
        muse[1].replace("<Waveform><WaveformType>Median", f"{wave}<Waveform><WaveformType>Median")
    )
    dicom = [pydicom.dcmread(write_dicom(tmp_path / "a.dcm", rows)) for rows in (brief, values)]
    dicom[1].WaveformSequence.insert(0, dicom[0].WaveformSequence[0])
    for item in dicom[1].WaveformSequence:
        del item.MultiplexGroupLabel
    pydicom.dcmwrite(tmp_path / "b.dcm", dicom[1])
    for name in ("coded.xml", "without_code.xml", "muse.xml", "b.dcm"):
        found = read_recording(tmp_path / name)
        np.testing.assert_allclose(found.values["II"], values["II"], atol=6e-4, err_msg=name)


@pytest.mark.parametrize(("implicit", "little"), [(True, True), (False, True), (False, False)])
def test_dicom_files_without_preamble_and_meta_information(tmp_path, values, implicit, little):
    """Big-endian ones were taken for WFDB records; their samples would have been read in the wrong order."""
    dataset = pydicom.dcmread(write_dicom(tmp_path / "a.dcm", values))
    samples = np.frombuffer(dataset.WaveformSequence[0].WaveformData, "<i2")
    dataset.WaveformSequence[0].WaveformData = samples.astype("<i2" if little else ">i2").tobytes()
    dataset.file_meta, dataset.preamble = pydicom.dataset.FileMetaDataset(), None
    pydicom.dcmwrite(tmp_path / "bare", dataset, implicit_vr=implicit, little_endian=little)
    assert (tmp_path / "bare").read_bytes()[:2] == (b"\x08\0" if little else b"\0\x08")
    np.testing.assert_allclose(read_recording(tmp_path / "bare").values["V6"], values["V6"], atol=6e-3)


def test_dicom_files_without_a_preamble(tmp_path, values):
    """They were called corrupt."""
    path = write_dicom(tmp_path / "a.dcm", values)
    bare = tmp_path / "bare"
    bare.write_bytes(path.read_bytes()[132:])
    np.testing.assert_allclose(read_recording(bare).values["V6"], values["V6"], atol=6e-3)
    (tmp_path / "other").write_bytes(b"\x08\0" + bytes(500))
    assert list(inputs([tmp_path])) == [path, bare]
    path.write_bytes(b"\x08\0" + b"\xff" * 500)
    with pytest.raises(InputError, match="is corrupt, or not a valid DICOM file"):
        read_recording(path)


def test_the_content_decides_where_it_contradicts_the_suffix(folder, values, tmp_path):
    names = {
        "a.edf": "b.bdf",
        "b.bdf": "a.edf",
        "d.edf": "c.dcm",
        "e.dcm": "d_aecg.xml",
        "f.xml": "a.edf",
        "g": "b.bdf",
    }
    for name, source in names.items():
        (tmp_path / name).write_bytes((folder / source).read_bytes())
        np.testing.assert_allclose(read_recording(tmp_path / name).values["II"], values["II"], atol=6e-4, err_msg=name)
    packed = tmp_path / "h.xml.gz"
    packed.write_bytes(gzip.compress((folder / "d_aecg.xml").read_bytes()))
    with pytest.raises(InputError, match=r"h\.xml\.gz: is a gzip file, which is not supported: decompress it first"):
        open_recording(next(inputs([packed])))


def test_the_lowest_16_bit_integer_is_a_missing_sample(tmp_path, values):
    lost = {lead: np.where(np.arange(len(row)) < 3, -(2**15) / 200, row) for lead, row in values.items()}
    shifted = {lead: row + 0.05 * (np.arange(len(row)) < 3) for lead, row in lost.items()}  # baseline of the writer
    for path in (
        write_muse(tmp_path / "a.xml", lost),
        write_aecg(tmp_path / "b.xml", lost),
        write_dicom(tmp_path / "c.dcm", shifted),
    ):
        found = read_recording(path).values["II"]
        assert np.isnan(found).tolist() == [True] * 3 + [False] * (len(found) - 3)


def test_units_and_labels_as_devices_write_them(tmp_path, values):
    short = {lead: values[lead] for lead in ("I", "II", "aVR")}
    content = write_edf(tmp_path / "a.edf", short).read_bytes()
    for unit in (b"uVolt   ", b"microV  "):
        (tmp_path / "a.edf").write_bytes(content.replace(b"uV      ", unit))
        np.testing.assert_allclose(read_recording(tmp_path / "a.edf").values["II"], values["II"], atol=6e-4)
    assert read_recording(write_edf(tmp_path / "b.edf", short, label="ECG Lead {}")).leads == tuple(short)
    upper = write_philips(tmp_path / "p.xml", values).read_text().replace("aVR aVL aVF", "AVR AVL AVF")
    (tmp_path / "p.xml").write_text(upper)
    np.testing.assert_allclose(read_recording(tmp_path / "p.xml").values["aVF"], values["aVF"], atol=6e-4)
    (tmp_path / "more.edf").write_bytes(content[:236] + b"2       " + content[244:])
    assert open_recording(tmp_path / "more.edf").notes == ["the header states 2 data records, the file has 3"]


def test_dicom_gives_what_pydicom_gives(tmp_path, values):
    path = write_dicom(tmp_path / "a.dcm", values, PatientAge="018M")
    found = read_recording(path)
    theirs = pydicom.dcmread(path).waveform_array(0).T / 1000
    np.testing.assert_allclose(np.stack([found.values[lead] for lead in LEADS]), theirs, atol=1e-5)
    assert found.age == 1.5


@pytest.mark.parametrize("size", [3, 4, 1000, 20000])
def test_xli_restores_any_samples(size):
    random = np.random.default_rng(size)
    rows = [np.cumsum(random.integers(-40, 40, size)), random.integers(-3000, 3000, size), np.zeros(size, int)]
    for row, made in zip(rows, decode_xli(b"".join(map(xli, rows)), 3), strict=True):
        np.testing.assert_array_equal(made, row)


def test_edf_is_read_in_blocks_and_rates_are_joined(tmp_path, values):
    seconds = 40
    rows = {lead: np.tile(values[lead], 14)[: seconds * RATE] for lead in ("I", "II")}
    signals = [edfio.EdfSignal(row * 1000, RATE, label=lead, physical_dimension="uV") for lead, row in rows.items()]
    slow = edfio.EdfSignal(rows["I"][::2], RATE / 2, label="V1", physical_dimension="mV")
    rest = edfio.EdfSignal(np.arange(seconds), 1, label="SpO2", physical_dimension="%")
    edfio.Edf([*signals, slow, rest], data_record_duration=1).write(tmp_path / "a.edf")
    found = open_recording(tmp_path / "a.edf")
    assert found.notes == ["unused signals: SpO2", "interpolated to 250 Hz: V1"]
    pieces = list(found.blocks(600))
    assert len(pieces) == 20
    table = np.concatenate(pieces, axis=1)
    np.testing.assert_array_equal(table, np.stack(list(found.values.values())))
    np.testing.assert_allclose(table[1], rows["II"], atol=1e-4)
    np.testing.assert_allclose(table[2], rows["I"], atol=0.2)


def test_edf_with_pauses_is_refused(tmp_path, values):
    path = write_edf(tmp_path / "a.edf", values)
    edf = edfio.read_edf(path, lazy_load_data=False)
    edf.add_annotations([edfio.EdfAnnotation(0, None, "start")])
    edf.write(path)
    content = path.read_bytes()
    content = content[:192] + b"EDF+D" + content[197:]
    path.write_bytes(content)
    assert open_recording(path).samples == 3 * RATE  # without pauses it is read
    assert content.count(b"+2\x14\x14") == 1
    path.write_bytes(content.replace(b"+2\x14\x14", b"+7\x14\x14"))
    with pytest.raises(InputError, match="discontinuous"):
        open_recording(path)


# -- damage ----------------------------------------------------------------------------------------------------------


def test_damage_is_one_line_or_a_recording(tmp_path, values):
    """1,000 bit flips and truncations over all formats: a clear error or a recording, never patient data."""
    random = np.random.default_rng(5)
    brief = {lead: row[:RATE] for lead, row in values.items()}
    contents = {}
    for name, write in WRITERS.items():
        contents[name] = write(tmp_path / name, brief).read_bytes()
    refused = 0
    for number in range(1000):
        name = list(WRITERS)[number % len(WRITERS)]
        content = bytearray(contents[name])
        if number % 3 == 0:
            content = content[: int(random.integers(0, len(content)))]
        else:
            first = 3000 if number % 2 else len(content)  # more of them in headers
            for place in random.integers(0, min(first, len(content)), 1 + number % 4):
                content[place] = int(random.integers(256))
        path = tmp_path / f"x{Path(name).suffix}"
        path.write_bytes(content)
        message = ""
        try:
            read_recording(path)
        except InputError as error:
            message = str(error)
        refused += bool(message)
        assert "\n" not in message
        assert not any(secret in message for secret in SECRETS)
        assert len(message) < 400
    assert refused > 300


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '<!DOCTYPE a [<!ENTITY x "xxxx"><!ENTITY y "&x;&x;">]><RestingECG>&y;</RestingECG>',
            "declares entities, which are not expanded",
        ),
        (
            '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><AnnotatedECG>&x;</AnnotatedECG>',
            "declares entities, which are not expanded",
        ),
        ("<RestingECG>" + "<a>" * 5000, "too deeply nested"),
        ("<RestingECG><Waveform></RestingECG>", "truncated or corrupt XML"),
        ("<AnnotatedECG/>", "no series with leads"),
        ("<RestingECG/>", "no rhythm waveform"),
        ("<restingecgdata/>", "no parsed waveforms"),
        ("<svg/>", "XML, but not of a known format (HL7 aECG, GE MUSE XML, Philips XML)"),
    ],
)
def test_xml_that_is_something_else(tmp_path, content, message):
    (tmp_path / "a.xml").write_text(content)
    with pytest.raises(InputError) as error:
        open_recording(tmp_path / "a.xml")
    assert message in str(error.value)


def test_other_files_of_these_formats_say_what_they_are(tmp_path, values):
    (tmp_path / "a.scp").write_bytes(b"\0" * 16 + b"SCPECG" + b"\0" * 50)
    (tmp_path / "renamed").write_bytes(b"\0" * 16 + b"SCPECG" + b"\0" * 50)
    for name in ("a.scp", "renamed"):
        with pytest.raises(InputError, match=r"SCP-ECG file, which is not supported: export it as DICOM"):
            open_recording(tmp_path / name)
    with h5py.File(tmp_path / "features.h5", "w") as file:
        file["features"] = np.zeros((500, 1024))
    with pytest.raises(InputError, match="contains no recording"):
        open_recording(tmp_path / "features.h5")
    path = write_dicom(tmp_path / "a.dcm", values, Modality="MR")
    import pydicom

    dataset = pydicom.dcmread(path)
    del dataset.WaveformSequence
    pydicom.dcmwrite(path, dataset)
    with pytest.raises(InputError, match=r"without waveforms \(modality MR\)"):
        open_recording(path)
    with pytest.raises(InputError, match=r"none of the 12 standard leads, only ECG; .* --lead-map ECG=LEAD"):
        open_recording(write_edf(tmp_path / "m.edf", {"II": values["II"]}, label="ECG"))
    assert open_recording(tmp_path / "m.edf", {"ECG": "II"}).leads == ("II",)
    cut = write_edf(tmp_path / "t.edf", values)
    cut.write_bytes(cut.read_bytes()[:-100])
    with pytest.raises(InputError, match="truncated: 2 of 3 data records"):
        open_recording(cut)


# -- as a user does it -----------------------------------------------------------------------------------------------


def test_predict_reads_them_all_and_never_writes_who_the_patient_is(trained, folder, values, tmp_path, capsys):
    records = tmp_path / "records"
    records.mkdir()
    for path in folder.iterdir():
        (records / path.name).write_bytes(path.read_bytes())
    write_wfdb(records, "z", values, RATE)
    (records / "old.scp").write_bytes(b"\0" * 16 + b"SCPECG" + b"\0" * 50)
    (records / "cut.xml").write_bytes((folder / "e_muse.xml").read_bytes()[:900])
    argv = ["predict", str(trained), str(records), "--accelerator", "cpu", "--output"]
    more = ["--figures", str(tmp_path / "pages")]
    assert main([*argv, str(tmp_path / "p.csv"), *more]) == 3
    table = pd.read_csv(tmp_path / "p.csv").set_index("id")
    assert set(table.index) == {*(name.rsplit(".", 1)[0] for name in WRITERS), "z", "old", "cut"}
    assert "BioSig" in table["reason"]["old"]
    assert table["status"].tolist().count("failed") == 2
    good = table.drop(index=["old", "cut"])
    for name in simulate.CLASSES:
        np.testing.assert_allclose(good[f"p_{name}"], good[f"p_{name}"]["z"], atol=5e-3)
    printed = capsys.readouterr()
    everything = (tmp_path / "p.csv").read_text() + printed.out + printed.err
    assert not any(secret in everything for secret in SECRETS)
    assert len(list((tmp_path / "pages").iterdir())) == len(good)
    assert main([*argv, str(tmp_path / "q.csv"), "--identity"]) == 3
    asked = pd.read_csv(tmp_path / "q.csv").set_index("id")
    assert asked["patient_id"]["c"] == "MRN-4711"
    assert asked["patient_name"]["e_muse"] == "Doe-Miller"
    assert asked["birth_date"]["f_philips"] == "1951-05-02"


def test_ids_are_unique_and_uids_are_whole(folder, tmp_path):
    names = ["1.2.840.3", "1.2.840.4", "c.dcm", "C.edf", "c.edf"]
    for name in names:
        (tmp_path / name).write_bytes((folder / ("a.edf" if name.endswith("edf") else "c.dcm")).read_bytes())
    assert [name for name, _ in named([tmp_path])] == ["1.2.840.3", "1.2.840.4", "C", "c.dcm", "c.edf"]
    twice = [folder, folder / "a.edf", tmp_path / "c.edf"]
    ids = [name for name, _ in named(twice)]
    assert ids == ["a", "b", "c.dcm", "d_aecg", "e_muse", "f_philips", "g", "a", "c.edf"]  # "a" was given twice
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.edf").write_bytes((folder / "a.edf").read_bytes())
    equal = [folder / "a.edf", tmp_path / "other" / "a.edf"]
    assert [name for name, _ in named(equal)] == [path.as_posix() for path in equal]
    with pytest.raises(InputError, match="is a folder, not a recording"):
        open_recording(tmp_path)


def test_a_manifest_may_mix_formats(folder, values, tmp_path):
    from seqssm_ecg.data import EcgData

    write_wfdb(tmp_path, "r", {lead: row * 1.1 for lead, row in values.items()}, RATE)
    with h5py.File(tmp_path / "exams.h5", "w") as file:
        file["tracings"] = np.stack([np.stack(list(values.values())) * k for k in (0.9, 0.8)])
    paths = [folder / "a.edf", folder / "d_aecg.xml", "r", "exams.h5/0", "exams.h5/1", folder / "c.dcm"]
    rows = [
        {"path": str(path), "AF": k % 2, "split": ("train", "val")[k > 3], "rate_hz": RATE}
        for k, path in enumerate(paths)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "m.csv", index=False)
    data = EcgData(manifest=str(tmp_path / "m.csv"), window_s=2.0, deduplicate=False, implausible="keep")
    data.setup("fit")
    assert (len(data.split["train"]), len(data.split["val"])) == (4, 2)
    assert data.bad == []


def test_from_python(trained, folder):
    frame = seqssm.load(trained, "cpu").predict([folder / "c.dcm", folder / "a.edf"])
    assert frame["status"].tolist() == ["ok", "ok"]
    assert "patient_id" not in frame
