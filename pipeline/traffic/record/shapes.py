"""Shapes of the features in a record, of either version, as compiled loops rely on them."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.features import Bag, IdPart, NumberPart

__all__ = ["check_shapes"]

_MAX_COLUMNS = 1 << 16


def check_shapes(n: int, parts: Sequence[IdPart | NumberPart], bags: Sequence[Bag]) -> None:
    """Check parts and bags of a record with `n` candidates.

    Raises:
        ValueError: rows, columns or offsets that no request has.
    """
    for part in parts:
        if len(part.values) not in (1, n):
            raise ValueError(f"a part of {len(part.values)} rows beside {n} candidates")
        columns = part.columns.tolist()  # they are few, for which numpy takes longer
        if columns and not (min(columns) >= 0 and max(columns) < _MAX_COLUMNS):
            raise ValueError("a part of columns that no schema has")
    for bag in bags:
        if bag.rows not in (1, n) or bag.column >= _MAX_COLUMNS:
            raise ValueError(f"a bag of {bag.rows} rows and column {bag.column} beside {n} candidates")
        if bag.offsets[0] != 0 or (bag.offsets[1:] < bag.offsets[:-1]).any():
            raise ValueError("offsets of a bag that do not rise from 0")
