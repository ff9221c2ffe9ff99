"""``seqssm info``: versions, devices, and the default engine of each device with the reason."""

from __future__ import annotations

import os
import platform
from typing import Any

from seqssm.cli.options import Parser
from seqssm.cli.warmup import cache_of_compiled_kernels
from seqssm.domain import domains
from seqssm.training.machine import PACKAGES, devices, installed, processor, threads
from seqssm.version import __version__


def info(argv: list[str]) -> int:
    """``seqssm info [MODEL.ckpt]``."""
    parser = Parser(
        "seqssm info", "Show versions, devices and engines, for bug reports; or a checkpoint.", "seqssm info best.ckpt"
    )
    parser.add_argument("model", metavar="MODEL.ckpt", nargs="?", help="checkpoint or run folder to describe")
    given = parser.parse(argv)
    if given.model is not None:
        return describe_checkpoint(given.model)
    import torch
    from seqssm_kernels.contract.engines import describe_engines

    from seqssm.files import datasets

    section("versions", [("seqssm", __version__), ("python", platform.python_version()), *map(installed, PACKAGES)])
    section("sciences", [(domain.name, domain.missing() or domain.title) for domain in domains().values()])
    section("machine", [("system", platform.platform()), ("processor", processor()), ("threads", threads(torch))])
    section("devices", devices(torch))
    rows = [(f"{s.device}, {s.dtypes}", f"{s.engine} for {s.operations}: {s.why}") for s in describe_engines()]
    section("default engines", rows)
    section("compiled kernels", [("cache", cache_of_compiled_kernels()), ("to compile now", "seqssm warmup")])
    places = os.environ.get(datasets.DATA)
    section("data", [(f"${datasets.DATA}", places or "not set"), ("cache", str(datasets.cache_folder()))])
    return 0


def describe_checkpoint(path: str) -> int:
    """Print the origin of a checkpoint, its sizes, and how it was compressed."""
    from torch import nn

    from seqssm.nn import integer, quantized
    from seqssm.nn.integer_scan import TITLES, routes_of_scans
    from seqssm.nn.projections import binary_layers, binary_share, bytes_of_states
    from seqssm.prediction.model import Model
    from seqssm.training import checkpoint, ensemble
    from seqssm.training.run_folder import STAGE

    model = Model(path, "cpu")
    entry = ensemble.read(model.path)[0].content["seqssm"]
    layout = checkpoint.layout_of_integers(entry)
    whole = nn.ModuleList([*model.stages, model.network])
    binary, parameters = binary_share(whole)
    integers = [one for one in whole.modules() if isinstance(one, quantized.QuantizedLinear)]
    rows = [
        ("file", f"{model.path} ({model.path.stat().st_size:,} bytes)"),
        ("written by", f"seqssm {entry['version']}"),
        ("science", model.domain.name),
        ("task", f"{entry['task']}, network {entry['hparams'].get('network', '-')}"),
        *([("members", ", ".join(model.members))] if model.members else []),
        *([("students", _students(ensemble.read_ensemble(model.path)))] if model.students else []),
        ("parameters", f"{parameters + sum(one.in_features * one.out_features for one in integers):,}"),
        ("weights in memory", f"{quantized.memory(whole):,} bytes"),
    ]
    if not model.students and entry.get(STAGE):
        rows.append(("student", f"{entry[STAGE]} of a set; its outputs are added to those of earlier ones"))
    if binary:
        layers, fraction = len(binary_layers(whole)), 100 * binary / parameters
        rows.append(("of one bit", f"{binary:,} weights in {layers} layers ({fraction:.1f} % of the parameters)"))
    if entry["hparams"].get("teacher"):
        rows.append(("learned from", str(entry["hparams"]["teacher"])))
    section("model", rows)
    if entry["hparams"].get("head"):
        section("classes", _classes(entry))
    if layout:
        kept = entry[checkpoint.COMPRESSION]
        titles = {route.name: route.title for route in integer.ROUTES} | TITLES
        routes = quantized.routes_in_use(model.network) | routes_of_scans(model.network)
        rows = [("method", kept["method"])]
        rows += [("calibrated on", kept["calibration"])] if kept["calibration"] else []
        rows += [("integer layers", f"{len(integers)}")] if integers else []
        rows += [(name, f"{count} layers: {titles[name]}") for name, count in routes.items()]
        now, floats = bytes_of_states(model.network)
        rows += [("scan states", f"8 bits: {now:,} bytes per record ({floats:,} in float32)")] if now < floats else []
        section("compression", rows)
    return 0


def _students(found: Any) -> str:
    """Describe the students of a set and their operations relative to the teacher's."""
    return ", ".join(f"{one.name} {100 * part:.1f} %" for one, part in zip(found.members, found.flops))


def _classes(entry: dict[str, Any]) -> list[tuple[str, str]]:
    """Describe the head of a single-label classifier, and the classes of the fit and of each extension."""
    h = entry["hparams"]
    most = "" if h["max_classes"] is None else f", at most {h['max_classes']} classes"
    sessions = entry.get("sessions") or [entry["data"]["classes"]]
    means = entry.get("class_means")
    rows = [("head", f"{h['head']}{most}"), ("projector", h["projector"])]
    rows += [(f"session {number}", ", ".join(names)) for number, names in enumerate(sessions)]
    return [*rows, ("class means", "not kept" if means is None else f"{len(means['names'])} classes")]


def section(title: str, rows: list[tuple[str, str]]) -> None:
    width = max((len(name) for name, _ in rows), default=0)
    print(f"{title}:")
    for name, text in rows:
        print(f"  {name:<{width}}  {text}")
    print()
