"""Access to memory by address inside compiled loops: prefetch, unaligned loads, and a copy of bytes.

For tables of maps whose number and formats are known at run time only. Whoever passes an address keeps its array alive.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import float32, int8, int64, types, uint16, uint64
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["copy_bytes", "float_of", "load_f32", "load_i8", "load_i64", "load_u16", "load_u64", "prefetch"]


def _emit_prefetch(typing_context: Any, address: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        declare: Any = cgutils.get_or_insert_function
        pointer = builder.inttoptr(arguments[0], byte)
        builder.call(declare(builder.module, kind, "llvm.prefetch.p0"), [pointer, word(0), word(3), word(1)])
        return context.get_dummy_value()

    return types.void(types.uintp), emit


prefetch: Any = intrinsic(_emit_prefetch)
"""`prefetch(address)` asks the processor for the cache line there."""


def _loads(kind: Any, align: int) -> Any:
    def emit_load(typing_context: Any, address: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            load = builder.load(builder.inttoptr(arguments[0], context.get_value_type(kind).as_pointer()))
            load.align = align
            return load

        return kind(types.uintp), emit

    return intrinsic(emit_load)


# 64-bit words stand at multiples of 4 alone.
load_i64, load_u64, load_f32 = _loads(int64, 4), _loads(uint64, 4), _loads(float32, 4)
load_u16, load_i8 = _loads(uint16, 2), _loads(int8, 1)


def _emit_float_of(typing_context: Any, bits: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return float32(types.uint32), emit


float_of: Any = intrinsic(_emit_float_of)
"""`float_of(bits)`: the float32 of a uint32."""


def _emit_copy(typing_context: Any, target: Any, source: Any, count: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte = ir.IntType(8).as_pointer()
        to, of = (builder.inttoptr(address, byte) for address in arguments[:2])
        copy: Any = cgutils.raw_memcpy
        copy(builder, to, of, arguments[2], 1)
        return context.get_dummy_value()

    return types.void(types.uintp, types.uintp, types.intp), emit


copy_bytes: Any = intrinsic(_emit_copy)
"""`copy_bytes(target, source, count)` between addresses that do not overlap."""
