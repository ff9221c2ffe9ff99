"""Scans of 8-bit integers in compressed layers: where they are used, and their arguments.

The inputs x, B and C of a compressed scan are rounded to integers times scales (`RoundedValues`). Without gradients,
the integers themselves go to the projection and to the scan, which multiplies them by their scales in registers. A
layer compares both ways on extreme integers before its first call on a device, and multiplies first if they differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from seqssm_kernels import (
    selective_scan,
    selective_scan_int8,
    selective_scan_int8_step,
    selective_scan_step,
    ssd_int8_step,
    ssd_scan,
    ssd_scan_int8,
    ssd_step,
)
from torch import Tensor, nn

from seqssm.nn.quantized import QuantizedLinear
from seqssm.nn.rounded import RoundedValues, to_integers

SERVED = (torch.float32, torch.bfloat16, torch.float16)
TITLES = {
    "int8-scan": "scan of 8-bit x, B and C with float32 sums",
    "float-scan": "scan of the rounded x, B and C in float",
}
TOLERANCE = 1e-5
STEP, STEPS = 0.05, 3  # step size and length of the sequence on which both ways are compared


@dataclass(frozen=True)
class IntegerScan:
    """The scales of a layer's integers.

    Attributes:
        with_routes: ``x_scale``, ``B_scale``, ``C_scale`` as arguments of the scan, with the axis of routes.
        of_one: the same without this axis.
        inverse_x: reciprocal scale of each channel.
        inverse_bc: those of the states of B, then of C.
        inverse: all of them.
    """

    with_routes: dict[str, Any]
    of_one: dict[str, Any]
    inverse_x: Tensor
    inverse_bc: Tensor
    inverse: Tensor

    def x(self, values: Tensor) -> Tensor:
        """Round x (..., E)."""
        return to_integers(values, self.inverse_x)

    def b_and_c(self, values: Tensor) -> Tensor:
        """Round B and C, neighbours in the last axis of `values`."""
        return to_integers(values, self.inverse_bc)

    def all(self, values: Tensor) -> Tensor:
        """Round x, B and C, neighbours in the last axis of `values`."""
        return to_integers(values, self.inverse)


def integer_scan(mixer: Any, values: Tensor) -> IntegerScan | None:
    """Return the scales for an integer scan of these values; None if the layer scans floats.

    Args:
        mixer: `Mamba` or `Mamba2`.
        values: input of the scan, before rounding.
    """
    rounding = mixer.scan_x
    if type(rounding) is nn.Identity or torch.is_grad_enabled() or values.dtype not in SERVED:
        return None
    return choose(mixer)


def choose(mixer: Any) -> IntegerScan | None:
    """Return the scales if the integer scan of a compressed layer is right on this machine; determined once per device.

    Args:
        mixer: `Mamba` or `Mamba2`.
    """
    rounding = mixer.scan_x
    if not isinstance(rounding, RoundedValues):
        return None
    if rounding.chosen is None:
        with torch.no_grad():
            made = _scales(mixer)
            rounding.chosen = (made if made is not None and is_sound(mixer, made) else None,)
    return rounding.chosen[0]


def routes_of_scans(network: nn.Module) -> dict[str, int]:
    """Count the compressed scans by the way in which they are computed, a name in `TITLES`.

    Args:
        network: the network.
    """
    found: dict[str, int] = {}
    for module in network.modules():
        if isinstance(getattr(module, "scan_x", None), RoundedValues):
            name = "float-scan" if choose(module) is None else "int8-scan"
            found[name] = found.get(name, 0) + 1
    return found


def _scales(mixer: Any) -> IntegerScan | None:
    """Expand the scales of a layer; None if its integers cannot be used as they are."""
    if not all(isinstance(part, RoundedValues) for part in (mixer.scan_b, mixer.scan_c)):
        return None
    if hasattr(mixer, "heads"):
        of_x: tuple[int, ...] = (mixer.heads // mixer.groups, mixer.head_dim)
        of_states: tuple[int, ...] = (mixer.n_groups, mixer.d_state)
    else:
        projections = [branch.x_proj for branch in mixer.branches]
        if not all(isinstance(one, QuantizedLinear) and one.takes_integers for one in projections):
            return None
        of_x, of_states = (mixer.settings.width,), (mixer.settings.d_state,)
    shapes = {"x": of_x, "B": of_states, "C": of_states}
    modules = {"x": mixer.scan_x, "B": mixer.scan_b, "C": mixer.scan_c}
    flat = {name: modules[name].scale_of_channels(torch.Size(shape).numel()) for name, shape in shapes.items()}
    of_one = {f"{name}_scale": flat[name].reshape(shape).contiguous() for name, shape in shapes.items()}
    inverse = torch.cat([flat[name].reciprocal() for name in shapes])
    width = len(flat["x"])
    return IntegerScan(
        {name: scale.unsqueeze(0) for name, scale in of_one.items()}, of_one, inverse[:width], inverse[width:], inverse
    )


def is_sound(mixer: Any, scan: IntegerScan) -> bool:
    """Whether the integer scan and its step give what the float ones give for the values, on extreme integers.

    Args:
        mixer: `Mamba` or `Mamba2`.
        scan: its scales.
    """
    pairs: Any
    scales = scan.of_one
    A = -torch.exp(mixer.A_log).float()
    if hasattr(mixer, "heads"):
        pairs = (ssd_scan_int8, ssd_scan), (ssd_int8_step, ssd_step)
        of_dt = scales["x_scale"].shape[:1]
    else:
        pairs = (selective_scan_int8, selective_scan), (selective_scan_int8_step, selective_scan_step)
        of_dt = scales["x_scale"].shape
    integers = {name: _extremes(scales[f"{name}_scale"]) for name in ("x", "B", "C")}
    dt = torch.full((1, STEPS, *of_dt), STEP, device=A.device)
    values = {name: integers[name] * scales[f"{name}_scale"] for name in integers}
    try:
        found, state = pairs[0][0](**integers, **scales, dt=dt, A=A, return_final_state=True, engine=mixer.engine)
        wanted, float_state = pairs[0][1](**values, dt=dt, A=A, return_final_state=True, engine=mixer.engine)
        last, floats = ({name: t[:, -1] for name, t in one.items()} for one in (integers, values))
        step: dict[str, Any] = {"dt": dt[:, -1], "A": A, "engine": mixer.engine}
        after, next_state = pairs[1][0](**last, **scales, state=state, **step)
        float_after, float_next = pairs[1][1](**floats, state=float_state, **step)
    except (RuntimeError, ValueError):
        return False  # an engine that lacks the operation
    pairs_of_results = ((found, wanted), (state, float_state), (after, float_after), (next_state, float_next))
    return all(bool((a - b).abs().max() <= TOLERANCE * b.abs().max()) for a, b in pairs_of_results)


def _extremes(scale: Tensor) -> Tensor:
    """Integers at both ends of the range in a pattern that differs from step to step, (1, `STEPS`, *scale.shape)."""
    number = torch.arange(STEPS * scale.numel(), device=scale.device).view(1, STEPS, *scale.shape)
    return torch.where(number * 7 % 5 < 2, -128, 127).to(torch.int8)
