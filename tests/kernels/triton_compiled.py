"""Compiles the Triton kernels ahead of time, without a GPU, and inspects the result.

Not collected by a plain `pytest`: with the interpreter chosen in the same process nothing can be compiled. `make test`
runs this file in a separate process. Asserted for every variant: no register is spilled, no stack, no atomics, 64-bit
addresses; for the base variants on Ampere, Hopper and both Blackwells, and the instructions of their loops.
`python tests/kernels/triton_compiled.py` prints the counts of kernels/README.md.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import subprocess
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter excludes compilation", allow_module_level=True)

import triton
from seqssm_kernels.causal_conv1d.triton_kernels import conv_backward, conv_forward
from seqssm_kernels.contract.calls import SsdSizes
from seqssm_kernels.gpu import plan
from seqssm_kernels.gpu.launch import ALIGNMENT, OPTIONS
from seqssm_kernels.selective_scan.triton import BACK_OPTIONS, FORWARD_OPTIONS, TABLE_OPTIONS
from seqssm_kernels.selective_scan.triton_adjoint import scan_adjoint
from seqssm_kernels.selective_scan.triton_backward import scan_backward
from seqssm_kernels.selective_scan.triton_forward import scan_forward, scan_step
from seqssm_kernels.selective_scan.triton_tables import scan_carry, scan_collect, scan_tables
from seqssm_kernels.ssd_scan.triton import PASS_BLOCK, PASS_OPTIONS, PRODUCT_OPTIONS
from seqssm_kernels.ssd_scan.triton_backward import ssd_backward_decays, ssd_backward_group, ssd_backward_inputs
from seqssm_kernels.ssd_scan.triton_forward import ssd_one, ssd_output, ssd_pass, ssd_states
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
N = 16
CONFIG = plan.Config()
TARGETS = (80, 90, 100, 120)  # A100; H100, H200; B200; RTX 50 and RTX PRO 6000
# In the dtype of x; of integers; float32 otherwise.
OF_X = (
    "x",
    "dt",
    "z",
    "out",
    "dout",
    "dx",
    "ddt",
    "dz",
    "B",
    "C",
    "dB",
    "dC",
    "values",
    "lines",
    "w",
    "dys",
    "dw",
    "found",
)
BYTES = {"x", "B", "C", "values", "lines"}  # of a scan of 8-bit integers
INTEGERS = ("order", "links", "cu_seqlens", "row_of_slot", "row_of_line", "resets")
# Products of these with a position, a batch element or a slot can pass 2^31.
WIDE = (
    *("x_b", "x_l", "dt_b", "dt_l", "z_b", "z_l", "dout_b", "dout_l", "order_b", "links_b", "h_s"),
    *("B_b", "B_l", "C_b", "C_l", "part", "v_b", "v_l", "m_b", "m_l", "w_b", "w_l", "o_b", "o_l", "g_b", "g_l"),
    "rows_of_part",
)


def block(channels: int) -> dict[str, int]:
    """The constants of a scan kernel for programs of `channels` channels."""
    back, again = plan.steps_back(channels, gated=False)
    unroll = plan.steps_forward(channels, CONFIG)
    return {"K": channels // 32, "TILE": 128, "UNROLL": unroll, "BACK": back, "AGAIN": again}


SCAN = ("x", "dt", "rates", "pairs", "D", "run", "out", "end_state")
BACK = ("x", "dt", "rates", "pairs", "D", "dout", "carry", "kept", "scratch", "dx", "ddt", "dA", "dpairs", "dD")
FULL = ("z", "dt_bias", "order")
PACKED = ("cu_seqlens", "row_of_slot")
SPLIT = {"SPLIT": True}
SOFTPLUS = {"SOFTPLUS": True}
GATED = SOFTPLUS | dict(zip(("BACK", "AGAIN"), plan.steps_back(CONFIG.back_block, gated=True)))

SCALES = ("x_scale", "B_scale", "C_scale")
SSD = ("dt", "A", "dt_bias", "order", "cu_seqlens", "row_of_slot")
SSD_ALL = ("x", "B", "C", "w", *SSD, "states")


def ssd(itemsize: int, backward: bool, **more: Any) -> dict[str, Any]:
    """The constants of a kernel of the Mamba-2 scan, for heads of 64 channels and 128 states."""
    sizes = SsdSizes(1, 4096, 4096, 1, 8, 64, 1, 128, 1)
    precision = "tf32x3" if itemsize == 4 else "tf32" if backward else "bf16"
    common = {"P": 64, "N": 128, "Q": plan.SSD_CHUNKS[-1], "BACK": backward, "OF_B": False, "PRECISION": precision}
    return common | SOFTPLUS | plan.ssd_block(sizes, itemsize, backward)._asdict() | more


def of_inputs(itemsize: int) -> dict[str, Any]:
    constants = ssd(itemsize, True)
    block = plan.SsdBlock(constants["PB"], constants["NB"])
    return constants | {"NB": plan.ssd_states_of_inputs(block, constants["N"])}


# name: kernel, present tensors, constants, dtype of x
VARIANTS: dict[str, tuple[Any, tuple[str, ...], dict[str, Any], str]] = {
    "forward": (scan_forward, SCAN, {}, "fp32"),
    "forward bf16": (scan_forward, SCAN, {}, "bf16"),
    "forward of 32": (scan_forward, SCAN, block(32), "fp32"),
    "forward of 128": (scan_forward, SCAN, block(128), "fp32"),
    "forward strided": (scan_forward, SCAN, {"UNIT": 1}, "fp16"),
    "forward full": (scan_forward, (*SCAN, *FULL, "start_state", "kept"), SOFTPLUS, "bf16"),
    "forward ends": (scan_forward, (*SCAN, *FULL, "sums", "resets"), SPLIT | SOFTPLUS | {"ENDS": True}, "bf16"),
    "forward split": (scan_forward, (*SCAN, *FULL, *PACKED, "kept"), SPLIT, "fp32"),
    "forward, 256 states": (scan_forward, (*SCAN, "kept"), {"N": 256}, "fp32"),
    "step": (scan_step, ("x", "dt", "A", "B", "C", "D", "start_state", "out", "end_state"), {}, "bf16"),
    "tables": (scan_tables, ("A", "B", "C", "rates", "pairs"), {}, "bf16"),
    "tables full": (
        scan_tables, ("A", "B", "C", "rates", "pairs", "order", "cu_seqlens", "row_of_line"), {"N": 40}, "fp32"
    ),
    "forward int8": (scan_forward, (*SCAN, "x_scale", "z", "order"), SOFTPLUS, "bf16"),
    "step int8": (
        scan_step, ("x", "dt", "A", "B", "C", *SCALES, "D", "start_state", "out", "end_state"), {}, "bf16"
    ),
    "tables int8": (scan_tables, ("A", "B", "C", "B_scale", "C_scale", "rates", "pairs"), {}, "bf16"),
    "collect": (scan_collect, ("dpairs", "dB", "dC"), {}, "bf16"),
    "carry": (scan_carry, ("rates", "ends", "sums", "last"), {"GROUPS": 8}, "fp32"),
    "carry of few": (scan_carry, ("rates", "ends", "sums", "last"), {"GROUPS": 1}, "fp32"),
    "carry back": (
        scan_carry, ("rates", "ends", "sums", "last", "resets", "border", "cu_seqlens"),
        {"GROUPS": 8, "BACKWARDS": True}, "fp32",
    ),
    "adjoint": (scan_adjoint, ("dt", "rates", "pairs", "dout", "ends", "sums", "resets", *FULL), SOFTPLUS, "bf16"),
    "backward": (scan_backward, BACK, {}, "fp32"),
    "backward bf16": (scan_backward, (*BACK, "dbias", "dt_bias"), SOFTPLUS, "bf16"),
    "backward full": (scan_backward, (*BACK, *FULL, "dbias", "dz", "dfinal", "dinitial"), GATED, "bf16"),
    "backward split": (scan_backward, (*BACK, *PACKED), SPLIT, "fp32"),
    "backward gated": (scan_backward, (*BACK, "z", "dz"), GATED, "bf16"),
    "backward of 32": (scan_backward, BACK, block(32), "bf16"),
    "backward of 128": (scan_backward, BACK, block(128), "fp32"),
    "backward, 256 states": (scan_backward, (*BACK, "dbias", "dt_bias"), SOFTPLUS | {"N": 256}, "fp32"),
    "convolution": (conv_forward, ("x", "weight", "bias", "out", "final"), {}, "bf16"),
    "convolution full": (
        conv_forward, ("x", "weight", "bias", "out", "final", "order", "links", "state", *PACKED),
        {"SILU": True}, "fp32",
    ),
    "convolution silu": (conv_forward, ("x", "weight", "bias", "out", "final"), {"SILU": True}, "bf16"),
    "convolution silu back": (conv_forward, ("x", "weight", "bias", "dout", "out"), {"SILU": True}, "bf16"),
    "convolution of one": (conv_forward, ("x", "weight", "out", "final", "order", "links"), {"W": 1}, "fp32"),
    "convolution back": (conv_backward, ("x", "weight", "dout", "dx", "dweight", "dbias"), {}, "bf16"),
    "convolution back full": (
        conv_backward,
        ("x", "weight", "dout", "dx", "dweight", "dbias", "order", "links", "state", "dstate", "dfinal", *PACKED),
        {}, "fp32",
    ),
    "convolution of one, back": (conv_backward, ("x", "weight", "dout", "dx", "dweight"), {"W": 1}, "fp32"),
    "ssd states": (ssd_states, ("values", "lines", "w", *SSD, "states", "whole_decays"), ssd(2, False), "bf16"),
    "ssd states back": (ssd_states, ("values", "lines", *SSD, "states", "whole_decays"), ssd(4, True), "fp32"),
    "ssd pass": (
        ssd_pass, ("states", "whole_decays", "border", "last", "cu_seqlens"), ssd(4, True, BLOCK=PASS_BLOCK), "fp32"
    ),
    "ssd output": (ssd_output, (*SSD_ALL, "D", "z", "out"), ssd(2, False), "bf16"),
    "ssd output fp32": (ssd_output, (*SSD_ALL, "D", "z", "out"), ssd(4, False), "fp32"),
    "ssd output short": (ssd_output, ("x", "B", "C", "dt", "A", "states", "out"), ssd(2, False, Q=16), "bf16"),
    "ssd gate back": (ssd_output, (*SSD_ALL, "D", "z", "dout", "out"), ssd(2, True), "bf16"),
    "ssd one": (ssd_one, ("x", "dt", "A", "B", "C", "D", "z", "start_state", "out", "end_state"),
                ssd(2, False, PB=8, NB=128), "bf16"),
    "ssd states int8": (
        ssd_states, ("values", "lines", "x_scale", "B_scale", *SSD, "states", "whole_decays"), ssd(2, False), "bf16"
    ),
    "ssd output int8": (
        ssd_output, ("x", "B", "C", *SSD, "states", *SCALES, "D", "z", "out"), ssd(2, False), "bf16"
    ),
    "ssd output int8, fp32": (
        ssd_output, ("x", "B", "C", *SSD, "states", *SCALES, "D", "z", "out"), ssd(4, False), "fp32"
    ),
    "ssd one int8": (ssd_one, ("x", "dt", "A", "B", "C", *SCALES, "D", "z", "start_state", "out", "end_state"),
                     ssd(2, False, PB=8, NB=128), "bf16"),
    "ssd decays back": (ssd_backward_decays, (*SSD_ALL, "dys", "dD", "flows"), ssd(4, True), "fp32"),
    "ssd inputs back": (
        ssd_backward_inputs, (*SSD_ALL, "D", "dys", "dstates", "flows", "dx", "ddt", "dw", "dA", "dbias"),
        of_inputs(4), "fp32",
    ),
    "ssd inputs back bf16": (
        ssd_backward_inputs, (*SSD_ALL, "D", "dys", "dstates", "flows", "dx", "ddt", "dw", "dA", "dbias"),
        of_inputs(2), "bf16",
    ),
    "ssd B back": (ssd_backward_group, (*SSD_ALL, "dys", "found"), ssd(2, True, OF_B=True), "bf16"),
    "ssd C back": (ssd_backward_group, (*SSD_ALL, "dys", "found"), ssd(4, True), "fp32"),
}  # fmt: skip
BASE = (
    *("forward", "backward", "backward gated", "convolution", "convolution back"),
    *("ssd output", "ssd inputs back", "ssd B back"),
)
PRODUCTS = (ssd_states, ssd_output, ssd_backward_decays, ssd_backward_inputs, ssd_backward_group)
QUICK = {(name, 90) for name in BASE}  # `make test` compiles these, `make test-long` the others
CASES = [
    pytest.param(name, target, marks=() if (name, target) in QUICK else pytest.mark.long)
    for name in VARIANTS
    for target in (TARGETS if name in BASE else (90,))
]
COMPILER = {
    scan_forward: FORWARD_OPTIONS, scan_adjoint: FORWARD_OPTIONS, scan_backward: BACK_OPTIONS,
    scan_tables: TABLE_OPTIONS, scan_collect: TABLE_OPTIONS, ssd_pass: PASS_OPTIONS,
}  # fmt: skip


@cache
def build(name: str, target: int) -> Any:
    """Compile a variant as a launch on aligned tensors would."""
    kernel, given, constants, dtype = VARIANTS[name]
    common = {
        **block(CONFIG.back_block if kernel is scan_backward else CONFIG.block), "N": N, "KEEP": plan.KEEP,
        "UNIT": ALIGNMENT, "SOFTPLUS": False, "SILU": False, "SPLIT": False, "ENDS": False, "NEEDS_B": True,
        "NEEDS_C": True, "PREFETCH": True, "AHEAD": plan.CARRY_AHEAD, "WIDTH": 16, "BLOCK": 32, "W": 4,
    }  # fmt: skip
    if kernel in (conv_forward, conv_backward):
        common |= {"BLOCK": 128, "UNROLL": 4}
    if kernel is scan_carry:
        common["BACK"] = constants.get("BACKWARDS", False)
    values_of = common | constants
    signature, values, attributes = {}, {}, {}
    for i, argument in enumerate(kernel.arg_names):
        if kernel.params[i].is_constexpr:
            signature[argument], values[(i,)] = "constexpr", values_of[argument]
        elif argument in given:
            of_x = "i8" if "int8" in name and argument in BYTES else dtype
            signature[argument] = "*" + (of_x if argument in OF_X else "i32" if argument in INTEGERS else "fp32")
            attributes[(i,)] = [["tt.divisibility", 16]]
        elif kernel.params[i].do_not_specialize:
            signature[argument] = "i32"
        else:
            signature[argument], values[(i,)] = "constexpr", None
    source = ASTSource(kernel, signature, constexprs=values, attrs=attributes)
    options = COMPILER.get(kernel, OPTIONS) | ({"num_warps": constants["GROUPS"]} if kernel is scan_carry else {})
    if kernel in PRODUCTS:
        options = PRODUCT_OPTIONS | {"num_warps": plan.ssd_warps(constants["Q"], plan.config(target // 10))}
    return triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)


def tool(name: str, option: str, compiled: Any, folder: Path) -> str:
    file = folder / "kernel.cubin"
    file.write_bytes(compiled.asm["cubin"])
    return subprocess.run([TOOLS / name, option, file], capture_output=True, text=True, check=True).stdout


def instructions(listing: str) -> list[str]:
    """Names of the machine instructions, in order, without their modifiers."""
    return re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)", listing, re.MULTILINE)


def loops(listing: str) -> list[Counter[str]]:
    """The loops, inner ones first, each as the number of instructions of a name."""
    lines = listing.splitlines()
    labels = {m[1]: i for i, line in enumerate(lines) if (m := re.match(r"\s*(\.L_x_\d+):", line))}
    found: list[Counter[str]] = []
    for i, line in enumerate(lines):
        jump = re.search(r"\bBRA\b.*?(\.L_x_\d+)", line)
        if jump and labels.get(jump[1], i) < i:
            found.append(Counter(instructions("\n".join(lines[labels[jump[1]] : i + 1]))))
    return found


@cache
def usage(name: str, target: int) -> dict[str, int]:
    """Registers, stack and other memory of a variant, in the assembler's names."""
    with tempfile.TemporaryDirectory() as folder:
        printed = tool("cuobjdump", "-res-usage", build(name, target), Path(folder))
    return {key: int(number) for key, number in re.findall(r"([A-Z]+):(\d+)", printed)}


