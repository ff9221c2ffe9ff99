"""``seqssm export``: a trained model as ONNX graph, PyTorch program or safetensors file, checked against the model."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch._dynamo.exc import UserErrorType

from seqssm.domain import find_domain, resolve
from seqssm.errors import InputError
from seqssm.files.disk import atomic, require_suffix
from seqssm.training import checkpoint
from seqssm.version import __version__

Format = Literal["onnx", "torch", "safetensors"]
SUFFIXES = {"onnx": (".onnx",), "torch": (".pt2", ".pt"), "safetensors": (".safetensors",)}
"""Suffixes of the file by format; the first one is the default."""
TOLERANCE = 1e-4  # largest difference, relative to the largest output
BATCHES = (1, 3)
NEEDED = ("onnx", "onnxruntime", "onnxscript")
CHATTY = ("torch.onnx._internal.exporter._registration", "onnx_ir", "onnxscript")  # about absent torchvision, types
INSTALL = "pip install 'seqssm[export]'"


@dataclass
class Graph:
    """The graph that a domain exports: a module with tensor inputs and outputs, example inputs, and metadata.

    Attributes:
        module: the network in eval mode; takes the inputs in their order, returns a tensor or a tuple of tensors.
        inputs: makes example inputs by name, from a batch size and a length.
        axes: dynamic axes of the inputs: name -> {axis: name of the axis}.
        outputs: names of the outputs.
        metadata: plain Python values: classes, units, constants of the preprocessing, meaning of inputs and outputs.
        lengths: lengths of the checks; the graph is traced at the first one.
        notes: differences from `seqssm predict`, one line each.
    """

    module: nn.Module
    inputs: Callable[[int, int], dict[str, Tensor]]
    axes: Mapping[str, Mapping[int, str]]
    outputs: tuple[str, ...]
    metadata: dict[str, Any]
    lengths: tuple[int, int, int]
    notes: list[str] = field(default_factory=list)

    def run(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """The outputs of the module."""
        with torch.no_grad():
            found = self.module(*inputs.values())
        return list(found) if isinstance(found, tuple) else [found]


@dataclass
class Exported:
    """A written file.

    Attributes:
        path: the file.
        checks: one line per check against the model.
        notes: notes for the caller.
    """

    path: Path
    checks: list[str]
    notes: list[str]


def export(
    model: str | Path, format: Format = "onnx", output: str | Path | None = None, streaming: bool = False
) -> Exported:
    """Export a trained model, and check the file against it at three lengths and two batch sizes.

    Args:
        model: checkpoint or run folder.
        format: ``"onnx"``, ``"torch"`` (a program of `torch.export`, which needs `seqssm_kernels` to run) or
            ``"safetensors"`` (weights, with arguments and preprocessing in the header).
        output: the file; by default beside the checkpoint, with the suffix of the format.
        streaming: whether to export one step of a streaming model, with its states as inputs and outputs.

    Raises:
        InputError: the model cannot be exported in this form, a package is missing, or the file differs from the model.
    """
    if format not in SUFFIXES:
        raise InputError(f"--format {format}: expected one of {', '.join(SUFFIXES)}")
    source = checkpoint.find_checkpoint(model)
    kept = checkpoint.read_checkpoint(source)
    entry = kept["seqssm"]
    path = Path(output) if output is not None else default_output(source, format)
    require_suffix(path, SUFFIXES[format])
    if entry.get("compression") is not None:
        raise InputError("is compressed; export the original checkpoint", file=source)
    checkpoint.require_whole(entry, source)
    if format == "onnx":
        require_packages()
    task = checkpoint.build_task(kept, source)
    if format == "safetensors":
        if streaming:
            raise InputError("--streaming exports a graph; --format safetensors has weights only")
        return weights(task, entry, path)
    try:
        graph = graph_of(task, entry, source, streaming)
    except InputError as error:
        raise InputError(error.message, file=error.file or source) from None
    graph.metadata = {**described(entry), **graph.metadata}
    content, run = onnx_of(graph) if format == "onnx" else program_of(graph)
    checks = compare(graph, run, path)
    _write(content, path)
    return Exported(path, checks, graph.notes)


def _write(content: bytes, path: Path) -> None:
    with atomic(path) as file:
        file.write(content)


def default_output(model: str | Path, format: Format) -> Path:
    """Return the file beside a checkpoint, with the suffix of the format.

    Args:
        model: checkpoint or run folder.
        format: format of the file.
    """
    return checkpoint.find_checkpoint(model).with_suffix(SUFFIXES[format][0])


def require_packages() -> None:
    """Raise InputError unless the packages of the extra ``export`` are installed."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise InputError(f"--format onnx requires missing packages ({', '.join(missing)}): {INSTALL}")


def graph_of(task: Any, entry: dict[str, Any], source: Path, streaming: bool) -> Graph:
    """Return the domain's graph of a task.

    Raises:
        InputError: the domain or the model has no graph.
    """
    domain = find_domain(entry["domain"], file=source)
    if domain.export is None:
        raise InputError(f"the domain {domain.name} exports weights only: --format safetensors")
    return resolve(domain.export)(task, checkpoint.Summary(entry["data"], source), streaming)


