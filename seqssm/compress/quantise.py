"""Post-training quantisation: Quamba (arXiv 2410.13229) for Mamba, Quamba2 (arXiv 2503.22879) for Mamba-2, and GPTQ."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from seqssm.compress import clusters, fold, rounding
from seqssm.compress.methods import RECIPES, Method, Recipe
from seqssm.compress.observe import PERCENTILES, Statistics, observe
from seqssm.compress.sources import Source
from seqssm.compress.states import PIECES, keep_states, kept_in_float, require_states
from seqssm.nn import quantized
from seqssm.nn.hadamard import has_hadamard, matrix
from seqssm.nn.mamba2 import Mamba2
from seqssm.nn.projections import Target, find_targets, rounded_scans
from seqssm.nn.rounded import RoundedValues, RoundingFormat

LEVELS = 127  # steps of a symmetric 8-bit scale


@dataclass
class Result:
    """A compressed network and what was done.

    Attributes:
        network: the network with integer layers.
        percentile: chosen percentile of the scan's input; None if it was not chosen.
        error: relative squared error of the outputs on the calibration data.
        notes: omitted steps with reasons, and measurements; one line each.
    """

    network: nn.Module
    percentile: float | None = None
    error: float = 0.0
    notes: list[str] = field(default_factory=list)


def quantise(source: Source, method: Method, recipe: Recipe = RECIPES["quamba"], integer_state: bool = False) -> Result:
    """Quantise the network of a calibration source.

    Args:
        source: the network and its calibration data.
        method: bits of weights and activations.
        recipe: enabled steps of the procedure.
        integer_state: whether the states of scans are kept in 8 bits between calls.

    Raises:
        InputError: the network has nothing to quantise, or carries no state.
    """
    original = source.network
    find_targets(original)
    if integer_state:
        require_states(original)
    wanted = source.outputs()
    result = Result(original)
    if source.merged:
        result.notes.append(f"low-rank adapters merged into the weights: {source.merged}")
    if recipe.fold and method.static:
        good, bad = fold.exact_folds(original, lambda: source.outputs(few=True))
        for one in good:
            fold.apply(original, one)
        result.notes.append(_folding(len(good), bad))
    targets = find_targets(original)
    moments = method.bits == 4 and recipe.gptq
    seen = observe(original, targets, source.outputs, rotation=method.static and recipe.rotate, moments=moments)
    idle = [target.name for target in targets if target.name not in seen]
    if idle:
        result.notes.append(f"kept in float, because the calibration data do not use them: {', '.join(idle)}")
    targets = [target for target in targets if target.name in seen]
    result.notes += _widths(targets, method, recipe)
    if method.static:
        result.notes.append(_outliers(seen))
        _round_scans(original, seen, recipe)
    for target in targets:
        quantized.replace(original, target.name, _integer_layer(target, seen, method, recipe))
    if method.static and recipe.percentile:
        result.percentile = _choose_percentile(source, seen, targets, wanted, recipe)
    result.error = relative_error(source.outputs(), wanted)
    if integer_state:
        found = keep_states(source, recipe.cluster, lambda outputs: relative_error(outputs, wanted))
        result.notes += [
            f"state rounded {PIECES} times per sequence: relative squared error of the outputs {found.rounded:.2g} "
            f"({found.floats:.2g} with float states)",
            "steps of one position round after each: slow states stop decaying, see docs/compress.md",
            kept_in_float(original),
        ]
    return result


def _integer_layer(target: Target, seen: dict[str, Statistics], method: Method, recipe: Recipe) -> nn.Module:
    """Make the integer layer of a target."""
    linear, found = target.module, seen[target.name]
    bits = 8 if target.role in ("select", "dt") else method.bits
    static = method.static and target.role != "dt"
    rotated = static and recipe.rotate and target.role == "out" and has_hadamard(linear.in_features)
    weight, moments = linear.weight.detach(), found.moments
    if rotated:
        rotation = matrix(linear.in_features)
        weight = weight.double() @ rotation.T
        moments = None if moments is None else rotation @ moments @ rotation.T
    largest = found.rotated if rotated else found.largest
    scale = (largest or 1.0) / LEVELS if static else None
    return rounding.linear(weight, linear.bias, bits, scale, rotated, moments if bits == 4 else None)


def _round_scans(network: nn.Module, seen: dict[str, Statistics], recipe: Recipe) -> None:
    """Round the inputs of the scans: x, B and C."""
    for name, mixer in rounded_scans(network).items():
        prefix = f"{name}." if name else ""
        if f"{prefix}scan_x" not in seen:
            continue
        for part in ("scan_x", "scan_b", "scan_c"):
            setattr(mixer, part, _rounding(mixer, part, seen[f"{prefix}{part}"], recipe).train(mixer.training))


def _rounding(mixer: Any, part: str, found: Statistics, recipe: Recipe) -> RoundedValues:
    assert found.channels is not None
    if not (recipe.cluster and isinstance(mixer, Mamba2)):
        scales = torch.tensor([found.largest])
    elif part == "scan_x":
        scales = clusters.channel_scales(mixer, found)
    else:
        scales = found.channels.unflatten(0, (mixer.n_groups, -1)).amax(1)
    module = RoundedValues(RoundingFormat(len(scales)))
    module.scale.copy_(torch.where(scales > 0, scales, 1.0) / LEVELS)
    return module


def _choose_percentile(
    source: Source, seen: dict[str, Statistics], targets: list[Target], wanted: Tensor, recipe: Recipe
) -> float | None:
    """Choose the percentile of all Mamba scans with the smallest error of the outputs, and set their scales."""
    own = {
        name: mixer
        for name, mixer in rounded_scans(source.network).items()
        if isinstance(mixer.scan_x, RoundedValues) and not (recipe.cluster and isinstance(mixer, Mamba2))
    }
    if not own:
        return None

    def use(percentile: float) -> None:
        for name, mixer in own.items():
            prefix = f"{name}." if name else ""
            found = seen[f"{prefix}scan_x"]
            value = found.largest if percentile == 1.0 else found.percentiles[percentile]
            scale = (value or found.largest or 1.0) / LEVELS
            mixer.scan_x.scale.fill_(scale)  # type: ignore[operator, union-attr]
            mixer.scan_x.repack()  # type: ignore[operator]
            for target in targets:
                layer: Any = source.network.get_submodule(target.name)
                if target.mixer == name and target.role == "select" and layer.act_scale is not None:
                    layer.act_scale.fill_(scale)
                    layer.repack()

    errors = {}
    for percentile in PERCENTILES:
        use(percentile)
        errors[percentile] = relative_error(source.outputs(), wanted)
    best = min(PERCENTILES, key=lambda percentile: errors[percentile])
    use(best)
    return best


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Return the squared error of outputs relative to their variance.

    Args:
        found: outputs.
        wanted: outputs of the float network.
    """
    spread = (wanted - wanted.mean()).square().sum()
    return float((found - wanted).square().sum() / spread.clamp(min=1e-300))


