"""Rows of options in which every pair of values occurs: the factors of the calls, and their pairwise tables."""

from __future__ import annotations

import itertools
import random

import torch

from .calls import CONV, LAYOUTS, ORDER_KINDS, SCAN, SSD

BOTH = (True, False)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def flags(*names: str) -> dict[str, tuple]:
    return dict.fromkeys(names, BOTH)


# After the sizes, in the tables of the CPU engines and of Triton.
SCAN_FLAGS = flags("packed", "mixed", "D", "z", "dt_bias", "dt_softplus", "state")
SSD_FLAGS = flags("packed", "mixed") | {"D": ("heads", "channels", None)}
SSD_FLAGS |= flags("z", "dt_bias", "dt_softplus", "w", "state")
CONV_FLAGS = flags("packed", "mixed", "bias", "state") | {"activation": (None, "silu")}

SCAN_FACTORS = {
    "kind": ORDER_KINDS,
    "layout": LAYOUTS,
    "shared": ((), ("x", "D"), ("A", "dt_bias"), ("B",), ("C", "z"), ("dt",), SCAN.floats[:-1]),
    "dtype": DTYPES,
    "routes": (1, 2, 3),
    "length": (1, 7, 32, 33, 70),
    "channels": (1, 3, 16, 17, 40),
    "d_state": (1, 2, 3, 4, 16),
    **SCAN_FLAGS,
}
SSD_FACTORS = {
    "kind": ORDER_KINDS,
    "layout": LAYOUTS,
    "shared": ((), ("x", "D"), ("A", "dt_bias"), ("B",), ("C", "z"), ("dt", "w"), SSD.floats[:-1]),
    "dtype": DTYPES,
    "routes": (1, 2, 3),
    "length": (1, 7, 64, 65, 130),
    "heads": (2, 4, 6),
    "head_dim": (1, 3, 16, 17, 64, 70),
    "groups": (1, 2),
    "d_state": (1, 2, 3, 4, 16, 21),
    **SSD_FLAGS,
}
CONV_FACTORS = {
    "kind": ORDER_KINDS,
    "layout": LAYOUTS,
    "shared": ((), ("x",), ("weight", "bias"), CONV.floats[:-1]),
    "dtype": DTYPES,
    "routes": (1, 2, 3),
    "length": (1, 3, 33, 300),
    "channels": (1, 3, 16, 17, 40),
    "width": (1, 2, 4, 5),
    **CONV_FLAGS,
}


def rows(factors: dict[str, tuple], seed: int = 0) -> list[dict]:
    """Rows of options in which every pair of values of every two factors occurs: greedy, the best of 40 random rows."""
    rng = random.Random(seed)
    names = list(factors)
    open_pairs = {(a, va, b, vb) for a, b in itertools.combinations(names, 2) for va in factors[a] for vb in factors[b]}
    found = []
    while open_pairs:
        best: tuple[int, dict, set] = (-1, {}, set())
        a, va, b, vb = min(open_pairs, key=repr)
        for _ in range(40):
            row = {n: rng.choice(factors[n]) for n in names} | {a: va, b: vb}
            covers = {(p, row[p], q, row[q]) for p, q in itertools.combinations(names, 2)} & open_pairs
            if len(covers) > best[0]:
                best = (len(covers), row, covers)
        found.append(best[1])
        open_pairs -= best[2]
    return found
