"""From a slide to features of a network: tissue contours, resolution, overlap, weights; folders of other tools."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from seqssm_pathology import encoders, tissue
from seqssm_pathology.files import list_bags, read_bag

from seqssm.cli.main import main
from seqssm.errors import InputError

from .tiff import write_tiff

pytest.importorskip("openslide", reason="openslide is not installed: pip install 'seqssm[slides]'")


@pytest.fixture
def slide(tmp_path):
    """160 x 96 pixels of glass with a stained square of 64 and a hole in it, and a speck."""
    pixels = np.full((96, 160, 3), 245, dtype=np.uint8)
    pixels[16:80, 32:96] = (180, 90, 150)
    pixels[40:56, 56:72] = 245
    pixels[4:7, 140:143] = (180, 90, 150)
    write_tiff(tmp_path / "s.tif", pixels)
    return tmp_path / "s.tif", pixels


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A ResNet-50 with random weights, and files of them."""
    torch.manual_seed(0)
    network = encoders.ResNet50().eval()
    folder = tmp_path_factory.mktemp("weights")
    state = {**network.state_dict(), "fc.weight": torch.zeros(1000, 2048)}
    save_file(state, folder / "w.safetensors")
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, folder / "w.pth")
    return network, folder


def test_otsu_separates_two_groups():
    values = np.concatenate([np.full(900, 0.1), np.full(100, 0.7)])
    assert 0.1 < tissue.otsu(values) < 0.7


def test_contours_of_a_square_with_a_hole(slide):
    _, pixels = slide
    found = tissue.segment(pixels, (320, 192), smallest=400)  # two level-0 pixels per pixel
    (rings,) = found.polygons()  # the speck is too small
    assert len(rings) == 2
    assert rings[0].min(0) == pytest.approx([64, 32], abs=4)
    assert rings[0].max(0) == pytest.approx([192, 160], abs=4)
    assert rings[1].min(0) == pytest.approx([112, 80], abs=6)
    assert found.fraction(112, 80, 16) < 0.1
    assert found.fraction(64, 32, 32) > 0.9
    filled = tissue.segment(pixels, (320, 192), smallest=3000)
    assert len(filled.polygons()[0]) == 1


def test_the_network_has_the_shape_of_the_public_one(weights):
    network, folder = weights
    assert sum(one.numel() for one in network.parameters()) == 23_508_032  # 25,557,032 with its classifier
    cut = encoders.Network("resnet50_trunc", folder / "w.pth", "cpu")
    tiles = [np.random.default_rng(k).random((32, 32, 3), dtype=np.float32) for k in range(2)]
    found = cut(tiles)
    assert found.shape == (2, 1024)
    x = torch.nn.functional.interpolate(
        torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2), (224, 224), mode="bilinear", antialias=True
    )
    x = (x - torch.tensor(encoders.MEAN)[:, None, None]) / torch.tensor(encoders.STD)[:, None, None]
    with torch.inference_mode():
        h = torch.nn.functional.max_pool2d(torch.relu(network.bn1(network.conv1(x))), 3, 2, 1)
        for stage in (network.layer1, network.layer2, network.layer3):
            h = stage(h)
        assert h.shape[1:] == (1024, 14, 14)
        np.testing.assert_allclose(found, h.mean((2, 3)).numpy(), rtol=1e-4, atol=1e-5)


