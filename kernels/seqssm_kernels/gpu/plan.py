"""Division of a Triton call: channels of a program, steps of a chunk. Pure functions of sizes and of the GPU.

A scan program is one warp of 32, 64 or 128 channels: its threads hold 1, 2 or 4 channels each. States are not held in
registers but processed one after another, so d_state changes the time of a program, not its registers. A multiprocessor
has four schedulers, and a warp issues an instruction every five or six cycles (measured on an H200), so two or three
warps per scheduler are needed to hide the latency. Splitting the length provides them if batch, routes and channels do
not, but computes the exponentials of the forward pass twice.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import NamedTuple

from seqssm_kernels.contract.calls import ConvSizes, ScanSizes, SsdSizes

BLOCKS = (32, 64, 128)
UNROLLS = (4, 8, 16)
KEEP = 64  # steps from one saved state to the next
SHORTEST = 2 * KEEP  # minimum steps of a chunk: the carries of shorter ones cost more than they gain
LONGEST_ROW = 2**31 - 1024  # 32-bit step counters, with a margin past the end
CARRY_AHEAD = 8  # chunks that the carry pass loads at once


class Config(NamedTuple):
    """Tunable settings for one architecture.

    Attributes:
        block: channels of a program of the forward pass, 32, 64 or 128.
        back_block: channels of a program of the backward pass. 128 takes fewer instructions per update, because more is
            summed inside a thread, but halves the number of programs; 32 and 128 are slower on an H200.
        unroll: steps per iteration of the forward pass, 4, 8 or 16 for 64 channels; half of it for 128 channels.
        split_forward, split_backward: programs per multiprocessor below which the length is split. A split computes the
            exponentials of the forward pass twice, but one warp per scheduler cannot hide the memory latency.
        fill_forward, fill_backward: target number of programs per multiprocessor after a split. A multiprocessor holds
            12 programs of the forward pass and 8 of the backward pass.
        ssd_warps: warps of a program of the Mamba-2 scan with chunks of 64 steps, 4 or 8.
    """

    block: int = 64
    back_block: int = 64
    unroll: int = 8
    split_forward: float = 8.0
    split_backward: float = 4.0
    fill_forward: int = 12
    fill_backward: int = 32
    ssd_warps: int = 8


# By major compute capability. 9 is measured (H200, see kernels/README.md): there the Mamba-2 scan takes 0.7 of the time
# with four warps. With eight, and programs of 16 channels and states, ssd_backward_decays reads illegal addresses on
# sm_90 (Triton 3.6.0). The others are derived from compiled code: four warps would spill registers on sm_80 and sm_120.
# `bench_gpu.py --tune` measures alternatives; SEQSSM_TRITON_CONFIG is the path of a file that it wrote.
TABLE: dict[int, Config] = {8: Config(), 9: Config(ssd_warps=4), 10: Config(ssd_warps=4), 12: Config()}


# Steps of a chunk of the Mamba-2 scan: sides of the multiplied matrices.
SSD_CHUNKS = (16, 64)


class SsdBlock(NamedTuple):
    """Channels of a head and states held by a program of the Mamba-2 scan, powers of two from 16."""

    PB: int
    NB: int


class Division(NamedTuple):
    """Division of one pass of a call.

    Attributes:
        block: channels of a program.
        chunk: steps of a slot; at least the steps of a row if the length is not split.
        per_row: slots of a row; 1 if the length is not split.
    """

    block: int
    chunk: int
    per_row: int

    @property
    def split(self) -> bool:
        return self.per_row > 1


@functools.cache
def config(capability: int) -> Config:
    """Return the configuration for a GPU.

    Args:
        capability: major compute capability; an unknown one uses the configuration of the newest known below it.

    Raises:
        ValueError: unknown fields or values in the file given by SEQSSM_TRITON_CONFIG.
    """
    base = TABLE[max((known for known in TABLE if known <= capability), default=min(TABLE))]
    file = os.environ.get("SEQSSM_TRITON_CONFIG")
    if not file:
        return base
    fields = json.loads(Path(file).read_text())
    unknown = set(fields) - set(Config._fields)
    if unknown:
        raise ValueError(f"{file}: unknown field {sorted(unknown)[0]!r}, the fields are {', '.join(Config._fields)}")
    chosen = base._replace(**fields)
    if chosen.unroll not in UNROLLS:
        raise ValueError(f"{file}: unroll is {chosen.unroll}, it must be one of {UNROLLS}")
    for name, allowed in (("block", BLOCKS), ("back_block", BLOCKS), ("ssd_warps", (4, 8))):
        if getattr(chosen, name) not in allowed:
            raise ValueError(f"{file}: {name} is {getattr(chosen, name)}, it must be one of {allowed}")
    return chosen


def divide(sizes: ScanSizes, processors: int, chosen: Config, backward: bool, packed: bool) -> Division:
    """Divide a call such that it fills the GPU, if its sizes allow.

    Args:
        sizes: sizes of the call; its longest row may have all of `sizes.steps`.
        processors: number of multiprocessors of the GPU.
        chosen: configuration for the GPU.
        backward: whether this is the backward pass.
        packed: whether the steps are divided among the rows (packed sequences).
    """
    rows = sizes.sequences * sizes.routes
    enough = processors * (chosen.split_backward if backward else chosen.split_forward)
    whole = max(1, sizes.steps)
    most = min(chosen.back_block if backward else chosen.block, tile(sizes.channels))
    for smaller in (most, max(BLOCKS[0], most // 2)):
        if rows * _ceil(sizes.channels, smaller) >= enough:
            return Division(smaller, whole, 1)
    programs = sizes.routes * _ceil(sizes.channels, most)
    shared = sizes.steps * (1 if packed else sizes.batch)
    wanted = _ceil(shared * programs, processors * (chosen.fill_backward if backward else chosen.fill_forward))
    chunk = max(SHORTEST, _ceil(wanted, KEEP) * KEEP)
    if chunk >= whole:  # too short to split: distribute the channels over many programs instead
        return Division(BLOCKS[0], whole, 1)
    return Division(most, chunk, _ceil(whole, chunk))


@functools.cache
def tile(channels: int) -> int:
    """Channels of a tile of states: the largest of `BLOCKS` that wastes at most a quarter of the memory.

    Saved states are stored in tiles between the passes, so this is a function of the channels alone.
    """
    least = _ceil(channels, BLOCKS[0]) * BLOCKS[0]
    return max(b for b in BLOCKS if b == BLOCKS[0] or 4 * _ceil(channels, b) * b <= 5 * least)


def steps_forward(block: int, chosen: Config) -> int:
    """Steps per iteration of the forward pass: the maximum without register spills, determined from compiled code.

    Args:
        block: channels of a program.
        chosen: configuration for the GPU.
    """
    return max(UNROLLS[0], chosen.unroll // 2) if block == 128 else chosen.unroll


def steps_back(block: int, gated: bool) -> tuple[int, int]:
    """Steps whose states the backward pass holds in registers, and steps per iteration of its second forward run.

    Both are the maximum without register spills, determined from compiled code; the second is a multiple of the first.

    Args:
        block: channels of a program.
        gated: whether the outputs before the gate z are also recomputed.
    """
    return (4 if block == 128 or gated else 8), 8


def carry_groups(per_row: int) -> int:
    """Number of runs into which the carry pass divides the chunks of a row, one per warp; 1 for few chunks.

    Args:
        per_row: slots of a row.
    """
    return 8 if per_row > 4 * CARRY_AHEAD else 1


def divide_convolution(sizes: ConvSizes, processors: int, packed: bool) -> Division:
    """Divide a convolution: slots are independent, so there are as many as fill the GPU."""
    block = 128 if sizes.channels > 64 else 64
    programs = sizes.routes * _ceil(sizes.channels, block)
    shared = sizes.steps * (1 if packed else sizes.batch)
    whole = max(1, sizes.steps)
    chunk = max(SHORTEST, _ceil(shared * programs, processors * 32))
    if chunk >= whole:
        return Division(block, whole, 1)
    return Division(block, chunk, _ceil(whole, chunk))


def ssd_chunk(sizes: SsdSizes) -> int:
    """Steps of a chunk of the Mamba-2 scan, a function of the sizes alone because states are saved between the passes.

    The shortest that holds a row of average length, otherwise the longest.
    """
    average = _ceil(sizes.steps, max(1, sizes.sequences)) if sizes.batch == 1 else sizes.steps
    return next((q for q in SSD_CHUNKS if q >= average), SSD_CHUNKS[-1])


def ssd_block(sizes: SsdSizes, itemsize: int, backward: bool) -> SsdBlock:
    """Blocks of a head's channels and of the states: the largest without register spills on all targets.

    Args:
        sizes: sizes of the call.
        itemsize: bytes of an element of x.
        backward: whether this is the backward pass.
    """
    most = ((16, 16) if backward else (32, 32)) if itemsize == 4 else (32 if backward else 64, 64)
    powers = (max(16, 1 << (n - 1).bit_length()) for n in (sizes.head_dim, sizes.d_state))
    return SsdBlock(*[min(n, limit) for n, limit in zip(powers, most)])


def ssd_states_of_inputs(block: SsdBlock, d_state: int) -> int:
    """States held by the kernel for the gradients of the inputs; with 16 some targets would spill.

    Args:
        block: block of the backward pass.
        d_state: state size.
    """
    return max(block.NB, min(32, max(16, 1 << (d_state - 1).bit_length())))


def ssd_warps(chunk: int, chosen: Config) -> int:
    """Number of warps of a program of the Mamba-2 scan.

    Args:
        chunk: steps of a chunk.
        chosen: configuration for the GPU.
    """
    return chosen.ssd_warps if chunk >= SSD_CHUNKS[-1] else 4


def ssd_heads_per_part(per_group: int, programs: int, processors: int) -> int:
    """Heads over which a program sums the gradients of B and C: all of a group, unless that leaves the GPU idle.

    Args:
        per_group: heads of a group.
        programs: number of programs if each takes a whole group.
        processors: number of multiprocessors of the GPU.
    """
    parts = min(per_group, _ceil(4 * processors, max(1, programs)))
    return _ceil(per_group, parts)


def check_steps(steps: int) -> None:
    """Raise ValueError if the number of steps exceeds the kernels' counters."""
    if steps > LONGEST_ROW:
        raise ValueError(f"engine 'triton' supports up to {LONGEST_ROW} steps, got {steps}: use engine='torch'")


def slots(sizes: ScanSizes | ConvSizes | SsdSizes, packed: bool, chunk: int) -> int:
    """Number of slots of all rows in a table with one per `chunk` steps, for any boundaries of packed rows."""
    return sizes.steps // chunk + sizes.sequences if packed else sizes.sequences * _ceil(sizes.steps, chunk)


def _ceil(a: int, b: int) -> int:
    return (a + b - 1) // b
