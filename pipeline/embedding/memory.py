"""LLVM instructions as numba intrinsics: memory that threads and processes share, and vector moves of rows.

Each wraps one instruction: prefetch, plain and ordered loads and stores, compare and swap, fences, and moves of a few
numbers at a time between row formats. All take addresses (unsigned, bytes). The fences order both compiler and processor,
so the code does not depend on the memory order of x86.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import float32, int64, types, uint8, uint16, uint32, uint64
from numba.core import cgutils
from numba.extending import intrinsic

from pipeline.compiled import njit

__all__ = [
    "compare_and_swap",
    "copy_bytes",
    "fence_acquire",
    "fence_release",
    "first_bit",
    "load_acquire",
    "load_f32",
    "load_i64",
    "load_u8",
    "load_u16",
    "load_u64",
    "loader",
    "match_keys",
    "mover",
    "prefetch",
    "store_release",
    "store_u8",
    "unpacker",
]

_I8, _I32, _I64, _FLOAT, _HALF = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.HalfType()


def _at(builder: Any, address: Any, kind: Any) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


def _call(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    declare: Any = cgutils.get_or_insert_function
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(declare(builder.module, kind, name), list(arguments))


def _prefetch(typing_context: Any, address: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _at(builder, arguments[0], _I8)
        _call(builder, "llvm.prefetch.p0", ir.VoidType(), pointer, _I32(0), _I32(3), _I32(1))
        return context.get_dummy_value()

    return types.void(types.uintp), emit


def _load_acquire(typing_context: Any, address: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(_at(builder, arguments[0], _I32), "acquire", 4)

    return uint32(types.uintp), emit


def _store_release(typing_context: Any, address: Any, value: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store_atomic(arguments[1], _at(builder, arguments[0], _I32), "release", 4)
        return context.get_dummy_value()

    return types.void(types.uintp, uint32), emit


def _store_u8(typing_context: Any, address: Any, value: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[1], _at(builder, arguments[0], _I8))
        return context.get_dummy_value()

    return types.void(types.uintp, uint8), emit


def _compare_and_swap(typing_context: Any, address: Any, expected: Any, value: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _at(builder, arguments[0], _I32)
        pair = builder.cmpxchg(pointer, arguments[1], arguments[2], "acq_rel", "monotonic")
        return builder.extract_value(pair, 1)

    return types.boolean(types.uintp, uint32, uint32), emit


def _fence(ordering: str) -> Any:
    def fence(typing_context: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            builder.fence(ordering)
            return context.get_dummy_value()

        return types.void(), emit

    return intrinsic(fence)


def _match_keys(typing_context: Any, address: Any, key: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes = ir.VectorType(_I64, 8)
        keys = builder.load(_at(builder, arguments[0], lanes), align=64)
        one = builder.insert_element(ir.Constant(lanes, ir.Undefined), arguments[1], _I32(0))
        every = builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(_I32, 8), [0] * 8))
        return builder.zext(builder.bitcast(builder.icmp_signed("==", keys, every), _I8), _I32)

    return uint32(types.uintp, int64), emit


def _first_bit(typing_context: Any, bits: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        found = _call(builder, "llvm.cttz.i32", _I32, arguments[0], ir.IntType(1)(1))
        return builder.zext(found, _I64)

    return uint64(uint32), emit


prefetch: Any = intrinsic(_prefetch)
"""`prefetch(address)` brings a cache line into the processor's caches."""
load_acquire: Any = intrinsic(_load_acquire)
"""`load_acquire(address) -> uint32`; later reads stay after it."""
store_release: Any = intrinsic(_store_release)
"""`store_release(address, uint32)`; earlier writes stay before it."""
compare_and_swap: Any = intrinsic(_compare_and_swap)
"""`compare_and_swap(address, expected, value) -> bool` on uint32, acquire and release."""
fence_acquire: Any = _fence("acquire")
"""Earlier reads stay before all later accesses."""
fence_release: Any = _fence("release")
"""Earlier accesses stay before all later writes."""
match_keys: Any = intrinsic(_match_keys)
"""`match_keys(address, int64) -> uint32`: bit w is set where word w of the 64-byte line is the key."""
first_bit: Any = intrinsic(_first_bit)
"""`first_bit(uint32) -> uint64`: the lowest set bit; there must be one."""


