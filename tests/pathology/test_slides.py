"""From a slide to a bag: a small tiled TIFF, read by openslide like that of a scanner."""

from __future__ import annotations

import numpy as np
import pytest
from seqssm_pathology import encoders, figures, slides
from seqssm_pathology.figures import Background
from seqssm_pathology.files import read_bag

from seqssm.cli.main import main
from seqssm.errors import InputError

from .tiff import write_tiff

pytest.importorskip("openslide", reason="openslide is not installed: pip install 'seqssm[slides]'")


@pytest.fixture
def slide(tmp_path):
    """160 x 96 pixels of glass with a stained rectangle: x 32 .. 96, y 32 .. 64."""
    pixels = np.full((96, 160, 3), 245, dtype=np.uint8)
    noise = np.random.default_rng(0).integers(-20, 20, size=(32, 64, 3))
    pixels[32:64, 32:96] = np.array([180, 90, 150]) + noise
    path = tmp_path / "small.tif"
    write_tiff(path, pixels)
    return path, pixels


def test_tissue_tiles_of_a_slide(slide):
    path, pixels = slide
    bag = slides.tile(path, slides.Grid(32))[0]
    assert bag.coords.tolist() == [[32, 32], [64, 32]]
    assert bag.features.shape == (2, 46)
    np.testing.assert_allclose(bag.features[0, :3], pixels[32:64, 32:64].reshape(-1, 3).mean(0) / 255, atol=1e-5)
    histograms = bag.features[:, 12:36].reshape(2, 3, 8)
    np.testing.assert_allclose(histograms.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(bag.features[:, 36:].sum(-1), 1, atol=1e-5)
    half = slides.tile(path, slides.Grid(64, tissue=0.2))[0]
    assert half.coords.tolist() == [[0, 0], [64, 0]]


def test_a_magnification_that_is_not_a_number_is_unknown(slide, monkeypatch):
    import openslide

    stated = {"openslide.objective-power": "20x", "openslide.mpp-x": "0.5"}
    monkeypatch.setattr(openslide.OpenSlide, "properties", stated)
    bag = slides.tile(slide[0], slides.Grid(32))[0]
    assert (bag.mpp, "level0_magnification" in bag.attributes) == (0.5, False)


def test_the_command_writes_a_bag_that_can_be_read(slide, tmp_path, capsys):
    path, _ = slide
    words = ["pathology", "tile", str(path), "--output", str(tmp_path / "bags"), "--size", "32"]
    assert main(words) == 0
    bag = read_bag(tmp_path / "bags" / "small.h5")
    assert (bag.id, len(bag), bag.patch) == ("small", 2, 32)
    assert bag.attributes["encoder"] == "seqssm_handmade_46"
    assert main(words) == 0
    assert "exists (--overwrite" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "128"], "is tissue"),
        (["--size", "32", "--magnification", "20"], "does not state its magnification"),
        (["--size", "2"], "must be in [8, 8192]"),
        (["--tissue", "2"], "in [0, 1]"),
    ],
)
def test_faults_of_the_command(words, message, slide, tmp_path, capsys):
    assert main(["pathology", "tile", str(slide[0]), "--output", str(tmp_path / "bags"), *words]) == 2
    assert message in capsys.readouterr().err


def test_files_that_are_not_slides(tmp_path, capsys):
    (tmp_path / "text.svs").write_text("text")
    with pytest.raises(InputError, match="is not a slide"):
        slides.tile(tmp_path / "text.svs")
    with pytest.raises(InputError, match="no such slide"):
        slides.tile(tmp_path / "none.svs")
    with pytest.raises(InputError, match="is a folder; name its slides"):
        slides.tile(tmp_path)
    same = ["pathology", "tile", str(tmp_path / "a" / "x.svs"), str(tmp_path / "x.tiff"), "--output", str(tmp_path)]
    assert main([*same, "--overwrite"]) == 2  # the second would replace the bag of the first
    assert "tile them apart" in capsys.readouterr().err
    two = [str(tmp_path / name) for name in ("text.svs", "none.svs")]
    assert main(["pathology", "tile", *two, "--output", str(tmp_path / "bags")]) == 3
    assert capsys.readouterr().err.count("seqssm:") == 2


def test_stains_of_pure_colours():
    pixels = np.ones((4, 4, 3), dtype=np.float32)
    plain = encoders.features(pixels)
    np.testing.assert_allclose(plain[6:12], 0, atol=1e-6)  # no density on glass
    unit = encoders.STAINS / np.linalg.norm(encoders.STAINS, axis=1, keepdims=True)
    stained = np.broadcast_to(10 ** -(0.5 * unit[0]), (4, 4, 3)).astype(np.float32)
    np.testing.assert_allclose(encoders.features(stained)[6:9], [0.5, 0, 0], atol=1e-4)


def test_a_heat_map_lies_over_its_thumbnail(slide, tmp_path):
    from PIL import Image

    path, _ = slide
    thumbnail, extent, mpp = slides.thumbnail(path, 80)
    assert (thumbnail.shape, extent, mpp) == ((48, 80, 3), (160, 96), None)
    coords = np.array([[32, 32], [64, 32]])
    drawn = figures.heat_map(
        tmp_path / "heat.png", coords, np.array([0.0, 1.0]), Background(32, thumbnail, extent), "t"
    )
    image = np.asarray(Image.open(drawn).convert("RGB")).astype(int)
    blue, red = image[..., 2] - image[..., 0] > 20, image[..., 0] - image[..., 2] > 60
    assert blue.any()
    assert red.any()
    assert slides.find_slide(tmp_path, "small") == path
    assert slides.find_slide(tmp_path, "other") is None


def test_percentiles():
    assert figures.percentiles(np.array([3.0, 1, 2])).tolist() == [1, 0, 0.5]
    assert figures.percentiles(np.array([1.0, 1])).tolist() == [0.5, 0.5]
    assert figures.percentiles(np.array([7.0])).tolist() == [1]
