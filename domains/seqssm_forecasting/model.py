"""S-Mamba and the networks it is measured against: an encoder over variates with attention, and DLinear.

All map ``x (B, N, L)`` and marks ``(B, M, L)`` to ``(B, N, T)``, or ``(B, N, T, Q)`` with quantiles: batch, variates,
look-back, calendar marks, horizon.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqssm.nn.mamba import Mamba


class VariateScan(nn.Module):
    """Two Mamba layers of opposite directions over the variates, added (S-Mamba, section 3.3, "VC encoding")."""

    def __init__(self, d_model: int, d_state: int, engine: str | None = None) -> None:
        super().__init__()
        # kernel 2 and expansion 1, as in the public code
        self.forward_scan = Mamba(d_model, d_state=d_state, d_conv=2, expand=1, ordering="forward", engine=engine)
        self.reverse_scan = Mamba(d_model, d_state=d_state, d_conv=2, expand=1, ordering="reverse", engine=engine)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_scan(x) + self.reverse_scan(x)


class VariateAttention(nn.Module):
    """Full softmax attention over the variates, as in iTransformer; dropout on its output."""

    def __init__(self, d_model: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)
        self.value, self.out = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        p = self.dropout if self.training else 0.0  # on the attention weights, as in the public code
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=p).transpose(1, 2).flatten(2)
        return F.dropout(self.out(y), self.dropout, self.training)


class EncoderLayer(nn.Module):
    """Mixing over variates and a feed-forward part over time, each with a residual and a norm after it (post-norm)."""

    def __init__(self, mixer: nn.Module, d_model: int, d_ff: int, dropout: float) -> None:
        super().__init__()
        self.mixer = mixer
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.widen, self.narrow = nn.Linear(d_model, d_ff), nn.Linear(d_ff, d_model)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.mixer(x))
        f = F.dropout(F.gelu(self.widen(x)), self.dropout, self.training)
        f = F.dropout(self.narrow(f), self.dropout, self.training)
        return self.norm2(x + f)


class InvertedEncoder(nn.Module):
    """Each variate's look-back is one token; the encoder mixes tokens; one linear map gives each token's horizon.

    Calendar marks are further tokens after the variates, and so is each series that is known beforehand, over look-back
    and horizon, through an embedding of its own. The static properties of a variate are a token right before its own:
    the scan's convolution sees the two together. The outputs of all these tokens are dropped. Nothing in the weights
    depends on the number of variates.

    Args:
        lookback: L, steps.
        horizon: T, steps.
        mixers: one module a layer, ``(B, tokens, d_model)`` to the same shape.
        d_model: width of a token.
        d_ff: width inside the feed-forward part.
        dropout: after the embedding and inside the layers.
        use_norm: each window is brought to mean 0 and deviation 1 by variate, and back afterwards.
        quantiles: Q, forecasts a step; 0 gives one, without the last axis.
        known: whether there are series that are known beforehand.
        static: number of static features a variate; 0 for none.
    """

    def __init__(
        self,
        lookback: int,
        horizon: int,
        mixers: list[nn.Module],
        d_model: int,
        d_ff: int,
        dropout: float,
        use_norm: bool,
        quantiles: int = 0,
        known: bool = False,
        static: int = 0,
    ) -> None:
        super().__init__()
        self.use_norm, self.dropout, self.quantiles = use_norm, dropout, quantiles
        self.embed = nn.Linear(lookback, d_model)
        self.layers = nn.ModuleList([EncoderLayer(mixer, d_model, d_ff, dropout) for mixer in mixers])
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, horizon * max(1, quantiles))
        self.embed_known = nn.Linear(lookback + horizon, d_model) if known else None
        self.embed_static = nn.Linear(static, d_model) if static else None

    def forward(
        self,
        x: Tensor,
        marks: Tensor | None = None,
        *,
        observed_mask: Tensor | None = None,
        futr_exog: Tensor | None = None,
        static: Tensor | None = None,
    ) -> Tensor:
        """Forecasts.

        Args:
            x: (B, N, L).
            marks: (B, M, L) or None.
            observed_mask: (B, N, L) bool, False where `x` holds no real value; None: all are real.
            futr_exog: (B, K, L + T) or None.
            static: (N, features) or None.
        """
        variates = x.shape[1]
        if self.use_norm:
            x, mean, scale = _normalised(x, observed_mask)
        if observed_mask is not None:
            x = x.masked_fill(~observed_mask, 0.0)
        h = self.embed(x if marks is None else torch.cat([x, marks], 1))
        step = 1
        if self.embed_static is not None:
            assert static is not None
            own = self.embed_static(static).expand(len(x), -1, -1)
            pairs = torch.stack([own, h[:, :variates]], 2).flatten(1, 2)
            h, step = torch.cat([pairs, h[:, variates:]], 1), 2
        if self.embed_known is not None:
            assert futr_exog is not None
            h = torch.cat([h, self.embed_known(futr_exog)], 1)
        h = F.dropout(h, self.dropout, self.training)
        for layer in self.layers:
            h = layer(h)
        y = self.head(self.norm(h[:, step - 1 : step * variates : step]))
        if self.use_norm:
            y = y * scale + mean
        if not self.quantiles:
            return y
        # quantiles that cross are put in order: never further from the truth, by the pinball loss
        return y.unflatten(-1, (-1, self.quantiles)).sort(-1).values


def _normalised(x: Tensor, observed: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """(x with mean 0 and std 1 over the observed steps, that mean, that std); ``(B, N, 1)`` the last two."""
    # the mean takes no gradient, the standard deviation does: as in the public code
    if observed is None:
        mean = x.mean(-1, keepdim=True).detach()
        x = x - mean
        std = torch.sqrt(x.var(-1, keepdim=True, correction=0) + 1e-5)
        return x / std, mean, std
    weight = observed.to(x.dtype)
    count = weight.sum(-1, keepdim=True).clamp(min=1)
    mean = ((x * weight).sum(-1, keepdim=True) / count).detach()
    x = x - mean
    std = torch.sqrt((x.square() * weight).sum(-1, keepdim=True) / count + 1e-5)
    return x / std, mean, std


class DLinear(nn.Module):
    """Zeng et al. 2023: moving average and rest, one linear map from look-back to horizon each, shared by variates.

    Args:
        lookback: L, steps.
        horizon: T, steps.
        window: steps of the moving average; both ends are padded with their own value.
        quantiles: Q, forecasts a step; 0 gives one, without the last axis.
    """

    def __init__(self, lookback: int, horizon: int, window: int = 25, quantiles: int = 0) -> None:
        super().__init__()
        self.window, self.quantiles = window, quantiles
        out = horizon * max(1, quantiles)
        self.seasonal, self.trend = nn.Linear(lookback, out), nn.Linear(lookback, out)

    def forward(self, x: Tensor, marks: Tensor | None = None, **_: Tensor | None) -> Tensor:
        left = (self.window - 1) // 2
        padded = F.pad(x, (left, self.window - 1 - left), mode="replicate")
        trend = F.avg_pool1d(padded, self.window, stride=1)
        y = self.seasonal(x - trend) + self.trend(trend)
        return y.unflatten(-1, (-1, self.quantiles)).sort(-1).values if self.quantiles else y


def build(
    network: str,
    *,
    lookback: int,
    horizon: int,
    d_model: int,
    d_ff: int,
    d_state: int,
    layers: int,
    heads: int,
    dropout: float,
    use_norm: bool,
    engine: str | None,
    quantiles: int = 0,
    known: bool = False,
    static: int = 0,
) -> nn.Module:
    """The network by name: ``"smamba"``, ``"itransformer"`` or ``"dlinear"``."""
    if network == "dlinear":
        return DLinear(lookback, horizon, quantiles=quantiles)
    mixers: list[nn.Module] = [
        VariateScan(d_model, d_state, engine) if network == "smamba" else VariateAttention(d_model, heads, dropout)
        for _ in range(layers)
    ]
    return InvertedEncoder(lookback, horizon, mixers, d_model, d_ff, dropout, use_norm, quantiles, known, static)
