"""Input tensors of a model elsewhere, from the features of a request.

Numbers travel as they were sent, ids and the elements of bags as codes or, where the spec says so, as Baton's hashes. It
knows no sockets. Next stop: `pipeline.model.remote`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.arrays import I64, Array
from pipeline.bundle.remote_spec import DTYPES, RemoteInput, RemoteSpec
from pipeline.errors import InvalidInput
from pipeline.features import Bag, Features, IdPart, NumberPart
from pipeline.inputs import DenseInputs, Layout
from pipeline.model.codes import Codes
from pipeline.schema import FieldSpec, Schema

__all__ = ["Encoder", "RemoteInputs", "Tensor"]

_EMPTY = Layout(())
_INTEGERS = {"BOOL": (0, 1)} | {
    f"{'U' if unsigned else ''}INT{bits}": (0, (1 << bits) - 1) if unsigned else (-(1 << bits - 1), (1 << bits - 1) - 1)
    for bits in (8, 16, 32, 64)
    for unsigned in (False, True)
}
"""Least and largest value by datatype."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """Tensor of the Open Inference Protocol with raw contents, little endian; BYTES elements follow their lengths."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    content: bytes


class RemoteInputs(DenseInputs):
    """Values of a request's input tensors by name, `[n, columns]`, or `[1, columns]` where they are per request."""

    __slots__ = ("values",)

    def __init__(self, n: int, values: Mapping[str, Array]) -> None:
        self.layout = _EMPTY
        self.blocks = ()
        self.request = np.zeros(0, np.int64)
        self.n = n
        self.whole, self.start = self, 0
        self.degraded, self.tiers = (), {}
        self.values = values


class Encoder:
    """Maker of input tensors. Several threads may use it at once.

    Args:
        codes: by field, of ids and bags of inputs that do not take hashes.
    """

    def __init__(self, spec: RemoteSpec, schema: Schema, codes: Mapping[str, Codes]) -> None:
        self._spec, self._schema, self._codes = spec, schema, codes
        self._fields = {field.name: field for field in schema.fields}
        self._inputs = [(name, put, self._maker(name, put)) for name, put in spec.inputs.items()]

    def inputs(self, features: Features) -> RemoteInputs:
        """Inputs of a request.

        Raises:
            InvalidInput: a number is missing or not whole where the server takes integers, or context that is sent once
                differs between rows; the error names the field.
        """
        columns = self._columns(features)
        return RemoteInputs(features.n, {name: make(columns, features.n) for name, _, make in self._inputs})

    def tensors(self, parts: Sequence[tuple[RemoteInputs, int, int]]) -> list[Tensor]:
        """Tensors of one call: of each request the rows start..stop."""
        rows = sum(stop - start for _, start, stop in parts)
        made = []
        for name, put, _ in self._inputs:
            if put.per_request:
                values = parts[0][0].values[name]
            else:
                pieces = [inputs.values[name][start:stop] for inputs, start, stop in parts]
                values = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
            content = _texts(values) if put.dtype == "BYTES" else values.tobytes()
            made.append(Tensor(name, put.dtype, put.dimensions(rows), content))
        return made

    def _columns(self, features: Features) -> dict[str, Array | Bag]:
        """By field: its ids or numbers `[r]`, or its bag, r being 1 or n."""
        found: dict[str, Array | Bag] = {}
        parts: list[tuple[Sequence[FieldSpec], IdPart | NumberPart]] = [
            *((self._schema.ids, part) for part in features.ids),
            *((self._schema.numbers, part) for part in features.numbers),
        ]
        for fields, part in parts:
            for place, column in enumerate(part.columns.tolist()):
                found[fields[column].name] = part.values[:, place]
        for bag in features.bags:
            found[self._schema.bags[bag.column].name] = bag
        return found

    def _maker(self, name: str, put: RemoteInput) -> Callable[[Mapping[str, Array | Bag], int], Array]:
        dtype = DTYPES.get(put.dtype, np.dtype(object))
        readers = [self._reader(name, put, self._fields[field]) for field in put.fields]

        def make(columns: Mapping[str, Array | Bag], n: int) -> Array:
            rows = 1 if put.per_request else n
            out: Array = np.empty((rows, put.columns), dtype)
            for place, (field, read) in enumerate(zip(put.fields, readers, strict=True)):
                values = read(columns[field])
                if put.per_request and len(values) > 1:
                    if (values != values[:1]).any():
                        raise InvalidInput(
                            f"field {field!r} differs between the rows of a request, and input {name!r} of the remote "
                            "model takes it once: send such rows as requests of their own",
                            field,
                        )
                    values = values[:1]
                if values.ndim == 2:
                    out[:] = values
                else:
                    out[:, place] = values
            return out

        return make

    def _reader(self, name: str, put: RemoteInput, field: FieldSpec) -> Callable[[Array | Bag], Array]:
        """Reads a field's values `[r]`, or those of a bag `[r, pad_to]`, as numbers, hashes or codes."""
        if field.kind == "number":
            return self._number(name, put, field.name)
        encode: Callable[[I64], Array]
        encode = (lambda ids: ids) if put.hashed else self._codes[field.name].encode

        def ids(column: Array | Bag) -> Array:
            assert isinstance(column, np.ndarray)
            return encode(column)

        def bag(column: Array | Bag) -> Array:
            assert isinstance(column, Bag)
            assert put.pad_to is not None
            return _padded(column, encode(column.values), put.pad_to, put.pad)

        return bag if field.kind == "bag" else ids

    def _number(self, name: str, put: RemoteInput, field: str) -> Callable[[Array | Bag], Array]:
        fill = self._spec.fill.get(field)
        whole = not put.dtype.startswith("FP")
        least, most = _INTEGERS.get(put.dtype, (0, 0))

        def number(column: Array | Bag) -> Array:
            assert isinstance(column, np.ndarray)
            values = column if fill is None else np.where(np.isnan(column), np.float32(fill), column)
            if whole:
                if np.isnan(values).any():
                    raise InvalidInput(
                        f"number {field!r} is missing, and input {name!r} of the remote model is {put.dtype}: send it, or say "
                        "under `fill` in the spec what is sent in its place",
                        field,
                    )
                odd = (values != np.trunc(values)) | (values < least) | (values > most)
                if odd.any():
                    raise InvalidInput(
                        f"number {field!r} is {values[odd][0]:g}, and input {name!r} of the remote model is {put.dtype}",
                        field,
                    )
            return values

        return number


def _padded(bag: Bag, values: Array, width: int, pad: object) -> Array:
    """The last `width` elements of each bag, `[r, width]`, short ones filled up at the end."""
    out: Array = np.full((bag.rows, width), pad.encode() if isinstance(pad, str) else pad, values.dtype)
    stops = bag.offsets[1:].astype(np.int64)
    starts = np.maximum(bag.offsets[:-1], stops - width)
    sizes = stops - starts
    rows = np.repeat(np.arange(bag.rows), sizes)
    within = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    out[rows, within] = values[np.repeat(starts, sizes) + within]
    return out


def _texts(values: Array) -> bytes:
    parts: list[bytes] = []
    for text in values.reshape(-1).tolist():
        parts += (struct.pack("<I", len(text)), text)
    return b"".join(parts)
