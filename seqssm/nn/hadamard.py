"""Hadamard matrices and the rotation by them, which spreads outliers over all channels (Quamba, section 4.2)."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

CORES = (1, 12, 20, 28)
"""Orders m of the matrices from which those of order 2^k m are made; m = 40 is 2 * 20."""
LARGEST_FACTOR = 64  # a larger matrix costs more than two small ones


def has_hadamard(size: int) -> bool:
    """Whether there is a matrix of order `size` here: 2^k, or 2^k m with m = 12, 20, 28 or 40.

    Args:
        size: the order.
    """
    return size >= 1 and any(size % core == 0 and _is_power(size // core) for core in CORES)


@cache
def factors(size: int) -> tuple[Tensor, ...]:
    """Split a Hadamard matrix into small ones, of which it is the Kronecker product.

    Args:
        size: order of the matrix, see `has_hadamard`.

    Returns:
        Matrices of entries +1 and -1, float32, whose orders multiply to `size`.

    Raises:
        ValueError: there is no matrix of this order here.
    """
    if not has_hadamard(size):
        raise ValueError(f"no Hadamard matrix of order {size}: expected 2^k, or 2^k m with m = 12, 20, 28, 40")
    core = next(core for core in CORES if size % core == 0 and _is_power(size // core))
    found = [] if core == 1 else [_core(core)]
    left = size // core
    while left > 1:
        part = min(left, LARGEST_FACTOR)
        found.append(_sylvester(part))
        left //= part
    return tuple(found) or (torch.ones(1, 1),)


def matrix(size: int) -> Tensor:
    """Return the orthogonal matrix H / sqrt(size), (size, size) float64; its inverse is its transpose.

    Args:
        size: order of the matrix.

    Raises:
        ValueError: there is no matrix of this order here.
    """
    whole = torch.ones(1, 1, dtype=torch.float64)
    for part in factors(size):
        whole = torch.kron(whole, part.double())
    return whole / size**0.5


def rotate(x: Tensor) -> Tensor:
    """Multiply the last axis by the orthogonal matrix of `matrix`: y = H x / sqrt(n), in the dtype of `x`.

    Args:
        x: values, (..., n).

    Raises:
        ValueError: there is no matrix of order n here.
    """
    size = x.shape[-1]
    parts = factors(size)
    y = x.reshape(-1, *(len(part) for part in parts)) if len(parts) > 1 else x.reshape(-1, size)
    for axis, part in enumerate(parts, 1):
        last = y.movedim(axis, -1)
        y = F.linear(last, part.to(x.device, x.dtype)).movedim(-1, axis)
    return y.reshape(x.shape) * size**-0.5


def _is_power(number: int) -> bool:
    return number & (number - 1) == 0


def _sylvester(size: int) -> Tensor:
    """Return Sylvester's matrix of order 2^k."""
    whole = torch.ones(1, 1)
    while len(whole) < size:
        whole = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), whole)
    return whole


def _core(size: int) -> Tensor:
    """Return a matrix of order 12, 20 or 28, by Paley's two constructions from a prime field."""
    first = size - 1  # a prime of the form 4 n + 3 gives the first construction
    if size in (12, 20):
        skew = torch.zeros(size, size)
        skew[0, 1:], skew[1:, 0], skew[1:, 1:] = 1, -1, _residues(first)
        return skew + torch.eye(size)
    prime = size // 2 - 1  # 13 = 4 n + 1
    whole = torch.zeros(prime + 1, prime + 1)
    whole[0, 1:], whole[1:, 0], whole[1:, 1:] = 1, 1, _residues(prime)
    on, off = torch.tensor([[1.0, 1.0], [1.0, -1.0]]), torch.tensor([[1.0, -1.0], [-1.0, -1.0]])
    return torch.kron(whole, on) + torch.kron(torch.eye(prime + 1), off)


def _residues(prime: int) -> Tensor:
    """Return Jacobsthal's matrix: +1 where i - j is a square modulo `prime`, -1 where it is not, 0 on the diagonal."""
    squares = {number * number % prime for number in range(1, prime)}
    row = [0.0, *(1.0 if number in squares else -1.0 for number in range(1, prime))]
    return torch.tensor([[row[(i - j) % prime] for j in range(prime)] for i in range(prime)])
