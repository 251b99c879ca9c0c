"""Tables that a frozen teacher lends: rows of a bundle on disk, read in shards for a student to start from.

Which of a bundle's columns are vectors, and which are codes that mean nothing to another network, is in its manifest:
`hyperparameters.vectors`, by field.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pipeline.arrays import F32
from pipeline.bundle.bundle import Bundle, Table
from pipeline.bundle.row_format import decode_rows
from pipeline.schema import Schema

__all__ = ["LentTables"]


class LentTables:
    """Rows of an imported bundle's tables, without what is no vector.

    Attributes:
        schema: the bundle's.
        names: tables with vectors, sorted.
        linear: False: there are no weights per id.
    """

    linear = False

    def __init__(self, bundle: Bundle) -> None:
        said = bundle.manifest.hyperparameters.get("vectors")
        by_field = said if isinstance(said, dict) else {}
        self._bundle = bundle
        self.schema: Schema = bundle.manifest.model_schema
        self._widths: dict[str, int] = {}
        for field in self.schema.embedded:
            width = by_field.get(field.name)
            if type(width) is int and 0 < width <= (field.width or 0):
                self._widths[field.table_name] = width
        self.names = sorted(self._widths)

    def width_of(self, name: str) -> int:
        """Length of a table's vectors."""
        return self._widths[name]

    def default_of(self, name: str) -> F32:
        """The default row of a table, float32 `[1, d]`."""
        return np.array([self._bundle.manifest.tables[name].default[: self._widths[name]]], np.float32)

    def shards(self, name: str, rows: int) -> Iterator[Table]:
        """A table in shards of at most so many rows; each id counts as seen once."""
        stored, width = self._bundle.stored_table(name), self._widths[name]
        for start in range(0, len(stored.ids), rows):
            part = slice(start, start + rows)
            scales = None if stored.scales is None else stored.scales[part]
            vectors = np.array(decode_rows(stored.rows[part], scales)[:, :width], np.float32)
            ids = np.array(stored.ids[part])
            yield Table(ids, vectors, np.maximum(np.array(stored.counts[part]), 1))
