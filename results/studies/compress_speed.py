"""Speed of compressed models on a CPU, one thread, CPU time: integer scans, and decoding of the DNA 300M shape."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

from studies.common import Study, markdown

LAYERS = {"Mamba": ("m", {"mamba": {"d_state": 16}}), "Mamba-2": ("M", {"mamba2": {"d_state": 128, "head_dim": 64}})}
WIDTH, LENGTH = 256, 1024
PRESET, WINDOW = "hybridna_300m", 64
BATCHES = {1: 12, 16: 5}  # batch size -> timed steps
ARMS = ("float32", "bfloat16", "w8a8", "w8a8, scans in float", "w8a16", "w4a16")


def cpu_seconds(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """CPU seconds of every call, which are run in turn, after one round that is not counted."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if turn:
                found[name].append(time.process_time() - start)
    return found


def in_float(network: Any) -> Any:
    """The same compressed network with scans of rounded floats: the route of layers whose integer scans are wrong."""
    from seqssm.nn.rounded import RoundedValues

    for module in network.modules():
        if isinstance(getattr(module, "scan_x", None), RoundedValues):
            module.scan_x.chosen = (None,)
    return network


def quantised(network: Any, ids: Any, method: str) -> Any:
    """A compressed copy; scales from one sequence and weights rounded to the nearest, which do not affect the speed."""
    import torch

    from seqssm.compress.methods import METHODS, Recipe
    from seqssm.compress.quantise import quantise
    from seqssm.compress.sources import Source

    class One(Source):
        count, title = 1, "one sequence"

        def __init__(self, network: Any) -> None:
            self.network = network

        @torch.no_grad()
        def outputs(self, few: bool = False) -> Any:
            return self.network(ids).double().flatten()

    recipe = Recipe(fold=False, percentile=False, gptq=False)
    return quantise(One(copy.deepcopy(network)), METHODS[method], recipe).network.eval()


def scans() -> list[dict[str, Any]]:
    """Layers in W8A8: scans of integers against scans of rounded floats, whole sequences and steps, and scans alone."""
    import torch

    from seqssm.nn.backbone import Backbone
    from seqssm.nn.language_model import LanguageModel

    rows = []
    for title, (symbol, options) in LAYERS.items():
        torch.manual_seed(0)
        network = LanguageModel(8, Backbone(WIDTH, symbol, **options)).eval()
        ids = torch.randint(0, 8, (1, LENGTH))
        integers = quantised(network, ids[:, :64], "w8a8")
        layer, simulated = integers.backbone.layers[0].mixer, in_float(copy.deepcopy(integers)).backbone.layers[0].mixer
        x = torch.randn(1, LENGTH, WIDTH)
        calls = {name: (lambda one=one, x=x: one(x)) for name, one in (("integer", layer), ("float", simulated))}
        rows.append({"layer": title, "what": f"layer, {LENGTH} steps", **cpu_seconds(calls, 15)})
        for batch in BATCHES:
            column, state = torch.randn(batch, WIDTH), layer.new_state(batch)
            calls = {
                name: (lambda one=one, column=column, state=state: [one.step(column, state) for _ in range(50)])
                for name, one in (("integer", layer), ("float", simulated))
            }
            found = cpu_seconds(calls, 10)
            row = {name: [value / 50 for value in values] for name, values in found.items()}
            rows.append({"layer": title, "what": f"step of the layer, batch {batch}", **row})
        rows.append({"layer": title, "what": f"scan alone, {LENGTH} steps", **_alone(layer, symbol)})
    return rows