@cache
def listing(name: str, target: int = 90) -> str:
    with tempfile.TemporaryDirectory() as folder:
        return tool("nvdisasm", "-c", build(name, target), Path(folder))


# Bytes of shared memory that a program may have.
SHARED = {80: 166_912, 90: 232_448, 100: 232_448, 120: 101_376}
# Eight programs share a multiprocessor's 65,536 registers at 255 per thread, twelve at 168, sixteen at 128.
CEILINGS = {
    "scan_forward": 168, "scan_step": 128, "scan_tables": 64, "scan_collect": 64, "scan_carry": 96,
    "scan_adjoint": 168, "scan_backward": 255, "conv_forward": 128, "conv_backward": 168,
    "ssd_pass": 96, "ssd_one": 128, **{kernel.__name__: 255 for kernel in PRODUCTS},
}  # fmt: skip


@pytest.mark.parametrize(("name", "target"), CASES)
def test_variant(name, target):
    used = usage(name, target)
    assert (used["STACK"], used["LOCAL"]) == (0, 0)
    names = set(instructions(listing(name, target)))
    assert len(names) > 10
    assert not names & {"LDL", "STL"}, "registers are spilled"
    # On sm_100, bits of shared memory record which tensor memory is in use.
    atomics = set(re.findall(r"\b(?:ATOM|RED(?!UX))\S*", listing(name, target))) - {"ATOMS.AND", "ATOMS.OR"}
    assert not atomics, "an atomic operation: sums have no fixed order"
    kernel, memory = VARIANTS[name][0], build(name, target).metadata
    assert used["REG"] <= CEILINGS[kernel.__name__]
    assert memory.shared <= SHARED[target]
    assert getattr(memory, "tmem_size", 0) <= 512
    assert (kernel not in PRODUCTS) or any("MMA" in one for one in names), "no tensor cores"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in BASE else pytest.mark.long) for name in VARIANTS]
)
def test_addresses_have_64_bits(name):
    used = 0
    for line in build(name, 90).asm["ttir"].splitlines():
        for argument in re.findall(r"%(\w+)", line):
            if argument in WIDE and "tt.func" not in line:
                used += 1
                assert "arith.extsi" in line, f"{argument} is used in 32 bits: {line}"
    assert used or "carry" in name


