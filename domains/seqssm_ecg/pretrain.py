"""Pretraining on recordings without labels: reconstruction of hidden parts of the signal."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from seqssm.bounds import RATE, Bounds
from seqssm.metrics.gather import gathered
from seqssm.metrics.metric import Metric
from seqssm.training.seeds import derive_seed
from seqssm.training.task import Task
from seqssm_ecg import limits
from seqssm_ecg.model import EcgMamba, ResidualCnn
from seqssm_ecg.records import LongWindows

METRICS = (Metric("explained_variance", lambda error, total: 1 - error / total, "max"),)
"""Of the hidden samples, about the mean of each lead and window: 1 - squared error / squared deviation."""


class Reconstructor(nn.Module):
    """A backbone whose tokens are decoded to the samples around them by one linear layer.

    Args:
        backbone: network with ``sequence``, ``token_stride`` and ``first_sample``.
        leads: number of leads.
    """

    def __init__(self, backbone: EcgMamba | ResidualCnn, leads: int) -> None:
        super().__init__()
        self.backbone, self.leads = backbone, leads
        self.decoder = nn.Linear(backbone.d_model, leads * backbone.token_stride)

    def features(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Compute the features (B, D) of windows (B, leads, n), as a classifier's."""
        return self.backbone(x, lengths)

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruct windows (B, leads, n), in the same shape; samples that no token covers are 0."""
        tokens = self.backbone.sequence(x)
        batch, count, _ = tokens.shape
        pieces = self.decoder(tokens).view(batch, count, self.leads, -1).transpose(1, 2)
        whole = pieces.reshape(batch, self.leads, -1)
        first, n = self.backbone.first_sample, x.shape[-1]
        whole = whole[..., -first:] if first < 0 else nn.functional.pad(whole, (first, 0))
        return nn.functional.pad(whole, (0, max(0, n - whole.shape[-1])))[..., :n]


class EcgPretraining(Task):
    """Train a network to reconstruct hidden parts of recordings, which need no labels.

    In each window, blocks of time are hidden in all leads, and some leads are hidden throughout. Hidden samples are
    zero in the input; the loss is the mean squared error of their reconstruction (masked autoencoders, He et al. 2022,
    section 3, with blocks of the signal in place of patches). A classifier takes the weights by ``init_from``.

    Args:
        lead_set: number of leads; by default that of the data.
        window_s: length of a window, seconds; by default that of the data.
        sampling_rate_hz: sampling rate of the input; by default that of the data.
        mask_fraction: fraction of the blocks of a window that is hidden in all leads.
        mask_s: length of a block, seconds.
        mask_leads: probability that a lead is hidden throughout a window; at least one lead is not.
        kwargs: arguments of `seqssm.training.task.Task`.
    """

    domain = "ecg"
    networks: ClassVar[Mapping[str, type[nn.Module]]] = {"mamba": EcgMamba, "cnn": ResidualCnn}
    derived: ClassVar[tuple[str, ...]] = ("leads", "window")
    head: ClassVar[tuple[str, ...]] = ("decoder",)
    self_supervised: ClassVar[bool] = True
    distils: ClassVar[bool] = False
    metrics = METRICS
    linked_args: ClassVar[tuple[str, ...]] = ("lead_set", "window_s", "sampling_rate_hz")
    limits: ClassVar[Mapping[str, Bounds]] = {
        "lead_set": Bounds(2, 12),
        "window_s": limits.SECONDS,
        "sampling_rate_hz": limits.DATA["sampling_rate_hz"],
        "mask_fraction": Bounds(0, 1, above=True, below=True),
        "mask_s": limits.SECONDS,
        "mask_leads": RATE,
    }

    def __init__(
        self,
        lead_set: int | None = None,
        window_s: float | None = None,
        sampling_rate_hz: float | None = None,
        mask_fraction: float = 0.4,
        mask_s: float = 0.4,
        mask_leads: float = 0.25,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.batches: dict[str, list[dict[str, Tensor]]] = {"val": [], "test": []}

    def derive(self) -> dict[str, Any]:
        """Return arguments of the network: input channels and samples per window."""
        h = self.hparams
        return {"leads": h["lead_set"], "window": max(1, round(h["window_s"] * h["sampling_rate_hz"]))}

    def build_model(self) -> nn.Module:
        """Build the network and its decoder."""
        return Reconstructor(self.build_network(), self.hparams["lead_set"])

    def usage(self, model: str) -> list[str]:
        return [f"seqssm ecg fit --config ecg_small --data.manifest my.csv --model.init_from {shlex.quote(model)}"]

    # -- loss --------------------------------------------------------------------------------------------------------

    def step(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the mean squared error over the hidden samples of the batch, and per record (error, total, count)."""
        if "record_index" not in batch:
            sums = self.sums(batch["x"], batch["lengths"], None)
            return sums[:, 0].sum() / sums[:, 2].sum().clamp(min=1), sums.detach()
        found = batch["x"].new_zeros(len(batch["index"]), 3)
        if len(batch["x"]):
            owners = batch["record_index"]
            seeds = [int(batch["index"][owner]) for owner in owners]
            found.index_add_(0, owners, self.sums(batch["x"], batch["lengths"], seeds))
        for place, windows in batch["long"]:
            found[place] = self.of_long(windows, int(batch["index"][place]))
        return found[:, 0].sum() / found[:, 2].sum().clamp(min=1), found

    def of_long(self, windows: LongWindows, seed: int) -> Tensor:
        """Compute (error, total, count) of a long record, a bounded number of windows at a time."""
        rows = []
        for x in windows:
            lengths = torch.full((len(x),), x.shape[-1])
            rows.append(self.sums(x.to(self.device), lengths, [seed] * len(x)).sum(0))
        return torch.stack(rows).sum(0)

    def sums(self, x: Tensor, lengths: Tensor, seeds: list[int] | None) -> Tensor:
        """Compute squared error, squared deviation and number of the hidden samples of each window, (B, 3).

        Args:
            x: windows, (B, leads, n).
            lengths: valid samples of each window, (B,).
            seeds: seed of each window's mask, which is then the same in every epoch; None draws from torch's generator.
        """
        valid = torch.arange(x.shape[-1]) < lengths.cpu()[:, None]
        hidden = (self.masks(*x.shape, seeds) & valid.unsqueeze(1)).to(x.device)
        valid = valid.to(x.device).unsqueeze(1)
        found = self.model(x * ~hidden).float()
        mean = (x * valid).sum(-1, keepdim=True) / valid.sum(-1, keepdim=True).clamp(min=1)
        parts = ((found - x) ** 2 * hidden, (x - mean) ** 2 * hidden, hidden.float())
        return torch.stack([part.sum((1, 2)) for part in parts], dim=1)

    def masks(self, batch: int, leads: int, samples: int, seeds: list[int] | None) -> Tensor:
        """Draw which samples are hidden, (batch, leads, samples) bool, on the CPU.

        Args:
            batch: number of windows.
            leads: number of leads.
            samples: samples per window.
            seeds: seed of each window; None draws from torch's global generator.
        """
        size = max(1, round(self.hparams["mask_s"] * self.hparams["sampling_rate_hz"]))
        blocks = -(-samples // size)
        if seeds is None:
            drawn = torch.rand(batch, blocks + leads)
        else:
            rows = [torch.Generator().manual_seed(derive_seed(seed, 3)) for seed in seeds]
            drawn = torch.stack([torch.rand(blocks + leads, generator=row) for row in rows])
        count = min(max(1, round(self.hparams["mask_fraction"] * blocks)), max(1, blocks - 1))
        chosen = torch.zeros(batch, blocks, dtype=torch.bool)
        chosen.scatter_(1, drawn[:, :blocks].topk(count, dim=1).indices, True)
        in_time = chosen.repeat_interleave(size, dim=1)[:, :samples]
        chances = drawn[:, blocks:]
        of_leads = (chances < self.hparams["mask_leads"]) & (chances < chances.amax(1, keepdim=True))
        return in_time.unsqueeze(1) | of_leads.unsqueeze(2)

    # -- metrics -----------------------------------------------------------------------------------------------------

    def reset_metrics(self, stage: str) -> None:
        self.batches[stage] = []

    def update_metrics(self, batch: dict[str, Any], outputs: Tensor, stage: str) -> None:
        self.batches[stage].append({"index": batch["index"].cpu(), "sums": outputs.cpu()})

    def compute_metrics(self, stage: str) -> dict[str, float]:
        sums = gathered(self.batches[stage], self.trainer.world_size)["sums"].astype(np.float64).sum(0)
        return {one.name: float(one.function(sums[0], sums[1])) for one in METRICS if one.function and sums[1]}
