"""How far back a trained model looks: decay of its states, what they still hold, and the regime of its scans."""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from seqssm.errors import InputError
from seqssm.files.disk import atomic
from seqssm.files.outputs import require_diagnosis
from seqssm.metrics.report import Report
from seqssm.nn.mamba import Mamba
from seqssm.nn.mamba2 import Mamba2
from seqssm.nn.memory import Memory, Pool
from seqssm.plot.canvas import new_figure, save, set_title
from seqssm.prediction.loop import batched, outcomes
from seqssm.prediction.model import Model
from seqssm.tools import regime
from seqssm.tools.fidelity import MINIMUM, eclmf, etmf
from seqssm.tools.walks import Layer, layers, record

COLUMNS = ["layer", "name", "type", "direction", "measure", "index", "value"]
MOST = 64  # records that are read by default
BATCH = 64  # stretches of a forward pass
LONGEST_HALF_LIFE = 1e9  # tokens; a state that does not decay


@dataclass
class Diagnosis:
    """Measures of a model.

    Attributes:
        table: one row per value, with the columns `COLUMNS`. Measures: ``half_life`` (tokens; index: channel or head),
            ``age`` (tokens; index: summary of a memory, oldest last), ``etmf`` (index: distance in tokens), ``eclmf``
            (index: the later layer), ``largest_eigenvalue`` of the regime and ``divergent`` (1 or 0).
        summary: one row per layer and direction, as printed.
        notes: what could not be measured.
    """

    table: pd.DataFrame
    summary: pd.DataFrame
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Format the summary and the notes."""
        shown = Report(tables=[("how far back each layer looks, in tokens", self.summary)]).text()
        return "\n".join([shown.rstrip(), *(f"note: {note}" for note in self.notes)])


def diagnose(model: Model, inputs: Sequence[Path], options: dict[str, Any], most: int = MOST) -> Diagnosis:
    """Measure how far back a model looks on files.

    Args:
        model: the model.
        inputs: files, as for ``seqssm predict``.
        options: options of the domain's prediction.
        most: maximum number of records.

    Raises:
        InputError: the model has no layer with a state, or a file or option is invalid.
    """
    model.require_single("diagnosis")
    found = layers(model.network)
    if not found:
        raise InputError(
            "no layer with a state (Mamba, Mamba-2, Mamba-3, memory): this model reads its whole input at once, or "
            "its own window, and does not forget with distance",
            file=model.path,
        )
    record(found, lambda: _predict(model, inputs, options, most))
    return measured(found)


def _predict(model: Model, inputs: Sequence[Path], options: dict[str, Any], most: int) -> None:
    """Run the prediction of each record alone."""
    predictor = model.predictor(options)
    records = itertools.islice(predictor.records(list(inputs)), most)
    good = 0
    with tempfile.TemporaryDirectory(prefix="seqssm-") as work:
        predictor.work = Path(work)
        for outcome in outcomes(predictor, batched(records, 1)):
            if outcome.traces:
                raise RuntimeError(outcome.traces[0])
            reason = outcome.records[0].reason
            if reason is not None and good == 0:
                raise InputError(reason)
            good += reason is None


@torch.no_grad()
def measured(found: list[Layer]) -> Diagnosis:
    """Measure layers whose stretches were recorded.

    Args:
        found: the layers.
    """
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    states: dict[int, Tensor] = {}
    for number, layer in enumerate(found):
        if not layer.stretches:
            notes.append(f"{layer.name} was not called, or in chunks only; use shorter records")
            continue
        if getattr(layer.mixer, "needs_whole_sequence", False):
            notes.append(f"{layer.name} determines its order from the whole sequence; only its regime is measured")
        else:
            states[number] = _of_layer(layer, rows, notes)
    for (a, one), (b, other) in itertools.combinations(((n, layer) for n, layer in enumerate(found) if n in states), 2):
        if one.index < other.index and one.direction == other.direction:
            shared = _shared(one, other)
            if len(shared[0]) >= MINIMUM:
                rows.append(_row(one, "eclmf", other.index, eclmf(states[a][shared[0]], states[b][shared[1]])))
    for layer in found:
        if isinstance(layer.mixer, Mamba):
            rows += _regime(layer)
    table = pd.DataFrame(rows, columns=COLUMNS)
    return Diagnosis(table, _summary(found, table), notes)


def _row(layer: Layer, measure: str, index: int, value: float) -> dict[str, Any]:
    own = (layer.index, layer.name, layer.kind, layer.direction, measure, index, value)
    return dict(zip(COLUMNS, own, strict=True))


def _shared(one: Layer, other: Layer) -> tuple[list[int], list[int]]:
    """Indices of the stretches of two layers that end at the same place."""
    places = {key: n for n, key in enumerate(other.keys)}
    both = [(n, places[key]) for n, key in enumerate(one.keys) if key in places]
    return [a for a, _ in both], [b for _, b in both]


def _of_layer(layer: Layer, rows: list[dict[str, Any]], notes: list[str]) -> Tensor:
    """Add the decay and the fidelity across time of a layer; return the states at the ends of its stretches."""
    states, rates = _after(layer)
    if isinstance(layer.mixer, Memory):
        rows += [_row(layer, "age", n, age) for n, age in enumerate(sorted(layer.ages))]
    else:
        lives = (math.log(2) / rates.clamp(min=math.log(2) / LONGEST_HALF_LIFE)).tolist()
        rows += [_row(layer, "half_life", n, life) for n, life in enumerate(lives)]
    lengths = np.array([len(stretch) for stretch in layer.stretches])
    measured = 0
    for distance in _distances(int(lengths.max())):
        used = [n for n, length in enumerate(lengths) if length > distance]
        if len(used) >= max(MINIMUM, len(lengths) // 2):
            tokens = torch.stack([layer.stretches[n][-1 - distance] for n in used])
            rows.append(_row(layer, "etmf", distance, etmf(states[used], tokens)))
            measured += 1
    if not measured:
        notes.append(
            f"{layer.name}: {len(lengths)} stretches, {MINIMUM} are needed for the fidelity; give more records"
        )
    return states


def _distances(length: int) -> list[int]:
    """Return 0, 1, 2, 4, ... below the length."""
    return [0, *(2**power for power in range(length.bit_length()) if 2**power < length)]


def _after(layer: Layer) -> tuple[Tensor, Tensor]:
    """States (n, F) after the stretches of a layer, each of which begins with an empty state, and the mean decay.

    The decay is that of the slowest state of each channel or head: -log of the factor per token. Empty for a memory.
    """
    by_length: dict[int, list[int]] = {}
    for number, stretch in enumerate(layer.stretches):
        by_length.setdefault(len(stretch), []).append(number)
    states: dict[int, Tensor] = {}
    total, steps = torch.zeros((), dtype=torch.float64), 0
    for length, numbers in by_length.items():
        for start in range(0, len(numbers), BATCH):
            some = numbers[start : start + BATCH]
            found, rates = _run(layer, torch.stack([layer.stretches[n] for n in some]))
            states |= dict(zip(some, found.flatten(1).float().cpu(), strict=True))
            total, steps = total + rates.double().sum(0).cpu(), steps + length * len(some)
    return torch.stack([states[n] for n in range(len(states))]), total / steps


def _run(layer: Layer, x: Tensor) -> tuple[Tensor, Tensor]:
    """State (n, ...) after sequences x (n, steps, D), and decay rates (n * steps, channels)."""
    mixer = layer.mixer
    if isinstance(mixer, Memory):
        blocks = -(-x.shape[1] // mixer.interval)
        summary = x.new_zeros(len(x), blocks, mixer.pool_size, mixer.summary_dim)
        pools = [Pool(summary, summary[..., 0])] * mixer.across  # does not reach the state
        _, state = mixer(x, pools=pools, return_state=True)
        return torch.cat([state["summary"].flatten(1), state["pending"].flatten(1)], 1), x.new_zeros(1, 0)
    captured: list[Tensor] = []
    handle = _selects(mixer, layer.route).register_forward_hook(lambda _, __, out: captured.append(out))
    try:
        _, state = mixer.mix_route(layer.route, x, mixer.new_state(len(x)).map(lambda tensor: tensor[:, :1]))
    finally:
        handle.remove()
    return mixer.float_state(state)["scan"], _rates(mixer, layer.route, captured[0].flatten(0, -2))


def _selects(mixer: Any, route: int) -> Any:
    """Return the module of a route whose output contains dt before softplus."""
    return mixer.branches[route].dt_proj if isinstance(mixer, Mamba) else mixer.in_proj


def _rates(mixer: Any, route: int, selected: Tensor) -> Tensor:
    """Decay rates dt |A| of the slowest state of each channel or head, (steps, channels)."""
    branch = mixer.branches[route]
    selected = selected.float()
    if isinstance(mixer, Mamba):
        return F.softplus(selected) * branch.A_log.float().exp().amin(1)
    if isinstance(mixer, Mamba2):
        own = mixer.heads // mixer.groups
        dt = selected[:, -mixer.heads :]
        dt = dt[:, route * own : route * own + own] if mixer.groups > 1 else dt
        return F.softplus(dt + branch.dt_bias.float()).clamp(*mixer.dt_limit) * branch.A_log.float().exp()
    return mixer.decay_rates(selected, route)


def _regime(layer: Layer) -> list[dict[str, Any]]:
    """Regime of a scan of Mamba, if its weights are floats."""
    mixer: Any = layer.mixer
    branch = mixer.branches[layer.route]
    weight = getattr(branch.x_proj, "weight", None)
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        return []
    values = regime.eigenvalues(branch)
    divergent = float(regime.regime(values) == "divergent")
    largest = float(values.real.max())
    return [_row(layer, "largest_eigenvalue", 0, largest), _row(layer, "divergent", 0, divergent)]


def _summary(found: list[Layer], table: pd.DataFrame) -> pd.DataFrame:
    """One row per layer and direction."""
    rows = []
    for layer in found:
        own = table[(table.layer == layer.index) & (table.direction == layer.direction)]
        values = {name: part.set_index("index").value for name, part in own.groupby("measure")}
        decay = values.get("half_life", values.get("age"))
        row: dict[str, Any] = {"layer": layer.index, "type": layer.kind, "direction": layer.direction}
        quantiles = [math.nan] * 3 if decay is None else np.quantile(decay, (0.1, 0.5, 0.9)).tolist()
        row |= {f"half-life {name}": round(q, 1) for name, q in zip(("10 %", "median", "90 %"), quantiles, strict=True)}
        kept = values.get("etmf")
        for distance in (1, 8, 64):
            row[f"kept at {distance}"] = math.nan if kept is None else round(float(kept.get(distance, math.nan)), 2)
        divergent = values.get("divergent")
        row["regime"] = "" if divergent is None else "divergent" if divergent.iloc[0] else "convergent"
        rows.append(row)
    return pd.DataFrame(rows)


def figure(diagnosis: Diagnosis, path: Path) -> Path:
    """Draw half-lives by layer, fidelity across time, and, of several layers, fidelity across layers.

    Args:
        diagnosis: the measures.
        path: the PNG file.
    """
    drawn = new_figure(13, 4.2)
    several = bool((diagnosis.table.measure == "eclmf").any())
    lives, time, *across = drawn.subplots(1, 3 if several else 2)
    groups = list(diagnosis.table.groupby(["layer", "direction"], sort=True))
    labels = [f"{layer} {direction}" for (layer, direction), _ in groups]
    for place, (_, own) in enumerate(groups):
        values = own[own.measure.isin(["half_life", "age"])].value.to_numpy()
        spread = place + np.linspace(-0.3, 0.3, len(values)) if len(values) > 1 else np.full(len(values), float(place))
        lives.scatter(spread, np.sort(values.clip(min=0.1)), s=6)
        kept = own[own.measure == "etmf"].sort_values("index")
        time.plot(kept["index"], kept.value, marker="o", markersize=3, label=labels[place])
    lives.set_yscale("log")
    low, high = lives.get_ylim()
    lives.set_ylim(min(low, 0.9), max(high, 10 * low))  # at least a decade, from one token
    lives.yaxis.set_major_formatter("{x:g}")
    lives.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
    lives.set_ylabel("half-life (age in a memory), tokens")
    set_title(lives, "Decay of the state, one point per channel")
    time.set_xscale("symlog", linthresh=1, base=2)
    time.xaxis.set_major_formatter("{x:g}")
    time.set_xlabel("distance, tokens")
    time.set_ylim(min(-0.1, time.get_ylim()[0]), 1.05)  # noise near 0 looks like noise
    time.set_ylabel("cosine of the recovered token")
    time.legend(fontsize=7)
    set_title(time, "What the state still holds (ETMF)")
    if several:
        _draw_across(diagnosis.table, across[0])
    return save(drawn, path)


def _draw_across(table: pd.DataFrame, axes: Any) -> None:
    pairs = table[table.measure == "eclmf"].groupby(["layer", "index"]).value.mean()
    size = int(table.layer.max()) + 1 if len(table) else 1
    grid = np.full((size, size), np.nan)
    for (early, late), value in pairs.items():  # type: ignore[misc]
        grid[early, late] = value
        axes.text(late, early, f"{value:.2f}", ha="center", va="center", fontsize=7)
    axes.imshow(grid, vmin=0, vmax=1, cmap="Blues", origin="lower")
    axes.set_xticks(range(size))
    axes.set_yticks(range(size))
    axes.set_xlabel("later layer")
    axes.set_ylabel("layer")
    set_title(axes, "Variance explained by a later layer's state (ECLMF)")


def write(diagnosis: Diagnosis, output: Path, overwrite: bool) -> Iterable[Path]:
    """Write the table as CSV, and the figure beside it.

    Args:
        diagnosis: the measures.
        output: the CSV file; the figure has the same name with ``.png``.
        overwrite: whether to replace existing files.

    Raises:
        InputError: a name that does not end in ``.csv``, or an existing file.
    """
    picture = require_diagnosis(output, overwrite)
    with atomic(output) as file:
        diagnosis.table.to_csv(file, index=False, lineterminator="\n")
    return output, figure(diagnosis, picture)