def test_tiles_of_a_network_with_overlap_resolution_and_contours(slide, weights, tmp_path, capsys):
    path, _ = slide
    words = ["pathology", "tile", str(path), "--output", str(tmp_path / "bags"), "--size", "16", "--overlap", "4"]
    words += ["--mpp", "1", "--slide-mpp", "0.5", "--contours", "--encoder", "resnet50_trunc"]
    assert main(words) == 2
    assert "--encoder resnet50_trunc needs --encoder-weights FILE" in capsys.readouterr().err
    assert main([*words, "--encoder-weights", str(weights[1] / "w.safetensors")]) == 0
    bag = read_bag(tmp_path / "bags" / "s.h5")
    assert bag.features.shape[1] == 1024
    assert bag.patch == 32  # 16 pixels of 1 micrometre
    assert (np.unique(np.diff(np.unique(bag.coords[:, 0]))) == 24).all()
    assert bag.mpp == 0.5
    assert bag.attributes["overlap"] == 4
    assert bag.attributes["encoder"] == "resnet50_trunc"
    assert bag.coords.min() >= 0
    content = json.loads((tmp_path / "bags" / "contours_geojson" / "s.geojson").read_text())
    (one,) = content["features"]
    assert one["properties"]["objectType"] == "annotation"
    for ring in one["geometry"]["coordinates"]:
        assert ring[0] == ring[-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mpp", "1"], "does not state its resolution; pass --slide-mpp"),
        (["--mpp", "0.2", "--slide-mpp", "0.5"], "is scanned at 0.5 µm per pixel; --mpp 0.2 is finer"),
        (["--mpp", "1", "--magnification", "10"], "exclude each other"),
        (["--overlap", "16", "--size", "16"], "must be less than --size 16"),
        (["--encoder-weights", "w.pth"], "--encoder-weights needs --encoder"),
    ],
)
def test_faults_of_the_options(words, message, slide, tmp_path, capsys):
    assert main(["pathology", "tile", str(slide[0]), "--output", str(tmp_path / "bags"), *words]) == 2
    assert message in capsys.readouterr().err


def test_weights_that_do_not_fit(weights, tmp_path):
    network = encoders.ResNet50(3)
    state = network.state_dict()
    torch.save({name: one for name, one in state.items() if "layer3.2" not in name}, tmp_path / "few.pth")
    with pytest.raises(InputError, match=r"lacks 15 of \d+ weights of the network \(first: layer3.2.conv1.weight\)"):
        encoders.load(network, tmp_path / "few.pth")
    torch.save({**state, "conv1.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "wrong.pth")
    with pytest.raises(InputError, match=r"conv1.weight has shape \(64, 3, 3, 3\)"):
        encoders.load(network, tmp_path / "wrong.pth")
    torch.save({"a": 1}, tmp_path / "none.pth")
    torch.save(object, tmp_path / "code.pth")
    (tmp_path / "text.safetensors").write_text("text")
    for name, message in (
        ("none.pth", "no tensors"),
        ("code.pth", "more than tensors"),
        ("text.safetensors", "damaged"),
    ):
        with pytest.raises(InputError, match=message):
            encoders.read_weights(tmp_path / name)
    with pytest.raises(InputError, match="no such file of weights"):
        encoders.read_weights(tmp_path / "absent.pth")


def test_output_folders_of_other_tools(tmp_path):
    def bag(path, key):
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            file[key] = np.ones((2, 3), np.float32)
            file["coords"] = np.array([[0, 0], [256, 0]])

    trident = tmp_path / "trident"
    bag(trident / "20x_256px_0px_overlap" / "features_uni_v1" / "S-1.h5", "features")
    (trident / "20x_256px_0px_overlap" / "patches").mkdir()
    bag(trident / "20x_256px_0px_overlap" / "patches" / "S-1_patches.h5", "other")
    assert list(list_bags(trident)) == list(list_bags(trident / "20x_256px_0px_overlap")) == ["S-1"]
    bag(trident / "20x_256px_0px_overlap" / "features_conch" / "S-1.h5", "features")
    with pytest.raises(InputError, match=r"has features in 2 folders: .*features_conch, .*features_uni_v1; name one"):
        list_bags(trident)
    bag(tmp_path / "stamp" / "uni-1a2b" / "S-2.h5", "feats")
    ((name, file),) = list_bags(tmp_path / "stamp").items()
    assert name == "S-2"
    assert read_bag(file).features.shape == (2, 3)
    bag(tmp_path / "clam" / "FEATURES" / "h5_files" / "S-3.h5", "features")
    assert list(list_bags(tmp_path / "clam")) == ["S-3"]
