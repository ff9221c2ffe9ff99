"""Every format of the table equals `wfdb`, whole and in blocks; formats that are read through `wfdb` (compressed files,
several samples per frame, skew); segments; MATLAB files written by `wfdb`."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from seqssm_ecg import signals
from seqssm_ecg.files import open_recording, read_recording
from seqssm_ecg.formats import FORMATS

from seqssm.errors import InputError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import wfdb
    from wfdb.io._signal import wr_dat_file

pytestmark = pytest.mark.filterwarnings("ignore")
LEADS = ["I", "II", "V1"]
RANGES = {"8": 7, "80": 7, "508": 7, "310": 9, "311": 9, "212": 11, "24": 23, "524": 23, "32": 30}


def thirds(table, pack):
    """Three samples of 10 bits in four bytes."""
    flat = np.concatenate([table.ravel(), np.zeros(-table.size % 3, int)]) & 0x3FF
    return np.array([pack(*triple) for triple in flat.reshape(-1, 3).tolist()], "<u4").tobytes()


def pack_310(a, b, c):
    return (a << 1) | (c & 0x1F) << 11 | (b << 17) | (c >> 5) << 27


ENCODERS = {  # of the formats that wfdb does not write
    "61": lambda table: table.astype(">i2").tobytes(),
    "160": lambda table: (table + 2**15).astype("<u2").tobytes(),
    "8": lambda table: np.diff(table, axis=0, prepend=table[:1]).astype("i1").tobytes(),
    "310": lambda table: thirds(table, pack_310),
    "311": lambda table: thirds(table, lambda a, b, c: a | b << 10 | c << 20),
}


def write(folder, kind, samples=499, leads=LEADS, seed=0, per_frame=None):
    """Write a record of random integers in a format; return them, (samples, leads)."""
    random = np.random.default_rng(seed)
    high = 2 ** RANGES.get(kind, 15)
    table = random.integers(-high + 1, high, (samples, len(leads)))
    if kind == "8":  # differences, clipped to 8 bits
        table = np.cumsum(random.integers(-100, 100, (samples, len(leads))), axis=0)
    (folder / "x.dat").unlink(missing_ok=True)
    if kind in ENCODERS:
        (folder / "x.dat").write_bytes(ENCODERS[kind](table))
    else:
        wr_dat_file("x.dat", kind, table, 0, write_dir=str(folder))
    lines = [f"x {len(leads)} 250 {samples}"]
    for column, lead in zip(table.T, leads):
        checksum = int(column.sum()) & 0xFFFF
        lines.append(f"x.dat {kind} 200(3)/mV 16 0 {column[0]} {checksum} 0 {lead}")
    (folder / "x.hea").write_text("\n".join(lines) + "\n")
    return table


def table_of(recording, leads=LEADS):
    return np.stack([recording.values[lead] for lead in leads], axis=1)


def blocks_of(recording, size):
    return np.concatenate(list(recording.blocks(size)), axis=1).T


def through_wfdb(folder):
    return wfdb.rdrecord(str(folder / "x"), smooth_frames=False, return_res=64).e_p_signal


@pytest.mark.parametrize("samples", [*(pytest.param(own, marks=pytest.mark.long) for own in (499, 500)), 501])
@pytest.mark.parametrize("kind", list(FORMATS))
def test_every_format_equals_wfdb_whole_and_in_blocks(tmp_path, kind, samples):
    table = write(tmp_path, kind, samples)
    recording = read_recording(tmp_path / "x.hea")
    expected = ((table - 3) / 200).astype(np.float32)
    np.testing.assert_allclose(table_of(recording), expected, rtol=1e-6)
    np.testing.assert_allclose(table_of(recording), np.stack(through_wfdb(tmp_path), 1), rtol=1e-6)
    for size in (6, 60, 486):
        np.testing.assert_array_equal(blocks_of(open_recording(tmp_path / "x.hea"), size), table_of(recording))


@pytest.mark.parametrize("kind", [kind for kind, row in FORMATS.items() if row.decode and kind != "61"])
def test_both_readers_give_the_same_integers(tmp_path, kind):
    write(tmp_path, kind, seed=1)  # wfdb 4.3 gives no integers of format 61, only physical values
    reader = open_recording(tmp_path / "x.hea").source.reader
    assert isinstance(reader, signals.OwnReader)
    other = signals.WfdbReader(reader.header, reader.used)
    for own, theirs in zip(reader.raw_blocks(60), other.raw_blocks(60), strict=True):
        np.testing.assert_array_equal(np.stack(own), np.stack(theirs))


def test_a_new_format_is_one_row_and_one_decoder(tmp_path, monkeypatch):
    from fractions import Fraction

    from seqssm_ecg.formats import Format

    monkeypatch.setitem(FORMATS, "99", Format("99", Fraction(2), None, lambda raw: np.frombuffer(raw, "<i2") // 2))
    write(tmp_path, "16")
    text = (tmp_path / "x.hea").read_text()
    (tmp_path / "x.hea").write_text(text.replace("x.dat 16", "x.dat 99"))
    assert open_recording(tmp_path / "x.hea").samples == 499
    assert read_recording(tmp_path / "x.hea", checksums=False).values["I"].shape == (499,)


def test_missing_samples_of_formats_that_wfdb_reads(tmp_path):
    write(tmp_path, "310", 12)
    table = np.zeros((12, 3), int)
    table[4, 1] = -512
    (tmp_path / "x.dat").write_bytes(ENCODERS["310"](table))
    found = table_of(read_recording(tmp_path / "x.hea", checksums=False))
    assert np.argwhere(np.isnan(found)).tolist() == [[4, 1]]


def test_several_samples_per_frame(tmp_path):
    """Four samples of the leads and one of the respiration per frame; one lead has two."""
    random = np.random.default_rng(4)
    frames = 100
    parts = [random.integers(-900, 900, (frames, width)) for width in (4, 2, 1)]
    (tmp_path / "x.dat").write_bytes(np.concatenate(parts, axis=1).astype("<i2").tobytes())
    sums = [int(part.sum()) & 0xFFFF for part in parts]
    (tmp_path / "x.hea").write_text(
        f"x 3 125 {frames}\nx.dat 16x4 1000/mV 16 0 0 {sums[0]} 0 I\nx.dat 16x2 1000/mV 16 0 0 {sums[1]} 0 II\n"
        "x.dat 16 0/NU 16 0 0 0 0 RESP\n"
    )
    found = read_recording(tmp_path / "x.hea")
    assert (found.rate_hz, found.samples) == (500, 400)
    np.testing.assert_allclose(found.values["I"], parts[0].ravel() / 1000, atol=1e-6)
    np.testing.assert_allclose(found.values["II"][::2], parts[1].ravel() / 1000, atol=1e-6)
    assert found.notes == ["unused signals: RESP", "interpolated to 500 Hz: II"]


def write_frames(folder, kind, frames, per_frame=(4, 2, 3), skew=(0, 0, 0), seed=0):
    """A record with several samples per frame; gives the stored integers of each lead, (frames * per_frame,)."""
    random = np.random.default_rng(seed)
    high = 2 ** RANGES.get(kind, 15)
    parts = [random.integers(-high + 1, high, (frames, width)) for width in per_frame]
    stored = parts
    if kind == "8":
        parts = [np.cumsum(random.integers(-100, 100, frames * width)).reshape(frames, width) for width in per_frame]
        stored = [np.diff(part.ravel(), prepend=part[0, 0]).reshape(part.shape) for part in parts]
    table = np.concatenate(stored, axis=1).reshape(-1, 1)
    if kind == "8":
        (folder / "x.dat").write_bytes(table.astype("i1").tobytes())
    elif kind in ENCODERS:
        (folder / "x.dat").write_bytes(ENCODERS[kind](table))
    elif FORMATS[kind].sample_bytes is None:  # a channel per lead
        wr_dat_file("x.dat", kind, np.stack([part.ravel() for part in parts], 1), 0, write_dir=str(folder))
    else:
        wr_dat_file("x.dat", kind, table, 0, write_dir=str(folder))
    lines = [f"x {len(LEADS)} 125 {frames}"]
    for part, width, lag, lead in zip(parts, per_frame, skew, LEADS):
        lag_field = f":{lag}" if lag else ""
        checksum = int(part.sum()) & 0xFFFF
        lines.append(f"x.dat {kind}x{width}{lag_field} 200(3)/mV 16 0 {part[0, 0]} {checksum} 0 {lead}")
    (folder / "x.hea").write_text("\n".join(lines) + "\n")
    return [part.ravel() for part in parts]


KINDS = list(FORMATS)


@pytest.mark.parametrize("kind", KINDS)
def test_frames_in_blocks_equal_the_whole_and_wfdb(tmp_path, kind):
    """The interpolated samples behind a block's last one lie in the next block."""
    compressed = FORMATS[kind].sample_bytes is None
    stored = write_frames(tmp_path, kind, 121, (3, 3, 3) if compressed else (4, 2, 3))
    recording = read_recording(tmp_path / "x.hea")
    whole = table_of(recording)
    for size in (6, 60, 66):
        np.testing.assert_array_equal(blocks_of(open_recording(tmp_path / "x.hea"), size), whole)
    for column, lead, theirs in zip(whole.T, stored, through_wfdb(tmp_path), strict=True):
        at = np.arange(len(whole)) * len(lead) / len(whole)
        exact = np.interp(at, np.arange(len(lead)), (lead - 3) / 200)
        np.testing.assert_allclose(column, exact, atol=1e-6 * np.abs(exact).max())
        if kind != "61":  # wfdb 4.3 reads these as little-endian
            np.testing.assert_allclose(column[at % 1 == 0], theirs[at[at % 1 == 0].astype(int)], rtol=1e-6)


