"""Study of memory: several keys with values in noise, at one to eight times the trained length.

Plain Mamba and a stack of the same layers with a memory layer between them get equal steps, batches and curricula, and
parameters within 5 %. Number of keys, width, state, learning rate and curriculum were chosen with plain Mamba alone, on
a seed that is not reported: 4 is the smallest number of keys at which it has at least 95 % at the trained length and at
most 70 % at eight times that. The memory layer was tried once on that seed.

Finished runs are kept in `runs/real`. A run takes about five CPU minutes.
"""

from __future__ import annotations

import json
import statistics
import time
from typing import Any

from studies.common import RUNS, Study, markdown, spread
from studies.synthetic import BETA2, build_stack, count_parameters

SEEDS = (21, 22, 23)
PLAIN, WITH_MEMORY = "Mamba", "Mamba with a memory layer"
STACKS: dict[str, tuple[int, dict[str, Any]]] = {
    PLAIN: (64, {"pattern": "mm", "mamba": {"d_state": 16}}),
    WITH_MEMORY: (
        60,  # the parameters of the plain stack
        {
            "pattern": "mNm",
            "mamba": {"d_state": 16},
            "memory": {"pool_size": 16, "summary_dim": 32, "interval": 8},
        },
    ),
}
"""Title -> width, and arguments of `Backbone`."""
KEYS, NOISE, PAIRS = 16, 16, 4
TRAINED, FACTORS = 512, (1, 2, 4, 8)
STEPS, BATCH, RATE = 2400, 32, 1e-2
SHORTEST = 16
PAIRS_AT, SHORT_UNTIL, FULL_AT = 0.3, 0.6, 0.95
"""Fractions of the steps: all pairs are shown; the length starts to grow; the length is reached."""
TIMED = (1024, 4096, 16384, 65536)


def task(done: float) -> Any:
    """The task after a fraction of the training: first more and more pairs in short sequences, then longer ones."""
    from seqssm.tools.synthetic import Passkey

    shown = round(1 + (PAIRS - 1) * min(1.0, done / PAIRS_AT))
    grown = min(1.0, max(0.0, (done - SHORT_UNTIL) / (FULL_AT - SHORT_UNTIL)))
    return Passkey(shown, int(SHORTEST * (TRAINED / SHORTEST) ** grown), KEYS, NOISE)


def passkey() -> dict[str, Any]:
    """Train both stacks on all seeds, test them at every length, and time them at growing length."""
    folder = RUNS / "passkey"
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in SEEDS:
        for number, name in enumerate(STACKS):
            kept = folder / f"{number}_seed-{seed}.json"
            if not kept.is_file():
                kept.write_text(json.dumps(trained(name, seed)), encoding="utf-8")
            rows.append(json.loads(kept.read_text(encoding="utf-8")))
            print(rows[-1], flush=True)
    times = [{"model": name, **row} for name in STACKS for row in timed(name)]
    settings = {"steps": STEPS, "batch_size": BATCH, "lr": RATE, "pairs": PAIRS, "trained": TRAINED}
    return {**settings, "rows": rows, "times": times}


def trained(name: str, seed: int) -> dict[str, Any]:
    """Train a stack; return its accuracy by multiple of the trained length."""
    from seqssm.tools.synthetic import Passkey, Schedule, accuracy, train

    begun = time.process_time()
    model = built(name, seed)
    loss = train(model, task, Schedule(STEPS, BATCH, RATE, beta2=BETA2, seed=seed))
    row: dict[str, Any] = {"model": name, "seed": seed, "loss": loss, "parameters": count_parameters(model)}
    row["cpu_seconds"] = round(time.process_time() - begun, 1)
    for factor in FACTORS:
        full = Passkey(PAIRS, factor * TRAINED, KEYS, NOISE)
        row[str(factor)] = accuracy(model, full, batches=16 // factor, batch_size=32)
    return row


def built(name: str, seed: int) -> Any:
    """The model of a title, with new weights."""
    width, options = STACKS[name]
    return build_stack(2 * KEYS + NOISE, width, seed, options)


def timed(name: str) -> list[dict[str, Any]]:
    """CPU time per token and bytes of the state by length, without gradients; the least of five calls in turn."""
    import torch

    model = built(name, 0)
    stack, width = model.backbone.eval(), STACKS[name][0]
    inputs = {n: torch.randn(1, n, width, generator=torch.Generator().manual_seed(0)) for n in TIMED}
    spent: dict[int, list[float]] = {length: [] for length in TIMED}
    held: dict[int, int] = {}
    with torch.no_grad():
        for _ in range(5):
            for length, x in inputs.items():
                begun = time.process_time()
                _, state = stack(x, return_state=True)
                spent[length].append(time.process_time() - begun)
                held[length] = size(state)
    return [{"length": n, "us_per_token": 1e6 * min(spent[n]) / n, "bytes": held[n]} for n in TIMED]


def size(state: Any) -> int:
    """Bytes of all tensors of a state."""
    import torch
    from torch.utils._pytree import tree_leaves

    return sum(one.numel() * one.element_size() for one in tree_leaves(state) if isinstance(one, torch.Tensor))


def passkey_table(study: dict[str, Any]) -> str:
    """Accuracy by model and length, then time and bytes of the state by length."""
    factors, full = [str(one) for one in FACTORS], study["trained"]
    head = [f"length {int(one) * full:,}" for one in factors]
    lines = [["model", "parameters", *head, f"each seed, {head[-1]}", "CPU seconds per run"]]
    last = {}
    for name in STACKS:
        own = [row for row in study["rows"] if row["model"] == name]
        last[name] = [row[factors[-1]] for row in own]
        each = ", ".join(f"{value:.3f}" for value in last[name])
        seconds = statistics.fmean(row["cpu_seconds"] for row in own)
        cells = [spread([row[one] for row in own]) for one in factors]
        lines.append([name, f"{own[0]['parameters']:,}", *cells, each, f"{seconds:.0f}"])
    gain = 100 * (statistics.fmean(last[WITH_MEMORY]) - statistics.fmean(last[PLAIN]))
    told = f"At {head[-1]}, the stack with a memory layer is {abs(gain):.1f} points "
    told += "above plain Mamba." if gain > 0 else "below plain Mamba."
    sizes = [["model", *(f"{length:,} tokens" for length in TIMED), "bytes of the state"]]
    for name in STACKS:
        timings = [row for row in study["times"] if row["model"] == name]
        held = sorted({row["bytes"] for row in timings})
        cells = [f"{row['us_per_token']:.1f}" for row in timings]
        sizes.append([name, *cells, " to ".join(f"{one:,}" for one in held)])
    return (
        f"Fraction of keys that are answered with their value: {study['pairs']} keys in noise, {len(SEEDS)} seeds, "
        f"{study['steps']:,} steps of {study['batch_size']} sequences of at most {full} tokens. {told}\n\n"
        f"{markdown(lines)}\n\nMicroseconds of CPU time per token, one sequence, forward pass:\n\n{markdown(sizes)}"
    )


STUDIES: dict[str, Study] = {"passkey": (passkey, passkey_table)}
