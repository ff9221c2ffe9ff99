"""Pages in a headless Chromium at the widths of a phone and a desktop: no overflow, all images loaded and described."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from seqssm.plot.canvas import new_axes
from seqssm.tools.page import Chapter, Section, picture, write_page

WIDTHS = (390, 1280)  # pixels
MEASURE = """({
  page: document.documentElement.scrollWidth, window: innerWidth,
  images: [...document.images].map(one => [one.alt, one.naturalWidth]),
  links: [...document.querySelectorAll("a")].map(one => document.querySelector(one.getAttribute("href")) !== null),
})"""


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """A page with everything that could be too wide: a table, a figure, a command, a name without spaces."""
    figure, axes = new_axes(14, 3)
    axes.plot([0, 1], label="one")
    axes.set_xlabel("time (s)")
    frame = pd.DataFrame({f"column_{k}": [1.5 * k, None] for k in range(30)} | {"text": ["long words " * 20, "x"]})
    section = Section(
        "A section",
        f"- `{'x' * 300}`\n- {'y' * 300}",
        [("A caption that is longer than the table is wide on a telephone", frame)],
        [picture(figure)],
        code="seqssm toy fit " + "--option " * 60,
        headline="The result in one sentence.",
    )
    path = tmp_path_factory.mktemp("page") / "page.html"
    chapters = [Chapter("One & two", [section]), Chapter("Folded", [Section("More", code="z" * 500, folded=True)])]
    write_page(path, "A page " + "w" * 80, "Its lead.", chapters, cards=True)
    return path


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_overflows(page, width, browse):
    found = browse(page, MEASURE, width)
    assert found["window"] == width
    assert found["page"] <= width
    assert len(found["images"]) == 2  # the card and the section
    assert all(alt == "x: time (s)" and size > 0 for alt, size in found["images"])
    assert found["links"] == [True] * 3  # two in the contents, one card


@pytest.mark.parametrize("width", WIDTHS)
def test_the_report_of_a_run_fits(run, width, browse):
    from seqssm.tools.report import write_report

    found = browse(write_report(run), MEASURE, width)
    assert found["page"] <= width
    assert found["images"]
    assert all(alt and size > 0 for alt, size in found["images"])
