"""``compress``: write a smaller checkpoint of a model and measure the change of its scores."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seqssm.compress.compare import Comparison, compare
from seqssm.compress.methods import RECIPES, STATES, Method, Recipe
from seqssm.compress.quantise import Result, quantise
from seqssm.compress.sources import LARGEST, Files, Source, Validation
from seqssm.compress.states import require_states
from seqssm.domain import Domain, find_domain
from seqssm.errors import InputError, no_such_file
from seqssm.files.disk import atomic
from seqssm.files.outputs import require_checkpoint
from seqssm.metrics.report import number
from seqssm.nn import quantized
from seqssm.nn.integer_scan import routes_of_scans
from seqssm.nn.projections import (
    binary_layers,
    binary_share,
    bytes_of_states,
    find_targets,
    merge_adapters,
    pack_binary,
)
from seqssm.prediction.model import Model
from seqssm.training import checkpoint
from seqssm.training.checkpoint import COMPRESSION
from seqssm.training.run import flag_value

UNUSED = ("optimizer_states", "lr_schedulers", "callbacks", "loops")  # of a checkpoint that is not trained further


@dataclass(frozen=True)
class Request:
    """The model to compress, and the options.

    Attributes:
        model: the checkpoint, or a run folder.
        method: bits of weights and activations.
        output: checkpoint to write.
        calibration: input files as for ``seqssm predict``; empty for the validation records of the run.
        options: options of the domain's prediction, for reading the files.
        evaluate: labelled file to test on; None for the test split of the run.
        recipe: enabled steps of the procedure.
        most: maximum number of calibration records.
        overwrite: whether to replace the output.
        data: LightningCLI flags of the data module, ``["--data.root", "DIR"]``.
        integer_state: whether the states of scans are kept in 8 bits between calls.
    """

    model: Path
    method: Method
    output: Path
    calibration: Sequence[Path] = ()
    options: dict[str, Any] = field(default_factory=dict)
    evaluate: Path | None = None
    recipe: Recipe = RECIPES["quamba"]
    most: int = LARGEST
    overwrite: bool = False
    data: Sequence[str] = ()
    integer_state: bool = False


@dataclass(frozen=True)
class Size:
    """Bytes of a model.

    Attributes:
        file: size of the checkpoint.
        memory: weights in memory, packed copies included.
        projections: weights and scales of the quantised layers in the file.
        states: states of scans that a record carries between calls; 0 if there are none, or they were left in float.
    """

    file: int
    memory: int
    projections: int
    states: int = 0


@dataclass(frozen=True)
class Compressed:
    """The outcome of `compress`.

    Attributes:
        output: the checkpoint that was written.
        before, after: sizes.
        result: what was done.
        comparison: scores of both models; None if there are no test data.
        why: reason for a missing comparison.
        routes: integer layers by the route that computes them on this machine.
        source: description of the calibration data.
    """

    output: Path
    before: Size
    after: Size
    result: Result
    comparison: Comparison | None
    why: str
    routes: dict[str, int]
    source: str


def compress(request: Request) -> Compressed:
    """Compress a model, write it, and compare both on the test data.

    Args:
        request: the model and the method.

    Raises:
        InputError: the model has nothing to quantise or is already compressed, the calibration data do not fit or are
            too few, no state is carried that could be kept in 8 bits, or the output exists.
    """
    path = checkpoint.find_checkpoint(request.model)
    content = checkpoint.read_checkpoint(path)
    entry = content["seqssm"]
    domain = find_domain(entry["domain"], file=path)
    require_checkpoint(request.output, request.overwrite, path)
    checkpoint.require_whole(entry, path)
    if entry.get(COMPRESSION) is not None:
        raise InputError(f"is already compressed ({entry[COMPRESSION].get('method')})", file=path)
    model = Model(path, "cpu")
    sizes = path.stat().st_size, quantized.memory(model.network)
    made = _pack(request, path, model) if request.method.bits == 1 else _quantise(request, domain, path, model)
    with atomic(request.output) as file:  # gets its name only if it can be loaded and tested
        torch.save(_content(request, content, made), file)
        file.flush()
        small = Path(file.name)
        loaded = Model(small, "cpu")
        routes = quantized.routes_in_use(loaded.network) | routes_of_scans(loaded.network)
        states, floats = bytes_of_states(loaded.network) if request.integer_state else (0, 0)
        before = Size(*sizes, made.floats, floats)
        projections = projection_bytes(loaded.network, made.names)
        after = Size(small.stat().st_size, quantized.memory(loaded.network), projections, states)
        comparison, why = None, ""
        try:
            flags = [*request.data, *_evaluation(request, entry, path)]
            comparison = compare(domain, path, small, flags)
        except InputError as error:
            if request.evaluate is not None:
                raise
            why = str(error)
    return Compressed(request.output, before, after, made.result, comparison, why, routes, made.source)


@dataclass(frozen=True)
class _Made:
    """A compressed network, the names of its layers, their bytes in float32, and the calibration data."""

    result: Result
    names: list[str]
    floats: int
    source: str = ""
    records: int = 0


def _quantise(request: Request, domain: Domain, path: Path, model: Model) -> _Made:
    if binary_layers(model.network):
        raise InputError("was trained with --model.binary true; use --method w1", file=path)
    merged = merge_adapters(model.network)
    names = [target.name for target in find_targets(model.network, f"{path}: the network")]
    if request.integer_state:
        require_states(model.network, f"{path}: the network")
    floats = {name: projection_bytes(model.network, [name]) for name in names}
    source = _source(request, domain, path, model)
    source.merged = max(source.merged, merged)
    result = quantise(source, request.method, request.recipe, request.integer_state)
    names = [name for name in names if name in quantized.layout_of(result.network)]
    return _Made(result, names, sum(floats[name] for name in names), source.title, source.count)


def _pack(request: Request, path: Path, model: Model) -> _Made:
    if request.calibration:
        raise InputError("--calibration: not used by --method w1, which changes no output")
    if request.integer_state:
        raise InputError("--state int8: not available with --method w1, which changes no output")
    layers: list[Any] = [model.network.get_submodule(name) for name in binary_layers(model.network)]
    if not layers:
        raise InputError(
            "has no weights of one bit; train it with --model.binary true, because the signs of float weights alone "
            "lose much of the quality",
            file=path,
        )
    binary, total = binary_share(model.network)
    floats = sum(4 * layer.in_features * layer.out_features for layer in layers)
    names = pack_binary(model.network)
    share = f"{binary:,} of {total:,} parameters ({100 * binary / total:.1f} %)"
    return _Made(Result(model.network, notes=[f"binary: {share}"]), names, floats)


def _source(request: Request, domain: Domain, path: Path, model: Model) -> Source:
    if request.calibration:
        for file in request.calibration:
            if not file.exists():
                raise no_such_file(file)
        return Files(model, list(request.calibration), request.options, request.most)
    try:
        return Validation(domain, path, request.data, request.most)
    except InputError as error:
        raise InputError(
            f"the validation records of the run cannot be used for calibration ({error}); pass --calibration FILES"
        ) from None


def _evaluation(request: Request, entry: Mapping[str, Any], path: Path) -> list[str]:
    if request.evaluate is None:
        return []
    if not request.evaluate.exists():
        raise no_such_file(request.evaluate)
    return [f"--data.{checkpoint.file_option(entry, path)}={flag_value(str(request.evaluate))}"]


def _content(request: Request, content: dict[str, Any], made: _Made) -> dict[str, Any]:
    """Return the content of the checkpoint: tensors and plain Python only."""
    result = made.result
    kept = {name: value for name, value in content.items() if name not in UNUSED}
    weights = {f"model.{name}": value.detach().cpu().clone() for name, value in result.network.state_dict().items()}
    others = {name: value for name, value in content["state_dict"].items() if not name.startswith("model.")}
    entry = copy.copy(content["seqssm"])
    entry["hparams"] = {**entry["hparams"], "lora": 0}  # merged
    entry[COMPRESSION] = {
        "method": request.method.name,
        "recipe": {name: bool(value) for name, value in vars(request.recipe).items()},
        "percentile": result.percentile,
        "calibration": made.source,
        "records": made.records,
        "state": STATES[request.integer_state],
        "layers": quantized.layout_of(result.network),
    }
    checkpoint.require_plain(entry, "checkpoint")
    return {**kept, "state_dict": {**others, **weights}, "seqssm": entry}


def projection_bytes(network: nn.Module, names: Sequence[str]) -> int:
    """Return the bytes of the weights and scales of some layers, as stored in a checkpoint.

    Args:
        network: the network.
        names: names of the layers.
    """
    total = 0
    for name in names:
        for key, value in network.get_submodule(name).state_dict().items():
            total += value.numel() * value.element_size() if key != "bias" else 0
    return total


# -- the report --------------------------------------------------------------------------------------------------------


HEADER = ("", "before", "after", "change", "95 % interval")


def rows_of(done: Compressed) -> list[tuple[str, str, str, str, str]]:
    """Return the table of sizes, scores and times, without the `HEADER`.

    Args:
        done: the outcome.
    """
    rows = []
    for title, a, b in (
        ("file", done.before.file, done.after.file),
        ("weights in memory", done.before.memory, done.after.memory),
        ("quantised projections", done.before.projections, done.after.projections),
        ("scan states per record", done.before.states, done.after.states),
    ):
        if not b:
            continue
        rows.append((title, _bytes(a), _bytes(b), _ratio(a, b, "smaller", "larger"), ""))
    found = done.comparison
    if found is not None:
        for score in found.scores:
            change = score.after - score.before
            spread = "" if score.low != score.low else f"{score.low:+.2g} to {score.high:+.2g}"
            rows.append((score.name, number(score.before), number(score.after), f"{change:+.2g}", spread))
        if found.changed is not None:
            fraction = f"{100 * found.changed / found.records:.1f} %"
            rows.append(("predictions changed", "", f"{found.changed} of {found.records}", fraction, ""))
        else:
            rows.append(("outputs changed by", "", f"{100 * found.difference:.2g} % of their std", "", ""))
        slow, fast = found.cpu_ms
        rows.append(
            ("CPU time per record, ms", f"{slow:.3g}", f"{fast:.3g}", _ratio(slow, fast, "faster", "slower"), "")
        )
    return rows


def text(done: Compressed) -> str:
    """Format the outcome as one table, and the notes below it.

    Args:
        done: the outcome.
    """
    rows = [HEADER, *rows_of(done)]
    widths = [max(len(row[k]) for row in rows) for k in range(len(HEADER))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    if done.comparison is None:
        lines.append(f"scores were not compared: {done.why}")
    lines.append("")
    if done.source:
        lines.append(
            f"calibrated on {done.source}; relative squared error of the outputs on these data {done.result.error:.2g}"
        )
    if done.result.percentile is not None:
        p = done.result.percentile
        lines.append("scan input not clipped" if p == 1 else f"scan input clipped at its {100 * p:g}th percentile")
    lines += done.result.notes
    routes = ", ".join(f"{name} {count}" for name, count in done.routes.items())
    if routes:
        lines.append(f"integer layers by route on this machine: {routes}")
    return "\n".join(lines)


def _ratio(before: float, after: float, less: str, more: str) -> str:
    return f"{before / after:.2f}x {less}" if after <= before else f"{after / before:.2f}x {more}"


def _bytes(count: int) -> str:
    if count < 2**10:
        return f"{count} B"
    return f"{count / 2**20:.2f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"
