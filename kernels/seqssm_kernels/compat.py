"""Drop-in functions with the names, signatures and layouts of the packages mamba-ssm and causal-conv1d.

`selective_scan_fn` and `selective_state_update` are those of mamba-ssm, `causal_conv1d_fn` and `causal_conv1d_update`
those of causal-conv1d. Channels precede the length, and the two update functions modify the given state in place. All
functions run on every device that the engines support.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from seqssm_kernels.causal_conv1d.public import causal_conv1d, causal_conv1d_step
from seqssm_kernels.contract.calls import state_dtype
from seqssm_kernels.contract.order import ABSENT, RESET
from seqssm_kernels.selective_scan.public import selective_scan, selective_scan_step


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Selective scan of channels-first tensors, a drop-in for code written against Mamba's own function.

    `u`, `delta` and `z` are copied once into the channel-last layout; grouped `B` and `C` become routes without further
    copies. Calling `selective_scan` with channel-last tensors avoids the copies.

    Args:
        u: input `(B, D, L)`; float32, bfloat16, float16 or float64.
        delta: step size `(B, D, L)`.
        A: state matrix `(D, N)`, real.
        B: input projection `(B, N, L)`, or `(B, G, N, L)` with `G` groups of `D / G` neighbouring channels.
        C: output projection, in the shape of `B`.
        D: skip weight `(D,)`.
        z: gate `(B, D, L)`.
        delta_bias: bias added to `delta`, `(D,)`.
        delta_softplus: whether softplus is applied to `delta + delta_bias`.
        return_last_state: whether to also return the state after the last step.

    Returns:
        `out (B, D, L)` in the dtype of `u`, or `(out, last_state)` with `last_state (B, D, N)`; both are
        differentiable.

    Raises:
        ValueError: complex parameters, `B` or `C` constant in time, or inconsistent shapes.
    """
    if u.dim() != 3:
        raise ValueError(f"u must be (B, D, L), got shape {tuple(u.shape)}")
    if A.is_complex() or B.is_complex() or C.is_complex():
        raise ValueError("complex A, B and C (S4-style) are not supported: the scan is real")
    for name, t in (("B", B), ("C", C)):
        if t.dim() == 2:
            raise ValueError(
                f"{name} is constant in time, (D, N): linear time-invariant systems are not supported, "
                f"pass {name} as (B, N, L) or (B, G, N, L)"
            )
        if t.dim() not in (3, 4):
            raise ValueError(f"{name} must be (B, N, L) or (B, G, N, L), got shape {tuple(t.shape)}")
    batch, channels, length = u.shape
    of_states = [t.unsqueeze(1) if t.dim() == 3 else t for t in (B, C)]
    groups = max(t.shape[1] for t in of_states)
    if groups < 1 or channels % groups:
        raise ValueError(f"{channels} channels cannot be divided into the {groups} groups of B and C")
    for name, like_u in (("delta", delta), ("z", z)):
        if like_u is not None and like_u.shape != u.shape:
            raise ValueError(f"{name} has shape {tuple(like_u.shape)}, expected that of u, {tuple(u.shape)}")
    if A.dim() != 2 or A.shape[0] != channels:
        raise ValueError(f"A has shape {tuple(A.shape)}, expected (D, N) with D = {channels}")
    for name, vector in (("D", D), ("delta_bias", delta_bias)):
        if vector is not None and vector.shape != (channels,):
            raise ValueError(f"{name} has shape {tuple(vector.shape)}, expected ({channels},)")

    def by_route(t: Tensor) -> Tensor:
        return t.reshape(batch, groups, channels // groups, length).permute(0, 3, 1, 2).contiguous()

    def of_channels(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.to(state_dtype(u.dtype)).reshape(groups, -1)

    result = selective_scan(
        by_route(u),
        by_route(delta),
        A.reshape(groups, channels // groups, A.shape[1]),
        *(t.permute(0, 3, 1, 2).contiguous() for t in of_states),
        D=of_channels(D),
        z=None if z is None else by_route(z),
        dt_bias=of_channels(delta_bias),
        dt_softplus=delta_softplus,
        return_final_state=True,
    )
    out, last_state = result
    out = out.permute(0, 2, 3, 1).reshape(batch, channels, length)
    if not return_last_state:
        return out
    return out, torch.flatten(last_state, 1, 2)


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Causal depthwise convolution of channels-first tensors, a drop-in for causal-conv1d's function.

    Args:
        x: input `(B, D, L)`; float32, bfloat16, float16 or float64.
        weight: filter taps `(D, W)`.
        bias: bias `(D,)`.
        seq_idx: sequence index of each position, integer `(B, L)`. A sequence is one contiguous run of positions, and
            the window is cleared at its start. Negative values mark padding, where `out` is 0.
        initial_states: inputs before the first position, oldest first, `(B, D, W - 1)`.
        return_final_states: whether to also return the last `W - 1` inputs.
        final_states_out: tensor `(B, D, W - 1)` that receives the final states.
        activation: None, `"silu"` or `"swish"` (an alias).

    Returns:
        `out (B, D, L)` in the dtype of `x`, or `(out, final_states)` with `final_states (B, D, W - 1)` in that dtype.

    Raises:
        ValueError: inconsistent shapes, an unknown activation, `seq_idx` together with states, or (on the CPU) a
            `seq_idx` in which a sequence is not contiguous.
    """
    silu = _silu(activation)
    if x.dim() != 3:
        raise ValueError(f"x must be (B, D, L), got shape {tuple(x.shape)}")
    if final_states_out is not None and not return_final_states:
        raise ValueError("final_states_out is given, but return_final_states is False")
    if seq_idx is not None and (initial_states is not None or return_final_states):
        raise ValueError("seq_idx cannot be combined with initial_states or return_final_states")
    weight, bias = _parameters(weight, bias, x)
    acc = state_dtype(x.dtype)
    result = causal_conv1d(
        x.transpose(1, 2),
        weight,
        bias,
        order=None if seq_idx is None else _order_of_sequences(seq_idx, x),
        state=None if initial_states is None else initial_states.to(acc),
        activation=silu,
        return_final_state=True,
    )
    out, states = result
    out = out.transpose(1, 2)
    out = out.contiguous() if x.is_contiguous() else out
    if not return_final_states:
        return out
    states = states.to(x.dtype)
    if final_states_out is None:
        return out, states
    final_states_out.copy_(states)
    return out, final_states_out


@torch.no_grad()
def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """Continue a causal convolution by one or a few positions, a drop-in for causal-conv1d's function; no gradients.

    Args:
        x: input `(B, D)` or `(B, D, L)`.
        conv_state: last inputs, oldest first, `(B, D, S)` with `S >= W - 1`; **modified in place**. With
            `conv_state_indices` its first axis may be larger than `B`.
        weight: filter taps `(D, W)`.
        bias: bias `(D,)`.
        activation: None, `"silu"` or `"swish"` (an alias).
        cache_seqlens: number of inputs so far, integer `(B,)`. `conv_state` is then a circular buffer: input `i` is
            stored at `i % S`, and `x` is written from `cache_seqlens % S` on.
        conv_state_indices: row of `conv_state` for each batch entry, integer `(B,)`.

    Returns:
        `out` in the shape and dtype of `x`.

    Raises:
        ValueError: inconsistent shapes, an unknown activation, rows of `conv_state` that are out of range or (on the
            CPU) used by two entries, or more than `S` positions for a circular buffer.
    """
    silu = _silu(activation)
    if x.dim() not in (2, 3):
        raise ValueError(f"x must be (B, D) or (B, D, L), got shape {tuple(x.shape)}")
    steps = x if x.dim() == 3 else x.unsqueeze(-1)
    batch, channels, length = steps.shape
    past, size = weight.shape[-1] - 1, conv_state.shape[-1]
    state = _rows(conv_state, conv_state_indices, batch, "conv_state")
    if state.shape != (batch, channels, size) or size < past:
        raise ValueError(
            f"conv_state has shape {tuple(conv_state.shape)}, expected (B, D, S) with D = {channels} and "
            f"S at least {past}"
        )
    weight, bias = _parameters(weight, bias, steps)
    if cache_seqlens is None:
        window = state[..., size - past :]
    else:
        if length > size:
            raise ValueError(f"{length} positions do not fit into a circular conv_state of {size}")
        window = state.gather(2, _circular(cache_seqlens, -past, 0, size, channels))
    window = window.to(state_dtype(x.dtype)).contiguous()
    if length == 1:
        out, _ = causal_conv1d_step(steps[..., 0], weight, bias, window, activation=silu)
        out = out.unsqueeze(-1)
    else:
        convolved = causal_conv1d(steps.transpose(1, 2), weight, bias, state=window, activation=silu)
        assert isinstance(convolved, Tensor)
        out = convolved.transpose(1, 2)
    if cache_seqlens is None:
        following = torch.cat([state, steps.to(state.dtype)], dim=-1)[..., length:]
    else:
        where = _circular(cache_seqlens, 0, length, size, channels)
        following = state.scatter(2, where, steps.to(state.dtype))
    _write_rows(conv_state, conv_state_indices, following)
    return out.reshape(x.shape)


@torch.no_grad()
def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    state_batch_indices: Tensor | None = None,
) -> Tensor:
    """Continue a selective scan by one step, a drop-in for mamba-ssm's function; no gradients.

    Heads `H` and groups `G` are those of Mamba-2, where `G` divides `H`; without the axis of heads both are 1.

    Args:
        state: state `(B, D, N)` or `(B, H, D, N)`; **modified in place**. With `state_batch_indices` its first axis may
            be larger than `B`.
        x: input `(B, D)` or `(B, H, D)`.
        dt: step size, in the shape of `x`.
        A: state matrix `(D, N)` or `(H, D, N)`, real.
        B: input projection `(B, N)`, or with heads `(B, G, N)`.
        C: output projection, in the shape of `B`.
        D: skip weight `(D,)` or `(H, D)`.
        z: gate, in the shape of `x`.
        dt_bias: bias added to `dt`, in the shape of `D`.
        dt_softplus: whether softplus is applied to `dt + dt_bias`.
        state_batch_indices: row of `state` for each batch entry, integer `(B,)`.

    Returns:
        `out` in the shape and dtype of `x`.

    Raises:
        ValueError: inconsistent shapes, or rows of `state` that are out of range or (on the CPU) used by two entries.
    """
    if x.dim() not in (2, 3) or state.dim() != x.dim() + 1:
        raise ValueError(
            f"state must be (B, D, N) with x (B, D), or (B, H, D, N) with x (B, H, D); got {tuple(state.shape)} and "
            f"{tuple(x.shape)}"
        )
    acc = state_dtype(x.dtype)

    def of_step(t: Tensor) -> Tensor:
        return t if t.dtype in (x.dtype, torch.float32) else t.to(acc)

    def of_states(name: str, t: Tensor) -> Tensor:
        """Expand one row per group to one row per head."""
        if x.dim() == 2:
            return of_step(t)
        heads = x.shape[1]
        if t.dim() != 3 or t.shape[1] < 1 or heads % t.shape[1]:
            raise ValueError(f"{name} has shape {tuple(t.shape)}, expected (B, G, N) with G dividing {heads} heads")
        return of_step(t).repeat_interleave(heads // t.shape[1], dim=1)

    def constant(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.to(acc).contiguous()

    rows = _rows(state, state_batch_indices, x.shape[0], "state")
    out, following = selective_scan_step(
        x,
        of_step(dt),
        A.to(acc).contiguous(),
        of_states("B", B),
        of_states("C", C),
        rows.to(acc).contiguous(),
        D=constant(D),
        z=None if z is None else z.to(x.dtype),
        dt_bias=constant(dt_bias),
        dt_softplus=dt_softplus,
    )
    _write_rows(state, state_batch_indices, following)
    return out


def _silu(activation: str | None) -> Literal["silu"] | None:
    if activation not in (None, "silu", "swish"):
        raise ValueError(f"activation must be None, 'silu' or 'swish', got {activation!r}")
    return None if activation is None else "silu"


def _parameters(weight: Tensor, bias: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Convert weight and bias to a dtype that is supported with `x`."""
    if weight.dim() != 2 or weight.shape[0] != x.shape[1]:
        raise ValueError(f"weight has shape {tuple(weight.shape)}, expected (D, W) with D = {x.shape[1]}")
    acc = state_dtype(x.dtype)
    pair = [t if t is None or t.dtype in (x.dtype, torch.float32) else t.to(acc) for t in (weight, bias)]
    assert pair[0] is not None
    return pair[0], pair[1]


def _order_of_sequences(seq_idx: Tensor, x: Tensor) -> Tensor:
    """Order table `(B, 1, S)` that visits the positions in turn and clears the window before each sequence."""
    batch, _, length = x.shape
    if seq_idx.shape != (batch, length):
        raise ValueError(f"seq_idx has shape {tuple(seq_idx.shape)}, expected (B, L) = ({batch}, {length})")
    number = seq_idx.to(torch.int64)
    starts = torch.zeros_like(number, dtype=torch.bool)
    starts[:, 1:] = number[:, 1:] != number[:, :-1]
    if x.device.type == "cpu":
        _refuse_scattered(number, starts)
    steps = torch.arange(length, device=x.device).expand_as(number)
    table = torch.full((batch, 2 * length), ABSENT, dtype=torch.int64, device=x.device)
    table.scatter_(1, 2 * steps, torch.where(starts, RESET, ABSENT))
    table.scatter_(1, 2 * steps + 1, torch.where(number < 0, ABSENT, steps))
    return table.unsqueeze(1)


def _refuse_scattered(number: Tensor, starts: Tensor) -> None:
    for row, begins in zip(number, starts):
        runs = row[torch.cat([torch.ones_like(begins[:1]), begins[1:]])]
        runs = runs[runs >= 0]
        if runs.unique().numel() != runs.numel():
            raise ValueError(
                "seq_idx: a sequence must be one contiguous run of positions, but an index recurs after another"
            )


def _circular(seqlens: Tensor, start: int, stop: int, size: int, channels: int) -> Tensor:
    """Indices `(B, D, stop - start)` of inputs in a circular buffer, relative to the number of inputs so far."""
    offsets = torch.arange(start, stop, device=seqlens.device)
    places = torch.remainder(seqlens.to(torch.int64)[:, None] + offsets, max(1, size))
    return places.unsqueeze(1).expand(-1, channels, -1)


def _rows(state: Tensor, indices: Tensor | None, batch: int, name: str) -> Tensor:
    """Rows of a state that belong to the batch entries."""
    if indices is None:
        if state.shape[0] != batch:
            raise ValueError(f"{name} has {state.shape[0]} rows, expected one per batch entry, {batch}")
        return state
    if indices.shape != (batch,):
        raise ValueError(f"the indices into {name} have shape {tuple(indices.shape)}, expected ({batch},)")
    if indices.device.type == "cpu" and batch:
        if int(indices.min()) < 0 or int(indices.max()) >= state.shape[0]:
            raise ValueError(
                f"the indices into {name} must be in [0, {state.shape[0]}); negative indices (padding) are unsupported"
            )
        if indices.unique().numel() < batch:
            raise ValueError(f"two batch entries use the same row of {name}")
    return state.index_select(0, indices.to(torch.int64))


def _write_rows(state: Tensor, indices: Tensor | None, rows: Tensor) -> None:
    if indices is None:
        state.copy_(rows)
    else:
        state.index_copy_(0, indices.to(torch.int64), rows.to(state.dtype))
