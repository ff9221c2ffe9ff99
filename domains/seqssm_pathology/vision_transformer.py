"""Vision transformers whose sizes follow from their weights: the architecture of the public pathology encoders.

Weights have the names that timm and DINOv2 use (``blocks.0.attn.qkv.weight``). Dosovitskiy et al. 2021 (arXiv
2010.11929); layer scale after Touvron et al. 2021 (arXiv 2103.17239), registers after Darcet et al. 2024 (arXiv
2309.16588), gated MLP (SwiGLU) after Shazeer 2020 (arXiv 2002.05202).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16, 1536: 24, 1664: 16}
"""Attention heads by width, of ViT-Ti, S, B, L, H, g, giant (DINOv2) and G; they do not follow from the weights."""
EPS = 1e-6  # of the norms
RENAMED = {"register_tokens": "reg_token", ".mlp.w12.": ".mlp.fc1.", ".mlp.w3.": ".mlp.fc2."}
"""Names in DINOv2's files and in timm's."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of a vision transformer.

    Attributes:
        width: width of the tokens, D.
        depth: number of blocks.
        heads: attention heads.
        patch: side of a patch, pixels.
        hidden: inputs of the second layer of the MLP.
        gated: whether the MLP is gated (SwiGLU).
        scaled: whether the outputs of attention and MLP are scaled by channel.
        bias: whether queries, keys and values have a bias.
        registers: number of register tokens.
        positions: rows of the position table.
    """

    width: int
    depth: int
    heads: int
    patch: int
    hidden: int
    gated: bool
    scaled: bool
    bias: bool
    registers: int
    positions: int

    @property
    def grid(self) -> int:
        """Patches per side of the image that the position table was trained with."""
        return math.isqrt(self.positions)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Sizes:
        """Return the sizes that weights have.

        Args:
            tensors: weights by timm's names.

        Raises:
            ValueError: they are not those of a vision transformer that can be read.
        """
        needed = ("patch_embed.proj.weight", "cls_token", "pos_embed", "norm.weight", "blocks.0.mlp.fc1.weight")
        needed += ("blocks.0.mlp.fc2.weight", "blocks.0.attn.qkv.weight")
        for name in needed:
            if name not in tensors:
                raise ValueError(f"has no {name}: not a vision transformer with timm's names")
        width, _, patch, _ = tensors["patch_embed.proj.weight"].shape
        if width not in HEADS:
            known = ", ".join(map(str, HEADS))
            raise ValueError(f"has tokens of width {width}; the number of heads is known for {known}")
        hidden = tensors["blocks.0.mlp.fc2.weight"].shape[1]
        registers = tensors["reg_token"].shape[1] if "reg_token" in tensors else 0
        positions = tensors["pos_embed"].shape[1]
        if positions - math.isqrt(positions) ** 2 not in {0, 1, 1 + registers}:
            raise ValueError(f"has {positions} positions, which are not a square of patches and its other tokens")
        numbers = {int(name.split(".")[1]) for name in tensors if name.startswith("blocks.") and name[7:8].isdigit()}
        return cls(
            width=width,
            depth=len(numbers),
            heads=HEADS[width],
            patch=patch,
            hidden=hidden,
            gated=tensors["blocks.0.mlp.fc1.weight"].shape[0] == 2 * hidden,
            scaled="blocks.0.ls1.gamma" in tensors,
            bias="blocks.0.attn.qkv.bias" in tensors,
            registers=registers,
            positions=positions,
        )


class Scale(nn.Module):
    """Multiplies by a weight per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Attention(nn.Module):
    """Attention between all tokens, (B, n, D) to (B, n, D)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.qkv = nn.Linear(sizes.width, 3 * sizes.width, bias=sizes.bias)
        self.proj = nn.Linear(sizes.width, sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two layers with GELU in between, or gated by SiLU."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.gated = sizes.gated
        self.fc1 = nn.Linear(sizes.width, sizes.hidden * (2 if sizes.gated else 1))
        self.fc2 = nn.Linear(sizes.hidden, sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        if not self.gated:
            return self.fc2(F.gelu(self.fc1(x)))
        gate, value = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(F.silu(gate) * value)


class Block(nn.Module):
    """Attention and MLP, each after a norm and with a residual connection."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(sizes.width, eps=EPS), nn.LayerNorm(sizes.width, eps=EPS)
        self.attn, self.mlp = Attention(sizes), Mlp(sizes)
        self.ls1: nn.Module = Scale(sizes.width) if sizes.scaled else nn.Identity()
        self.ls2: nn.Module = Scale(sizes.width) if sizes.scaled else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class VisionTransformer(nn.Module):
    """A vision transformer without its classifier, ``(B, 3, H, W)`` to features ``(B, D)`` or ``(B, 2 D)``.

    Args:
        sizes: its sizes.
        mean: whether the mean of the patch tokens follows the class token in the features.
    """

    def __init__(self, sizes: Sizes, mean: bool = False) -> None:
        super().__init__()
        self.sizes, self.mean = sizes, mean
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, sizes.width, sizes.patch, sizes.patch)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, sizes.width))
        self.reg_token = nn.Parameter(torch.zeros(1, sizes.registers, sizes.width)) if sizes.registers else None
        self.pos_embed = nn.Parameter(torch.zeros(1, sizes.positions, sizes.width))
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.depth))
        self.norm = nn.LayerNorm(sizes.width, eps=EPS)

    @property
    def width(self) -> int:
        """Number of features."""
        return self.sizes.width * (2 if self.mean else 1)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch_embed["proj"](x)
        rows, columns = patches.shape[-2:]
        prefix = [self.cls_token] if self.reg_token is None else [self.cls_token, self.reg_token]
        tokens = torch.cat([*(one.expand(len(x), -1, -1) for one in prefix), patches.flatten(2).transpose(1, 2)], 1)
        tokens = tokens + self._positions(rows, columns)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens)
        if not self.mean:
            return tokens[:, 0]
        return torch.cat([tokens[:, 0], tokens[:, 1 + self.sizes.registers :].mean(1)], -1)

    def _positions(self, rows: int, columns: int) -> Tensor:
        """Positions of all tokens, (1, n, D), interpolated for another grid; 0 for tokens that have none."""
        side = self.sizes.grid
        own, table = self.pos_embed.split([self.sizes.positions - side**2, side**2], dim=1)
        if (rows, columns) != (side, side):
            image = table.transpose(1, 2).unflatten(-1, (side, side))
            image = F.interpolate(image, (rows, columns), mode="bicubic", antialias=True, align_corners=False)
            table = image.flatten(2).transpose(1, 2)
        none = table.new_zeros(1, 1 + self.sizes.registers - own.shape[1], table.shape[-1])
        return torch.cat([own, none, table], 1)


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the weights of DINOv2's files timm's names; the token of masked patches is left out."""
    found = {}
    for name, tensor in tensors.items():
        for old, new in RENAMED.items():
            name = name.replace(old, new)
        if name != "mask_token":
            found[name] = tensor
    return found
