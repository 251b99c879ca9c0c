"""Tensors of the Open Inference Protocol as arrays, from raw or typed contents.

It knows datatypes and shapes, not fields or schemas.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.arrays import Array
from pipeline.errors import InvalidInput

__all__ = ["CONTENTS", "DTYPES", "Tensor", "tensors_of"]

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}

CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input as sent. `values` is flat: an array of the datatype, or a list of bytes for BYTES."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: Array | list[bytes]

    def column(self) -> Array | list[bytes]:
        """The `n` values of a tensor of shape [n] or [n, 1].

        Raises:
            InvalidInput: it has another shape.
        """
        if len(self.shape) == 1 or (len(self.shape) == 2 and self.shape[1] == 1):
            return self.values
        raise InvalidInput(f"input {self.name!r} has shape {list(self.shape)}; [n] or [n, 1] was expected", self.name)

    def matrix(self, datatype: str, columns: int | None) -> Array:
        """The values as `[n, columns]`; any number of columns when None.

        Raises:
            InvalidInput: it has another datatype or shape.
        """
        if self.datatype != datatype:
            raise InvalidInput(f"input {self.name!r} is {self.datatype}; {datatype} was expected", self.name)
        if len(self.shape) != 2 or (columns is not None and self.shape[1] != columns):
            wanted = f"[n, {'L' if columns is None else columns}]"
            raise InvalidInput(f"input {self.name!r} has shape {list(self.shape)}; {wanted} was expected", self.name)
        assert isinstance(self.values, np.ndarray)
        return self.values.reshape(self.shape)


def tensors_of(request: Any, raw: Sequence[bytes], max_rows: int) -> dict[str, Tensor]:
    """Inputs of a ModelInferRequest by name; `raw` are its raw contents, empty if they are typed.

    Raises:
        InvalidInput: an input has an unknown datatype, an impossible shape or contents that do not fit its shape, or is
            sent twice; the error names it.
    """
    if len(raw) and len(raw) != len(request.inputs):
        raise InvalidInput(
            f"raw_input_contents has {len(raw)} entries for {len(request.inputs)} inputs; send one for each input",
            "raw_input_contents",
        )
    found: dict[str, Tensor] = {}
    for position, tensor in enumerate(request.inputs):
        name = tensor.name
        if name in found:
            raise InvalidInput(f"input {name!r} is sent twice", name)
        if "shared_memory_region" in tensor.parameters:
            raise InvalidInput(f"input {name!r} lies in shared memory, which is not supported; send it inline", name)
        if tensor.datatype not in CONTENTS:
            raise InvalidInput(
                f"input {name!r} is of datatype {tensor.datatype!r}; known are {', '.join(CONTENTS)}", name
            )
        shape = tuple(tensor.shape)
        if not shape or min(shape) < 0 or len(shape) > 2:
            raise InvalidInput(f"input {name!r} has shape {list(shape)}; one or two dimensions were expected", name)
        if shape[0] > max_rows:
            raise InvalidInput(
                f"input {name!r} has {shape[0]} rows, more than the {max_rows} of one request; send several requests",
                name,
            )
        if len(raw):
            if tensor.HasField("contents"):
                raise InvalidInput(f"input {name!r} is sent raw and typed; send one of them", name)
            values = _raw(name, tensor.datatype, raw[position])
        else:
            values = _typed(name, tensor.datatype, tensor.contents)
        if len(values) != math.prod(shape):
            raise InvalidInput(
                f"input {name!r} has shape {list(shape)}, which is {math.prod(shape)} values, and holds {len(values)}",
                name,
            )
        found[name] = Tensor(name, tensor.datatype, shape, values)
    return found


def _raw(name: str, datatype: str, content: bytes) -> Array | list[bytes]:
    if datatype == "BYTES":
        return _strings(name, content)
    dtype = DTYPES[datatype]
    if len(content) % dtype.itemsize:
        raise InvalidInput(f"input {name!r}: {len(content)} bytes are no whole number of {datatype} values", name)
    return np.frombuffer(content, dtype)


def _strings(name: str, content: bytes) -> list[bytes]:
    values: list[bytes] = []
    at = 0
    end = len(content)
    while at < end:
        if at + 4 > end:
            raise InvalidInput(f"input {name!r}: the length of element {len(values)} is cut off", name)
        (size,) = struct.unpack_from("<I", content, at)
        at += 4
        if at + size > end:
            raise InvalidInput(f"input {name!r}: element {len(values)} is cut off", name)
        values.append(content[at : at + size])
        at += size
    return values


def _typed(name: str, datatype: str, contents: Any) -> Array | list[bytes]:
    wanted = CONTENTS[datatype]
    for field, _ in contents.ListFields():
        if field.name != wanted:
            raise InvalidInput(f"input {name!r} is {datatype} and is filled as {field.name}; fill {wanted}", name)
    values = getattr(contents, wanted)
    if datatype == "BYTES":
        return list(values)
    try:
        return np.fromiter(values, DTYPES[datatype], len(values))
    except OverflowError:
        raise InvalidInput(f"input {name!r} holds values outside {datatype}", name) from None