def _alone(layer: Any, symbol: str) -> dict[str, list[float]]:
    """The scan of given integers, against their conversion and the float scan."""
    import torch
    from seqssm_kernels import selective_scan, selective_scan_int8, ssd_scan, ssd_scan_int8

    from seqssm.nn.integer_scan import choose

    scan = choose(layer)
    assert scan is not None
    scales = scan.of_one
    given = {
        name: torch.randint(-128, 128, (1, LENGTH, *scales[f"{name}_scale"].shape), dtype=torch.int8)
        for name in ("x", "B", "C")
    }
    of_dt = scales["x_scale"].shape[: 1 if symbol == "M" else None]
    shared = {"dt": torch.rand(1, LENGTH, *of_dt) * 0.1, "A": -torch.exp(layer.A_log), "D": layer.D}
    integer, float_scan = (ssd_scan_int8, ssd_scan) if symbol == "M" else (selective_scan_int8, selective_scan)

    def converted() -> Any:
        values = {name: t * scales[f"{name}_scale"] for name, t in given.items()}
        return float_scan(**values, **shared)

    return cpu_seconds({"integer": lambda: integer(**given, **scales, **shared), "float": converted}, 15)


def decoding() -> list[dict[str, Any]]:
    """Steps of the DNA preset `hybridna_300m` at two batch sizes, the models in turn, with random weights."""
    import torch
    from seqssm_dna.task import CausalPretraining

    from seqssm.domain import domains
    from seqssm.training import presets

    domain = domains()["dna"]
    content = presets.read_preset(presets.presets(domain)[PRESET], domain)
    task = CausalPretraining(**content["model"]["init_args"], context=WINDOW)
    torch.manual_seed(0)
    network = task.build_model().eval()
    ids = torch.randint(0, 4, (1, 16))
    models = {"float32": network, "bfloat16": copy.deepcopy(network).bfloat16()}
    models |= {arm: quantised(network, ids, arm) for arm in ("w8a8", "w8a16", "w4a16")}
    models["w8a8, scans in float"] = in_float(copy.deepcopy(models["w8a8"]))
    rows = []
    for batch, steps in BATCHES.items():
        calls = {arm: step_of(models[arm], batch) for arm in ARMS}
        for arm, seconds in cpu_seconds(calls, steps).items():
            rows.append({"model": arm, "batch": batch, "cpu_seconds": seconds})
            print(rows[-1], flush=True)
    return rows


def step_of(network: Any, batch: int) -> Callable[[], None]:
    """A function that decodes one more token of every sequence."""
    import torch

    tokens, kept = torch.zeros(batch, dtype=torch.int64), [network.new_state(batch)]

    def step() -> None:
        kept[0] = network.step(tokens, kept[0])[1]

    return step


def compress_speed() -> dict[str, Any]:
    """Both measurements in one run."""
    import torch

    torch.set_num_threads(1)
    with torch.inference_mode():
        capability = torch.backends.cpu.get_cpu_capability()
        return {"capability": capability, "scans": scans(), "decoding": decoding()}


def speed_table(study: dict[str, Any]) -> str:
    """Medians and their ratios."""
    lines = [["layer", "what", "scan of integers, ms", "scan of rounded floats, ms", "ratio"]]
    for row in study["scans"]:
        fast, slow = (1e3 * statistics.median(row[name]) for name in ("integer", "float"))
        lines.append([row["layer"], row["what"], f"{fast:.3g}", f"{slow:.3g}", f"{slow / fast:.2f}"])
    speeds = {
        (row["model"], row["batch"]): row["batch"] / statistics.median(row["cpu_seconds"]) for row in study["decoding"]
    }
    head = ["DNA `hybridna_300m`, tokens per CPU second"]
    head += [f"batch {batch} (over float32)" for batch in BATCHES]
    decoded = [head]
    for arm in ARMS:
        cells = [f"{speeds[arm, b]:.3g} ({speeds[arm, b] / speeds['float32', b]:.2f})" for b in BATCHES]
        decoded.append([arm, *cells])
    return (
        f"{markdown(lines)}\n\n{markdown(decoded)}\n\nMedians of CPU times, one thread, {study['capability']}; layers "
        f"of {WIDTH} channels in W8A8; random weights; attention over the last {WINDOW} positions."
    )


STUDIES: dict[str, Study] = {"compress_speed": (compress_speed, speed_table)}
