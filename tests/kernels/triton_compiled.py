"""Compiles the Triton kernels ahead of time, without a GPU, and reads what came out.

Not collected by a plain `pytest`: with the interpreter chosen in the same process nothing can be compiled. `make test`
runs this file in a process of its own. Asserted for every variant: no register is spilled, no stack, no atomics, 64-bit
addresses; for the forward kernel at its base, the instructions of its loop.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
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
from seqssm_kernels.gpu import plan as plan_triton
from seqssm_kernels.selective_scan.triton import ALIGNMENT, BACK_OPTIONS, OPTIONS
from seqssm_kernels.selective_scan.triton_backward import scan_adjoint, scan_backward
from seqssm_kernels.selective_scan.triton_forward import scan_carry, scan_forward
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
N = 16
CONFIG = plan_triton.Config()
# In the dtype of x; of integers; float32 otherwise.
OF_X = ("x", "dt", "z", "out", "dout", "dx", "ddt", "dz")
INTEGERS = ("order", "links", "cu_seqlens", "row_of_slot", "resets")
# Products of these with a place, a batch element or a slot can pass 2^31.
WIDE = ("x_b", "x_l", "dt_b", "dt_l", "z_b", "z_l", "dout_b", "dout_l", "order_b", "links_b", "h_s", "B_r", "C_r")

SCAN = ("x", "dt", "A", "B", "C", "D", "out", "end_state")
BACK = ("x", "dt", "rates", "B", "C", "D", "dout", "carry", "kept", "scratch", "dx", "ddt", "dA", "dB", "dC", "dD")
FULL = ("z", "dt_bias", "order")
FORWARD = {"UNROLL": CONFIG.unroll, "KEEP": plan_triton.KEEP, "SPLIT": False, "ENDS": False}
BACKWARD = {
    "BLOCK": CONFIG.back_block,
    "BACK": plan_triton.steps_back(CONFIG.back_block, gated=False),
    "KEEP": plan_triton.KEEP,
    "SPLIT": False,
}
GATED = {"SOFTPLUS": True, "BACK": plan_triton.steps_back(CONFIG.back_block, gated=True)}
SPLIT = {"SPLIT": True}
PACKED = ("cu_seqlens", "row_of_slot")

# name: kernel, tensors that are given, constants, dtype of x
VARIANTS: dict[str, tuple[Any, tuple[str, ...], dict[str, Any], str]] = {
    "forward": (scan_forward, SCAN, FORWARD, "fp32"),
    "forward bf16": (scan_forward, SCAN, FORWARD, "bf16"),
    "forward narrow": (scan_forward, SCAN, FORWARD | {"BLOCK": 32}, "fp32"),
    "forward strided": (scan_forward, SCAN, FORWARD | {"UNIT": 1}, "fp16"),
    "forward full": (
        scan_forward, (*SCAN, *FULL, "start_state", "kept"), FORWARD | {"SOFTPLUS": True}, "bf16"
    ),
    "forward ends": (scan_forward, (*SCAN, *FULL, "sums", "resets"), FORWARD | SPLIT | {"ENDS": True}, "bf16"),
    "forward split": (scan_forward, (*SCAN, *FULL, *PACKED, "start_state", "kept"), FORWARD | SPLIT, "fp32"),
    "carry": (scan_carry, ("A", "ends", "sums", "last"), {"BACK": False}, "fp32"),
    "carry back": (
        scan_carry, ("A", "ends", "sums", "last", "resets", "border", "cu_seqlens"), {"BACK": True}, "fp32"
    ),
    "adjoint": (
        scan_adjoint, ("dt", "rates", "C", "dout", "ends", "sums", "resets", *FULL),
        {"UNROLL": CONFIG.unroll, "SOFTPLUS": True}, "bf16",
    ),
    "backward": (scan_backward, BACK, BACKWARD, "fp32"),
    "backward bf16": (scan_backward, (*BACK, "dbias", "dt_bias"), BACKWARD | {"SOFTPLUS": True}, "bf16"),
    "backward full": (
        scan_backward, (*BACK, *FULL, "dbias", "dz", "dfinal", "dinitial"), BACKWARD | GATED, "bf16"
    ),
    "backward split": (scan_backward, (*BACK, *PACKED), BACKWARD | SPLIT, "fp32"),
    "backward gated": (scan_backward, (*BACK, "z", "dz"), BACKWARD | GATED, "bf16"),
    "backward of 128": (scan_backward, BACK, BACKWARD | {"BLOCK": 128, "BACK": 4}, "fp32"),
    "backward of 32": (scan_backward, BACK, BACKWARD | {"BLOCK": 32, "BACK": 8}, "bf16"),
    "convolution": (conv_forward, ("x", "weight", "bias", "out", "final"), {"W": 4}, "bf16"),
    "convolution full": (
        conv_forward, ("x", "weight", "bias", "out", "final", "order", "links", "state", *PACKED),
        {"W": 4, "SILU": True}, "fp32",
    ),
    "convolution silu": (conv_forward, ("x", "weight", "bias", "out", "final"), {"W": 4, "SILU": True}, "bf16"),
    "convolution silu back": (conv_forward, ("x", "weight", "bias", "dout", "out"), {"W": 4, "SILU": True}, "bf16"),
    "convolution of one": (conv_forward, ("x", "weight", "out", "final", "order", "links"), {"W": 1}, "fp32"),
    "convolution back": (conv_backward, ("x", "weight", "dout", "dx", "dweight", "dbias"), {"W": 4}, "bf16"),
    "convolution back full": (
        conv_backward,
        ("x", "weight", "dout", "dx", "dweight", "dbias", "order", "links", "state", "dstate", "dfinal", *PACKED),
        {"W": 4}, "fp32",
    ),
    "convolution of one, back": (conv_backward, ("x", "weight", "dout", "dx", "dweight"), {"W": 1}, "fp32"),
}  # fmt: skip
BASE = ("forward", "carry", "adjoint", "backward", "convolution", "convolution back")
CASES = [*((name, 90) for name in VARIANTS), *((name, 80) for name in BASE)]


@cache
def build(name: str, target: int) -> Any:
    """A variant as a launch on aligned tensors would compile it."""
    kernel, given, constants, dtype = VARIANTS[name]
    block = 64 if "W" not in constants else 128
    constants = {"N": N, "BLOCK": block, "UNROLL": 4, "UNIT": ALIGNMENT, "SOFTPLUS": False, "SILU": False} | constants
    signature, values, attributes = {}, {}, {}
    for i, argument in enumerate(kernel.arg_names):
        if kernel.params[i].is_constexpr:
            signature[argument], values[(i,)] = "constexpr", constants[argument]
        elif argument in given:
            signature[argument] = "*" + (dtype if argument in OF_X else "i32" if argument in INTEGERS else "fp32")
            attributes[(i,)] = [["tt.divisibility", 16]]
        elif kernel.params[i].do_not_specialize:
            signature[argument] = "i32"
        else:
            signature[argument], values[(i,)] = "constexpr", None
    source = ASTSource(kernel, signature, constexprs=values, attrs=attributes)
    options = BACK_OPTIONS if kernel is scan_backward else OPTIONS
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
        jump = re.search(r"\bBRA\S*\s+`?\(?(\.L_x_\d+)", line)
        if jump and labels.get(jump[1], i) < i:
            found.append(Counter(instructions("\n".join(lines[labels[jump[1]] : i + 1]))))
    return found


@pytest.mark.parametrize(("name", "target"), CASES)
def test_variant(name, target, tmp_path):
    compiled = build(name, target)
    usage = tool("cuobjdump", "-res-usage", compiled, tmp_path)
    assert re.findall(r"(?:STACK|LOCAL):(\d+)", usage) == ["0", "0"], usage
    listing = tool("nvdisasm", "-c", compiled, tmp_path)
    names = set(instructions(listing))
    assert len(names) > 10
    assert not names & {"LDL", "STL"}, "registers are spilled"
    assert not names & {"ATOM", "ATOMG", "ATOMS", "RED", "REDG"}, "an atomic operation: sums have no fixed order"
    registers = int(re.search(r"REG:(\d+)", usage)[1])
    assert registers <= CEILINGS[VARIANTS[name][0].__name__], registers


# Eight programs share a multiprocessor's 65,536 registers at 255 a thread, twelve at 168.
CEILINGS = {
    "scan_forward": 168, "scan_carry": 64, "scan_adjoint": 168, "scan_backward": 255, "conv_forward": 128,
    "conv_backward": 168,
}  # fmt: skip


@pytest.mark.parametrize(("name", "target"), CASES)
def test_addresses_have_64_bits(name, target):
    text = build(name, target).asm["ttir"]
    used = 0
    for line in text.splitlines():
        for argument in re.findall(r"%(\w+)", line):
            if argument in WIDE and "tt.func" not in line:
                used += 1
                assert "arith.extsi" in line, f"{argument} is used in 32 bits: {line}"
    assert used or "carry" in name


def test_loop_of_the_base(tmp_path):
    """One exponential and at most 4.5 float operations an update, nothing exchanged between threads."""
    (count,) = (c for c in loops(tool("nvdisasm", "-c", build("forward", 90), tmp_path)) if c["MUFU"])
    updates = N * CONFIG.unroll * CONFIG.block // 32
    assert count["MUFU"] == updates
    assert count["FFMA"] + count["FMUL"] + count["FADD"] <= 4.5 * updates
    assert count["SHFL"] + count["BAR"] + count["LDS"] + count["STS"] == 0
    assert sum(count.values()) <= 8 * updates, "more instructions than the exponentials take cycles"


def test_loop_of_the_backward_pass(tmp_path):
    """Over n, all steps of a group: one exponential an update, and only the sums of dB and dC exchange values."""
    listing = tool("nvdisasm", "-c", build("backward", 90), tmp_path)
    lines = instructions(listing)
    steps = plan_triton.steps_back(CONFIG.back_block, gated=False)
    assert lines.count("SHFL") == 5 * 2 * steps
    updates = steps * CONFIG.back_block // 32
    count = next(c for c in loops(listing) if c["SHFL"])
    assert count["MUFU"] == updates
    assert sum(count.values()) <= 30 * updates


def test_fusion_is_chosen():
    assert OPTIONS["enable_fp_fusion"] is True
    assert "fma.rn" in build("forward", 90).asm["ptx"]
