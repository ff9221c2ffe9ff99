"""Speed and memory of scoring a bacterial genome with the smallest preset: one thread, CPU time, forward strand.

    python results/studies/dna_speed.py [GENOME.fa]

Prints bases per second and the peak memory of the process, and writes `results/dna_speed.json`. The default is the
registered *E. coli* genome of 4.9 million bases. The weights are those of one step of training: the speed does not
depend on them.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
RESULT = Path(__file__).resolve().parents[1] / "dna_speed.json"


def measure(genome: Path, preset: str = "tiny") -> dict[str, float | int | str]:
    """Score a genome; return the measured values.

    Args:
        genome: sequence file.
        preset: preset of the model.
    """
    import torch
    from seqssm_dna import simulate

    import seqssm
    from seqssm.training.machine import processor

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        simulate.folder(Path(folder, "made"), length=20_000)
        data = {"fasta": str(Path(folder, "made", "genome.fa")), "bed": str(Path(folder, "made", "splits.bed"))}
        model = seqssm.fit("dna", preset=preset, data=data, trainer={"max_steps": 1}, output=Path(folder, "run"))
        model.predict(data["fasta"])  # compiles and loads the kernels
        begun, clock = time.process_time(), time.perf_counter()
        rows = model.predict(genome)
        seconds, wall = time.process_time() - begun, time.perf_counter() - clock
    bases = int(rows["n_scored"].sum())
    return {
        "genome": genome.name,
        "preset": preset,
        "cpu": processor(),
        "parameters": sum(one.numel() for one in model.network.parameters()),
        "bases": bases,
        "cpu_seconds": round(seconds, 1),
        "wall_seconds": round(wall, 1),
        "bases_per_cpu_second": round(bases / seconds),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def main() -> None:
    """Measure, print and write."""
    import seqssm

    given = sys.argv[1:]
    genome = Path(given[0]) if given else seqssm.find("ecoli_536")
    found = measure(genome)
    for name, value in found.items():
        print(f"{name:22}{value:,}" if isinstance(value, int | float) else f"{name:22}{value}")
    if not given:
        RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
