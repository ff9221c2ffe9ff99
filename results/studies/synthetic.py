"""Studies of made tasks: recall of many pairs by pure and hybrid stacks, and the state of a machine."""

from __future__ import annotations

import time
from typing import Any

from studies.common import Study, markdown, spread

SEEDS = (1, 2, 3)
WIDTH = 32
RECALL = {
    "Mamba-2 alone": {"pattern": "MMMMMMMM", "mamba2": {"d_state": 16, "head_dim": 16}},
    "one attention layer in eight": {
        "pattern": "MMMM*MMM",
        "mamba2": {"d_state": 16, "head_dim": 16},
        "attention": {"n_heads": 2, "head_dim": 26},  # the parameters of a Mamba-2 layer
    },
}
PAIRS = (8, 32)
RECALL_STEPS = 1500
MAMBA3 = {"d_state": 16, "head_dim": 16, "dt_max": 1.0}
TRACKING = {
    "Mamba-3": {"pattern": "33", "mamba3": MAMBA3 | {"rope_fraction": 1.0}},
    "Mamba-3 without rotation": {"pattern": "33", "mamba3": MAMBA3 | {"rope_fraction": 0.0}},
    "Mamba-2": {"pattern": "MM", "mamba2": {"d_state": 16, "head_dim": 16, "dt_max": 1.0}},
}
TRAINED = 40
LENGTHS = (40, 80, 160, 256)
TRACKING_STEPS = 1000
MACHINES = {"parity": 2, "sum modulo 5": 5}


def _model(vocab_size: int, seed: int, options: dict[str, Any]) -> Any:
    import torch

    from seqssm import Backbone, LanguageModel

    torch.manual_seed(seed)
    torch.set_num_threads(1)
    options = dict(options)
    return LanguageModel(vocab_size, Backbone(WIDTH, options.pop("pattern"), **options))


def _parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def recall() -> dict[str, Any]:
    """Pure Mamba-2 and a hybrid of equal parameters on more and more pairs."""
    from seqssm.tools.synthetic import Recall, Schedule, accuracy, train

    rows = []
    for pairs in PAIRS:
        for name, options in RECALL.items():
            for seed in SEEDS:
                task, begun = Recall(pairs), time.process_time()
                model = _model(task.vocab_size, seed, options)
                loss = train(model, task, Schedule(steps=RECALL_STEPS, seed=seed))
                row = {"model": name, "pairs": pairs, "seed": seed, "accuracy": accuracy(model, task), "loss": loss}
                row |= {"parameters": _parameters(model), "cpu_seconds": round(time.process_time() - begun, 1)}
                print(row, flush=True)
                rows.append(row)
    return {"steps": RECALL_STEPS, "rows": rows}


def recall_table(study: dict[str, Any]) -> str:
    """Accuracy by model and number of pairs."""
    lines = [["model", "parameters", *(f"{pairs} pairs" for pairs in PAIRS), "CPU s per run"]]
    for name in RECALL:
        own = [row for row in study["rows"] if row["model"] == name]
        cells = [spread([row["accuracy"] for row in own if row["pairs"] == pairs]) for pairs in PAIRS]
        seconds = sum(row["cpu_seconds"] for row in own) / len(own)
        lines.append([name, f"{own[0]['parameters']:,}", *cells, f"{seconds:.0f}"])
    return (
        f"Share of keys answered with their value, mean and deviation of {len(SEEDS)} seeds, {study['steps']:,} steps "
        f"of 32 sequences; keys and values from 64 each.\n\n{markdown(lines)}"
    )


def state_tracking() -> dict[str, Any]:
    """Parity and sums modulo 5, trained up to length 40 with a curriculum, tested at up to 256."""
    from seqssm.tools.synthetic import ModularSum, Schedule, accuracy, train

    rows = []
    for machine, modulus in MACHINES.items():
        for name, options in TRACKING.items():
            for seed in SEEDS:
                begun = time.process_time()
                model = _model(modulus + 1, seed, options)

                def curriculum(share: float, modulus: int = modulus) -> ModularSum:
                    return ModularSum(max(2, min(TRAINED, round(2 + (TRAINED - 2) * 2 * share))), modulus)

                loss = train(model, curriculum, Schedule(steps=TRACKING_STEPS, batch_size=64, lr=1e-2, seed=seed))
                row: dict[str, Any] = {"model": name, "machine": machine, "seed": seed, "loss": loss}
                row |= {str(length): accuracy(model, ModularSum(length, modulus), batches=4) for length in LENGTHS}
                row |= {"parameters": _parameters(model), "cpu_seconds": round(time.process_time() - begun, 1)}
                print(row, flush=True)
                rows.append(row)
    return {"steps": TRACKING_STEPS, "trained": TRAINED, "rows": rows}


def state_tracking_table(study: dict[str, Any]) -> str:
    """Accuracy by machine, model and length."""
    lines = [["machine", "model", "parameters", *(f"length {length}" for length in LENGTHS)]]
    for machine in MACHINES:
        for name in TRACKING:
            own = [row for row in study["rows"] if row["model"] == name and row["machine"] == machine]
            cells = [spread([row[str(length)] for row in own]) for length in LENGTHS]
            lines.append([machine, name, f"{own[0]['parameters']:,}", *cells])
    return (
        f"Share of positions with the right state, mean and deviation of {len(SEEDS)} seeds, {study['steps']:,} steps; "
        f"trained on lengths up to {study['trained']}. Chance is 1/2 and 1/5.\n\n{markdown(lines)}"
    )


STUDIES: dict[str, Study] = {"recall": (recall, recall_table), "state_tracking": (state_tracking, state_tracking_table)}
