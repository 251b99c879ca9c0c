"""Row of a record that a caller names by the hash of its candidate id."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.traffic.record.reading import unpack
from pipeline.traffic.record.record import PredictionRecord

__all__ = ["finder", "lazy_finder"]


def finder(record: PredictionRecord) -> Callable[[int], int | None]:
    """Function from a hashed candidate id to its row, None if the record has no such candidate."""
    ids = record.candidate_ids
    rows = {} if ids is None else {candidate: row for row, candidate in enumerate(ids.tolist())}
    return rows.get


def lazy_finder(load: Callable[[], bytes | None]) -> Callable[[int], int | None]:
    """`finder` of a stored record, loaded for the first candidate id only: most clients send indices.

    Args:
        load: the record; None if it was deleted since the prediction was read, which finds no row.
    """
    find: Callable[[int], int | None] | None = None

    def lookup(candidate_id: int) -> int | None:
        nonlocal find
        if find is None:
            blob = load()
            find = (lambda _: None) if blob is None else finder(unpack(blob))
        return find(candidate_id)

    return lookup
