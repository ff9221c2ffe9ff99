"""Bag files: every common layout, errors of one line, no code executed and no hang on damaged files."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from seqssm_pathology import formats
from seqssm_pathology.files import Bag, checked, join, list_bags, read_bag, slide_id, write_bag
from seqssm_pathology.values import by_family, read_values

from seqssm.errors import InputError

DAMAGED = 1000


def write(path, **datasets):
    with h5py.File(path, "w") as file:
        for name, value in datasets.items():
            file[name] = value
    return path


def test_a_written_bag_is_read_back(bag, bag_file):
    found = read_bag(bag_file)
    np.testing.assert_array_equal(found.features, bag.features)
    np.testing.assert_array_equal(found.coords, bag.coords)
    assert (found.id, found.attributes["encoder"]) == ("good", "test")


@pytest.mark.parametrize("dtype", ["float16", "float64", "float32", "int16"])
def test_number_types(bag, tmp_path, dtype):
    path = write(tmp_path / "a.h5", features=bag.features.astype(dtype), coords=bag.coords.astype("int64"))
    found = read_bag(path)
    assert found.features.dtype == np.float32
    np.testing.assert_array_equal(found.features, bag.features.astype(dtype).astype(np.float32))


def test_leading_axes_and_a_single_instance(bag, tmp_path):
    one = write(tmp_path / "one.h5", features=bag.features[None], coords=bag.coords)
    both = write(tmp_path / "both.h5", features=bag.features[None], coords=bag.coords[None])
    flat = write(tmp_path / "flat.h5", features=bag.features[0])
    for path in (one, both):
        np.testing.assert_array_equal(read_bag(path).features, bag.features)
    assert read_bag(flat).features.shape == (1, 6)


def test_tensors_and_arrays(bag, tmp_path):
    tensor = torch.from_numpy(bag.features)
    torch.save(tensor, tmp_path / "a.pt")
    torch.save(tensor[None].bfloat16(), tmp_path / "b.pt")
    torch.save({"features": tensor, "coords": torch.from_numpy(bag.coords)}, tmp_path / "c.pt")
    (tmp_path / "features").mkdir()
    (tmp_path / "coords").mkdir()
    np.save(tmp_path / "features" / "d.npy", bag.features)
    np.save(tmp_path / "coords" / "d.npy", bag.coords)
    np.testing.assert_array_equal(read_bag(tmp_path / "a.pt").features, bag.features)
    assert read_bag(tmp_path / "b.pt").features.shape == (20, 6)
    for name in ("c.pt", "features/d.npy"):
        found = read_bag(tmp_path / name)
        np.testing.assert_array_equal(found.features, bag.features)
        np.testing.assert_array_equal(found.coords, bag.coords)


def test_level0_side_of_a_trident_patch(bag, tmp_path):
    path = write(tmp_path / "t.h5", features=bag.features, coords=bag.coords)
    with h5py.File(path, "a") as file:
        file["coords"].attrs.update({"patch_size": 256, "level0_magnification": 40, "target_magnification": 20})
    assert read_bag(path).patch == 512


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        ({"features": np.zeros((0, 6))}, "no patches"),
        ({"coords": np.zeros((4, 2))}, "the encoder has not been run"),
        ({"values": np.zeros((4, 6))}, "contains values"),
        ({"features": np.zeros((4, 6)), "coords": np.zeros((3, 2))}, "expected one x, y per patch"),
        ({"features": np.zeros((2, 4, 6))}, r"not \(patches, width\)"),
        ({"features": np.array([b"text"])}, "expected numbers"),
        ({"features": np.zeros((4, 6)), "coords": np.full((4, 2), np.nan)}, "coords contain NaN"),
    ],
)
def test_faults_of_hdf5_bags(datasets, message, tmp_path):
    with pytest.raises(InputError, match=message) as error:
        read_bag(write(tmp_path / "bad.h5", **datasets))
    assert str(error.value).startswith(str(tmp_path / "bad.h5"))
    assert "\n" not in str(error.value)


def test_nan_is_refused_or_dropped_and_counted(bag, tmp_path):
    features = bag.features.copy()
    features[3, 2], features[5], features[9, 0] = np.nan, np.nan, np.inf
    path = write(tmp_path / "nan.h5", features=features, coords=bag.coords)
    with pytest.raises(InputError, match=r"3 of 20 patches contain NaN or infinity \(first: row 3\)"):
        read_bag(path)
    found = read_bag(path, invalid="drop")
    assert (len(found), len(found.coords), found.dropped) == (17, 17, 3)
    with pytest.raises(InputError, match="every patch"):
        read_bag(write(tmp_path / "all.h5", features=np.full((3, 2), np.nan)), invalid="drop")


def test_objects_that_are_not_datasets_are_named(bag, tmp_path):
    outside = tmp_path / "outside.h5"
    with h5py.File(outside, "w") as file:
        file["group/features"] = bag.features
    path = tmp_path / "one.h5"
    with h5py.File(path, "w") as file:
        file["soft"], file["real"] = h5py.SoftLink("/real"), bag.features
        file["linked"] = h5py.ExternalLink("outside.h5", "/group")
        file["null"] = h5py.Empty("f4")
        file["slide/features"], file["slide/coords"] = bag.features, bag.coords
    for key, message in (
        ("soft", "soft is a link to /real, which is not followed"),
        ("linked/features", "linked is an external link, which is not followed"),
        ("null", "null is an empty dataset"),
        ("slide", "slide is a group, not a dataset (contains slide/coords, slide/features)"),
        ("features", "contains linked, null, real, slide/coords, slide/features, soft"),
    ):
        with pytest.raises(InputError) as caught:
            read_bag(path, key)
        assert message in str(caught.value)
    nested = read_bag(path, "slide/features")
    np.testing.assert_array_equal(nested.features, bag.features)
    np.testing.assert_array_equal(nested.coords, bag.coords)
    os.mkfifo(tmp_path / "pipe.h5")
    with pytest.raises(InputError, match="not a regular file"):
        read_bag(tmp_path / "pipe.h5")


def test_coordinates_that_are_not_pixels(bag, tmp_path):
    def written(name: str, coords, **attributes):
        with h5py.File(tmp_path / name, "w") as file:
            file["features"], file["coords"] = bag.features, coords
            file.attrs.update(attributes)
        return read_bag(tmp_path / name)

    with pytest.raises(InputError, match="fractions are not pixels: several patches fall on one pixel"):
        written("fraction.h5", bag.coords / bag.coords.max())
    with pytest.raises(InputError, match="values that are not pixels"):
        written("huge.h5", bag.coords.astype(np.uint64) + np.uint64(2**63))
    np.testing.assert_array_equal(written("half.h5", bag.coords + 0.5).coords, bag.coords)
    stamp = written("stamp.h5", bag.coords * 0.5, unit="um", tile_size_um=128.0)
    assert (stamp.patch, stamp.mpp, stamp.in_micrometres) == (128, 1.0, True)


def test_units_of_stamp_files(bag, tmp_path, capsys):
    """Micrometres by `unit`, `tile_size_um`, or the tiles of 224 pixels of version 1; otherwise level-0 pixels."""

    def written(name: str, spacing: float, **attributes):
        grid = np.stack(np.meshgrid(np.arange(4), np.arange(5)), -1).reshape(-1, 2)
        with h5py.File(tmp_path / name, "w") as file:
            file["feats"], file["coords"] = bag.features[:20], grid * spacing
            file.attrs.update(attributes)
        return read_bag(tmp_path / name)

    formats._say_once.cache_clear()
    for name, attributes in (("a", {"unit": "um", "tile_size": 256.0}), ("b", {"tile_size_um": 256.0})):
        found = written(f"{name}.h5", 256.0, **attributes)
        assert (found.patch, found.mpp, found.in_micrometres, found.coords.max()) == (256, 1.0, True, 1024)
    assert not capsys.readouterr().err
    for name, attributes in (("c", {}), ("d", {"tile_size": 224})):
        found = written(f"{name}.h5", 224.0, **attributes)
        assert (found.patch, found.mpp, found.in_micrometres, found.coords.max()) == (256, 1.0, True, 1024)
    found = written("e.h5", 512.0)
    assert (found.in_micrometres, found.coords.max()) == (False, 2048)
    assert capsys.readouterr().err.count("STAMP files without a unit of the coordinates") == 1


def test_links_and_sparse_tensors_are_not_followed(bag, bag_file, tmp_path):
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["features"] = h5py.ExternalLink(str(bag_file), "features")
    with h5py.File(tmp_path / "huge.h5", "w") as file:
        file.create_dataset("features", shape=(10**9, 1000), dtype="float32", chunks=(100, 100))
    with h5py.File(tmp_path / "outside.h5", "w") as file:
        file.create_dataset("features", shape=(4, 2), dtype="float32", external=[(str(bag_file), 0, 32)])
    for name, message in (("link", "is an external link"), ("huge", "declares"), ("outside", "not a plain dataset")):
        with pytest.raises(InputError, match=message):
            read_bag(tmp_path / f"{name}.h5")


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("suffix", [".pt", ".npy", ".h5"])
def test_no_code_of_a_file_is_run(suffix, tmp_path):
    mark, path = tmp_path / "mark", tmp_path / f"evil{suffix}"
    if suffix == ".pt":
        torch.save({"features": Evil(mark)}, path)
    elif suffix == ".npy":
        np.save(path, np.array([Evil(mark)], dtype=object), allow_pickle=True)
    else:
        path.write_bytes(pickle.dumps(Evil(mark)))
    with pytest.raises(InputError, match="corrupt") as error:
        read_bag(path)
    assert not mark.exists()
    assert "allow_pickle" not in str(error.value)  # and the error does not suggest it
    assert "weights_only" not in str(error.value)


def test_two_bags_of_a_slide_are_refused_unless_formats_differ(bag, tmp_path):
    write_bag(tmp_path / "a.h5", bag, "test")
    torch.save(torch.from_numpy(bag.features), tmp_path / "a.pt")
    (tmp_path / "b.h5").mkdir()
    assert list_bags(tmp_path) == {"a": tmp_path / "a.h5"}
    write_bag(tmp_path / "h5_files" / "a.svs.h5", bag, "test")
    with pytest.raises(InputError, match=r"duplicate bags of the slide a: a\.h5 and h5_files/a\.svs\.h5"):
        list_bags(tmp_path)


def test_numbers_beyond_single_precision_give_no_warning(bag, tmp_path, recwarn):
    with pytest.raises(InputError, match="20 of 20 patches"):
        read_bag(write(tmp_path / "huge.h5", features=np.full((20, 6), 1e300)))
    assert not recwarn.list


def test_a_wrong_checksum_is_detected(tmp_path):
    path = tmp_path / "a.pt"
    torch.save(torch.zeros(200, 6), path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        info = next(one for one in archive.infolist() if one.filename.endswith("data/0"))
    content[info.header_offset + 200] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(InputError, match="checksum"):
        read_bag(path)


def outcome(path) -> str | None:
    """The message of an `InputError`, None if the file was read; other errors are raised."""
    try:
        read_bag(path, invalid="drop")
    except InputError as error:
        return str(error)
    return None


@pytest.mark.parametrize("kind", ["h5", "pt", "npy"])
def test_damaged_files_are_read_or_refused_in_one_line(kind, bag, tmp_path):
    """Byte flips and truncations give numbers or an `InputError`, wherever they are."""
    path = tmp_path / f"a.{kind}"
    if kind == "h5":
        write_bag(path, bag, "test")
    elif kind == "pt":
        torch.save(torch.from_numpy(bag.features), path)
    else:
        np.save(path, bag.features)
    good, generator, refused = path.read_bytes(), np.random.default_rng(5), 0
    for trial in range(DAMAGED // 3 + 1):
        content = bytearray(good)
        if trial % 3 == 0:
            content = content[: int(generator.integers(1, len(good)))]
        else:
            for place in generator.integers(0, len(good), size=int(generator.integers(1, 6))):
                content[place] = int(generator.integers(256))
        path.write_bytes(content)
        message = outcome(path)
        if message is not None:
            refused += 1
            assert str(path) in message
            assert "\n" not in message
    assert refused > DAMAGED // 10


def test_missing_empty_and_foreign_files(tmp_path):
    (tmp_path / "zero.h5").touch()
    (tmp_path / "text.h5").write_text("not hdf5")
    for name, message in (
        ("zero.h5", "0 bytes"),
        ("text.h5", "not an HDF5"),
        ("no.h5", "no such"),
        ("a.txt", r"is not a bag of features \(.h5, .hdf5, .pt, .npy\)$"),
        ("m.csv", "a table of slides and cases is --manifest PATH"),
    ):
        with pytest.raises(InputError, match=message):
            read_bag(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("caseA_vs", "caseA_vs"),
        ("caseB_s.svs", "caseB_s"),
        ("caseC.vvs.svs", "caseC.vvs"),
        ("slide.svs.h5", "slide"),
        ("x.SVS", "x"),
        (".svs", ".svs"),
        ("TCGA-02-0047-01Z-00-DX1.4755D138", "TCGA-02-0047-01Z-00-DX1.4755D138"),
    ],
)
def test_suffixes_are_removed_as_suffixes(name, expected):
    assert slide_id(name) == expected


def test_bags_of_a_folder(bag, tmp_path):
    for place in ("h5_files/a.h5", "h5_files/b.h5"):
        write_bag(tmp_path / place, bag, "test")
    (tmp_path / "pt_files").mkdir()
    for name in ("a", "c"):
        torch.save(torch.zeros(2, 6), tmp_path / "pt_files" / f"{name}.pt")
    found = list_bags(tmp_path)
    assert {name: file.suffix for name, file in found.items()} == {"a": ".h5", "b": ".h5", "c": ".pt"}
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="contains no bags"):
        list_bags(empty)


def test_slides_of_a_case_are_joined(bag):
    other = Bag("b", bag.features + 1, None)
    joined, slide = join([bag, other], "case")
    assert joined.features.shape == (40, 6)
    assert joined.coords is None
    assert slide.tolist() == [0] * 20 + [1] * 20
    with pytest.raises(InputError, match="different widths"):
        join([bag, Bag("c", np.zeros((2, 5), dtype=np.float32))], "case")


# -- value tables ----------------------------------------------------------------------------------------------------


def test_value_tables(tmp_path):
    csv = tmp_path / "v.csv"
    csv.write_text("case,G1,G2\n001,1.5,2\n002,0,-1\n", encoding="utf-8")
    table = read_values(csv)
    assert (table.cases, table.columns) == (["001", "002"], ["G1", "G2"])
    path = write(
        tmp_path / "g.h5", case_id=np.array([b"a", b"b"]), mut=np.eye(2), mut_genes=np.array([b"X", b"Y"]),
        rnaseq=np.ones((2, 1)), rnaseq_genes=np.array([b"X"]),
    )  # fmt: skip
    table = read_values(path)
    assert table.columns == ["rnaseq:X", "mut:X", "mut:Y"]
    assert table.values.tolist() == [[1, 1, 0], [1, 0, 1]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case,G1\na,\n", "case a, column G1: 1 cells are empty"),
        ("case,G1\na,x\n", "line 2, column G1: 'x' is not a number"),
        ("case\na\n", "expected the case id"),
        ("case,G1,G1\na,1,2\n", "duplicate column name 'G1'"),
        ("case,G1\na,1,2\nb,1,2\n", "line 2: 3 cells where the header has 2"),
        ("case,G1\na,1\nb,1,2\n", "line 3: 3 cells"),
        ("case,G1\na,1\n,2\n", "line 3: has no case id"),
        ("case,G1\na,1\na,2\n", "duplicate case a"),
        ("", "is empty"),
    ],
)
def test_faults_of_value_tables(text, message, tmp_path):
    path = tmp_path / "v.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_values(path)


def test_value_tables_of_excel_and_ids_with_spaces(tmp_path):
    path = tmp_path / "v.csv"
    path.write_bytes("Fall;Gen é\n 007.svs ;1.5\nb;2\n".encode("cp1252"))
    table = read_values(path)
    assert (table.cases, table.columns) == (["007", "b"], ["Gen é"])
    np.testing.assert_array_equal(table.values, [[1.5], [2]])


def test_columns_by_family(tmp_path):
    path = tmp_path / "families.csv"
    path.write_text("First,Second\nB,C\n,A\n", encoding="utf-8")
    assert by_family(["rnaseq:A", "B", "mut:C", "Z", "mut:B"], path).tolist() == [1, 4, 0, 2, 3]
    with pytest.raises(InputError, match="none of the columns"):
        by_family(["Q"], path)


@pytest.mark.parametrize("dtype", ["complex64", "bool", "datetime64[s]"])
def test_features_that_are_no_real_numbers_are_refused(dtype):
    """NumPy drops imaginary parts, and reads flags as numbers."""
    with pytest.raises(InputError, match=r"features hold .*, not real numbers"):
        checked(Path("a"), np.ones((5, 3)).astype(dtype), None, {}, "error")
