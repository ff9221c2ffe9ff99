"""Generation study: time per token and memory of the state at increasing contexts, for stacks of equal size."""

from __future__ import annotations

import statistics
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from studies.common import Study, markdown

if TYPE_CHECKING:
    from seqssm.nn.language_model import LanguageModel
    from seqssm.nn.state import State

VOCABULARY, D_MODEL, PIECE = 256, 256, 4096
CONTEXTS = (1024, 8192, 32768)
TOKENS = 32  # timed at each context
PATTERNS = {
    "Mamba-2": "MMMMMMMM",
    "hybrid": "M-M*M-M-",
    "transformer": "*-*-*-*-",
}
"""Stacks of 8 layers: M Mamba-2, * attention, - MLP."""


def build(pattern: str, hidden: int) -> LanguageModel:
    """A random model; `hidden` is the width inside its MLPs."""
    from seqssm.nn.backbone import Backbone
    from seqssm.nn.language_model import LanguageModel

    options = {"mlp": {"hidden": hidden}} if "-" in pattern else {}
    return LanguageModel(VOCABULARY, Backbone(D_MODEL, pattern, **options)).eval()  # type: ignore[arg-type]


def parameters(model: LanguageModel) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def hidden_of(pattern: str, wanted: int) -> int:
    """MLP width for which a stack is closest to `wanted` parameters; arbitrary if it has no MLP."""
    import torch

    with torch.device("meta"):
        one, two = parameters(build(pattern, 1)), parameters(build(pattern, 2))
    return 1 if one == two else 1 + round((wanted - one) / (two - one))


def state_bytes(state: State) -> int:
    """Total size of the tensors of a state in bytes."""
    return sum(state_bytes(one) if isinstance(one, dict) else one.nbytes for one in state.values())


def states(model: LanguageModel) -> list[State]:
    """The state after each context of one random sequence.

    Stacks with attention read the first context only, because reading is quadratic. Their caches are repeated for the
    longer contexts: the cost of a step depends on the size of the cache, not on its values.
    """
    import torch

    from seqssm.nn.chunks import prefill

    ids = torch.randint(0, VOCABULARY, (1, max(CONTEXTS)), generator=torch.Generator().manual_seed(1))
    if "*" in model.backbone.pattern:
        _, first = prefill(model, ids[:, : CONTEXTS[0]], PIECE)
        return [repeated(first, context // CONTEXTS[0]) for context in CONTEXTS]
    found: list[State] = []
    for start, stop in pairwise((0, *CONTEXTS)):
        found.append(prefill(model, ids[:, start:stop], PIECE, found[-1] if found else None)[1])
    return found


def repeated(state: State, times: int) -> State:
    """A state whose attention caches hold every key and value `times` times."""
    new = state.map(lambda tensor: tensor)
    for name, own in new.items():
        if "key" in own:
            keys, values = (own[part].repeat(1, 1, times, 1) for part in ("key", "value"))
            new[name] = type(own)(key=keys, value=values, length=own["length"] * times)
    return new


def timed(model: LanguageModel, behind: list[State]) -> list[list[float]]:
    """CPU milliseconds of each token at each context; contexts alternate, so that disturbances affect all equally."""
    import torch

    token, running = torch.zeros(1, dtype=torch.long), list(behind)
    seconds: list[list[float]] = [[] for _ in running]
    for number in range(TOKENS + 2):
        for place, state in enumerate(running):
            start = time.process_time()
            logits, running[place] = model.step(token, state)
            if number >= 2:  # the first ones load and compile
                seconds[place].append(1e3 * (time.process_time() - start))
            token = logits.argmax(-1)
    return seconds


def generation() -> dict[str, Any]:
    """Tokens per second and bytes of state after 1,024 to 32,768 tokens, one thread, one sequence."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    wanted, rows = parameters(build(PATTERNS["Mamba-2"], 1)), []
    try:
        with torch.no_grad():
            for name, pattern in PATTERNS.items():
                torch.manual_seed(0)
                model = build(pattern, hidden_of(pattern, wanted))
                behind = states(model)
                for context, state, own in zip(CONTEXTS, behind, timed(model, behind), strict=True):
                    quarters = statistics.quantiles(own, n=4)
                    row = {"model": name, "pattern": pattern, "parameters": parameters(model), "context": context}
                    row |= {"ms_per_token": quarters[1], "ms_low": quarters[0], "ms_high": quarters[2]}
                    row["state_bytes"] = state_bytes(state)
                    print(row, flush=True)
                    rows.append(row)
    finally:
        torch.set_num_threads(threads)
    return {"d_model": D_MODEL, "tokens": TOKENS, "rows": rows}


def generation_table(study: dict[str, Any]) -> str:
    """One row per model: milliseconds per token (quartiles), tokens per second and state at each context."""
    head = ["model", "parameters"]
    lines = [head + [f"{context:,} tokens" for context in CONTEXTS]]
    for name, pattern in PATTERNS.items():
        own = {row["context"]: row for row in study["rows"] if row["model"] == name}
        cells = [f"{name} (`{pattern}`)", f"{own[CONTEXTS[0]]['parameters'] / 1e6:.2f} M"]
        for context in CONTEXTS:
            row = own[context]
            cells.append(
                f"{1e3 / row['ms_per_token']:.0f} tokens/s ({row['ms_low']:.2f} to {row['ms_high']:.2f} ms), "
                f"{row['state_bytes'] / 2**20:.2f} MiB"
            )
        lines.append(cells)
    medians = [row["ms_per_token"] for row in study["rows"] if row["model"] == "Mamba-2"]
    spread = f"{100 * (max(medians) / min(medians) - 1):.0f} %"
    return (
        f"{markdown(lines)}\n\nOne sequence, one thread, CPU time; median and quartiles of {study['tokens']} tokens, "
        f"and the state after the context. The medians of Mamba-2 differ by {spread} between the contexts."
    )


STUDIES: dict[str, Study] = {"generation": (generation, generation_table)}
