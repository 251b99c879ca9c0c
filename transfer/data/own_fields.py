"""A model's own fields of rows that have more: a teacher reads a log that has its student's new fields, too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from pipeline.errors import InvalidInput
from pipeline.features import Rows
from pipeline.schema import FieldSpec, Schema

__all__ = ["own_fields"]

_ALIKE = ("role", "kind", "separator", "missing", "index", "transform")


def own_fields(log: Schema, model: Schema) -> Callable[[Rows], Rows]:
    """A function from rows with the log's fields to rows with the model's, in its order; the rows themselves where both are the same.

    Args:
        log: fields of the rows.
        model: fields to read, by name.

    Raises:
        InvalidInput: the log lacks fields of the model, or a field means something else there; all of them are named.
    """
    fields = {spec.name: spec for spec in log.fields}
    faults = [
        f"field {spec.name!r}: {fault}" for spec in model.fields if (fault := _difference(fields.get(spec.name), spec))
    ]
    if faults:
        raise InvalidInput(
            f"the log and the model must mean the same by the model's fields: {'; '.join(faults)}", "schema"
        )
    if model.columns == log.columns:
        return lambda rows: rows
    ids, numbers, bags = (
        np.array([[spec.name for spec in there].index(spec.name) for spec in own], np.intp)
        for there, own in ((log.ids, model.ids), (log.numbers, model.numbers), (log.bags, model.bags))
    )

    def read(rows: Rows) -> Rows:
        return Rows(
            np.ascontiguousarray(rows.ids[:, ids]),
            np.ascontiguousarray(rows.numbers[:, numbers]),
            tuple(replace(rows.bags[at], column=column) for column, at in enumerate(bags.tolist())),
        )

    return read


def _difference(there: FieldSpec | None, own: FieldSpec) -> str:
    if there is None:
        return "the log has none; add it to the descriptor"
    different = next((key for key in _ALIKE if getattr(there, key) != getattr(own, key)), None)
    if different is None:
        return ""
    return f"{different} is {getattr(there, different)!r} in the log and {getattr(own, different)!r} in the model"