def described(entry: dict[str, Any]) -> dict[str, Any]:
    """The metadata common to all exports."""
    return {"seqssm": __version__, "domain": entry["domain"], "task": entry["task"], "model": plain(entry["hparams"])}


def plain(value: Any) -> Any:
    """Convert tensors and tuples to lists, for JSON."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


# -- the formats -------------------------------------------------------------------------------------------------------

Runner = Callable[[Mapping[str, Tensor]], list[np.ndarray]]


class _Inputs(nn.Module):
    """A module whose inputs have one name, independent of those of `module`."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Any:
        return self.module(*inputs)


def program(graph: Graph) -> torch.export.ExportedProgram:
    """Trace the module with dynamic axes.

    Raises:
        InputError: the network has a layer that PyTorch traces for one size of an axis only, such as a GRU.
    """
    inputs = graph.inputs(BATCHES[-1], graph.lengths[0])
    shapes = tuple(dict.fromkeys(graph.axes.get(name, {}), torch.export.Dim.DYNAMIC) for name in inputs)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of PyTorch, about its own calls
            return torch.export.export(_Inputs(graph.module), tuple(inputs.values()), dynamic_shapes={"inputs": shapes})
    except torch._dynamo.exc.UserError as error:
        if error.error_type != UserErrorType.CONSTRAINT_VIOLATION:
            raise
        axes = " and ".join(dict.fromkeys(word for own in graph.axes.values() for word in own.values()))
        raise InputError(
            f"PyTorch cannot trace this network for any number of {axes} (this is so for GRU layers); "
            "--format safetensors exports its weights"
        ) from None


def onnx_of(graph: Graph) -> tuple[bytes, Runner]:
    """Return the content of the ONNX file, and a function that runs it in onnxruntime."""
    import onnx
    import onnxruntime

    from seqssm.tools.onnx_scan import TABLE

    for logger in CHATTY:
        logging.getLogger(logger).setLevel(logging.ERROR)

    names = list(graph.inputs(1, graph.lengths[0]))
    traced = program(graph)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of PyTorch, about its own calls
        found: Any = torch.onnx.export(
            traced,
            dynamo=True,
            custom_translation_table=TABLE,
            input_names=names,
            output_names=list(graph.outputs),
            verbose=False,
        )
    for name, axes in graph.axes.items():
        value = next(one for one in found.model.graph.inputs if one.name == name)
        for axis, word in axes.items():
            value.shape[axis] = word
    found.model.metadata_props["seqssm"] = json.dumps(graph.metadata)
    file = io.BytesIO()
    onnx.save(found.model_proto, file)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])

    def run(inputs: Mapping[str, Tensor]) -> list[np.ndarray]:
        return session.run(list(graph.outputs), {name: value.numpy() for name, value in inputs.items()})

    return file.getvalue(), run


def program_of(graph: Graph) -> tuple[bytes, Runner]:
    """Return the file of the program of `torch.export`, and a function that runs it."""
    file = io.BytesIO()
    torch.export.save(program(graph), file, extra_files={"seqssm.json": json.dumps(graph.metadata)})
    file.seek(0)
    loaded = torch.export.load(file).module()

    def run(inputs: Mapping[str, Tensor]) -> list[np.ndarray]:
        with torch.no_grad():
            found = loaded(*inputs.values())
        return [one.numpy() for one in (found if isinstance(found, tuple) else [found])]

    return file.getvalue(), run


def weights(task: Any, entry: dict[str, Any], path: Path) -> Exported:
    """Write the weights and buffers of the network, with its arguments and a description of the data in the header."""
    from safetensors.torch import load, save

    tensors = {name.removeprefix("model."): one.contiguous().clone() for name, one in task.state_dict().items()}
    header = {**described(entry), "data": plain(entry["data"])}
    content = save(tensors, metadata={"seqssm": json.dumps(header)})
    found = load(content)
    if not all(torch.equal(found[name], one) for name, one in tensors.items()):
        raise InputError("would not contain the weights of the model", file=path)
    _write(content, path)
    return Exported(path, [f"{len(tensors)} tensors, equal to those of the checkpoint"], [])


def compare(graph: Graph, run: Runner, path: Path) -> list[str]:
    """Compare an exported graph with the model; return one line per length.

    Raises:
        InputError: the outputs differ, or are not numbers.
    """
    lines = []
    for length in graph.lengths:
        worst = 0.0
        for batch in BATCHES:
            inputs = graph.inputs(batch, length)
            for mine, theirs in zip(graph.run(inputs), run(inputs), strict=True):
                scale = max(1e-6, float(mine.abs().max()) if mine.numel() else 0.0)
                same = tuple(mine.shape) == theirs.shape
                apart = float(np.abs(mine.numpy() - theirs).max(initial=0)) / scale if same else np.inf
                worst = float(np.maximum(worst, apart))  # unlike max, keeps a NaN
        if not worst <= TOLERANCE:
            raise InputError(f"the exported graph differs from the model at length {length}: {worst:.1e}", file=path)
        lines.append(f"length {length}, batches of {' and '.join(map(str, BATCHES))}: largest difference {worst:.1e}")
    return lines
