"""S-Mamba and the networks it is compared with: iTransformer, an attention encoder over variates, and DLinear.

All map ``x (B, N, L)`` and marks ``(B, M, L)`` to ``(B, N, T)``, or ``(B, N, T, Q)`` with quantiles: batch, variates,
look-back, calendar marks, horizon.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqssm.errors import InputError
from seqssm.nn.mamba import Mamba
from seqssm.training.sizes import require_rates, require_sizes


class VariateScan(nn.Module):
    """Two Mamba layers of opposite directions over the variates, added (S-Mamba, section 3.3, "VC encoding").

    Args:
        d_model: width of a token.
        d_state: states per channel.
        engine: engine of the scan; by default that of the device.
    """

    def __init__(self, d_model: int, d_state: int, engine: str | None = None) -> None:
        super().__init__()
        # kernel 2 and expansion 1, as in the public code
        self.forward_scan = Mamba(d_model, d_state=d_state, d_conv=2, expand=1, ordering="forward", engine=engine)
        self.reverse_scan = Mamba(d_model, d_state=d_state, d_conv=2, expand=1, ordering="reverse", engine=engine)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_scan(x) + self.reverse_scan(x)


class VariateAttention(nn.Module):
    """Full softmax attention over the variates, as in iTransformer; dropout on its output.

    Args:
        d_model: width of a token.
        heads: number of heads.
        dropout: dropout of the attention weights and of the output.
    """

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
    """Mixing over variates and a feed-forward network over time, each with a residual connection and post-norm.

    Args:
        mixer: ``(B, tokens, d_model)`` to the same shape.
        d_model: width of a token.
        d_ff: width of the feed-forward network.
        dropout: dropout in the feed-forward network.
    """

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

    Calendar marks are additional tokens after the variates. So is each future covariate, over look-back and horizon,
    with a separate embedding. The static properties of a variate form a token directly before that of the variate, so
    that the convolution of the scan sees both. The outputs of the additional tokens are discarded. The weights do not
    depend on the number of variates.

    Args:
        mixers: one module per layer, ``(B, tokens, d_model)`` to the same shape.
        lookback: L, steps.
        horizon: T, steps.
        d_model: width of a token.
        d_ff: width of the feed-forward network; `d_model` by default.
        dropout: dropout after the embedding and inside the layers.
        use_norm: normalise each window per variate to mean 0 and std 1, and scale back afterwards.
        quantiles: Q, number of forecasts per step; 0 gives one, without the last axis.
        future: whether there are future covariates.
        static: number of static features per variate; 0 for none.
    """

    def __init__(
        self,
        mixers: list[nn.Module],
        lookback: int,
        horizon: int,
        d_model: int,
        d_ff: int | None,
        dropout: float,
        use_norm: bool,
        quantiles: int = 0,
        future: bool = False,
        static: int = 0,
    ) -> None:
        super().__init__()
        self.use_norm, self.dropout, self.quantiles = use_norm, dropout, quantiles
        self.embed = nn.Linear(lookback, d_model)
        self.layers = nn.ModuleList([EncoderLayer(mixer, d_model, d_ff or d_model, dropout) for mixer in mixers])
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, horizon * max(1, quantiles))
        self.embed_known = nn.Linear(lookback + horizon, d_model) if future else None
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
        """Forecast a batch of windows.

        Args:
            x: input, (B, N, L).
            marks: calendar features, (B, M, L) or None.
            observed_mask: observation mask, (B, N, L) bool, False for missing values; None if there are none.
            futr_exog: future covariates, (B, K, L + T), or None.
            static: static features, (N, features), or None.
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
            own = self.embed_static(static).expand(x.shape[0], -1, -1)
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
        # sort crossing quantiles, which never increases the pinball loss
        return y.unflatten(-1, (-1, self.quantiles)).sort(-1).values


def _normalised(x: Tensor, observed: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise `x` over its observed steps; return (x, mean, std), the last two of shape ``(B, N, 1)``."""
    # as in the public code, gradients flow through the standard deviation but not the mean
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


