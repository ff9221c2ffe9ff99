"""Digests of inputs: contents count; names, locations and times do not."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest

from seqssm.errors import InputError
from seqssm.files import fingerprint
from seqssm.files.fingerprint import of_files, of_parts, spread


@pytest.mark.parametrize("whole", [1 << 25, 0], ids=["whole", "sampled"])
def test_contents_count_and_names_and_times_do_not(tmp_path, monkeypatch, whole):
    monkeypatch.setattr(fingerprint, "WHOLE", whole)
    paths = [tmp_path / f"{name}.bin" for name in "abc"]
    for k, path in enumerate(paths):
        path.write_bytes(bytes([k]) * (1000 * k))
    before = of_files(paths)
    moved = [shutil.copy(path, tmp_path / f"other-{path.name}") for path in paths]
    os.utime(moved[1], (1, 1))
    assert of_files([tmp_path / path for path in moved]) == before
    assert of_files(paths[::-1]) != before
    paths[2].write_bytes(b"\2" * 1999 + b"\3")
    assert of_files(paths) != before, "one byte, of the same size"
    with pytest.raises(InputError, match="no such file"):
        of_files([tmp_path / "absent"])


def test_a_large_file_is_compared_by_its_size_and_samples(tmp_path):
    path = tmp_path / "large"
    with open(path, "wb") as file:
        file.truncate(1 << 32)  # without a byte on the disk
    before = of_files([path])
    with open(path, "r+b") as file:
        file.seek(3 * (1 << 26) + 5)
        file.write(b"x")
    assert of_files([path]) != before, "within a sample"
    with open(path, "r+b") as file:
        file.truncate((1 << 32) + 1)
    assert of_files([path]) != before


def test_samples_are_spread_over_all_items():
    assert spread([], 3) == spread([0, 0], 3) == []
    assert spread([1] * 4, 8) == [(0, 0), (1, 0), (2, 0), (3, 0)]
    assert spread([10, 0, 30], 4) == [(0, 0), (2, 0), (2, 10), (2, 20)]


def test_parts_are_told_apart():
    assert of_parts(["ab", "c"]) != of_parts(["a", "bc"])
    assert of_parts([np.zeros((2, 3))]) != of_parts([np.zeros((3, 2))])
    assert of_parts([np.zeros(2, "<f4")]) != of_parts([np.zeros(1, "<f8")])
