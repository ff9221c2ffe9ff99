"""Time and peak memory of a training step and a prediction on bags of increasing size, each in a new process."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any


def once(step: str, instances: int, width: int, network: str, threads: int) -> dict[str, float]:
    """Measure one forward pass (or training step) on a random bag, in this process.

    Returns:
        ``seconds`` and ``cpu_seconds`` of the step alone, ``peak_gb`` of the process so far (1 GB = 1e9 bytes).
    """
    import resource

    import torch

    from seqssm_pathology.model import NETWORKS

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = NETWORKS[network](width, 4)  # as in the preset srmamba: width 512, 2 blocks, stride 5
    features = torch.randn(instances, width)
    order = torch.randperm(instances)
    cu_seqlens = torch.tensor([0, instances], dtype=torch.int32)
    few = torch.randn(64, width)  # compiles the kernels before the measurement
    small = torch.tensor([0, 64], dtype=torch.int32)
    if step == "train":
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        model(few, small, [64]).logits.sum().backward()
        optimizer.zero_grad()
    else:
        model.eval().requires_grad_(False)
        model(few, small, [64])
    start, cpu = time.perf_counter(), time.process_time()
    logits = model(features, cu_seqlens, [instances], order).logits
    if step == "train":
        torch.nn.functional.cross_entropy(logits, torch.tensor([1])).backward()
        optimizer.step()
    found = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    unit = 1 if sys.platform == "darwin" else 1024
    return {**found, "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9}


def measure_command(options: dict[str, Any]) -> int:
    """Run ``seqssm pathology measure``: one row per size, with the time per thousand instances."""
    import pandas as pd

    from seqssm.metrics.report import Report

    sizes = options["sizes"] or [1000, 10_000, 100_000]
    rows = []
    for step in ("train", "predict") if options["phase"] == "both" else (options["phase"],):
        for size in sizes:
            words = [step, str(size), str(options["width"]), options["network"], str(options["threads"])]
            command = [sys.executable, "-m", "seqssm_pathology.measure", *words]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode != 0:
                print(f"{step} with {size} instances exited with code {done.returncode}", file=sys.stderr)
                return 1
            found = json.loads(done.stdout)
            found["cpu_ms_per_1000"] = 1e6 * found["cpu_seconds"] / size
            rows.append({"step": step, "instances": size, **found})
    title = f"{options['network']}, features of width {options['width']}, {options['threads']} thread(s)"
    report = Report(tables=[(title, pd.DataFrame(rows))])
    if options["json"]:
        print(json.dumps(report.to_dict()["tables"][0]["rows"]))
    else:
        print(report.text())
    return 0


if __name__ == "__main__":
    print(json.dumps(once(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], int(sys.argv[5]))))