def scan_loops(name: str, target: int = 90) -> dict[str, float]:
    """Instructions of the loops of a scan kernel per state update, which is one exponential, and shuffles.

    `inner` counts the loop over the states, `all` the loops around it too. Backward, `again` is the second forward run.
    """
    kernel, _, constants, _ = VARIANTS[name]
    backward = kernel is scan_backward
    of = block(CONFIG.back_block if backward else CONFIG.block) | constants
    states = of.get("N", N)

    def per_update(steps: int, shuffles: bool) -> tuple[float, float, Counter[str]]:
        updates = steps * of["K"]
        found = [c for c in loops(listing(name, target)) if c["MUFU"] >= updates and bool(c["SHFL"]) == shuffles]
        inner, outer = sorted(found, key=lambda c: c.total())[:2]
        unrolled = max(1, inner["SHFL"] // FOLD[2 * steps] if shuffles else inner["MUFU"] // updates)
        rest = outer.total() - inner.total()
        inner = Counter({key: n / unrolled / updates for key, n in inner.items()})
        return inner.total(), inner.total() + rest / (states * updates), inner

    if not backward:
        alone, whole, counts = per_update(of["UNROLL"], False)
        return {"inner": alone, "all": whole, "shuffles": counts["SHFL"], "loads": counts["LDG"]}
    alone, reverse, counts = per_update(of["BACK"], True)
    _, again, _ = per_update(of["AGAIN"], False)
    again *= -(-(plan.KEEP - of["BACK"]) // of["AGAIN"]) * of["AGAIN"] / plan.KEEP
    figures = {"inner": alone, "again": again, "all": reverse + again}
    return figures | {"shuffles": counts["SHFL"], "loads": counts["LDG"]}


# Shuffles that sum this number of values over 32 lanes.
FOLD = {8: 9, 16: 16, 32: 31}


def test_loop_of_the_base():
    """One exponential and four float operations per update, nothing exchanged between threads, vectors of B and C."""
    updates = 2 * CONFIG.unroll * CONFIG.block // 32  # two states at once
    count = min((c for c in loops(listing("forward")) if c["MUFU"] == updates), key=lambda c: c.total())
    assert count["FFMA"] + count["FMUL"] + count["FADD"] == 4 * updates
    assert count["SHFL"] + count["BAR"] + count["LDS"] + count["STS"] == 0
    assert count["LDG"] <= 0.4 * updates
    assert scan_loops("forward")["all"] <= 7.5, "near the eight cycles that an exponential takes"


def test_loop_of_the_backward_pass():
    """dB and dC of a group are summed by halving, and stored together."""
    found = scan_loops("backward")
    assert found["shuffles"] <= 1
    assert found["inner"] <= 19
    assert found["all"] <= 27
    stores = [line for line in listing("backward").splitlines() if re.search(r"\bSTG\.E\s", line)]
    assert len(stores) <= 2, "dB and dC are stored one by one"


@pytest.mark.parametrize("name", ["forward", "forward bf16", "adjoint", "backward"])
def test_nothing_goes_through_shared_memory(name):
    assert usage(name, 90).get("SHARED", 0) == 0


def test_many_states_need_no_more_registers():
    for direction in ("forward", "backward"):
        assert usage(f"{direction}, 256 states", 90)["REG"] <= CEILINGS[f"scan_{direction}"]
        assert scan_loops(f"{direction}, 256 states")["all"] < scan_loops(direction)["all"] + 0.5


def test_fusion_is_chosen():
    assert OPTIONS["enable_fp_fusion"] is True
    assert "fma.rn" in build("forward", 90).asm["ptx"]


def test_no_loop_is_pipelined():
    assert {options["num_stages"] for options in (OPTIONS, *COMPILER.values())} == {1}
    assert "cp.async" not in build("backward", 90).asm["ptx"]


def main() -> None:
    """Print the counts of kernels/README.md."""
    for name, target in (case.values for case in CASES):
        kernel = VARIANTS[name][0]
        used = usage(name, target)
        counted = ""
        with contextlib.suppress(ValueError):  # the assembler has transformed the loops
            if kernel in (scan_forward, scan_adjoint, scan_backward):
                counted = "  ".join(f"{key} {value:.2f}" for key, value in scan_loops(name, target).items())
        print(f"{name:26} sm_{target:<4} registers {used['REG']:3}  stack {used['STACK']}  {counted}", flush=True)


if __name__ == "__main__":
    main()
