"""The embeddings of one model version: what was trained since its base, its base, and default rows, in that order.

A lookup goes from hashed features straight to the network's inputs: find, copy and pool in one compiled pass, context
once per request. It knows nothing of sockets or networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.bundle import Bundle
from pipeline.embedding.gather import gather_bag, gather_ids
from pipeline.embedding.segment import Segment, empty_segment, ensure_segment, salt_of
from pipeline.errors import BundleError
from pipeline.features import Features
from pipeline.network import DenseInputs
from pipeline.schema import Schema

__all__ = ["EmbeddingStore", "LookupCounts"]

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


class LookupCounts(NamedTuple):
    """Ids of one lookup by where their row came from; a context id counts once."""

    overlay: int
    base: int
    default: int


class _Fields(NamedTuple):
    """By field of one kind, int64 `[fields]`: first column of `embeddings` (-1: another width), column of `linear`, row
    of the defaults, and the salt of the table."""

    offsets: I64
    places: I64
    tables: I64
    salts: I64


class _Group:
    """All tables of one width."""

    def __init__(self, schema: Schema, tip: Bundle, base: Segment, overlay: Segment, width: int) -> None:
        names = sorted(t for t, info in tip.manifest.tables.items() if info.width == width)
        infos = [tip.manifest.tables[t] for t in names]
        self.segments = (overlay, base)
        self.arrays = (
            *(overlay.cells, overlay.words, overlay.weights, overlay.rows),
            *(base.cells, base.words, base.weights, base.rows),
        )
        self.defaults: F32 = np.array([i.default for i in infos], np.float32).reshape(len(infos), width)
        self.default_weights: F32 = np.array([i.linear_default or 0.0 for i in infos], np.float32)
        starts = np.concatenate([[0], np.cumsum([f.width or 0 for f in schema.embedded])])
        place = {f.name: p for p, f in enumerate(schema.embedded)}

        def describe(fields: Sequence[str], tables: Sequence[str]) -> _Fields:
            mine = [t in names for t in tables]
            return _Fields(
                np.array([starts[place[f]] if m else -1 for f, m in zip(fields, mine, strict=True)], np.int64),
                np.array([place[f] for f in fields], np.int64),
                np.array([names.index(t) if m else 0 for t, m in zip(tables, mine, strict=True)], np.int64),
                np.array([salt_of(t) for t in tables], np.int64),
            )

        self.ids = describe([f.name for f in schema.ids], [f.table_name for f in schema.ids])
        self.bags = describe([f.name for f in schema.bags], [f.table_name for f in schema.bags])


class EmbeddingStore:
    """Rows of one model version. Immutable, so any number of threads may look up at once."""

    def __init__(self, schema: Schema, groups: Sequence[_Group]) -> None:
        self._schema = schema
        self._groups = tuple(groups)
        self._fields = len(schema.embedded)

    @classmethod
    def open(cls, chain: Sequence[Bundle], segments: Path) -> EmbeddingStore:
        """Map the segments of a version, building those that are not there yet.

        Args:
            chain: base first, then the deltas in order (`Repository.chain`).
            segments: directory of this machine's segments; each bundle name has a folder in it.

        Raises:
            BundleError: a table is damaged, or a delta does not fit its base.
        """
        base, tip = chain[0], chain[-1]
        schema = tip.manifest.model_schema
        for link in chain[:-1]:
            if link.manifest.model_schema != schema or link.manifest.linear != tip.manifest.linear:
                raise BundleError(
                    f"{tip.path}: its schema differs from that of version {link.manifest.version}, which it builds on; "
                    "publish it as a base of its own",
                    "schema",
                )
        folder = segments / tip.manifest.name
        groups = []
        for width in sorted({f.width or 0 for f in schema.embedded}):
            lower = ensure_segment(folder, [base], width)
            upper = ensure_segment(folder, chain[1:], width) if len(chain) > 1 else empty_segment(width)
            groups.append(_Group(schema, tip, lower, upper, width))
        return cls(schema, groups)

    @property
    def bytes(self) -> int:
        """Bytes mapped. Processes of one machine share them."""
        return sum(s.bytes for g in self._groups for s in g.segments)

    @property
    def rows(self) -> int:
        """Rows held, base and overlay together."""
        return sum(len(s) for g in self._groups for s in g.segments)

    @property
    def paths(self) -> list[Path]:
        """Directories of the segments in use."""
        return [s.path for g in self._groups for s in g.segments if s.path is not None]

    def lookup(self, features: Features, out: DenseInputs) -> LookupCounts:
        """Fill `out.embeddings` and `out.linear` for the n rows that `out` shows.

        Unknown ids (and the padding id 0) get their table's default row and weight; bags are means over their elements,
        an empty one zeros. `features` has passed `Features.check`.
        """
        counts = np.zeros(3, np.int64)
        if out.n == 0:
            return LookupCounts(0, 0, 0)
        for group in self._groups:
            sources: tuple[Any, ...] = (group.defaults, group.default_weights, *group.arrays)
            rest = (*sources, out.embeddings, out.linear, counts)
            fields = group.ids
            for part in features.ids:
                values = part.values
                if not (values.flags.c_contiguous and values.flags.aligned):
                    values = np.require(values, np.int64, ["C", "A"])
                gather_ids(values, part.columns, fields.salts, fields.offsets, fields.places, fields.tables, *rest)
            for bag in features.bags:
                b = bag.column
                offset = int(group.bags.offsets[b])
                if offset >= 0:
                    values = np.require(bag.values, np.int64, ["C", "A"])
                    bounds = np.require(bag.offsets, np.int32, ["C", "A"])
                    where = (group.bags.salts[b], offset, group.bags.places[b], group.bags.tables[b])
                    gather_bag(values, bounds, *where, *rest)
        return LookupCounts(int(counts[0]), int(counts[1]), int(counts[2]))
