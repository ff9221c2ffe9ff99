"""Maps of slides: GeoJSON for QuPath, pages with zoom in a browser, images of the highest patches."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from seqssm_pathology import case_figures
from seqssm_pathology.files import Bag, write_bag
from seqssm_pathology.viewer import MapPage, write_page

import seqssm
from seqssm.cli.main import main
from seqssm.errors import InputError

from .tiff import write_tiff

STEP = 32  # spacing of the patches of the small slide, level-0 pixels
LOOK = """(async () => {
  const canvas = document.getElementById("map"), pen = canvas.getContext("2d");
  const ratio = canvas.width / canvas.clientWidth, box = canvas.getBoundingClientRect();
  const later = () => new Promise(done => setTimeout(done, 60));
  const pixel = (x, y) => [...pen.getImageData(x * canvas.width, y * canvas.height, 1, 1).data].slice(0, 3);
  const found = { all: [+canvas.dataset.drawn, +canvas.dataset.zoom], corner: pixel(0.45, 0.05) };
  found.width = document.documentElement.scrollWidth;
  const at = { clientX: box.left + 0.5 * box.width, clientY: box.top + 0.5 * box.height, bubbles: true };
  canvas.dispatchEvent(new PointerEvent("pointermove", at));
  found.told = document.getElementById("told").textContent;
  const corner = { ...at, clientX: box.left + 0.3 * box.width, clientY: box.top + 0.1 * box.height };
  for (let k = 0; k < 6; k++)
    canvas.dispatchEvent(new WheelEvent("wheel", { ...corner, deltaY: -100, cancelable: true }));
  await later();
  found.near = [+canvas.dataset.drawn, +canvas.dataset.zoom];
  document.getElementById("all").click();
  const slider = document.getElementById("limit");
  slider.value = 50;
  slider.dispatchEvent(new Event("input"));
  await later();
  found.half = [+canvas.dataset.drawn, +canvas.dataset.zoom];
  found.rows = document.querySelectorAll("tbody tr").length;
  return found;
})()"""


@pytest.fixture
def slides(tmp_path):
    """A slide of 4 x 3 patches, each of one colour, and its bag: (folder of slides, bag file, coordinates)."""
    pytest.importorskip("openslide", reason="openslide is not installed: pip install 'seqssm[slides]'")
    x, y = np.meshgrid(np.arange(4), np.arange(3))
    coords = np.stack([x.ravel(), y.ravel()], axis=1) * STEP
    pixels = np.zeros((3 * STEP, 4 * STEP, 3), dtype=np.uint8)
    for number, (left, top) in enumerate(coords):
        pixels[top : top + STEP, left : left + STEP] = (20 * number, 100, 200)
    (tmp_path / "slides").mkdir()
    write_tiff(tmp_path / "slides" / "S-1.tif", pixels)
    features = np.random.default_rng(0).normal(size=(12, 6)).astype(np.float32)
    write_bag(tmp_path / "S-1.h5", Bag("S-1", features, coords, attributes={"patch_size_level0": STEP}), "made")
    return tmp_path / "slides", tmp_path / "S-1.h5", coords


def test_every_file_of_a_slide(run, slides, tmp_path, browse):
    folder, bag, coords = slides
    words = ["predict", str(run), str(bag), "--output", str(tmp_path / "out.csv"), "--top-k", "3", "--slides"]
    words += [str(folder), "--figures", str(tmp_path / "f"), "--map-output", "lesion"]
    assert main([*words, "--html", "--geojson", "--tiles"]) == 0
    table = pd.read_csv(tmp_path / "f" / "000_S-1_attention.csv")
    best = table.sort_values("score", ascending=False).index[:3]

    content = json.loads((tmp_path / "f" / "000_S-1_map.geojson").read_text())
    assert content["type"] == "FeatureCollection"
    assert len({one["id"] for one in content["features"]}) == 12
    for number, one in enumerate(content["features"]):
        x, y = coords[number].tolist()
        ring = [[x, y], [x + STEP, y], [x + STEP, y + STEP], [x, y + STEP], [x, y]]
        assert one["geometry"] == {"type": "Polygon", "coordinates": [ring]}
        values = one["properties"]["measurements"]
        assert values == pytest.approx(table.loc[number, list(values)].to_dict())
    kinds = [content["features"][number]["properties"]["classification"]["name"] for number in best]
    assert kinds[0] == "attention of all classes: top fifth"

    images = sorted((tmp_path / "f" / "000_S-1_tiles").iterdir())
    assert [file.name for file in images] == [
        f"{place:02d}_x{coords[number][0]}_y{coords[number][1]}.png" for place, number in enumerate(best, start=1)
    ]
    for file, number in zip(images, best):
        pixels = np.asarray(Image.open(file))
        assert pixels.shape == (STEP, STEP, 3)
        assert (pixels == (20 * number, 100, 200)).all()
    assert (tmp_path / "f" / "000_S-1_tiles.png").is_file()

    found = browse(tmp_path / "f" / "000_S-1_map.html", LOOK)
    assert found["all"] == [12, 1]
    assert "score" in found["told"]
    assert "level-0 pixels" in found["told"]
    assert found["near"][0] < 12
    assert found["near"][1] > 2
    assert found["half"] == [6, 1]
    assert found["rows"] == 12
    assert found["width"] <= 1280
    assert max(found["corner"]) < 255  # the slide and the map, not glass


def test_a_page_without_slide_has_the_extent_of_its_patches(tmp_path, browse):
    coords = np.array([[1000, 5000], [1128, 5000], [1000, 5128], [1128, 5128]])  # patches of 256 that overlap by half
    shade = np.array([0.0, 1.0, 1 / 3, 2 / 3])
    scale = ("low", "middle", "high")
    page = MapPage("</script><b>S", "attention", coords, 256, shade, {"score": shade}, scale, mpp=0.25)
    found = browse(write_page(tmp_path / "page.html", page), LOOK, 390)
    assert found["all"] == [4, 1]
    assert found["told"].startswith("x 1")
    assert "64 µm wide" in found["told"]
    assert found["half"][0] == 2
    assert found["width"] <= 390


def test_what_files_need(run, slides, tmp_path, capsys):
    folder, bag, _ = slides
    words = ["predict", str(run), str(bag), "--output", str(tmp_path / "out.csv")]
    assert main([*words, "--geojson"]) == 2
    assert "--geojson has no effect without --figures" in capsys.readouterr().err
    model = seqssm.load(run, accelerator="cpu")
    with pytest.raises(seqssm.InputError, match="--tiles has no effect without --slides"):
        model.predict(bag, figures=tmp_path / "f", tiles=True)
    (folder / "S-1.tif").rename(folder / "S-2.tif")
    figures = ["--figures", str(tmp_path / "f"), "--slides", str(folder), "--tiles", "--figures-cases", "S-1"]
    assert main([*words, *figures]) == 0
    message = capsys.readouterr().err
    assert "drawn without thumbnail, and no images of its patches" in message
    assert not list((tmp_path / "f").glob("*_tiles*"))
    micrometres = Bag("S-1", np.zeros((1, 6), np.float32), np.array([[0, 0]]), attributes={"unit": "um"})
    write_bag(bag, micrometres, "made")
    model.predict(bag, figures=tmp_path / "g", geojson=True)
    assert "coordinates are in micrometres" in capsys.readouterr().err
    assert not list((tmp_path / "g").glob("*.geojson"))


def test_outputs_of_several_targets_are_named_with_their_target():
    """The map of a class of the second target was that of the first one's class of the same name, in silence."""
    grade, stage = (SimpleNamespace(tag=f"{name}.", outputs=["a", "b"]) for name in ("grade", "stage"))
    label = SimpleNamespace(tag="labels.", outputs=["EGFR"])
    heads = [grade, stage, label]
    assert case_figures._chosen(heads, "stage.b") == (stage, "b")
    assert case_figures._chosen(heads, "EGFR") == (label, "EGFR")
    with pytest.raises(InputError, match=r"--map-output a: several targets have it; give grade\.a or stage\.a"):
        case_figures._chosen(heads, "a")
    with pytest.raises(InputError, match=r"the model has grade\.a, grade\.b, stage\.a, stage\.b, EGFR"):
        case_figures._chosen(heads, "c")
