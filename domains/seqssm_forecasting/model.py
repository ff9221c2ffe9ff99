"""S-Mamba and the networks it is compared with: iTransformer, an attention encoder over variates, and DLinear.

All map ``x (B, N, L)`` and marks ``(B, M, L)`` to ``(B, N, T)``, or ``(B, N, T, Q)`` with quantiles: batch, variates,
look-back, calendar marks, horizon.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from seqssm_kernels import causal_conv1d, dropout, selective_scan
from torch import Tensor, nn
from torch.nn import functional as F

from seqssm.errors import InputError
from seqssm.nn.mamba import Mamba, is_hooked, is_plain_linear
from seqssm.orders import build
from seqssm.training.sizes import require_rates, require_sizes


def dropped(x: Tensor, p: float, training: bool, tokens: int) -> Tensor:
    """Apply dropout to the first tokens of a sequence as it would be applied to the whole sequence.

    The same seed gives the same weights as where all tokens are computed.

    Args:
        x: the first tokens, (B, outputs, D).
        p: probability of a zero.
        training: whether to apply it.
        tokens: number of tokens of the sequence.
    """
    if not training or not p or x.shape[1] == tokens:
        return dropout(x, p, training)
    return x * dropout(x.new_ones(x.shape[0], tokens, x.shape[2]), p)[:, : x.shape[1]]


class VariateScan(nn.Module):
    """Two Mamba layers of opposite directions over the variates, added (S-Mamba, section 3.3, "VC encoding").

    ``x (B, tokens, d_model)`` gives the same shape, or with `outputs` only the first tokens, ``(B, outputs, d_model)``.

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

    def forward(self, x: Tensor, outputs: int | None = None) -> Tensor:
        both = (self.forward_scan, self.reverse_scan)
        y = scanned_together(both, x)
        if y is None:
            return self.forward_scan(x, outputs=outputs) + self.reverse_scan(x, outputs=outputs)
        y, projections = y[:, :outputs], [layer.out_proj for layer in both]
        if all(is_plain_linear(projection) for projection in projections):
            return F.linear(y.flatten(2), torch.cat([projection.weight for projection in projections], 1))
        return projections[0](y[:, :, 0]) + projections[1](y[:, :, 1])


def scanned_together(layers: Sequence[Mamba], x: Tensor) -> Tensor | None:
    """Scan a sequence with several layers of one route each, in one call of each operation.

    Args:
        layers: layers of equal sizes, on one device.
        x: input, (B, L, d_model).

    Returns:
        The inputs of their ``out_proj``, (B, L, R, E); None if a module of a layer must be called, such as an adapter.
    """
    weights = [layer.plain_weights() for layer in layers]
    hooked = any(is_hooked(part) for layer in layers for part in (layer, *layer.children()))
    if hooked or any(one is None or any(part is None for part in one) for one in weights):
        return None
    stacked = [torch.stack(parts) for parts in zip(*weights, strict=True)]  # type: ignore[arg-type]
    conv, conv_bias, select, dt_weight, dt_bias, A_log, D = stacked
    engine, states = layers[0].engine, A_log.shape[-1]
    order = build([one for layer in layers for one in layer.ordering], x.shape[1], x.device)
    u, z = torch.stack([layer.in_proj(x) for layer in layers], -2).chunk(2, -1)
    u = causal_conv1d(u, conv.squeeze(2), conv_bias, order=order, activation="silu", engine=engine)
    selected = u.permute(2, 0, 1, 3).flatten(1, 2) @ select.mT  # (R, B L, rank + 2 N)
    low, *selected_states = selected.split([dt_weight.shape[-1], states, states], -1)
    dt, B, C = (part.unflatten(1, x.shape[:2]).permute(1, 2, 0, 3) for part in (low @ dt_weight.mT, *selected_states))
    shared = {"D": D, "z": z, "dt_bias": dt_bias, "dt_softplus": True, "order": order, "engine": engine}
    return selective_scan(u, dt, -torch.exp(A_log), B, C, **shared)


class VariateAttention(nn.Module):
    """Full softmax attention over the variates, as in iTransformer; dropout on its output.

    Input and output as for `VariateScan`.

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

    def forward(self, x: Tensor, outputs: int | None = None) -> Tensor:
        q, k, v = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        p = self.dropout if self.training else 0.0  # on the attention weights, as in the public code
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=p).transpose(1, 2).flatten(2)
        return dropped(self.out(y[:, :outputs]), self.dropout, self.training, x.shape[1])


class EncoderLayer(nn.Module):
    """Mixing over variates and a feed-forward network over time, each with a residual connection and post-norm.

    Input and output as for `VariateScan`.

    Args:
        mixer: `VariateScan` or `VariateAttention`.
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

    def forward(self, x: Tensor, outputs: int | None = None) -> Tensor:
        tokens = x.shape[1]
        x = self.norm1(x[:, :outputs] + self.mixer(x, outputs))
        f = dropped(F.gelu(self.widen(x)), self.dropout, self.training, tokens)
        f = dropped(self.narrow(f), self.dropout, self.training, tokens)
        return self.norm2(x + f)


class InvertedEncoder(nn.Module):
    """Each variate's look-back is one token; the encoder mixes tokens; one linear map gives each token's horizon.

    Calendar marks are additional tokens after the variates. So is each future covariate, over look-back and horizon,
    with a separate embedding. The static properties of a variate form a token directly before that of the variate, so
    that the convolution of the scan sees both. The outputs of the additional tokens are discarded. The weights do not
    depend on the number of variates.

    Args:
        mixers: one module per layer, `VariateScan` or `VariateAttention`.
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
        h = dropout(h, self.dropout, self.training)
        *layers, last = self.layers
        for layer in layers:
            h = layer(h)
        h = last(h, step * variates)  # the further tokens are read no more
        y = self.head(self.norm(h[:, step - 1 :: step]))
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
