"""Encoders of tiles: hand-made features, and ResNet-50 with weights from a local file.

The network is written here, so that neither torchvision nor timm is needed; its weights have the names that both use
(``layer1.0.conv1.weight``). He et al. 2016, arXiv 1512.03385, with the stride in the 3 x 3 convolution.
"""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqssm.errors import InputError

INPUT = 224  # side of the images that the network was trained on, pixels
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))  # width and blocks of the stages
# optical densities of haematoxylin, eosin and the residual in red, green, blue (Ruifrok and Johnston 2001)
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
BINS = 8  # bins of a colour histogram
PATTERNS = 10  # uniform local binary patterns of 8 neighbours: 0 to 8 set, and all others
WRAPPED = ("state_dict", "model", "model_state_dict")
PREFIXES = ("module.", "model.", "backbone.", "encoder.", "trunk.")


class Encoder(ABC):
    """Maps tiles to features.

    Attributes:
        name: name in the files of features.
    """

    name: str

    @abstractmethod
    def __call__(self, tiles: list[np.ndarray]) -> np.ndarray:
        """Encode tiles, RGB (H, W, 3) in 0 .. 1, to features, (n, D) float32."""


class Handmade(Encoder):
    """46 features of colour, stain and texture."""

    name = "seqssm_handmade_46"

    def __call__(self, tiles: list[np.ndarray]) -> np.ndarray:
        return np.stack([features(tile) for tile in tiles])


def features(pixels: np.ndarray) -> np.ndarray:
    """Compute 46 features per tile: mean and std of colours (6) and of stains (6), histograms (24), texture (10)."""
    flat = pixels.reshape(-1, 3)
    density = -np.log10(np.clip(flat, 1 / 255, 1))
    unit = STAINS / np.linalg.norm(STAINS, axis=1, keepdims=True)
    stains = density @ np.linalg.inv(unit)
    parts = [flat.mean(0), flat.std(0), stains.mean(0), stains.std(0)]
    for channel in flat.T:
        counts = np.bincount(np.minimum((channel * BINS).astype(int), BINS - 1), minlength=BINS)
        parts.append(counts / len(flat))
    parts.append(texture(pixels.mean(-1)))
    return np.concatenate(parts).astype(np.float32)


def texture(grey: np.ndarray) -> np.ndarray:
    """Compute the fractions of the uniform local binary patterns (Ojala et al. 2002) of 8 neighbours."""
    if min(grey.shape) < 3:
        return np.zeros(PATTERNS)
    centre = grey[1:-1, 1:-1]
    ring = [(0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0)]
    rows, columns = centre.shape
    bits = np.stack([grey[y : y + rows, x : x + columns] >= centre for y, x in ring])
    changes = (bits != np.roll(bits, 1, axis=0)).sum(0)
    pattern = np.where(changes <= 2, bits.sum(0), PATTERNS - 1)
    return np.bincount(pattern.ravel(), minlength=PATTERNS) / pattern.size


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolution with a residual connection.

    Args:
        inputs: channels of the input.
        width: channels inside; the output has four times as many.
        stride: of the 3 x 3 convolution.
    """

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(self.bn3(self.conv3(y)) + shortcut)


class ResNet50(nn.Module):
    """ResNet-50 without its classifier, ``(B, 3, H, W)`` to the mean of the last stage, ``(B, D)``.

    Args:
        stages: number of stages, 4 (D 2048) or 3 (D 1024, the truncated network of CLAM).
    """

    def __init__(self, stages: int = 4) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        inputs = 64
        self.stages = stages
        for number, (width, blocks) in enumerate(STAGES[:stages], start=1):
            layers = []
            for block in range(blocks):
                layers.append(Bottleneck(inputs, width, 2 if block == 0 and number > 1 else 1))
                inputs = 4 * width
            self.add_module(f"layer{number}", nn.Sequential(*layers))
        self.width = inputs

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for number in range(1, self.stages + 1):
            x = getattr(self, f"layer{number}")(x)
        return x.mean((2, 3))


class Network(Encoder):
    """A ResNet-50; tiles are resized to 224 pixels and standardised as ImageNet.

    Args:
        name: ``resnet50_trunc`` (1,024 features) or ``resnet50`` (2,048).
        weights: file of its weights.
        device: device to run on; a GPU by default if there is one.
    """

    def __init__(self, name: str, weights: Path, device: str | None = None) -> None:
        self.name = name
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.network = ResNet50(3 if name == "resnet50_trunc" else 4)
        load(self.network, weights)
        self.network.eval().to(self.device)

    @torch.inference_mode()
    def __call__(self, tiles: list[np.ndarray]) -> np.ndarray:
        x = torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2).to(self.device)
        if x.shape[-1] != INPUT:
            x = F.interpolate(x, (INPUT, INPUT), mode="bilinear", antialias=True, align_corners=False)
        mean, std = (torch.tensor(one, device=x.device)[:, None, None] for one in (MEAN, STD))
        return self.network((x - mean) / std).float().cpu().numpy()


def make(name: str, weights: str | Path | None) -> Encoder:
    """Make an encoder by its name.

    Args:
        name: ``handmade``, ``resnet50_trunc`` or ``resnet50``.
        weights: file of the weights, for a network.

    Raises:
        InputError: the weights are missing, or do not fit.
    """
    if name == "handmade":
        if weights is not None:
            raise InputError("--weights needs --encoder resnet50_trunc or resnet50")
        return Handmade()
    if weights is None:
        raise InputError(f"--encoder {name} needs --weights FILE (.safetensors, .pth, .bin)")
    return Network(name, Path(weights))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file by name, without running code from it.

    Args:
        path: a ``.safetensors`` file, or one of `torch.save`; dicts in it under ``state_dict`` or ``model`` are opened.

    Raises:
        InputError: there is no such file, it is damaged, or it holds more than tensors.
    """
    if not path.is_file():
        raise InputError("no such file of weights", file=path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError("holds more than tensors, or is damaged; not opened", file=path) from None
    except Exception as error:  # damaged files raise many kinds of exceptions
        raise InputError(f"is not a file of weights, or is damaged ({type(error).__name__})", file=path) from None
    for key in WRAPPED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = (
        {str(name): one for name, one in content.items() if isinstance(one, Tensor)}
        if isinstance(content, dict)
        else {}
    )
    if not tensors:
        raise InputError("holds no tensors by name", file=path)
    return tensors


def load(network: nn.Module, path: Path) -> None:
    """Load the weights of a network from a file; further weights in it (a classifier, later stages) are ignored.

    Raises:
        InputError: a weight is missing or has another shape.
    """
    tensors, own = read_weights(path), network.state_dict()
    for prefix in PREFIXES:
        if "conv1.weight" not in tensors and f"{prefix}conv1.weight" in tensors:
            tensors = {name.removeprefix(prefix): one for name, one in tensors.items()}
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    missing = [name for name in own if name not in tensors and name not in counters]
    if missing:
        raise InputError(f"lacks {len(missing)} of {len(own)} weights of the network (first: {missing[0]})", file=path)
    for name in [name for name in own if name in tensors]:
        if tensors[name].shape != own[name].shape:
            shapes = f"{tuple(tensors[name].shape)}, the network's {tuple(own[name].shape)}"
            raise InputError(f"{name} has shape {shapes}", file=path)
    network.load_state_dict({name: tensors.get(name, own[name]) for name in own})
