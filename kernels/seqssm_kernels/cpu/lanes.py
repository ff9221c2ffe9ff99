"""A vector of 16 float32 lanes for numba kernels, and raw memory access by address.

numba has no vector type, and LLVM does not vectorise the scan's backward loops. This module defines an opaque numba
type, `lanes`, whose LLVM value is ``<16 x float>``, with intrinsics that compile to a few instructions each: one
register with AVX-512, two with AVX, four with SSE or NEON. Addresses are plain int64: a kernel receives tensors as
(address, strides) and needs no array objects. Offsets are always 64 bits.

There are three element kinds of floats: float32, bfloat16, float16. `load` and `store` convert, rounding to nearest
even. `load8` reads 8-bit integers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, models, register_model

LANES = 16
ROW = 4 * LANES
"""Bytes of one vector of float32."""
FLOAT32, BFLOAT16, FLOAT16, INT8 = 0, 1, 2, 3

I1, I8, I16, I32, I64 = ir.IntType(1), ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
F16, F32 = ir.HalfType(), ir.FloatType()
VF, VI, VH, VS, VB, V8 = (ir.VectorType(t, LANES) for t in (F32, I32, F16, I16, I1, I8))
POINTER = ir.PointerType()


class LanesType(types.Type):
    def __init__(self) -> None:
        super().__init__(name="lanes16")


lanes = LanesType()


@register_model(LanesType)
class LanesModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, VF)


# -- LLVM code generation, shared with the scan's tiles ---------------------------------------------------------------


def floats(value: float) -> ir.Constant:
    """`value` in each lane."""
    return ir.Constant(VF, [ir.Constant(F32, float(value))] * LANES)


def ints(value: int) -> ir.Constant:
    return ir.Constant(VI, [ir.Constant(I32, value)] * LANES)


def call(builder: ir.IRBuilder, name: str, result: ir.Type, *args: ir.Value) -> ir.Value:
    """Call the LLVM intrinsic of the given full name."""
    kind = ir.FunctionType(result, [arg.type for arg in args])
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    return builder.call(function, args)


def muladd(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    """a * b + c, fused if the processor supports it (llvm.fma would call a library function otherwise)."""
    return call(builder, "llvm.fmuladd.v16f32", VF, a, b, c)


def pointer(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    return builder.inttoptr(address, POINTER)


def load_at(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    return builder.load(pointer(builder, address), align=4, typ=VF)


def store_at(builder: ir.IRBuilder, value: ir.Value, address: ir.Value) -> None:
    builder.store(value, pointer(builder, address), align=4)


def splat(builder: ir.IRBuilder, scalar: ir.Value) -> ir.Value:
    one = builder.insert_element(ir.Constant(VF, ir.Undefined), scalar, ir.Constant(I32, 0))
    return builder.shuffle_vector(one, ir.Constant(VF, ir.Undefined), ints(0))


def splat_at(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    """The float32 at `address` in each lane."""
    return splat(builder, builder.load(pointer(builder, address), align=4, typ=F32))


def polynomial(builder: ir.IRBuilder, t: ir.Value, coefficients: Sequence[ir.Value]) -> ir.Value:
    """c0 + c1 t + c2 t^2 + ..."""
    value = coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        value = muladd(builder, value, t, coefficient)
    return value


# 2^t as 1 + c1 t + ...: exactly 1 at t = 0 and c1 = ln 2, so that slow decays do not drift; minimax in the relative
# error, coefficients rounded one after another. Interval and maximum relative error are given for each.
EXP2_CENTRED = (1.0, 0.6931471824645996, 0.24022282660007477, 0.05550558865070343, 0.009669660590589046,
                0.0013300365535542369)  # fmt: skip  # [-1/2, 1/2], 1.1e-7
EXP2_UNIT = (1.0, 0.6931471824645996, 0.2402070164680481, 0.05536721646785736, 0.009280398488044739,
             0.0009730869787745178)  # fmt: skip  # [-1, 0], 1.4e-7
EXP2_DOUBLE = (1.0, 0.6931471824645996, 0.24020306766033173, 0.05539253354072571, 0.009419839829206467,
               0.0011633862741291523, 8.020924724405631e-05)  # fmt: skip  # [-2, 0], 4.2e-7
EXP2_TRIPLE = (1.0, 0.6931471824645996, 0.2402098923921585, 0.0554363876581192, 0.00951133668422699,
               0.0012474681716412306, 0.00011561972496565431, 5.594585218204884e-06)  # fmt: skip  # [-3, 0], 4.5e-7
ROUNDER = 12582912.0  # 1.5 * 2^23: adding it leaves the nearest integer in the low bits


def exp2_split(builder: ir.IRBuilder, t: ir.Value, rounded: ir.Value) -> ir.Value:
    """2^t for |t| <= 126, given ``rounded = t + ROUNDER``."""
    whole = builder.fsub(rounded, floats(ROUNDER))
    power = polynomial(builder, builder.fsub(t, whole), [floats(c) for c in EXP2_CENTRED])
    exponent = builder.shl(builder.bitcast(rounded, VI), ints(23))
    return builder.bitcast(builder.add(builder.bitcast(power, VI), exponent), VF)


def exp2_any(builder: ir.IRBuilder, t: ir.Value) -> ir.Value:
    """2^t for any t: at least 2^-126 (no denormals), inf from 128 on, NaN for NaN."""
    low = builder.select(builder.fcmp_ordered("<", t, floats(-126.0)), floats(-126.0), t)
    clamped = builder.select(builder.fcmp_ordered(">", low, floats(127.0)), floats(127.0), low)
    power = exp2_split(builder, clamped, builder.fadd(clamped, floats(ROUNDER)))
    # between 127 and 128 the exponent does not fit: 2^127 * 2^(t - 127), with the same polynomial on [0, 1] in halves
    rest = builder.fsub(low, clamped)
    half = polynomial(builder, builder.fmul(rest, floats(0.5)), [floats(c) for c in EXP2_CENTRED])
    power = builder.fmul(builder.fmul(power, half), half)
    power = builder.select(builder.fcmp_ordered(">=", t, floats(128.0)), floats(float("inf")), power)
    return builder.select(builder.fcmp_unordered("uno", t, t), t, power)


# log1p(u) = u (1 + c1 u + ...) and 1 / (1 + e) = 1 + c1 e + ... on [0, 1], fitted like those above
LOG1P = (1.0, -0.49999648332595825, 0.33321329951286316, -0.24857217073440552, 0.1915384829044342, -0.13754187524318695,
         0.07920882850885391, -0.030068300664424896, 0.005365422461181879)  # fmt: skip  # 3.3e-8
RECIPROCAL = (1.0, -0.9999938607215881, 0.9997476935386658, -0.9963485598564148, 0.973336935043335, -0.8852137923240662,
              0.6814138889312744, -0.39109063148498535, 0.14192304015159607,
              -0.023774737492203712)  # fmt: skip  # 4.8e-8


def _exp_of_negative(builder: ir.IRBuilder, size: ir.Value) -> ir.Value:
    """e^-size for size >= 0; 0 from 87 on, NaN for NaN.

    With t = -size log2 e: the product is exact inside the multiply-adds, so the error does not grow with the size.
    """
    log2e = floats(-1.4426950408889634)
    small = builder.select(builder.fcmp_ordered(">", size, floats(87.0)), floats(87.0), size)
    rounded = muladd(builder, small, log2e, floats(ROUNDER))
    whole = builder.fsub(rounded, floats(ROUNDER))
    rest = muladd(builder, small, log2e, builder.fneg(whole))
    power = polynomial(builder, rest, [floats(c) for c in EXP2_CENTRED])
    scale = builder.add(builder.shl(builder.bitcast(rounded, VI), ints(23)), ints(127 << 23))
    result = builder.fmul(power, builder.bitcast(scale, VF))  # a product, not a sum of bits, keeps NaN
    return builder.select(builder.fcmp_ordered(">", size, floats(87.0)), floats(0.0), result)


# -- intrinsics -------------------------------------------------------------------------------------------------------


def operation(result: Any, *args: Any) -> Callable:
    """Create a numba intrinsic from a function ``emit(builder, *values) -> value`` with the given types."""

    def decorate(emit: Callable) -> Any:
        def typed(context: Any, *given: Any) -> tuple:
            def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: tuple) -> ir.Value:
                value = emit(builder, *values)
                return context.get_dummy_value() if value is None else value

            return result(*args), generate

        # numba inspects names and number of the parameters: expose one per argument
        names = ["context", *(f"a{i}" for i in range(len(args)))]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        signature = inspect.Signature([inspect.Parameter(name, kind) for name in names])
        typed.__signature__ = signature  # type: ignore[attr-defined]
        typed.__name__ = emit.__name__
        return intrinsic(typed)

    return decorate


@operation(lanes, types.float32)
def broadcast(builder, scalar):
    return splat(builder, scalar)


@operation(lanes, lanes, lanes)
def add(builder, a, b):
    return builder.fadd(a, b)


@operation(lanes, lanes, lanes)
def subtract(builder, a, b):
    return builder.fsub(a, b)


@operation(lanes, lanes, lanes)
def multiply(builder, a, b):
    return builder.fmul(a, b)


@operation(lanes, lanes, lanes, lanes)
def multiply_add(builder, a, b, c):
    return muladd(builder, a, b, c)


@operation(lanes, lanes)
def exp2(builder, t):
    return exp2_any(builder, t)


@operation(lanes, lanes)
def exp2_narrow(builder, t):
    """2^t for all |t| <= 126."""
    return exp2_split(builder, t, builder.fadd(t, floats(ROUNDER)))


@operation(lanes, lanes)
def magnitude(builder, a):
    return builder.bitcast(builder.and_(builder.bitcast(a, VI), ints(0x7FFFFFFF)), VF)


@operation(lanes, lanes, lanes)
def larger_bits(builder, a, b):
    """Element-wise maximum of absolute values, compared as bits: NaN is larger than inf."""
    x, y = builder.bitcast(a, VI), builder.bitcast(b, VI)
    return builder.bitcast(builder.select(builder.icmp_signed(">", x, y), x, y), VF)


@operation(lanes, lanes, lanes)
def either_bits(builder, a, b):
    return builder.bitcast(builder.or_(builder.bitcast(a, VI), builder.bitcast(b, VI)), VF)


@operation(types.float32, lanes)
def largest_bits(builder, a):
    """Largest absolute value of the lanes; NaN counts as the largest."""
    value = call(builder, "llvm.vector.reduce.smax.v16i32", I32, builder.bitcast(a, VI))
    return builder.bitcast(value, F32)


@operation(types.boolean, lanes)
def any_negative(builder, a):
    """Whether the sign bit of any lane is set."""
    value = call(builder, "llvm.vector.reduce.or.v16i32", I32, builder.bitcast(a, VI))
    return builder.icmp_signed("<", value, ir.Constant(I32, 0))


@operation(types.float32, lanes)
def lane_sum(builder, a):
    """Sum of all lanes, by recursive halving."""
    for width in (8, 4, 2, 1):
        other = [ir.Constant(I32, (i + width) % LANES) for i in range(LANES)]
        a = builder.fadd(a, builder.shuffle_vector(a, ir.Constant(VF, ir.Undefined), ir.Constant(VI, other)))
    return builder.extract_element(a, ir.Constant(I32, 0))


@operation(lanes, types.int64)
def load32(builder, address):
    return load_at(builder, address)


@operation(types.void, types.int64, lanes)
def store32(builder, address, value):
    store_at(builder, value, address)


@operation(types.float32, types.int64)
def float_at(builder, address):
    return builder.load(pointer(builder, address), align=4, typ=F32)


@operation(types.void, types.int64, types.float32)
def set_float(builder, address, value):
    builder.store(value, pointer(builder, address), align=4)


@operation(types.int64, types.int64)
def int_at(builder, address):
    return builder.sext(builder.load(pointer(builder, address), align=4, typ=I32), I64)


@operation(types.void, types.int64, types.int64)
def set_int(builder, address, value):
    builder.store(builder.trunc(value, I32), pointer(builder, address), align=4)


@operation(types.void, types.int64)
def prefetch(builder, address):
    one = ir.Constant(I32, 1)
    kind = ir.FunctionType(ir.VoidType(), [POINTER, I32, I32, I32])
    name = "llvm.prefetch.p0"
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    builder.call(function, [pointer(builder, address), ir.Constant(I32, 0), ir.Constant(I32, 2), one])


def _mask(builder: ir.IRBuilder, count: ir.Value) -> ir.Value:
    numbers = ir.Constant(VI, [ir.Constant(I32, i) for i in range(LANES)])
    one = builder.insert_element(ir.Constant(VI, ir.Undefined), builder.trunc(count, I32), ir.Constant(I32, 0))
    return builder.icmp_signed("<", numbers, builder.shuffle_vector(one, ir.Constant(VI, ir.Undefined), ints(0)))


def _from_kind(builder: ir.IRBuilder, address: ir.Value, kind: ir.Value, get: Callable) -> ir.Value:
    """Read a row of any element kind as float32; `get(builder, pointer, vector type)` loads it."""
    at = pointer(builder, address)
    single, half, end = (builder.append_basic_block(name) for name in ("single", "half", "end"))
    brain = builder.append_basic_block("brain")
    choose = builder.switch(kind, single)
    choose.add_case(ir.Constant(I64, BFLOAT16), brain)
    choose.add_case(ir.Constant(I64, FLOAT16), half)
    found = []
    builder.position_at_end(single)
    found.append((get(builder, at, VF), builder.block))
    builder.branch(end)
    builder.position_at_end(brain)
    wide = builder.shl(builder.zext(get(builder, at, VS), VI), ints(16))
    found.append((builder.bitcast(wide, VF), builder.block))
    builder.branch(end)
    builder.position_at_end(half)
    found.append((builder.fpext(builder.bitcast(get(builder, at, VS), VH), VF), builder.block))
    builder.branch(end)
    builder.position_at_end(end)
    value = builder.phi(VF)
    for part, block in found:
        value.add_incoming(part, block)
    return value


def _to_kind(builder: ir.IRBuilder, address: ir.Value, kind: ir.Value, value: ir.Value, put: Callable) -> None:
    """Write float32 lanes as elements of any kind; `put(builder, vector, pointer)` stores them."""
    at = pointer(builder, address)
    single, brain, half, end = (builder.append_basic_block(name) for name in ("single", "brain", "half", "end"))
    choose = builder.switch(kind, single)
    choose.add_case(ir.Constant(I64, BFLOAT16), brain)
    choose.add_case(ir.Constant(I64, FLOAT16), half)
    builder.position_at_end(single)
    put(builder, value, at)
    builder.branch(end)
    builder.position_at_end(brain)
    bits = builder.bitcast(value, VI)
    odd = builder.and_(builder.lshr(bits, ints(16)), ints(1))
    rounded = builder.lshr(builder.add(builder.add(bits, odd), ints(0x7FFF)), ints(16))
    nan = builder.or_(builder.lshr(bits, ints(16)), ints(0x40))  # rounding could turn a NaN into inf
    chosen = builder.select(builder.fcmp_unordered("uno", value, value), nan, rounded)
    put(builder, builder.trunc(chosen, VS), at)
    builder.branch(end)
    builder.position_at_end(half)
    put(builder, builder.bitcast(builder.fptrunc(value, VH), VS), at)
    builder.branch(end)
    builder.position_at_end(end)


def _zero(kind: ir.VectorType) -> ir.Constant:
    return ir.Constant(kind, [ir.Constant(kind.element, 0)] * LANES)


@operation(lanes, types.int64, types.int64)
def _load_row(builder, address, kind):
    def get(builder, at, vector):
        return builder.load(at, align=2, typ=vector)

    return _from_kind(builder, address, kind, get)


@operation(lanes, types.int64, types.int64, types.int64)
def _load_part(builder, address, kind, count):
    mask = _mask(builder, count)

    def get(builder, at, vector):
        name = f"llvm.masked.load.v16{'f32' if vector is VF else 'i16'}.p0"
        return call(builder, name, vector, at, ir.Constant(I32, 2), mask, _zero(vector))

    return _from_kind(builder, address, kind, get)


@operation(types.void, types.int64, types.int64, lanes)
def _store_row(builder, address, kind, value):
    def put(builder, vector, at):
        builder.store(vector, at, align=2)

    _to_kind(builder, address, kind, value, put)


@operation(types.void, types.int64, types.int64, types.int64, lanes)
def _store_part(builder, address, kind, count, value):
    mask = _mask(builder, count)

    def put(builder, vector, at):
        name = f"llvm.masked.store.v16{'f32' if vector.type == VF else 'i16'}.p0"
        call(builder, name, ir.VoidType(), vector, at, ir.Constant(I32, 2), mask)

    _to_kind(builder, address, kind, value, put)


@njit
def load(address, kind, count):
    """Load the first `count` (up to 16) elements at `address` as float32 lanes, zero in the others."""
    if count >= 16:
        return _load_row(address, kind)
    return _load_part(address, kind, count)


@operation(lanes, types.int64)
def _load8_row(builder, address):
    return builder.sitofp(builder.sext(builder.load(pointer(builder, address), align=1, typ=V8), VI), VF)


@operation(lanes, types.int64, types.int64)
def _load8_part(builder, address, count):
    mask, at = _mask(builder, count), pointer(builder, address)
    value = call(builder, "llvm.masked.load.v16i8.p0", V8, at, ir.Constant(I32, 1), mask, _zero(V8))
    return builder.sitofp(builder.sext(value, VI), VF)


@njit
def load8(address, count):
    """Load the first `count` (up to 16) 8-bit integers at `address` as float32 lanes, zero in the others."""
    if count >= 16:
        return _load8_row(address)
    return _load8_part(address, count)


@njit
def store(address, kind, count, value):
    """Store the first `count` (up to 16) lanes."""
    if count >= 16:
        _store_row(address, kind, value)
    else:
        _store_part(address, kind, count, value)


@operation(lanes, lanes)
def sigmoid(builder, value):
    """1 / (1 + e^-v), from e = e^-|v| with a polynomial for 1 / (1 + e): a division takes three times as long."""
    e = _exp_of_negative(builder, call(builder, "llvm.fabs.v16f32", VF, value))
    positive = polynomial(builder, e, [floats(c) for c in RECIPROCAL])
    negative = builder.fmul(e, positive)
    return builder.select(builder.fcmp_ordered("<", value, floats(0.0)), negative, positive)


@operation(lanes, lanes)
def softplus(builder, value):
    """log(1 + e^v) as max(v, 0) + log1p(e^-|v|), without branch: above 20 the second term is lost in rounding."""
    u = _exp_of_negative(builder, call(builder, "llvm.fabs.v16f32", VF, value))
    rest = builder.fmul(u, polynomial(builder, u, [floats(c) for c in LOG1P]))
    return builder.fadd(builder.select(builder.fcmp_ordered("<", value, floats(0.0)), floats(0.0), value), rest)
