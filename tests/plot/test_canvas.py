"""The canvas: any titles and names are drawn, files are written atomically."""

from __future__ import annotations

import pytest

from seqssm.errors import InputError
from seqssm.plot.canvas import file_name, new_axes, plain_text, save, set_title


@pytest.mark.parametrize("title", ["plain", "price $\\bad$ b", "x" * 300, "two\nlines", "%d {} µV ☃", ""])
def test_any_title_is_drawn(tmp_path, title):
    figure, axes = new_axes(3, 2)
    set_title(axes, title)
    axes.set_xlabel(plain_text(title))
    path = save(figure, tmp_path / f"{file_name(title)}.png", dpi=40)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_long_names_are_shortened_in_the_middle():
    assert plain_text("a" * 40 + "b" * 40, 20) == "a" * 9 + "…" + "b" * 10
    assert plain_text(" two \n words ") == "two words"


def test_file_names_are_safe():
    assert file_name("../../etc/passwd") == "etc_passwd"
    assert file_name("Ä/ö?") == "unnamed"
    assert len(file_name("n" * 300)) == 60


def test_an_unwritable_file_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    figure, _ = new_axes(1, 1)
    with pytest.raises(InputError, match="part of the path is a file"):
        save(figure, tmp_path / "file" / "x.png")
