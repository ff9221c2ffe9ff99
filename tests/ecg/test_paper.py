"""ECG pages: millimetre scale, every lead once, clipping marked, z-scores distinguished from millivolts."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.image import imread
from seqssm_ecg import paper, simulate
from seqssm_ecg.leads import LEADS
from seqssm_ecg.paper import LAYOUTS, Overlay, Page, draw_page, looks_normalised

RATE = 500.0


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draw a page and return its contents: the axes' lines and texts, and the texts of the figure."""
    kept = {}

    def keep(figure, path, dpi=130):
        kept["figure"] = figure
        return path

    def draw(page):
        monkeypatch.setattr(paper, "save", keep)
        draw_page(tmp_path / "x.png", page)
        figure = kept["figure"]
        axes = figure.axes[0]
        traces = [line for line in axes.lines if len(line.get_xdata()) > 100]
        return {
            "traces": traces,
            "marks": [line for line in axes.lines if line.get_marker() in ("^", "v") and len(line.get_xdata())],
            "labels": {text.get_text(): text for text in axes.texts},
            "texts": [text.get_text() for text in figure.texts],
            "height": axes.get_ylim()[1],
        }

    return draw


def values(factor=1.0, seconds=10.0):
    return {lead: factor * row for lead, row in simulate.recording(["PVC"], seconds, RATE, 2).items()}


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_every_lead_is_drawn_once(layout, drawn):
    names = [lead for row in LAYOUTS[layout][: 3 if layout == "3x4" else None] for lead in row]
    assert sorted(names) == sorted(LEADS)
    found = drawn(Page(values(), RATE, "r", layout=layout))
    assert len(found["traces"]) == (13 if layout == "3x4" else 12)
    assert "all columns" not in found["texts"][-1]
    found = drawn(Page(values(seconds=3.0), RATE, "r", layout=layout))  # ends before the last column
    assert len(found["traces"]) == (13 if layout == "3x4" else 12)
    assert ("all columns start at 0 s" in found["texts"][-1]) == (layout != "12x1")
    assert max(line.get_xdata().max() for line in found["traces"]) <= paper.PULSE_MM + paper.SECONDS * 25


@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize("factor", [0.2, 1.0, 3.0, 6.0])
def test_clipping_is_always_marked(drawn, layout, factor):
    """Each trace has its own millimetres: highest minus lowest point is gain times the range of the samples."""
    table = values(factor)
    found = drawn(Page(table, RATE, "r", layout=layout))
    gain = 5.0 if "half gain" in found["texts"][-1] else 10.0
    assert f"{gain:g} mm/mV" in found["texts"][-1]
    cells = [(lead, k, len(row)) for row in LAYOUTS[layout] for k, lead in enumerate(row)]
    cut = found["texts"][-1].count("is clipped") > 0
    assert cut == bool(found["marks"])
    for line, (lead, k, n) in zip(found["traces"], cells, strict=True):
        part = table[lead][round(k * 10 / n * RATE) : round((k + 1) * 10 / n * RATE)]
        y = line.get_ydata()
        assert y.min() >= 0
        assert y.max() <= found["height"]
        if not cut:
            assert np.ptp(y) == pytest.approx(gain * np.ptp(part), rel=1e-4)


def test_half_gain_is_stated_and_more_is_marked(drawn):
    assert "10 mm/mV" in drawn(Page(values(), RATE, "r"))["texts"][-1]
    found = drawn(Page(values(4.0), RATE, "r"))
    assert "5 mm/mV   half gain, for large complexes" in found["texts"][-1]
    assert not found["marks"]
    table = values()
    table["V2"][3000] = 40.0
    found = drawn(Page(table, RATE, "r"))
    assert "V2 is clipped at the triangles; its maximum is 40 mV" in found["texts"][-1]
    assert found["marks"]


@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_lead_names_are_clear_of_the_traces(drawn, layout, factor):
    found = drawn(Page(values(factor), RATE, "r", layout=layout))
    names = [lead for row in LAYOUTS[layout] for lead in row]
    texts = list(found["labels"].values())
    for line, _ in zip(found["traces"], names):
        x, y = line.get_data()
        for text in texts:
            left, bottom = text.get_position()
            under = (x > left - 1) & (x < left + 12)
            assert not ((y[under] > bottom - 0.2) & (y[under] < bottom + 3)).any()


def test_an_offset_is_removed_and_stated(drawn):
    table = values()
    table["V1"] = table["V1"] + 250.0
    found = drawn(Page(table, RATE, "r"))
    assert "offset of 250 mV removed: V1" in found["texts"][-1]
    assert "10 mm/mV" in found["texts"][-1]
    assert not found["marks"]


def test_lines_above_and_below(drawn):
    page = Page(values(), RATE, "rec: AF 0.90 $x$", "61 years   female", seconds=86400.0)
    found = drawn(page)["texts"]
    assert found[:2] == ["rec: AF 0.90 $x$", "500 Hz   61 years   female"]
    assert "first 10 s of 8.64e+04 s" in found[2]


def test_absent_leads_and_overlay(drawn):
    table = {lead: row for lead, row in values().items() if lead != "V3"}
    seen = {lead: np.linspace(0, 1, 1000) for lead in table}
    found = drawn(Page(table, RATE, "r", overlay=Overlay("AF 0.9", seen, dict.fromkeys(table, 1 / 11))))
    assert "V3: not recorded" in found["labels"]


def test_a_page_has_its_millimetres_and_its_pulse(tmp_path):
    flat = {lead: np.zeros(5000, np.float32) for lead in LEADS}
    picture = imread(draw_page(tmp_path / "a.png", Page(flat, RATE, "flat")))[..., :3]
    height, width, _ = picture.shape
    assert width / 150 * 25.4 == pytest.approx(10 + 250 + 10, abs=0.5)  # pulse, ten seconds, margins
    assert height / 150 * 25.4 == pytest.approx(4 * 30 + 24, abs=0.5)

    def pulse(picture):
        """Dark pixels in the first 9 mm, where only the pulse is drawn."""
        left = picture[round(17 / 25.4 * 150) : round(130 / 25.4 * 150), round(6 / 25.4 * 150) : round(14 / 25.4 * 150)]
        return int((left.max(-1) < 0.4).sum())

    assert pulse(picture) > 100
    normal = imread(draw_page(tmp_path / "b.png", Page(flat, RATE, "z", normalised=True)))[..., :3]
    assert pulse(normal) == 0


def test_z_scores_are_distinguished_from_millivolts_by_the_usable_leads():
    normal = {lead: (row - row.mean()) / row.std() for lead, row in values().items()}
    assert looks_normalised(normal)
    assert looks_normalised({**normal, "V2": 0 * normal["V2"], "V4": np.full(5000, np.nan), "V6": 3 * normal["V6"]})
    assert not looks_normalised(values())
    assert not looks_normalised({lead: 0 * row for lead, row in normal.items()})
    assert not looks_normalised({"I": normal["I"]})
