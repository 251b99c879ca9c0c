"""Finding the context in dense rows: candidates of one request mostly agree in it, whoever sent it once per candidate.

Rows that agree are taken apart as `Features` wants them, and so cost what a request costs that kept its context once: one
lookup and one first layer of the context, one copy of it in the traffic log. Rows that do not agree stay as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import boolean, int32, int64, types

from pipeline.compiled import njit
from pipeline.features import Bag, Features, IdPart, NumberPart, Rows, sides_of
from pipeline.schema import Schema

__all__ = ["ContextFinder"]

I32 = npt.NDArray[np.int32]


class ContextFinder:
    """Takes the rows of one schema apart.

    Args:
        schema: says which fields are context.
    """

    def __init__(self, schema: Schema) -> None:
        self._ids, self._numbers = sides_of(schema.ids), sides_of(schema.numbers)
        self._bags = {c for c, f in enumerate(schema.bags) if f.role == "context"}
        self._any = bool(len(self._ids[0]) or len(self._numbers[0]) or self._bags)

    def features(self, rows: Rows) -> Features:
        """Dense rows as features, with the context once if it is the same in every row, bit for bit.

        Args:
            rows: one or more.
        """
        n = len(rows)
        if n == 1 or not self._any:
            return Features.from_rows(rows)
        once, each = _room(n, self._ids, np.int64)
        if not take_apart_64(np.require(rows.ids, np.int64, ["C", "A"]), *self._ids, once, each):
            return Features.from_rows(rows)
        number_once, number_each = _room(n, self._numbers, np.int32)
        if number_once.size or number_each.size:
            numbers = np.require(rows.numbers, np.float32, ["C", "A"]).view(np.int32)
            if not take_apart_32(numbers, *self._numbers, number_once, number_each):
                return Features.from_rows(rows)
        bags = []
        for bag in rows.bags:
            if bag.column in self._bags:
                if not _agrees(bag):
                    return Features.from_rows(rows)
                bag = bag.take(np.zeros(1, np.int64))
            bags.append(bag)
        sides = zip(self._ids, (once, each), strict=True)
        number_sides = zip(self._numbers, (number_once, number_each), strict=True)
        return Features(
            n,
            tuple(IdPart(columns, values) for columns, values in sides if len(columns)),
            tuple(NumberPart(columns, values.view(np.float32)) for columns, values in number_sides if len(columns)),
            tuple(bags),
        )


def _room(n: int, sides: tuple[I32, I32], dtype: Any) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    context, candidate = sides
    return np.empty((1, len(context)), dtype), np.empty((n, len(candidate)), dtype)


def _agrees(bag: Bag) -> bool:
    sizes = np.diff(bag.offsets)
    if (sizes != sizes[0]).any():
        return False
    values = bag.values.reshape(bag.rows, int(sizes[0]))
    return bool((values == values[0]).all())


def _take_apart(rows: Any, context: Any, candidate: Any, once: Any, each: Any) -> bool:
    """Copy the context columns of the first row and the candidate columns of all, if all rows agree in the context."""
    for c in range(len(context)):
        once[0, c] = rows[0, context[c]]
    for r in range(1, len(rows)):
        for c in range(len(context)):
            if rows[r, context[c]] != once[0, c]:
                return False
    for r in range(len(rows)):
        for c in range(len(candidate)):
            each[r, c] = rows[r, candidate[c]]
    return True


def _compiled(item: Any) -> Any:
    matrix, columns = types.Array(item, 2, "C", readonly=True), types.Array(int32, 1, "C", readonly=True)
    out = types.Array(item, 2, "C")
    return njit(boolean(matrix, columns, columns, out, out), nogil=True, cache=True)(_take_apart)


take_apart_64, take_apart_32 = _compiled(int64), _compiled(int32)