# -- notes -------------------------------------------------------------------------------------------------------------


def _folding(good: int, bad: list[tuple[fold.Fold, str]]) -> str:
    text = f"norm weights folded into the following projection: {good}"
    if bad:
        names = ", ".join(dict.fromkeys(one.norm for one, _ in bad))
        text += f"; not folded, because {bad[0][1]}: {names}"
    return text


def _widths(targets: list[Target], method: Method, recipe: Recipe) -> list[str]:
    if not (method.static and recipe.rotate):
        return []
    out = [target for target in targets if target.role == "out"]
    plain = sorted({target.module.in_features for target in out if not has_hadamard(target.module.in_features)})
    notes = [f"scan outputs rotated by a Hadamard matrix: {sum(has_hadamard(t.module.in_features) for t in out)}"]
    if plain:
        notes.append(
            f"not rotated, because there is no Hadamard matrix of order {', '.join(map(str, plain))} "
            "(2^k, or 2^k m with m = 12, 20, 28, 40); scaled by the largest value instead"
        )
    return notes


def _outliers(seen: dict[str, Statistics]) -> str:
    ratios = [
        found.largest / found.percentiles[0.999]
        for name, found in seen.items()
        if name.endswith("scan_x") and found.percentiles.get(0.999)
    ]
    if not ratios:
        return "no scan whose inputs are rounded"
    return f"outliers of the scan input: largest value at most {max(ratios):.1f} times the 99.9th percentile"