def loader(kind: Any, align: int) -> Any:
    """Load `load(address)` of a number of a numba type from an address that is a multiple of `align`."""

    def load(typing_context: Any, address: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            value = builder.load(_at(builder, arguments[0], context.get_value_type(kind)))
            value.align = align
            return value

        return kind(types.uintp), emit

    return intrinsic(load)


def _copy_bytes(typing_context: Any, to: Any, source: Any, count: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        copy: Any = cgutils.raw_memcpy
        copy(builder, _at(builder, arguments[0], _I8), _at(builder, arguments[1], _I8), arguments[2], 1)
        return context.get_dummy_value()

    return types.void(types.uintp, types.uintp, types.intp), emit


# 64-bit words of a packed record are aligned to 4 bytes only.
load_i64: Any = loader(int64, 4)
"""`load_i64(address) -> int64`, and so on; the address is a multiple of 4, for `load_u16` of 2."""
load_u64: Any = loader(uint64, 4)
load_f32: Any = loader(float32, 4)
load_u16: Any = loader(uint16, 2)
load_u8: Any = loader(uint8, 1)
store_u8: Any = intrinsic(_store_u8)
"""`store_u8(address, uint8)`."""
copy_bytes: Any = intrinsic(_copy_bytes)
"""`copy_bytes(to, from, count)`; the ranges do not overlap."""


def mover(kind: str, lanes: int, *, pack: bool = False) -> Any:
    """Move of `lanes` numbers between a stored format and float32: `move(to, from, scale)`, of any alignment.

    Args:
        kind: stored format, `float32`, `float16` or `int8`. int8 is multiplied by `scale`, the others ignore it.
        pack: from float32 into `float32` or `float16`, instead of the other way.
    """

    def move(typing_context: Any, to: Any, source: Any, scale: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            stored: Any = {"float32": _FLOAT, "float16": _HALF, "int8": _I8}[kind]
            left, right = (stored, _FLOAT) if pack else (_FLOAT, stored)
            size = {"float32": 4, "float16": 2, "int8": 1}[kind]
            value = builder.load(_at(builder, arguments[1], ir.VectorType(right, lanes)), align=4 if pack else size)
            into: Any = ir.VectorType(left, lanes)
            if kind == "float16":
                value = builder.fptrunc(value, into) if pack else builder.fpext(value, into)
            elif kind == "int8":
                value = builder.sitofp(value, into)
                one = builder.insert_element(ir.Constant(into, ir.Undefined), arguments[2], _I32(0))
                zeros = ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes)
                value = builder.fmul(value, builder.shuffle_vector(one, one, zeros))
            builder.store(value, _at(builder, arguments[0], into), align=size if pack else 4)
            return context.get_dummy_value()

        return types.void(types.uintp, types.uintp, float32), emit

    return intrinsic(move)


def unpacker(kind: str) -> Any:
    """Loop `unpack(to, from, scale, width)` that converts `width` stored numbers to float32, between addresses."""
    sixteen, eight, one = (mover(kind, lanes) for lanes in (16, 8, 1))
    step, out_step = np.uint64({"float32": 4, "float16": 2, "int8": 1}[kind]), np.uint64(4)

    @njit(inline="always", cache=True)
    def unpack(to: Any, source: Any, scale: Any, width: Any) -> None:
        done = np.uint64(0)
        while done + np.uint64(16) <= width:
            sixteen(to + out_step * done, source + step * done, scale)
            done += np.uint64(16)
        if done + np.uint64(8) <= width:
            eight(to + out_step * done, source + step * done, scale)
            done += np.uint64(8)
        while done < width:
            one(to + out_step * done, source + step * done, scale)
            done += np.uint64(1)

    return unpack
