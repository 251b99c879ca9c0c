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
from pipeline.inputs import Columns, DenseInputs, Layout
from pipeline.schema import FieldSpec, Schema

__all__ = ["EmbeddingStore", "LookupCounts"]

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


class LookupCounts(NamedTuple):
    """Ids of one lookup by where their row came from; a context id counts once."""

    overlay: int
    base: int
    default: int


class _Fields(NamedTuple):
    """By field of one kind in one block, int64 `[fields]`: first column of `embeddings` (-1: another width or block),
    column of `linear`, row of the defaults, and the salt of the table."""

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
        place = {f.name: p for p, f in enumerate(schema.embedded)}

        def describe(columns: Columns, fields: Sequence[FieldSpec]) -> _Fields:
            at = np.array([place[f.name] for f in fields], np.int64)
            mine = np.array([f.table_name in names for f in fields], np.bool_)
            return _Fields(
                np.where(mine, columns.offsets[at], -1),
                columns.places[at],
                np.array([names.index(f.table_name) if m else 0 for f, m in zip(fields, mine, strict=True)], np.int64),
                np.array([salt_of(f.table_name) for f in fields], np.int64),
            )

        blocks = (*Layout.full(schema).blocks, *Layout.split(schema).blocks)
        self.ids = {c.prefix: describe(c, schema.ids) for c in blocks}
        self.bags = {c.prefix: describe(c, schema.bags) for c in blocks}


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
        """Fill `embeddings` and `linear` of the blocks of `out`, whose n is that of `features`.

        Unknown ids (and the padding id 0) get their table's default row and weight; bags are means over their elements,
        an empty one zeros. `features` has passed `Features.check`. For a split `out` (a window for one request), context
        parts hold one row and no part mixes roles (`Features.shares_context`).
        """
        counts = np.zeros(3, np.int64)
        if out.n == 0:
            return LookupCounts(0, 0, 0)
        schema = self._schema
        for group in self._groups:
            sources: tuple[Any, ...] = (group.defaults, group.default_weights, *group.arrays)
            for part in features.ids:
                if not len(part.columns):
                    continue
                values = part.values
                if not (values.flags.c_contiguous and values.flags.aligned):
                    values = np.require(values, np.int64, ["C", "A"])
                block = out.block_of(schema.ids[part.columns[0]].role)
                fields = group.ids[block.columns.prefix]
                rest = (*sources, block.embeddings, block.linear, counts)
                gather_ids(values, part.columns, fields.salts, fields.offsets, fields.places, fields.tables, *rest)
            for bag in features.bags:
                b = bag.column
                block = out.block_of(schema.bags[b].role)
                fields = group.bags[block.columns.prefix]
                offset = int(fields.offsets[b])
                if offset >= 0:
                    values = np.require(bag.values, np.int64, ["C", "A"])
                    bounds = np.require(bag.offsets, np.int32, ["C", "A"])
                    rest = (*sources, block.embeddings, block.linear, counts)
                    gather_bag(values, bounds, fields.salts[b], offset, fields.places[b], fields.tables[b], *rest)
        return LookupCounts(int(counts[0]), int(counts[1]), int(counts[2]))
