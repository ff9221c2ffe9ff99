"""Encoders of tiles: hand-made features, ResNet-50 and vision transformers with weights from a local file.

The networks are written here, so that neither torchvision nor timm is needed; their weights have the names that both
use (``layer1.0.conv1.weight``). He et al. 2016, arXiv 1512.03385, with the stride in the 3 x 3 convolution.
"""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqssm.errors import InputError
from seqssm_pathology.vision_transformer import Sizes, VisionTransformer, renamed

INPUT = 224  # side of the images that the networks read, pixels
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


@dataclass(frozen=True)
class Public:
    """A public vision transformer: what its authors publish beside the weights.

    Attributes:
        sizes: width, depth, patch and register tokens; None for any.
        resized: side to which tiles are resized, pixels; their centre of `INPUT` pixels is read.
        mean: of the colours.
        std: of the colours.
        patches: whether the features are the class token and the mean of the patch tokens, instead of the former alone.
    """

    sizes: tuple[int, int, int, int] | None = None
    resized: int = INPUT
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD
    patches: bool = False


TRANSFORMERS = {
    "uni": Public((1024, 24, 16, 0)),
    "uni2": Public((1536, 24, 14, 8)),
    "virchow": Public((1280, 32, 14, 0), patches=True),
    "virchow2": Public((1280, 32, 14, 4), patches=True),
    "gigapath": Public((1536, 40, 16, 0), resized=256),
    "hoptimus0": Public(
        (1536, 40, 14, 4), mean=(0.707223, 0.578729, 0.703617), std=(0.211883, 0.230117, 0.177517)
    ),
    "vit": Public(),
}  # fmt: skip
"""UNI and UNI2-h, Virchow and Virchow2, the tile encoder of Prov-GigaPath, H-optimus-0, and any other."""
RESNETS = {"resnet50_trunc": 3, "resnet50": 4}  # stages
NAMES = ("handmade", *RESNETS, *TRANSFORMERS)
"""Names of the encoders."""


FIRST = ("conv1.weight", "patch_embed.proj.weight")
"""A weight of each of the two kinds of networks, which tells the prefix of names in a file: residual, transformer."""


class Network(Encoder):
    """A ResNet-50 or a vision transformer; tiles are resized and standardised as in its training.

    Args:
        name: a key of `RESNETS` (1,024 or 2,048 features) or of `TRANSFORMERS`.
        weights: file of its weights.
        device: device to run on; a GPU by default if there is one.

    Raises:
        InputError: the weights do not fit.
    """

    def __init__(self, name: str, weights: Path, device: str | None = None) -> None:
        self.name = name
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.public = TRANSFORMERS.get(name, Public())
        tensors = tensors_of(weights, FIRST[name not in RESNETS])
        network = ResNet50(RESNETS[name]) if name in RESNETS else transformer(self.public, name, weights, tensors)
        self.network: nn.Module = load(network, weights, tensors)
        self.network.eval().to(self.device)

    @torch.inference_mode()
    def __call__(self, tiles: list[np.ndarray]) -> np.ndarray:
        x = torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2).to(self.device)
        side = self.public.resized
        if x.shape[-1] != side:
            x = F.interpolate(x, (side, side), mode="bilinear", antialias=True, align_corners=False)
        edge = (side - INPUT) // 2
        x = x[..., edge : edge + INPUT, edge : edge + INPUT]
        mean, std = (torch.tensor(one, device=x.device)[:, None, None] for one in (self.public.mean, self.public.std))
        return self.network((x - mean) / std).float().cpu().numpy()


def transformer(public: Public, name: str, path: Path, tensors: Mapping[str, Tensor]) -> VisionTransformer:
    """Make the vision transformer whose weights a file holds, without loading them.

    Args:
        public: what is known of it.
        name: its name.
        path: file of the weights, for messages.
        tensors: its weights.

    Raises:
        InputError: the file holds those of another network.
    """
    try:
        sizes = Sizes.of(tensors)
    except ValueError as error:
        raise InputError(str(error), file=path) from None
    found = (sizes.width, sizes.depth, sizes.patch, sizes.registers)
    if public.sizes is not None and found != public.sizes:
        words = "width {}, {} blocks, patches of {} and {} register tokens"
        raise InputError(
            f"holds a vision transformer of {words.format(*found)}; {name} has {words.format(*public.sizes)}", file=path
        )
    return VisionTransformer(sizes, mean=public.patches)


def make(name: str, weights: str | Path | None) -> Encoder:
    """Make an encoder by its name.

    Args:
        name: one of `NAMES`.
        weights: file of the weights, for a network.

    Raises:
        InputError: the weights are missing, or do not fit.
    """
    if name == "handmade":
        if weights is not None:
            raise InputError(f"--encoder-weights needs --encoder {', '.join(NAMES[1:-1])} or {NAMES[-1]}")
        return Handmade()
    if weights is None:
        raise InputError(f"--encoder {name} needs --encoder-weights FILE (.safetensors, .pth, .bin)")
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


def tensors_of(path: Path, first: str) -> dict[str, Tensor]:
    """Read the weights of a network by its own names: without the prefixes of wrappers, and in timm's spelling.

    Args:
        path: as for `read_weights`.
        first: name of a weight of the network, which tells the prefix.
    """
    tensors = read_weights(path)
    for prefix in PREFIXES:
        if first not in tensors and f"{prefix}{first}" in tensors:
            tensors = {name.removeprefix(prefix): one for name, one in tensors.items()}
    return renamed(tensors)


def load(network: nn.Module, path: Path, tensors: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Load the weights of a network; further weights of its file (a classifier, later stages) are ignored.

    Args:
        network: the network.
        path: file of the weights.
        tensors: its weights by the names of the network, if they were read before.

    Raises:
        InputError: a weight is missing or has another shape.
    """
    own = network.state_dict()
    if tensors is None:
        tensors = tensors_of(path, next(name for name in FIRST if name in own))
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    missing = [name for name in own if name not in tensors and name not in counters]
    if missing:
        raise InputError(f"lacks {len(missing)} of {len(own)} weights of the network (first: {missing[0]})", file=path)
    for name in [name for name in own if name in tensors]:
        if tensors[name].shape != own[name].shape:
            shapes = f"{tuple(tensors[name].shape)}, the network's {tuple(own[name].shape)}"
            raise InputError(f"{name} has shape {shapes}", file=path)
    network.load_state_dict({name: tensors.get(name, own[name]) for name in own})
    return network
