"""Linear layers with weights of one bit: trained (Bi-Mamba, arXiv 2411.11843), and packed for inference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BITS = 8  # weights per byte


class _Sign(torch.autograd.Function):
    """Sign with sign(0) = +1; the gradient passes unchanged (straight-through estimator)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return torch.where(weight >= 0, 1.0, -1.0).to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def product(x: Tensor, signs: Tensor, scale: Tensor, shift: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply by the weight scale_i sign_oi + shift_i of output o and input i.

    Args:
        x: (..., in).
        signs: +1 and -1, (out, in).
        scale: factor of each column, (in,).
        shift: offset of each column, (in,).
        bias: (out,), or None.

    Returns:
        (..., out).
    """
    return F.linear(x * scale, signs, bias) + (x * shift).sum(-1, keepdim=True)


class BinaryLinear(nn.Linear):
    """y = x W^T + b with W_oi = scale_i sign(weight_oi) + shift_i, for training.

    ``weight`` is a float matrix of which only the signs are used; its gradient is that of the signs. ``scale`` and
    ``shift`` are trained. They are initialised so that W approximates ``weight``: shift is the mean of a column, scale
    the mean absolute deviation from it (XNOR-Net, arXiv 1603.05279).

    Args:
        in_features: number of input channels.
        out_features: number of output channels.
        bias: whether there is a bias.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self.scale = nn.Parameter(torch.empty(in_features))
        self.shift = nn.Parameter(torch.empty(in_features))
        self.approximate()

    @classmethod
    def of(cls, linear: nn.Linear) -> BinaryLinear:
        """Make a binary layer that approximates `linear`.

        Args:
            linear: the layer, whose weight and bias are used.
        """
        made = cls(linear.in_features, linear.out_features, linear.bias is not None)
        made.weight, made.bias = linear.weight, linear.bias
        made.scale.data = made.scale.data.to(linear.weight)
        made.shift.data = made.shift.data.to(linear.weight)
        if not linear.weight.is_meta:
            made.approximate()
        return made

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if hasattr(self, "scale"):  # not in the constructor of nn.Linear
            self.approximate()

    @torch.no_grad()
    def approximate(self) -> None:
        """Set ``scale`` and ``shift`` from ``weight``."""
        mean = self.weight.mean(0)
        self.shift.copy_(mean)
        self.scale.copy_((self.weight - mean).abs().mean(0))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        """Load weights; those of a float layer, without scale and shift, are approximated."""
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if f"{prefix}weight" in state_dict and f"{prefix}scale" not in state_dict:
            self.approximate()

    def forward(self, x: Tensor) -> Tensor:
        """Multiply (..., in) to (..., out)."""
        return product(x, _Sign.apply(self.weight), self.scale, self.shift, self.bias)


@dataclass(frozen=True)
class BinaryFormat:
    """The format of a `PackedBinaryLinear`.

    Attributes:
        width: input channels.
        out: output channels.
        bias: whether there is a bias.
    """

    width: int
    out: int
    bias: bool = False

    def require_valid(self) -> None:
        """Raise ValueError for impossible sizes."""
        if not all(type(size) is int and size > 0 for size in (self.width, self.out)):
            raise ValueError("sizes")


def pack(signs: Tensor) -> Tensor:
    """Store signs in one bit each: bit k of byte i is set where column 8 i + k is not negative.

    Args:
        signs: (out, in); 0 counts as positive.

    Returns:
        (out, ceil(in / 8)) uint8.
    """
    set_bits = F.pad((signs >= 0).to(torch.uint8), (0, -signs.shape[1] % BITS)).unflatten(1, (-1, BITS))
    values = torch.tensor([1 << k for k in range(BITS)], dtype=torch.uint8, device=signs.device)
    return (set_bits * values).sum(-1, dtype=torch.uint8)


def unpack(bits: Tensor, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Undo `pack`.

    Args:
        bits: (out, ceil(width / 8)) uint8.
        width: number of columns.
        dtype: dtype of the result.

    Returns:
        (out, width) with values +1 and -1.
    """
    shifts = torch.arange(BITS, dtype=torch.uint8, device=bits.device)
    found = (bits.unsqueeze(-1) >> shifts) & 1
    return found.flatten(1)[:, :width].to(dtype) * 2 - 1


class PackedBinaryLinear(nn.Module):
    """A `BinaryLinear` for inference, stored with one bit per weight, and two numbers per input channel.

    The product is that of `BinaryLinear`, to the bit. The signs are unpacked to floats at the first call and kept:
    one bit per weight is the size of the file, not of the memory.

    Args:
        format: sizes.
    """

    def __init__(self, format: BinaryFormat) -> None:
        super().__init__()
        format.require_valid()
        self.format = format
        self.in_features, self.out_features = format.width, format.out
        self.register_buffer("bits", torch.zeros(format.out, -(-format.width // BITS), dtype=torch.uint8))
        self.register_buffer("scale", torch.ones(format.width))
        self.register_buffer("shift", torch.zeros(format.width))
        self.register_buffer("bias", torch.zeros(format.out) if format.bias else None)
        self._signs: Tensor | None = None

    bits: Tensor
    scale: Tensor
    shift: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, linear: BinaryLinear) -> PackedBinaryLinear:
        """Pack a trained layer.

        Args:
            linear: the layer.
        """
        made = cls(BinaryFormat(linear.in_features, linear.out_features, linear.bias is not None))
        made.bits = pack(linear.weight.detach())
        made.scale, made.shift = linear.scale.detach().clone(), linear.shift.detach().clone()
        made.bias = None if linear.bias is None else linear.bias.detach().clone()
        return made

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.format.bias}"

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._signs = None
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._signs = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_signs": None}

    def forward(self, x: Tensor) -> Tensor:
        """Multiply (..., in) to (..., out)."""
        if self._signs is None or self._signs.dtype != self.scale.dtype:
            self._signs = unpack(self.bits, self.format.width, self.scale.dtype)
        return product(x, self._signs, self.scale, self.shift, self.bias)

    def packed_bytes(self) -> int:
        """Return the memory of the unpacked signs; 0 before the first call."""
        return 0 if self._signs is None else self._signs.numel() * self._signs.element_size()