class SMamba(InvertedEncoder):
    """S-Mamba (arXiv 2403.11144): the variates are mixed by two Mamba layers of opposite directions.

    Args:
        lookback: number of input steps.
        horizon: number of steps to forecast.
        d_model: width of a variate's token.
        d_ff: width of the feed-forward network; `d_model` by default.
        d_state: states per channel of the scan.
        layers: number of encoder layers.
        dropout: dropout after the embedding and in the feed-forward network.
        use_norm: normalise each window per variate to mean 0 and std 1, and scale back afterwards.
        engine: engine of the scan; by default that of the device.
        quantiles: number of quantile forecasts per step; 0 for a single forecast without the last axis.
        future: whether there are future covariates.
        static: number of static features per variate; 0 for none.
    """

    def __init__(
        self,
        lookback: int,
        horizon: int,
        d_model: int = 256,
        d_ff: int | None = None,
        d_state: int = 16,
        layers: int = 2,
        dropout: float = 0.1,
        use_norm: bool = True,
        engine: str | None = None,
        quantiles: int = 0,
        future: bool = False,
        static: int = 0,
    ) -> None:
        require_sizes(d_model=d_model, d_ff=1 if d_ff is None else d_ff, d_state=d_state, layers=layers)
        require_rates(dropout=dropout)
        mixers: list[nn.Module] = [VariateScan(d_model, d_state, engine) for _ in range(layers)]
        super().__init__(mixers, lookback, horizon, d_model, d_ff, dropout, use_norm, quantiles, future, static)


class ITransformer(InvertedEncoder):
    """iTransformer (arXiv 2310.06625): the variates are mixed by full attention.

    Args:
        lookback: number of input steps.
        horizon: number of steps to forecast.
        d_model: width of a variate's token.
        d_ff: width of the feed-forward network; `d_model` by default.
        layers: number of encoder layers.
        heads: number of attention heads; divides `d_model`.
        dropout: dropout after the embedding, of the attention and in the feed-forward network.
        use_norm: normalise each window per variate to mean 0 and std 1, and scale back afterwards.
        quantiles: number of quantile forecasts per step; 0 for a single forecast without the last axis.
        future: whether there are future covariates.
        static: number of static features per variate; 0 for none.
    """

    def __init__(
        self,
        lookback: int,
        horizon: int,
        d_model: int = 256,
        d_ff: int | None = None,
        layers: int = 2,
        heads: int = 8,
        dropout: float = 0.1,
        use_norm: bool = True,
        quantiles: int = 0,
        future: bool = False,
        static: int = 0,
    ) -> None:
        require_sizes(d_model=d_model, d_ff=1 if d_ff is None else d_ff, layers=layers, heads=heads)
        require_rates(dropout=dropout)
        if d_model % heads:
            raise InputError(f"--model.heads {heads} does not divide --model.d_model {d_model}")
        mixers: list[nn.Module] = [VariateAttention(d_model, heads, dropout) for _ in range(layers)]
        super().__init__(mixers, lookback, horizon, d_model, d_ff, dropout, use_norm, quantiles, future, static)


class DLinear(nn.Module):
    """DLinear (arXiv 2205.13504): linear maps of the moving average and the remainder, shared by the variates.

    Args:
        lookback: number of input steps.
        horizon: number of steps to forecast.
        window: width of the moving average, steps; the ends are padded with the first and last value.
        quantiles: number of quantile forecasts per step; 0 for a single forecast without the last axis.
    """

    def __init__(self, lookback: int, horizon: int, window: int = 25, quantiles: int = 0) -> None:
        super().__init__()
        require_sizes(window=window)
        self.window, self.quantiles = window, quantiles
        out = horizon * max(1, quantiles)
        self.seasonal, self.trend = nn.Linear(lookback, out), nn.Linear(lookback, out)

    def forward(self, x: Tensor, marks: Tensor | None = None, **_: Tensor | None) -> Tensor:
        left = (self.window - 1) // 2
        padded = F.pad(x, (left, self.window - 1 - left), mode="replicate")
        trend = F.avg_pool1d(padded, self.window, stride=1)
        y = self.seasonal(x - trend) + self.trend(trend)
        return y.unflatten(-1, (-1, self.quantiles)).sort(-1).values if self.quantiles else y


NETWORKS: dict[str, type[nn.Module]] = {"smamba": SMamba, "itransformer": ITransformer, "dlinear": DLinear}
"""Networks by their names for ``--model.network``; the first one is the default."""
