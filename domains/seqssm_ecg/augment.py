"""Random augmentation of training windows, at any sampling rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Augment:
    """Augmentations of a batch, each with its own probability or strength; 0 disables it.

    Attributes:
        gain: standard deviation of the log of a random factor on the amplitude of a record.
        baseline_wander: amplitude of an added slow sine (0.05 to 0.5 Hz), in units of the input.
        noise: standard deviation of the added white noise, in units of the input.
        lead_drop: probability that a lead is set to zero.
        time_mask: largest fraction of a window that is set to zero, as one contiguous segment.
        mix_up: parameter a of the Beta(a, a) distribution for mixing pairs of records and their labels.
    """

    gain: float = 0.0
    baseline_wander: float = 0.0
    noise: float = 0.0
    lead_drop: float = 0.0
    time_mask: float = 0.0
    mix_up: float = 0.0

    def __call__(self, x: Tensor, y: Tensor, rate_hz: float) -> tuple[Tensor, Tensor]:
        """Augment windows (B, leads, n) and labels (B, m); draws from torch's global generator."""
        batch, leads, samples = x.shape
        if self.gain:
            x = x * torch.exp(self.gain * torch.randn(batch, 1, 1))
        if self.baseline_wander:
            hz = 0.05 + 0.45 * torch.rand(batch, 1, 1)
            phase = 2 * math.pi * torch.rand(batch, leads, 1)
            seconds = torch.arange(samples) / rate_hz
            x = x + self.baseline_wander * torch.rand(batch, leads, 1) * torch.sin(2 * math.pi * hz * seconds + phase)
        if self.noise:
            x = x + self.noise * torch.rand(batch, 1, 1) * torch.randn_like(x)
        if self.lead_drop:
            x = x * (torch.rand(batch, leads, 1) >= self.lead_drop)
        if self.time_mask:
            length = (torch.rand(batch, 1) * self.time_mask * samples).long()
            start = (torch.rand(batch, 1) * (samples - length)).long()
            place = torch.arange(samples)
            x = x * ~((place >= start) & (place < start + length)).unsqueeze(1)
        if self.mix_up:
            weight = torch.distributions.Beta(self.mix_up, self.mix_up).sample((batch,))
            other = torch.randperm(batch)
            x = weight[:, None, None] * x + (1 - weight)[:, None, None] * x[other]
            y = weight[:, None] * y + (1 - weight)[:, None] * y[other]
        return x, y
