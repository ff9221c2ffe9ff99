"""How a Triton call is divided: channels of a program, steps of a chunk. Pure functions of sizes and of the card.

A program of BLOCK channels is one warp: its threads hold BLOCK / 32 channels each. A multiprocessor has four
schedulers, and exp2, the scarce operation, keeps one busy with one warp. So a call with fewer programs than
schedulers leaves part of the card idle; splitting the length fills it, at the price of doing the exponentials twice.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import NamedTuple

from seqssm_kernels.contract.calls import ConvSizes, ScanSizes

BLOCKS = (32, 64, 128)
KEEP = 64  # steps from one kept state to the next
SHORTEST = 2 * KEEP  # steps of a chunk: shorter ones cost more in carries than they bring
LONGEST_ROW = 2**31 - 1024  # steps are counted in 32 bits, and a little beyond the end


class Config(NamedTuple):
    """What is tuned, for one architecture.

    Attributes:
        block: channels of a program of the forward pass, 32, 64 or 128.
        back_block: of the backward pass. 128 takes a quarter fewer instructions, because more is added up inside a
            thread, but with softplus a few registers are spilled: to be measured on a card before it is shipped.
        unroll: steps that the forward pass reads at once; divides `KEEP`.
        split_forward, split_backward: programs for each multiprocessor below which the length is split. Backward, the
            additional pass is a smaller part of the work.
        fill: programs for each multiprocessor that a split aims at.
    """

    block: int = 64
    back_block: int = 64
    unroll: int = 4
    split_forward: float = 2.0
    split_backward: float = 4.0
    fill: int = 16


# By the first digit of the compute capability. Chosen from compiled code (registers, instructions) and the arithmetic
# of kernels/README.md; `bench_gpu.py --tune` measures others, SEQSSM_TRITON_CONFIG names a file of what it wrote.
TABLE: dict[int, Config] = {8: Config(), 9: Config(), 10: Config()}


class Division(NamedTuple):
    """How one pass of a call is divided.

    Attributes:
        block: channels of a program.
        chunk: steps of a slot; at least the steps of a row where the length is not split.
        per_row: slots of a row; 1 where the length is not split.
    """

    block: int
    chunk: int
    per_row: int

    @property
    def split(self) -> bool:
        return self.per_row > 1


@functools.cache
def config(capability: int) -> Config:
    """The configuration for a card.

    Args:
        capability: first digit of its compute capability; an unknown one is served like the newest known.

    Raises:
        ValueError: the file that SEQSSM_TRITON_CONFIG names has other fields than a `Config`.
    """
    base = TABLE.get(capability, TABLE[max(TABLE)])
    file = os.environ.get("SEQSSM_TRITON_CONFIG")
    if not file:
        return base
    fields = json.loads(Path(file).read_text())
    unknown = set(fields) - set(Config._fields)
    if unknown:
        raise ValueError(f"{file}: unknown field {sorted(unknown)[0]!r}, the fields are {', '.join(Config._fields)}")
    chosen = base._replace(**fields)
    if chosen.unroll < 1 or KEEP % chosen.unroll:
        raise ValueError(f"{file}: unroll is {chosen.unroll}, it must divide {KEEP}")
    for name in ("block", "back_block"):
        if getattr(chosen, name) not in BLOCKS:
            raise ValueError(f"{file}: {name} is {getattr(chosen, name)}, it must be one of {BLOCKS}")
    return chosen


def divide(sizes: ScanSizes, processors: int, chosen: Config, backward: bool, packed: bool) -> Division:
    """Divides a call so that it fills the card, if its sizes allow.

    Args:
        sizes: of the call; its longest row may have all of `sizes.steps`.
        processors: multiprocessors of the card.
        chosen: the card's configuration.
        backward: whether this is the backward pass.
        packed: whether the rows share the steps, as packed sequences do.
    """
    lines = sizes.sequences * sizes.routes
    enough = processors * (chosen.split_backward if backward else chosen.split_forward)
    whole = max(1, sizes.steps)
    most = chosen.back_block if backward else chosen.block
    block = max(b for b in BLOCKS if b <= most and (b == BLOCKS[0] or b < 2 * sizes.channels))
    for smaller in (block, max(BLOCKS[0], block // 2)):
        programs = lines * _ceil(sizes.channels, smaller)
        if programs >= enough:
            return Division(smaller, whole, 1)
    programs = sizes.routes * _ceil(sizes.channels, block)
    shared = sizes.steps * (1 if packed else sizes.batch)
    wanted = _ceil(shared * programs, processors * chosen.fill)
    chunk = max(SHORTEST, _ceil(wanted, KEEP) * KEEP)
    if chunk >= whole:
        return Division(block, whole, 1)
    return Division(block, chunk, _ceil(whole, chunk))


def steps_back(block: int, gated: bool) -> int:
    """Steps whose states the backward pass holds in registers: as many as fit without spilling, by compiled code.

    Args:
        block: channels of a program.
        gated: whether the outputs in front of the gate z are made anew too.
    """
    return 4 if block == 128 or gated else 8


def divide_convolution(sizes: ConvSizes, processors: int, packed: bool) -> Division:
    """Divides a convolution: its slots need nothing of each other, so there are as many as fill the card."""
    block = 128 if sizes.channels > 64 else 64
    programs = sizes.routes * _ceil(sizes.channels, block)
    shared = sizes.steps * (1 if packed else sizes.batch)
    whole = max(1, sizes.steps)
    chunk = max(SHORTEST, _ceil(shared * programs, processors * 32))
    if chunk >= whole:
        return Division(block, whole, 1)
    return Division(block, chunk, _ceil(whole, chunk))


def check_steps(steps: int) -> None:
    """Raises ValueError for more steps than the kernels count."""
    if steps > LONGEST_ROW:
        raise ValueError(f"engine 'triton' serves up to {LONGEST_ROW} steps, got {steps}: use engine='torch'")


def slots(sizes: ScanSizes | ConvSizes, packed: bool, chunk: int) -> int:
    """Slots of all rows in a table with one for every `chunk` steps, whatever the bounds of packed rows."""
    return sizes.steps // chunk + sizes.sequences if packed else sizes.sequences * _ceil(sizes.steps, chunk)


def _ceil(a: int, b: int) -> int:
    return (a + b - 1) // b
