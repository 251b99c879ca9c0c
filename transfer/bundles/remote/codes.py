"""Codes in the spec file of a remote arm: which fields need them, what an input can hold, and their files.

Codes of a field are a mapping of value to code, or a number N: then its values are 0 to N-1 and travel as themselves.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from pipeline.arrays import Arrays
from pipeline.bundle.remote_spec import DTYPES, RemoteInput, RemoteSpec
from pipeline.errors import DataError
from pipeline.hashing import EXACT_BELOW, hash_column, hash_value
from pipeline.model.codes import code_arrays
from pipeline.schema import FieldSpec, Schema

__all__ = ["MOST_INTEGER_VALUES", "Code", "Codes", "arrays_of", "code_faults", "needed_codes", "read_csv", "unknown_of"]

Code = int | float | str
Codes = Mapping[str, Code] | int
MOST_INTEGER_VALUES = 20_000_000
NO_CODE, NO_TEXT = -1, ""


def needed_codes(
    inputs: Mapping[str, RemoteInput],
    schema: Schema,
    codes: Mapping[str, Mapping[str, Code]],
    integers: Mapping[str, int],
) -> dict[str, Codes]:
    """Codes by id or bag field that is sent as codes.

    Raises:
        DataError: a field has none, or codes are given for fields that take none.
    """
    kinds = {f.name: f.kind for f in schema.fields}
    needed = {
        field: name
        for name, put in inputs.items()
        if not put.hashed
        for field in put.fields
        if kinds[field] != "number"
    }
    rows = {f.name: f.index.buckets for f in schema.fields if f.index and f.index.buckets <= MOST_INTEGER_VALUES}
    given: dict[str, Codes] = {**rows, **codes, **integers}  # a field with an index is its number
    faults = [
        f"inputs.{name}: {field!r} is {'a bag' if kinds[field] == 'bag' else 'an id'}, which reaches models as a hash: give "
        "its values under codes (or integers), or say hashed: true where the server takes Baton's hashes"
        for field, name in needed.items()
        if field not in given
    ]
    faults += [
        f"{key}: {field!r} is sent by no input as a code"
        for key, named in (("codes", codes), ("integers", integers))
        for field in named
        if field not in needed
    ]
    if faults:
        raise DataError("; ".join(faults), "codes")
    return {field: given[field] for field in needed}


def unknown_of(said: Code | None, codes: Codes) -> Code:
    """Code of values without one: what the file says, or -1, or an empty text."""
    if said is not None:
        return said
    return NO_TEXT if any(isinstance(code, str) for code in _extremes(codes)) else NO_CODE


def code_faults(spec: RemoteSpec, codes: Mapping[str, Codes]) -> Iterator[str]:
    """Codes that the datatype of their input does not hold."""
    for name, put in spec.inputs.items():
        for field in put.fields if not put.hashed else ():
            if field not in codes:
                continue
            values = [*_extremes(codes[field]), spec.unknown[field], *([put.pad] if put.pad_to else [])]
            texts = [isinstance(value, str) for value in values]
            kind = "texts" if all(texts) else "numbers"
            if any(texts) != all(texts):
                yield f"codes.{field}: texts and numbers are mixed (unknown and pad are among them); use one kind"
            elif all(texts) != (put.dtype == "BYTES"):
                yield f"inputs.{name}: {put.dtype} cannot hold the codes of {field!r}, which are {kind}"
            elif not all(texts) and (odd := next((v for v in values if not _fits(v, put.dtype)), None)) is not None:
                yield f"inputs.{name}: {put.dtype} does not hold {odd} exactly, a code of {field!r} (or its unknown or pad)"


def arrays_of(field: FieldSpec, codes: Codes) -> Arrays:
    """Arrays of a field's file. The id of a whole number is that of a field with an index, too, whose number it is."""
    if not isinstance(codes, int):
        missing, index = field.missing_texts, field.index
        return code_arrays({hash_value(field.name, value, missing, index): code for value, code in codes.items()})
    ids = hash_column(field.name, np.arange(codes), field.missing_texts)
    order = np.argsort(ids)
    return {"ids": ids[order], "codes": order.astype(np.int64)}


def read_csv(path: Path) -> dict[str, Code]:
    """Codes of a CSV file: columns value and code, or value alone, which then travels as itself.

    Raises:
        DataError: it cannot be read, or has no column value.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = csv.DictReader(file)
            names = lines.fieldnames or ()
            if "value" not in names:
                raise DataError(f"{path}: a header with the columns value and code was expected", "codes")
            column = "code" if "code" in names else "value"
            texts = {line["value"]: line[column] for line in lines}
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}", "codes") from None
    for kind in (int, float):
        try:
            return {value: kind(text) for value, text in texts.items()}
        except ValueError:
            continue
    return dict(texts)


def _extremes(codes: Codes) -> list[Code]:
    """All codes, or of whole numbers up to N the last one."""
    return [codes - 1] if isinstance(codes, int) else list(codes.values())


def _fits(value: Code, dtype: str) -> bool:
    assert not isinstance(value, str)
    kind = DTYPES[dtype]
    if kind.kind == "f":
        return not float(value).is_integer() or abs(value) <= EXACT_BELOW[8 * kind.itemsize]
    bits = 1 if kind.kind == "b" else 8 * kind.itemsize
    signed = kind.kind == "i"
    return value == int(value) and -(1 << bits - 1 if signed else 0) <= value < 1 << (bits - 1 if signed else bits)