def test_frames_of_a_record_longer_than_a_block(tmp_path):
    """Reading the whole record reads it in blocks too."""
    frames = 2 * signals.BLOCK + 7
    stored = write_frames(tmp_path, "16", frames, (2, 1, 1))
    whole = table_of(read_recording(tmp_path / "x.hea"))
    at = np.arange(2 * frames) / 2
    for column, lead in zip(whole.T[1:], stored[1:]):
        np.testing.assert_allclose(column, np.interp(at, np.arange(frames), (lead - 3) / 200), atol=1e-4)
    np.testing.assert_array_equal(blocks_of(open_recording(tmp_path / "x.hea"), 6006), whole)


def test_a_missing_sample_is_missing_in_its_surroundings_only(tmp_path):
    table = np.array([[1, 2, 10], [3, 4, -(2**15)], [5, 6, 30], [7, 8, 40]], "<i2")
    (tmp_path / "x.dat").write_bytes(table.tobytes())
    (tmp_path / "x.hea").write_text("x 2 125 4\nx.dat 16x2 1/mV 16 0 0 0 0 I\nx.dat 16 1/mV 16 0 0 0 0 II\n")
    expected = [10, np.nan, np.nan, np.nan, 30, 35, 40, 40]
    np.testing.assert_array_equal(read_recording(tmp_path / "x.hea").values["II"], expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("skew", [(5, 0, 0), (5, 2, 13), (0, 70, 1)])
def test_skew(tmp_path, kind, skew):
    """Signals of one file with different skews, on which wfdb fails; several samples per frame."""
    per_frame = (2, 2, 2) if FORMATS[kind].sample_bytes is None else (2, 1, 2)
    stored = write_frames(tmp_path, kind, 100, per_frame, skew)
    whole = table_of(read_recording(tmp_path / "x.hea"))
    for column, lead, width, lag in zip(whole.T, stored, per_frame, skew):
        good = (100 - lag) * width
        found = column[:: 2 // width]
        np.testing.assert_allclose(found[:good], (lead[lag * width :] - 3) / 200, rtol=1e-6)
        assert np.isnan(found[good:]).all()
    for size in (6, 66):
        np.testing.assert_array_equal(blocks_of(open_recording(tmp_path / "x.hea"), size), whole)


def test_skew_is_that_of_wfdb(tmp_path):
    write_frames(tmp_path, "16", 100, (1, 1, 1), (5, 0, 0))
    np.testing.assert_allclose(
        table_of(read_recording(tmp_path / "x.hea")), np.stack(through_wfdb(tmp_path), 1), rtol=1e-6
    )


def test_a_skew_longer_than_the_record(tmp_path):
    write_frames(tmp_path, "16", 100, (1, 1, 1), (100, 0, 0))
    with pytest.raises(InputError, match=r"line 2, signal I: the skew of 100 frames is not shorter than the record"):
        open_recording(tmp_path / "x.hea")


def segment(folder, name, samples, leads, gain=200.0, seed=0):
    table = np.random.default_rng(seed).integers(-500, 500, (samples, len(leads)))
    wfdb.wrsamp(
        name,
        fs=250,
        units=["mV"] * len(leads),
        sig_name=leads,
        d_signal=table,
        fmt=["16"] * len(leads),
        adc_gain=[gain] * len(leads),
        baseline=[0] * len(leads),
        write_dir=str(folder),
    )
    return table / gain


def test_segments_of_a_fixed_layout(tmp_path):
    one, two = segment(tmp_path, "s1", 500, ["I", "II"]), segment(tmp_path, "s2", 300, ["I", "II"], 100.0, 1)
    (tmp_path / "x.hea").write_text("x/2 2 250 800\ns1 500\ns2 300\n# Dx: 426783006\n")
    found = read_recording(tmp_path / "x.hea")
    np.testing.assert_allclose(table_of(found, ["I", "II"]), np.concatenate([one, two]), atol=1e-6)
    np.testing.assert_allclose(table_of(found, ["I", "II"]), np.stack(through_wfdb(tmp_path), 1), atol=1e-6)
    assert found.codes == ["426783006"]
    np.testing.assert_array_equal(blocks_of(open_recording(tmp_path / "x.hea"), 60), table_of(found, ["I", "II"]))


def test_segments_with_a_gap_which_wfdb_does_not_read(tmp_path):
    one, two = segment(tmp_path, "s1", 500, ["I", "II"]), segment(tmp_path, "s2", 300, ["I", "II"], 100.0, 1)
    (tmp_path / "x.hea").write_text("x/3 2 250 900\ns1 500\n~ 100\ns2 300\n")
    with pytest.raises(AttributeError):
        through_wfdb(tmp_path)
    found = read_recording(tmp_path / "x.hea")
    np.testing.assert_allclose(
        table_of(found, ["I", "II"]), np.concatenate([one, np.full((100, 2), np.nan), two]), atol=1e-6
    )
    assert found.notes == ["gaps between segments: 0.4 s"]


def test_segments_of_a_variable_layout(tmp_path):
    one, two = segment(tmp_path, "s1", 500, ["II", "V1"]), segment(tmp_path, "s2", 300, ["I"], 100.0, 1)
    lines = [f"~ 0 200/mV 16 0 0 0 0 {lead}" for lead in ("I", "II", "V1")]
    (tmp_path / "x0.hea").write_text("x0 3 250 0\n" + "\n".join(lines) + "\n")
    (tmp_path / "x.hea").write_text("x/4 3 250 900\nx0 0\ns1 500\n~ 100\ns2 300\n")
    found = read_recording(tmp_path / "x.hea")
    np.testing.assert_allclose(table_of(found), np.stack(through_wfdb(tmp_path), 1), atol=1e-6)
    assert np.isnan(found.values["I"][:600]).all()
    np.testing.assert_allclose(found.values["II"][:500], one[:, 0], atol=1e-6)
    np.testing.assert_allclose(found.values["I"][600:], two[:, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("x/2 2 250 800\ns1 500\ns9 300\n", "s9.hea: no such header"),
        ("x/2 2 250 800\ns1 400\ns1 400\n", "segment s1 has 500 samples"),
        ("x/2 2 250 900\ns1 500\ns1 500\n", "declares 900 samples"),
        ("x/2 2 250 1000\n../s1 500\ns1 500\n", "not in the folder of the header"),
        ("x/2 2 250 1000\ns3://b/s1 500\ns1 500\n", "not in the folder of the header"),
        ("x/1 2 250 1000\nx 1000\n", "itself has segments"),
    ],
)
def test_bad_segments_are_one_line(tmp_path, lines, message):
    segment(tmp_path, "s1", 500, ["I", "II"])
    (tmp_path / "x.hea").write_text(lines)
    with pytest.raises(InputError, match=message) as error:
        read_recording(tmp_path / "x.hea")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("kind", ["16", "80", "32"])
def test_matlab_files_of_wfdb(tmp_path, monkeypatch, kind):
    from wfdb.io.convert.matlab import wfdb_to_mat

    monkeypatch.chdir(tmp_path)
    table = write(tmp_path, kind, 300)
    text = (tmp_path / "x.hea").read_text().replace("(3)", "(0)").replace("/mV 16", f"/mV {kind}")
    (tmp_path / "x.hea").write_text(text.replace("/mV 80", "/mV 8"))
    if kind != "16":  # wfdb 4.3 packs every type as 16 bits, and fails
        level_5(tmp_path / "xm.mat", table, kind)
        lines = [f"xm.mat {kind}+192 200(0)/mV 16 0 0 0 0 {lead}" for lead in LEADS]
        (tmp_path / "xm.hea").write_text("xm 3 250 300\n" + "\n".join(lines) + "\n")
    else:
        wfdb_to_mat("x")
    found = read_recording(tmp_path / "xm.hea")
    np.testing.assert_allclose(table_of(found), table / 200, rtol=1e-6)
    content = (tmp_path / "xm.mat").read_bytes()
    (tmp_path / "xm.mat").write_bytes(content[:160] + b"\x07" + content[161:])
    with pytest.raises(InputError, match="is corrupt: its first bytes describe 7 x 300"):
        read_recording(tmp_path / "xm.hea")


def level_5(path, table, kind):
    """A MATLAB level 5 file as `wfdb_to_mat` lays it out."""
    import struct

    code, dtype = {"80": (2, "u1"), "32": (5, "<i4")}[kind]
    raw = (table + (128 if kind == "80" else 0)).astype(dtype).tobytes()
    head = struct.pack("<124sH2sII", b"MATLAB 5.0", 256, b"IM", 14, 56 + len(raw))
    head += struct.pack("<IIQIIIIII8sII", 6, 8, 6, 5, 8, table.shape[1], len(table), 1, 3, b"val", code, len(raw))
    path.write_bytes(head + raw)


def test_matlab_int32_of_level_4(tmp_path):
    import struct

    table = np.random.default_rng(0).integers(-(2**20), 2**20, (50, 2)).astype("<i4")
    head = struct.pack("<5i", 20, 2, 50, 0, 4) + b"val\0"
    (tmp_path / "x.mat").write_bytes(head + table.tobytes())
    (tmp_path / "x.hea").write_text("x 2 250 50\nx.mat 32+24 1000/mV 32 0 0 0 0 I\nx.mat 32+24 1000/mV 32 0 0 0 0 II\n")
    np.testing.assert_allclose(table_of(read_recording(tmp_path / "x.hea"), ["I", "II"]), table / 1000, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("s3://bucket/x.dat", "not in the folder of the header"),
        ("../x.dat", "not in the folder of the header"),
        ("a::b.dat", "not in the folder of the header"),
        ("-", "not in the folder of the header"),
        ("/etc/passwd", "not in the folder of the header"),
    ],
)
@pytest.mark.parametrize("kind", ["16", "310"])
def test_a_header_names_only_files_beside_it(tmp_path, monkeypatch, name, message, kind):
    monkeypatch.setattr(wfdb, "rdrecord", lambda *args, **kwargs: pytest.fail("wfdb was called"))
    write(tmp_path, kind, 30)
    text = (tmp_path / "x.hea").read_text().replace("x.dat", name)
    (tmp_path / "x.hea").write_text(text)
    with pytest.raises(InputError, match=message):
        read_recording(tmp_path / "x.hea")


@pytest.mark.parametrize("path", ["s3://bucket/x", "https://physionet.org/x.hea", "s3:/bucket/x"])
def test_urls_are_refused(path):
    from pathlib import Path

    with pytest.raises(InputError, match="only local files are read"):
        open_recording(Path(path))


def test_wfdb_gets_an_absolute_path(tmp_path, monkeypatch):
    from pathlib import Path

    write(tmp_path, "310", 30)
    monkeypatch.chdir(tmp_path)
    seen = []
    real = wfdb.rdrecord
    monkeypatch.setattr(wfdb, "rdrecord", lambda name, **more: seen.append(name) or real(name, **more))
    assert read_recording(Path("x")).samples == 30
    assert set(seen) == {str(tmp_path / "x")}


def test_damaged_files_that_wfdb_reads_are_one_line(tmp_path):
    for kind in ("516", "310", "8"):
        write(tmp_path, kind, 300)
        content = (tmp_path / "x.dat").read_bytes()
        for change in (content[: len(content) // 2], content[:40] + b"\xff" * 9 + content[49:], b""):
            (tmp_path / "x.dat").write_bytes(change)
            with pytest.raises(InputError) as error:
                read_recording(tmp_path / "x.hea")
            assert len(str(error.value).splitlines()) == 1
