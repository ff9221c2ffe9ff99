"""1-D convolutions, then a bidirectional Mamba encoder with a class token (the ECG-Mamba family, Vision Mamba)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqssm.errors import InputError
from seqssm.nn.dropout import Dropout
from seqssm.nn.mamba import Mamba
from seqssm.training.sizes import require_rates, require_sizes

Stem = Literal["short", "deep", "ecg_mamba"]
Pool = Literal["middle", "head", "tail", "mean"]
Direction = Literal["bidirectional", "forward"]

STEMS: dict[str, tuple[tuple[int | None, int, int, int], ...]] = {
    "short": ((64, 7, 2, 3), (None, 5, 2, 2)),  # 1000 samples -> 250 tokens
    "deep": ((64, 7, 2, 3), (64, 5, 2, 2), (None, 5, 2, 2)),  # 1000 samples -> 125 tokens
    "ecg_mamba": ((128, 14, 3, 2), (None, 15, 4, 100)),  # 8192 samples -> 729 tokens; inferred from public code
}
"""(channels, kernel, stride, padding) of the convolutions; None channels: d_model."""


class ConvStem(nn.Module):
    """Strided convolutions from samples to tokens, each with batch normalisation and ReLU.

    Args:
        leads: input channels.
        d_model: width of the tokens.
        stem: a key of `STEMS`.
        causal: whether to pad on the left only, so that token t depends on samples up to its last one.
    """

    def __init__(self, leads: int, d_model: int, stem: Stem = "short", causal: bool = False) -> None:
        super().__init__()
        layers, before = [], leads
        self.shapes: list[tuple[int, int, int]] = []  # kernel, stride, padding
        for channels, kernel, stride, padding in STEMS[stem]:
            after = channels or d_model
            layers += [nn.Conv1d(before, after, kernel, stride, bias=False), nn.BatchNorm1d(after)]
            self.shapes.append((kernel, stride, padding))
            before = after
        self.layers = nn.ModuleList(layers)
        self.causal = causal

    @property
    def stride(self) -> int:
        """Samples per token."""
        total = 1
        for _, stride, _ in self.shapes:
            total *= stride
        return total

    @property
    def centre(self) -> float:
        """Centre of the field of view of token 0, in samples; token t is `stride` * t samples later."""
        found = 0.0
        for kernel, stride, padding in reversed(self.shapes):
            found = found * stride - (kernel - stride if self.causal else padding) + (kernel - 1) / 2
        return found

    def tokens(self, samples: int) -> int:
        """Return the number of tokens for a number of samples; 0 or less if the input is too short."""
        for kernel, stride, padding in self.shapes:
            samples = samples // stride if self.causal else (samples + 2 * padding - kernel) // stride + 1
        return samples

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, leads, n) to (B, L, D).

        Args:
            x: samples, (B, leads, n).
            lengths: number of valid samples of each record, (B,); the others are padding on the right. Padding is
                zeroed
            between the layers and does not affect valid tokens.
        """
        x = _keep(x, lengths)
        for number, (kernel, stride, padding) in enumerate(self.shapes):
            pads = (kernel - stride, 0) if self.causal else (padding, padding)
            x = self.layers[2 * number](F.pad(x, pads))
            x = F.relu(self.layers[2 * number + 1](x))
            if lengths is not None:
                lengths = lengths // stride if self.causal else (lengths + 2 * padding - kernel) // stride + 1
                x = _keep(x, lengths)
        return x.transpose(1, 2)


