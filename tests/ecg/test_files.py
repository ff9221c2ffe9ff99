"""Readers: variants of headers, errors of damaged files, arrays, folders."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from seqssm_ecg import simulate
from seqssm_ecg.files import ArraySpec, find_recordings, inputs, read_recording, write_wfdb
from seqssm_ecg.headers import read_header
from seqssm_ecg.leads import LEADS, canonical, select

from seqssm.errors import InputError


@pytest.fixture
def values():
    return simulate.recording(["PVC"], 2.0, 250.0, seed=1)


@pytest.fixture
def record(tmp_path, values):
    return write_wfdb(tmp_path, "r1", values, 250.0, {"Age": "61", "Sex": "F", "Dx": "426783006,427172004"})


def edit(path, old, new, count=-1):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))
    return path


@pytest.mark.parametrize("suffix", [".mat", ".dat"])
def test_a_written_record_is_read_back(tmp_path, values, suffix):
    values["V3"] = values["V3"].copy()
    values["V3"][5:9] = np.nan
    path = write_wfdb(tmp_path, "r2", values, 250.0, {"Dx": "426783006"}, suffix)
    found = read_recording(path)
    assert found.rate_hz == 250
    assert found.codes == ["426783006"]
    assert list(found.values) == list(LEADS)
    for lead in LEADS:
        np.testing.assert_array_equal(np.isnan(found.values[lead]), np.isnan(values[lead]))
        np.testing.assert_allclose(found.values[lead], values[lead], atol=5.1e-4)


@pytest.mark.parametrize("name", ["r1", "r1.mat", "r1.hea"])
def test_a_record_is_found_by_any_of_its_names(record, name):
    assert read_recording(record.parent / name).samples == 500


def test_reads_what_wfdb_reads(record, values):
    import wfdb

    theirs = wfdb.rdrecord(str(record.with_suffix("")))
    ours = read_recording(record)
    table = np.stack([ours.values[lead] for lead in theirs.sig_name], axis=1)
    np.testing.assert_allclose(table, theirs.p_signal, atol=1e-6)


@pytest.mark.parametrize(
    ("old", "new", "factor"),
    [
        ("1000.0(0)/mV", "1000/mV", 1.0),
        ("1000.0(0)/mV", "1000", 1.0),
        ("1000.0(0)/mV", "2000(0)/mv", 0.5),
        ("1000.0(0)/mV", "1000.0(0)/uV", 1e-3),
        ("r1 12 250 500", "r1.mat 12 250 500 05-May-2020 14:50:55", 1.0),
        ("r1 12 250 500", "r1 12 250/250(0) 500 14:50:55 05/05/2020", 1.0),
        ("16+24", "16x1+24", 1.0),
    ],
)
def test_spellings_of_headers(record, values, old, new, factor):
    found = read_recording(edit(record, old, new))
    np.testing.assert_allclose(found.values["II"], values["II"] * factor, atol=5.1e-4)


def test_the_baseline_in_brackets_wins_over_adc_zero(record, values):
    edit(record, "1000.0(0)/mV 16 0 ", "1000.0(100)/mV 16 7 ")
    np.testing.assert_allclose(read_recording(record).values["V1"], values["V1"] - 0.1, atol=5.1e-4)
    edit(record, "1000.0(100)/mV 16 7 ", "1000.0/mV 16 200 ")
    np.testing.assert_allclose(read_recording(record).values["V1"], values["V1"] - 0.2, atol=5.1e-4)


@pytest.mark.parametrize(
    ("line", "codes"),
    [
        ("#Dx: 426177001,,164934002,426177001, 164934002 ,", ["426177001", "164934002"]),
        ("# Dx: 426177001", ["426177001"]),
        ("#Dx: 426177001;164934002", ["426177001", "164934002"]),
        ("#Dx:", []),
        ("#dX : 1, abc", ["1", "abc"]),
        ("#Hx: Unknown", None),
    ],
)
def test_codes(record, line, codes):
    assert read_header(edit(record, "#Dx: 426783006,427172004", line)).codes == codes


@pytest.mark.parametrize(("age", "sex", "found"), [("61", "F", (61.0, "female")), ("NaN", "Unknown", (None, None))])
def test_age_and_sex(record, age, sex, found):
    edit(edit(record, "#Age: 61", f"#Age: {age}"), "#Sex: F", f"#Sex: {sex}")
    header = read_header(record)
    assert (header.age, header.sex) == found


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("r1 12 250 500", "r1 12 0 500", "sampling rate is 0"),
        ("r1 12 250 500", "r1 12", "no sampling rate"),
        ("r1 12 250 500", "r1 13 250 500", "declares 13 signals"),
        ("r1 12 250 500", "r1 11 250 500", "describes more"),
        ("r1 12 250 500", "r1/12 12 250 500", "number of samples"),
        ("r1 12 250 500", "r1 12 250 600", "is truncated"),
        ("r1 12 250 500", "r1 12 250 400", "is corrupt"),
        ("r1.mat 16", "../r1.mat 16", "not in the folder of the header"),
        ("r1.mat 16", "r9.mat 16", "is missing"),
        ("16+24", "17", "format 17 is not a WFDB format"),
        ("1000.0(0)/mV", "0/mV", "--wfdb-defaults"),
        ("1000.0(0)/mV", "1000.0(0)/mmHg", "unit 'mmHg'"),
        (" 0 aVR", " 0 aVL", "duplicate lead aVL"),
    ],
)
def test_a_bad_header_is_one_line_that_names_the_file(record, old, new, message):
    with pytest.raises(InputError, match=r"r1\.(hea|mat)") as error:
        read_recording(edit(record, old, new))
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_damaged_samples_fail_the_checksum(record):
    path = record.with_suffix(".mat")
    content = bytearray(path.read_bytes())
    content[2001] ^= 0x40
    path.write_bytes(content)
    with pytest.raises(InputError, match="checksum"):
        read_recording(record)
    assert read_recording(record, checksums=False).samples == 500


@pytest.mark.parametrize(
    ("kind", "dtype", "low"), [("61", ">i2", -(2**15)), ("160", "<u2", 0), ("32", "<i4", -(2**31)), ("80", "u1", 0)]
)
def test_other_formats(tmp_path, kind, dtype, low):
    counts = np.array([[3, -5], [100, 27], [-128 if kind == "80" else -20000, 1]])
    shift = {"160": 2**15, "80": 2**7}.get(kind, 0)
    (tmp_path / "x.dat").write_bytes((counts + shift).astype(dtype).tobytes())
    (tmp_path / "x.hea").write_text(f"x 2 100 3\nx.dat {kind} 100 0 0 0 0 0 I\nx.dat {kind} 100 0 0 0 0 0 II\n")
    if kind == "80":  # -128 says "missing"
        counts = counts.astype(float)
        counts[2, 0] = np.nan
    found = read_recording(tmp_path / "x.hea")
    np.testing.assert_allclose(np.stack([found.values["I"], found.values["II"]], 1), counts / 100, rtol=1e-6)


def test_24_bit_samples(tmp_path):
    counts = [0, 1, -1, 2**23 - 1, -(2**23) + 1, 70000]
    raw = b"".join(count.to_bytes(3, "little", signed=True) for count in counts)
    (tmp_path / "x.dat").write_bytes(raw)
    (tmp_path / "x.hea").write_text("x 1 100 6\nx.dat 24 1000 0 0 0 0 0 I\n")
    np.testing.assert_allclose(read_recording(tmp_path / "x.hea").values["I"], np.array(counts) / 1000, rtol=1e-6)


@pytest.mark.parametrize("samples", [6, 7])
def test_12_bit_samples_equal_wfdbs(tmp_path, samples):
    import wfdb

    random = np.random.default_rng(0)
    counts = random.integers(-2047, 2048, (samples, 3))
    names, gains = ["I", "II", "V1"], [200.0] * 3
    wfdb.wrsamp(
        "x",
        fs=360,
        units=["mV"] * 3,
        sig_name=names,
        d_signal=counts,
        fmt=["212"] * 3,
        adc_gain=gains,
        baseline=[0] * 3,
        write_dir=str(tmp_path),
    )
    found = read_recording(tmp_path / "x.hea")
    np.testing.assert_allclose(np.stack([found.values[lead] for lead in names], 1), counts / 200, rtol=1e-6)


def test_missing_samples_are_nan(tmp_path):
    (tmp_path / "x.dat").write_bytes(np.array([1, -32768, 3], "<i2").tobytes())
    (tmp_path / "x.hea").write_text("x 1 100 3\nx.dat 16 1000 0 0 0 0 0 I\n")
    assert np.isnan(read_recording(tmp_path / "x.hea").values["I"]).tolist() == [False, True, False]


@pytest.mark.parametrize("name", ["avr", "AVR", "aVR", " aVr "])
def test_lead_names_in_any_case(name):
    assert canonical(name) == "aVR"


@pytest.mark.parametrize(
    ("name", "lead"),
    [
        *(("DI", "I"), ("dii", "II"), ("D3", "III"), ("Lead I", "I"), ("LEAD_2", "II"), ("lead.aVF", "aVF")),
        *(("ECG V1", "V1"), ("EKG II", "II"), ("ecg_avl", "aVL"), ("aVL.", "aVL"), ("Lead-III", "III")),
        *(("MDC_ECG_LEAD_V6", "V6"), ("lead-avf.", "aVF"), ("Lead -aVR", None), ("lead-aVR", None)),
        *(("ECG1", None), ("ECG", None), ("-aVR", None), ("V1R", None), ("V7", None), ("1", None), ("MLII", None)),
        *(("I (mV)", "I"), ("V1 [uV]", "V1"), ("aVR_µV", "aVR"), ("'II'", "II"), ("Lead 2 mV", "II")),
        *(("MLII (mV)", None), ("I (mmHg)", None), ("(mV)", None), ("I_V", None), ("-aVR (mV)", None)),
    ],
)
def test_known_aliases_are_leads_and_nothing_else_is(name, lead):
    assert canonical(name) == lead


def test_unknown_names_are_listed_as_unused(record):
    edit(edit(record, " 0 V5", " 0 MLII"), " 0 V6", " 0 RESP")
    found = read_recording(record)
    assert found.notes == ["unused signals: MLII RESP"]
    assert len(found.leads) == 10
    assert read_recording(record, {"mlii": "V5"}).notes == ["unused signals: RESP"]


@pytest.mark.parametrize(
    "line",
    [
        "0/NU 16 0 0 0 0 RESP",
        "x/mV 16 0 0 0 0 RESP",
        "1000/mmHg 16 0 0 0 0 ABP",
        "200 16 zero 0 0 0 RESP",
        "0 16 0 0 7",
    ],
)
def test_only_signals_that_are_used_are_checked(tmp_path, values, line):
    """A thirteenth channel that is not calibrated, has another unit or a malformed field."""
    write_wfdb(tmp_path, "r", values, 250.0, suffix=".dat")
    head = (tmp_path / "r.hea").read_text().replace("r 12", "r 13").rstrip().splitlines()
    table = np.fromfile(tmp_path / "r.dat", "<i2").reshape(-1, 12)
    np.concatenate([table, np.full((len(table), 1), 77, "<i2")], 1).astype("<i2").tofile(tmp_path / "r.dat")
    (tmp_path / "r.hea").write_text("\n".join([*head, f"r.dat 16 {line}"]) + "\n")
    found = read_recording(tmp_path / "r.hea")
    np.testing.assert_allclose(found.values["V6"], values["V6"], atol=5.1e-4)
    (tmp_path / "r.hea").write_text("\n".join([*head, f"other.dat 99 {line}"]) + "\n")  # in a separate file
    table.tofile(tmp_path / "r.dat")
    assert len(read_recording(tmp_path / "r.hea").leads) == 12


@pytest.mark.parametrize(
    ("old", "new", "note"),
    [
        ("1000.0(0)/mV", "0/mV", "WFDB's default gain of 200 per mV"),
        ("r1 12 250 500", "r1 12", "WFDB's default sampling rate of 250 Hz"),
        ("r1 12 250 500", "r1 12 0 500", "WFDB's default sampling rate of 250 Hz"),
    ],
)
def test_wfdbs_defaults_are_used_only_on_request(record, values, old, new, note):
    edit(record, old, new)
    with pytest.raises(InputError, match=r"--wfdb-defaults, fit --data\.wfdb_defaults true"):
        read_recording(record)
    found = read_recording(record, wfdb_defaults=True)
    assert found.notes == [note]
    assert found.rate_hz == 250
    np.testing.assert_allclose(found.values["I"], values["I"] * (5 if "gain" in note else 1), atol=3e-3)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize("first", ["", "# exported by X\n"])
def test_byte_order_marks_and_encodings(record, encoding, first):
    text = first + record.read_text() + "#Hx: Sch\u00fctz\n"
    record.write_bytes(text.encode(encoding))
    found = read_recording(record)
    assert found.samples == 500
    assert found.codes == ["426783006", "427172004"]


def test_other_names_only_by_a_map():
    assert canonical("MLII") is None
    assert canonical("mlii", {"MLII": "II"}) == "II"
    with pytest.raises(InputError, match="V9"):
        read_recording("any.npy", {"x": "V9"})


def test_limb_leads_follow_from_any_two(values, tmp_path):
    for pair in (("I", "II"), ("I", "III"), ("II", "III")):
        table, notes = select({lead: values[lead] for lead in pair}, LEADS[:6], "refuse", tmp_path)
        np.testing.assert_allclose(table, np.stack([values[lead] for lead in LEADS[:6]]), atol=1e-5)
        assert "computed" in notes[0]


def test_missing_chest_leads_are_zero_or_refused(values, tmp_path):
    limb = {lead: values[lead] for lead in LEADS[:6]}
    table, notes = select(limb, LEADS, "zero", tmp_path)
    assert not table[6:].any()
    assert notes == ["missing, set to 0: V1 V2 V3 V4 V5 V6"]
    with pytest.raises(InputError, match="missing leads V1"):
        select(limb, LEADS, "refuse", tmp_path)


@pytest.mark.parametrize(("code", "name"), [(0, "float64"), (10, "float32")])
def test_matlab_files_of_floating_point_numbers_are_not_corrupt(record, values, code, name):
    rows = np.stack(list(values.values())).astype(name)
    head = np.array([code, *rows.shape, 0, 4], "<i4").tobytes() + b"val\0"
    record.with_suffix(".mat").write_bytes(head + rows.T.tobytes())
    with pytest.raises(InputError, match=rf"contains {name} numbers, the header says 16-bit integers \(format 16\)"):
        read_recording(record)


@pytest.mark.parametrize("turned", [False, True])
def test_arrays(tmp_path, values, turned):
    table = np.stack(list(values.values())) * 1000
    np.save(tmp_path / "a.npy", table.T if turned else table)
    found = read_recording(tmp_path / "a.npy", array=ArraySpec(250.0, None, "uV"))
    np.testing.assert_allclose(found.values["V5"], values["V5"], atol=1e-5)


@pytest.mark.parametrize(
    ("content", "spec", "message"),
    [
        (np.zeros((12, 50)), ArraySpec(), "sampling rate"),
        (np.zeros((7, 50)), ArraySpec(100.0), "--array-leads"),
        (np.zeros((12, 50)), ArraySpec(100.0, ("I", "II")), "2 leads were given"),
        (np.zeros(50), ArraySpec(100.0), "table of numbers"),
        (np.array([["a"] * 12]), ArraySpec(100.0), "table of numbers"),
        (np.zeros((12, 50)), ArraySpec(100.0, None, "mmHg"), "unit"),
    ],
)
def test_a_bad_array_is_one_line(tmp_path, content, spec, message):
    np.save(tmp_path / "a.npy", content)
    with pytest.raises(InputError, match=message):
        read_recording(tmp_path / "a.npy", array=spec)


def test_folders(made, tmp_path):
    assert len(find_recordings(made)) == 60
    assert [path.name for path in inputs([made / "M00001.mat", made / "M00000"])] == ["M00001.mat", "M00000"]
    (tmp_path / "notes.txt").write_text("no recording")
    with pytest.raises(InputError, match="contains no recordings"):
        list(inputs([tmp_path]))
    with pytest.raises(InputError, match="is not a recording"):
        list(inputs([tmp_path / "notes.txt"]))
    with pytest.raises(InputError, match="no such file"):
        list(inputs([tmp_path / "none"]))


@pytest.mark.long
def test_a_thousand_damaged_records_are_read_or_refused(record, values, tmp_path):
    """Random byte flips and truncations of header and signal: either an error of one line, or a finite recording."""
    from seqssm_ecg.preprocess import Preprocess

    random = np.random.default_rng(11)
    whole = {suffix: record.with_suffix(suffix).read_bytes() for suffix in (".hea", ".mat")}
    process = Preprocess(rate_hz=100.0)
    refused: list[str] = []
    for turn in range(1000):
        for suffix, content in whole.items():
            record.with_suffix(suffix).write_bytes(content)
        suffix = ".hea" if turn % 2 else ".mat"
        content = bytearray(whole[suffix])
        if turn % 5 == 0:
            content = content[: int(random.integers(0, len(content)))]
        else:
            for _ in range(int(random.integers(1, 4))):
                content[int(random.integers(0, len(content)))] ^= int(random.integers(1, 256))
        record.with_suffix(suffix).write_bytes(content)
        try:
            table, _ = process(read_recording(record))
        except InputError as error:
            refused.append(str(error))
        else:
            assert np.isfinite(table).all()
    assert len(refused) > 700
    assert all("r1" in printed and len(printed.splitlines()) == 1 for printed in refused)


@pytest.mark.parametrize("content", [b"text", pickle.dumps([1])])
def test_no_error_advises_to_run_a_file(content, tmp_path):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(InputError, match="is not a readable array") as error:
        read_recording(tmp_path / "a.npy", array=ArraySpec(250.0, None, "uV"))
    assert "pickle" not in str(error.value)