def _keep(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Zero `x` (B, C, n) beyond the length of each record."""
    if lengths is None:
        return x
    return x * (torch.arange(x.shape[-1], device=x.device) < lengths[:, None]).unsqueeze(1)


class DropPath(nn.Module):
    """Stochastic depth: drop a residual branch per record with probability `rate` in training (Huang et al. 2016)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        kept = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * kept / (1 - self.rate)


class Block(nn.Module):
    """x + drop_path(mixer(norm(x))): a Vision Mamba block (arXiv 2401.09417, section 3.2)."""

    def __init__(self, d_model: int, mixer: Mamba, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(d_model, eps=1e-5)
        self.mixer = mixer
        self.dropout = Dropout(dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return x + self.drop_path(self.dropout(self.mixer(self.norm(x), mask=mask)))


class EcgMamba(nn.Module):
    """Stem, class token, learned positions, blocks, final norm: one feature vector per window.

    Args:
        leads: input channels.
        window: samples of a training window; sets the size of the position table.
        d_model: width of the tokens.
        depth: number of Mamba blocks.
        d_state: state size per channel.
        d_conv: kernel size of the convolution inside a block.
        expand: expansion factor of the scan's channels.
        stem: convolutional stem: ``short`` (one token per 4 samples), ``deep`` (per 8) or ``ecg_mamba`` (per 12).
        pool: position of the class token, whose output is the feature vector; or ``mean`` over the tokens.
        direction: scan direction: ``bidirectional``, or the causal ``forward``.
        merge: how the two directions are combined: sum or mean.
        positions: whether to add learned absolute positions, interpolated for other lengths.
        causal: whether to pad the stem on the left only. With ``direction="forward"``, ``pool="mean"`` and
            ``positions=False``, the network can process a stream (`seqssm_ecg.streaming`).
        dropout: dropout probability after the positions, after each mixer and before the head.
        drop_path: stochastic depth rate of the last block; it increases linearly from 0 in the first one.
        engine: engine of the scan; by default the best one for the device.

    Raises:
        InputError: a size is below 1, a rate is outside [0, 1), or the class token would not see the whole window.
    """

    def __init__(
        self,
        leads: int = 12,
        window: int = 1000,
        d_model: int = 64,
        depth: int = 2,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        stem: Stem = "short",
        pool: Pool = "middle",
        direction: Direction = "bidirectional",
        merge: Literal["sum", "mean"] = "mean",
        positions: bool = True,
        causal: bool = False,
        dropout: float = 0.1,
        drop_path: float = 0.1,
        engine: str | None = None,
    ) -> None:
        super().__init__()
        require_sizes(d_model=d_model, depth=depth, d_state=d_state, d_conv=d_conv, expand=expand)
        require_rates(dropout=dropout, drop_path=drop_path)
        if direction == "forward" and pool in ("head", "middle"):
            raise InputError(
                f"--model.pool {pool} with --model.direction forward: the class token would not see the samples after "
                "it; use tail or mean"
            )
        self.d_model, self.pool, self.direction = d_model, pool, direction
        self.stem = ConvStem(leads, d_model, stem, causal)
        tokens = self.stem.tokens(window)
        if tokens < 1:
            raise InputError(f"a window of {window} samples is too short for the stem {stem}; increase --data.window_s")
        extra = 0 if pool == "mean" else 1
        self.token = nn.Parameter(torch.zeros(1, 1, d_model)) if extra else None
        self.positions = nn.Parameter(torch.zeros(1, tokens + extra, d_model)) if positions else None
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(
                d_model,
                Mamba(
                    d_model,
                    d_state=d_state,
                    d_conv=d_conv,
                    expand=expand,
                    ordering=direction,
                    merge=merge,
                    engine=engine,
                ),
                dropout,
                drop_path * place / max(1, depth - 1),
            )
            for place in range(depth)
        )
        self.norm = nn.RMSNorm(d_model, eps=1e-5)
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        for parameter in (self.token, self.positions):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)
        for block in self.blocks:
            block.mixer.out_proj.weight /= (
                len(self.blocks) ** 0.5
            )  # keeps the scale of the residual stream independent of depth

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Features (B, D) of windows (B, leads, n); arguments as for `read`."""
        return self.read(x, lengths)[0]

    def read(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Compute the features (B, D), the tokens (B, T, D), and the mask of valid tokens (None for all).

        Args:
            x: samples, (B, leads, n).
            lengths: number of valid samples, (B,), on the CPU or the device, for records padded on the right; padding
                has no
            effect. None: no padding.

        Raises:
            InputError: a record is too short for one token.
        """
        shortest = x.shape[-1] if lengths is None else int(lengths.min())
        if self.stem.tokens(shortest) < 1:
            raise InputError(f"{shortest} samples are too short for this network")
        if lengths is None or bool((lengths == x.shape[-1]).all()):
            return self._whole(self.stem(x))
        lengths = lengths.to(x.device)
        counts = [self.stem.tokens(int(n)) for n in lengths]
        return self._padded(self.stem(x, lengths), counts)

    @property
    def carries_state(self) -> bool:
        """Whether the network is causal and its features are means, so that it can be read second by second."""
        causal = self.stem.causal and self.direction == "forward"
        return causal and self.pool == "mean" and self.positions is None

    @property
    def token_stride(self) -> int:
        """Samples per token of `sequence`."""
        return self.stem.stride

    @property
    def first_sample(self) -> int:
        """First of the `token_stride` samples that token 0 of `sequence` stands for; 0 in causal networks."""
        return 0 if self.stem.causal else math.floor(self.stem.centre - (self.stem.stride - 1) / 2)

    def sequence(self, x: Tensor) -> Tensor:
        """Compute the features of all tokens, (B, L, D), of windows (B, leads, n) without padding."""
        encoded, place = self._encoded(self.stem(x))
        return encoded if self.token is None else torch.cat([encoded[:, :place], encoded[:, place + 1 :]], dim=1)

    def _whole(self, tokens: Tensor) -> tuple[Tensor, Tensor, None]:
        encoded, place = self._encoded(tokens)
        return (encoded.mean(1) if self.token is None else encoded[:, place]), encoded, None

    def _encoded(self, tokens: Tensor) -> tuple[Tensor, int]:
        """Encode the tokens (B, L, D) of the stem; also return the position of the class token."""
        batch, count, _ = tokens.shape
        place = self._place(count)
        if self.token is not None:
            token = self.token.expand(batch, -1, -1)
            tokens = torch.cat([tokens[:, :place], token, tokens[:, place:]], dim=1)
        if self.positions is not None:
            tokens = tokens + self.position_table(tokens.shape[1])
        return self._encode(tokens, None), place

    def _padded(self, tokens: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Compute `_whole` for records of different lengths, with class token and positions by the length of each."""
        batch = tokens.shape[0]
        extra = 0 if self.token is None else 1
        total = max(counts) + extra
        rows = []
        for row, count in zip(tokens, counts):
            place = self._place(count)
            parts = [row[:count]] if self.token is None else [row[:place], self.token[0], row[place:count]]
            one = torch.cat(parts)
            if self.positions is not None:
                one = one + self.position_table(len(one))[0]
            rows.append(F.pad(one, (0, 0, 0, total - len(one))))
        real = torch.tensor(counts, device=tokens.device) + extra
        mask = torch.arange(total, device=tokens.device) < real[:, None]
        encoded = self._encode(torch.stack(rows), mask)
        if self.token is None:
            return (encoded * mask.unsqueeze(-1)).sum(1) / real.unsqueeze(-1), encoded, mask
        return encoded[torch.arange(batch), [self._place(count) for count in counts]], encoded, mask

    def _encode(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        tokens = self.dropout(tokens)
        for block in self.blocks:
            tokens = block(tokens, mask)
        return self.norm(tokens)

    def _place(self, count: int) -> int:
        return {"head": 0, "middle": count // 2, "tail": count, "mean": 0}[self.pool]

    def position_table(self, length: int) -> Tensor:
        """Return the learned positions (1, length, D), interpolated if the length differs from that of training."""
        assert self.positions is not None
        if not torch.compiler.is_exporting() and length == self.positions.shape[1]:  # a graph has one path
            return self.positions
        table = self.positions.transpose(1, 2)
        return F.interpolate(table, size=length, mode="linear", align_corners=True).transpose(1, 2)


class ResidualCnn(nn.Module):
    """A small residual 1-D CNN with mean pooling: one feature vector per window. A baseline for `EcgMamba`.

    Args:
        leads: input channels.
        d_model: channels of the first stage; the second stage has twice as many.
        dropout: dropout probability before pooling and before the head.

    Raises:
        InputError: a size is below 1, or a rate is outside [0, 1).
    """

    def __init__(self, leads: int = 12, d_model: int = 64, dropout: float = 0.1) -> None:
        super().__init__()
        require_sizes(d_model=d_model)
        require_rates(dropout=dropout)
        self.d_model = 2 * d_model
        self.stem = ConvStem(leads, d_model, "short")
        self.stages = nn.ModuleList([_Residual(d_model, d_model, 1), _Residual(d_model, 2 * d_model, 2)])
        self.dropout = Dropout(dropout)
        self.token_stride = self.stem.stride * 2  # of the second stage
        self.first_sample = math.floor(self.stem.centre - (self.token_stride - 1) / 2)

    def sequence(self, x: Tensor) -> Tensor:
        """Compute the features before pooling, (B, L, 2 d_model), of windows (B, leads, n) without padding."""
        x = self.stem(x).transpose(1, 2)
        for stage in self.stages:
            x = stage(x)
        return x.transpose(1, 2)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Features (B, 2 d_model) of windows (B, leads, n); `lengths` as in `EcgMamba`."""
        return self.read(x, lengths)[0]

    def read(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Compute features, tokens and mask of windows, as `EcgMamba.read`.

        Args:
            x: samples, (B, leads, n).
            lengths: number of valid samples, (B,).
        """
        padded = lengths is not None and not bool((lengths == x.shape[-1]).all())
        x = self.stem(x, lengths.to(x.device) if lengths is not None and padded else None).transpose(1, 2)
        counts = None
        if lengths is not None and padded:
            counts = torch.tensor([self.stem.tokens(int(n)) for n in lengths], device=x.device)
        for stage in self.stages:
            x = stage(x, counts)
            counts = None if counts is None else (counts + stage.stride - 1) // stage.stride
        x = self.dropout(_keep(x, counts))
        if counts is None:
            return x.mean(-1), x.transpose(1, 2), None
        mask = torch.arange(x.shape[-1], device=x.device) < counts[:, None]
        return x.sum(-1) / counts[:, None], x.transpose(1, 2), mask


class _Residual(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.first = nn.Conv1d(before, after, 7, stride, 3, bias=False)
        self.second = nn.Conv1d(after, after, 7, 1, 3, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm1d(after), nn.BatchNorm1d(after)])
        self.skip = nn.Conv1d(before, after, 1, stride, bias=False) if before != after or stride > 1 else nn.Identity()

    def forward(self, x: Tensor, counts: Tensor | None = None) -> Tensor:
        after = None if counts is None else (counts + self.stride - 1) // self.stride
        y = _keep(F.relu(self.norms[0](self.first(x))), after)
        return _keep(F.relu(self.norms[1](self.second(y)) + self.skip(x)), after)
