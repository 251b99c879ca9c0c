"""Embedding store of one model version: its tiers in order, and a default row for ids that no tier holds.

A lookup makes keys of all ids, of the context once, and passes them down the tiers under one deadline. Then rows found in
lower tiers are offered to the tiers above, defaults are filled in and bags pooled. A tier that is late or down makes the
answer degraded, never an error. It knows nothing of sockets or networks. Next stop:
`pipeline.embedding.hierarchy.hierarchy` for the tiers, `pipeline.embedding.hierarchy.lookup` for the loops.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.arrays import F32, I64, U8, Mask
from pipeline.bundle.bundle import Bundle, Manifest
from pipeline.embedding.hierarchy.hierarchy import Hierarchy, generation_of
from pipeline.embedding.hierarchy.lookup import (
    OFFSET,
    PLACE,
    SALT,
    TABLE,
    pool_bag,
    settle_bag,
    settle_ids,
    want_bag,
    want_ids,
)
from pipeline.embedding.hierarchy.tally import StoreCounts, Tallied
from pipeline.embedding.tier import DEFAULT_STATUS, STALE_STATUS, Generation, Group, Tier, Wanted, is_open, salt_of
from pipeline.errors import BundleError, NotFound
from pipeline.features import Bag, Features, IdPart
from pipeline.inputs import LACKS_ROWS, Block, Columns, DenseInputs, Layout
from pipeline.schema import FieldSpec, Schema

__all__ = ["EmbeddingStore", "TableRows"]


class _Group:
    """Tables of one width: their default rows, and by block where their fields are in the network's inputs (`OFFSET`)."""

    def __init__(self, index: int, group: Group, manifest: Manifest, tables: Sequence[str]) -> None:
        schema = manifest.model_schema
        names = group.tables
        infos = [manifest.tables[t] for t in names]
        self.index, self.width = index, group.width
        self.first = tables.index(names[0])
        rows: F32 = np.array([i.default for i in infos], np.float32).reshape(len(infos), group.width)
        weights: F32 = np.array([i.linear_default or 0.0 for i in infos], np.float32)
        self.defaults = (rows, weights)
        self.counted = slice(self.first, self.first + len(infos))  # rows of the counts
        place = {f.name: p for p, f in enumerate(schema.embedded)}

        def describe(columns: Columns, fields: Sequence[FieldSpec]) -> I64:
            at = np.array([place[f.name] for f in fields], np.int64)
            mine = np.array([f.table_name in names for f in fields], np.bool_)
            described = np.empty((4, len(fields)), np.int64)
            described[OFFSET] = np.where(mine, columns.offsets[at], -1)
            described[PLACE] = columns.places[at]
            described[TABLE] = [names.index(f.table_name) if m else 0 for f, m in zip(fields, mine, strict=True)]
            described[SALT] = [salt_of(f.table_name) for f in fields]
            return described

        blocks = (*Layout.full(schema).blocks, *Layout.split(schema).blocks)
        self.ids = {c.prefix: describe(c, schema.ids) for c in blocks}
        self.bags = {c.prefix: describe(c, schema.bags) for c in blocks}


class _Part(NamedTuple):
    """One `Wanted` of a lookup, and its source."""

    wanted: Wanted
    group: _Group
    block: Block
    fields: I64
    source: IdPart | Bag


class _Room(threading.local):
    """Scratch memory of one thread: keys, places and marks, and its counts."""

    def __init__(self, counts: StoreCounts) -> None:
        self.counts = counts.array()
        self._ints, self._marks, self._floats = np.empty(0, np.int64), np.empty(0, np.uint8), np.empty(0, np.float32)

    def take(self, ids: int, floats: int) -> tuple[I64, U8, F32]:
        """Memory for a number of ids (keys, places, places of weights: int64 `[3 ids]`; marks) and of floats for bags."""
        if 3 * ids > len(self._ints):
            self._ints, self._marks = np.empty(4 * ids, np.int64), np.empty(2 * ids, np.uint8)
        if floats > len(self._floats):
            self._floats = np.empty(2 * floats, np.float32)
        return self._ints, self._marks, self._floats


@dataclass(frozen=True, slots=True)
class TableRows:
    """Rows of ids of one table: `rows` float32 `[n, d]`, `weights` float32 `[n]` or empty, `tiers` the name of the tier by
    id, or `default`, and `stale` bool `[n]`."""

    rows: F32
    weights: F32
    tiers: tuple[str, ...]
    stale: Mask


class EmbeddingStore:
    """Rows of one model version; any number of threads may look up at once.

    Args:
        tiers: from the top. generation: that they were opened for.
    """

    def __init__(self, manifest: Manifest, tiers: Sequence[Tier], generation: Generation, hierarchy: Hierarchy) -> None:
        self._schema: Schema = manifest.model_schema
        self._linear = manifest.linear
        self.tiers = tuple(tiers)
        self._marked = tuple(enumerate(self.tiers, 1))
        self._clock, self._budget = hierarchy.clock, hierarchy.budget
        tables = [name for group in generation.groups for name in group.tables]
        self._tables = tables
        self._groups = tuple(_Group(g, group, manifest, tables) for g, group in enumerate(generation.groups))
        self._counts = StoreCounts(manifest.name, tables, [tier.name for tier in self.tiers])
        self._room = _Room(self._counts)
        hierarchy.tally.watch(self, self._counts)

    @classmethod
    def open(cls, chain: Sequence[Bundle], segments: Path, hierarchy: Hierarchy | None = None) -> EmbeddingStore:
        """Open the tiers of a version; segments that do not exist yet are built.

        Args:
            chain: base first, then the deltas in order (`Repository.chain`).
            segments: directory of this machine's segments; each bundle name has a folder in it.
            hierarchy: the process's tiers; None: local segments only.

        Raises:
            BundleError: a table is damaged, or a delta does not fit its base.
            NotReady: a segment cannot be built now.
        """
        tip = chain[-1]
        manifest = tip.manifest
        for link in chain[:-1]:
            if link.manifest.model_schema != manifest.model_schema or link.manifest.linear != manifest.linear:
                raise BundleError(
                    f"{tip.path}: its schema differs from that of version {link.manifest.version}, which it builds on; "
                    "publish it as a base of its own",
                    "schema",
                )
        hierarchy = hierarchy or Hierarchy()
        generation = generation_of(chain)
        tiers = hierarchy.open(chain, generation, segments / manifest.name)
        return cls(manifest, tiers, generation, hierarchy)

    @property
    def bytes(self) -> int:
        """Bytes that the tiers hold on this machine. Processes share mapped segments, versions a device cache."""
        return sum(int(tier.describe().get("bytes", 0)) for tier in self.tiers)

    def describe(self) -> list[Mapping[str, float | str]]:
        """Figures of each tier (`Tier.describe`), from the top, with its name as `tier`."""
        return [{"tier": tier.name, **tier.describe()} for tier in self.tiers]

    def counts(self) -> Counter[Tallied]:
        """Ids looked up here, by table, tier and case."""
        return self._counts.read()

    def close(self) -> None:
        """Close the tiers, after the last lookup."""
        for tier in self.tiers:
            tier.close()

    def lookup(self, features: Features, out: DenseInputs) -> list[str]:
        """Fill `embeddings` and `linear` of the blocks of `out`, whose n is that of `features`.

        Unknown ids (and the padding id 0) get their table's default row and weight; bags are means over their elements,
        an empty one zeros. `features` has passed `Features.check`. For a split `out` (a window for one request), context
        parts hold one row and no part mixes roles (`Features.shares_context`).

        Returns:
            Reasons why rows are missing or stale, such as `embedding: redis late`; normally empty.
        """
        if out.n == 0:
            return []
        parts = self._wanted(features, out)
        out.tiers = {}
        degraded = self._find([part.wanted for part in parts], lambda p: _tables_of(parts[p]), out.tiers)
        counts = self._room.counts
        for wanted, group, block, fields, source in parts:
            mine = counts[group.counted]
            if isinstance(source, IdPart):
                settle_ids(
                    *(len(source.values), source.columns, fields, group.defaults),
                    *(block.embeddings, block.linear, wanted.found, mine),
                )
            else:
                offset, place, table, _ = fields[:, source.column].tolist()
                rows, weights = group.defaults
                settle_bag(table, rows[table], weights[table], wanted.rows, wanted.linear, wanted.found, mine)
                bounds = np.require(source.offsets, np.int32, ["C", "A"])
                pooled = (block.embeddings, block.linear)
                pool_bag(bounds, group.width, offset, place, wanted.rows, wanted.linear, *pooled)
        return degraded

    def rows(self, table: str, ids: I64) -> TableRows:
        """Rows of ids of one table, and their tiers; for tools and tests.

        Raises:
            NotFound: there is no such table.
        """
        group = next((g for g in self._groups if table in self._names(g)), None)
        if group is None:
            raise NotFound(f"there is no table {table!r}; the tables are {self._tables}")
        t, n = self._names(group).index(table), len(ids)
        flat, weights = np.empty(n * group.width, np.float32), np.empty(n if self._linear else 0, np.float32)
        keys, at, linear_at = np.empty((3, n), np.int64)
        found = np.empty(n, np.uint8)
        want_bag(np.require(ids, np.int64, ["C", "A"]), salt_of(table), group.width, keys, at, linear_at, found)
        wanted = Wanted(group.index, group.width, keys, at, flat, linear_at, weights, found)
        self._find([wanted], lambda _: np.full(n, group.first + t), {})
        default_rows, default_weights = group.defaults
        mine = self._room.counts[group.counted]
        settle_bag(t, default_rows[t], default_weights[t], flat, weights, found, mine)
        names = [tier.name for tier in self.tiers]
        tiers = tuple("default" if f == DEFAULT_STATUS else names[(f & ~STALE_STATUS) - 1] for f in found.tolist())
        return TableRows(flat.reshape(n, -1), weights, tiers, found >= STALE_STATUS)

    def _find(self, wanted: Sequence[Wanted], tables: Callable[[int], I64], spent: dict[str, float]) -> list[str]:
        """Pass ids down the tiers, and found rows up again. `tables`: rows of the counts by id of one `Wanted`, called only
        after a fault. `spent`: gets the seconds by tier, where there are several."""
        degraded: list[str] = []
        now = self._clock.monotonic()
        deadline = now + self._budget
        timed = len(self._marked) > 1
        for mark, tier in self._marked:
            fault = tier.find(wanted, mark, deadline)
            if timed:
                began, now = now, self._clock.monotonic()
                spent[tier.name] = spent.get(tier.name, 0.0) + now - began
            if fault is not None:
                missed = np.zeros(len(self._tables), np.int64)
                for w, want in enumerate(wanted):
                    missed += np.bincount(tables(w)[is_open(want.found)], minlength=len(missed))
                self._counts.fault(mark, fault, missed)
                degraded.append(f"{LACKS_ROWS}{tier.name} {fault}")
        for mark, tier in self._marked[-2::-1]:
            tier.offer(wanted, mark)
        return degraded

    def _wanted(self, features: Features, out: DenseInputs) -> list[_Part]:
        """The lookup of a request: a `Wanted` per width group and part."""
        schema = self._schema
        tasks: list[tuple[_Group, Block, I64, IdPart | Bag, int]] = []
        floats = 0
        for group in self._groups:
            for part in features.ids:
                if len(part.columns):
                    block = out.block_of(schema.ids[part.columns[0]].role)
                    tasks.append((group, block, group.ids[block.columns.prefix], part, part.values.size))
            for bag in features.bags:
                block = out.block_of(schema.bags[bag.column].role)
                fields = group.bags[block.columns.prefix]
                if fields[OFFSET, bag.column] >= 0:
                    tasks.append((group, block, fields, bag, len(bag.values)))
                    floats += len(bag.values) * (group.width + self._linear)
        ints, marks, scratch = self._room.take(sum(task[-1] for task in tasks), floats)
        parts: list[_Part] = []
        used, drawn = 0, 0
        for group, block, fields, source, size in tasks:
            where = ints[3 * used : 3 * (used + size)].reshape(3, size)
            keys, at, linear_at = where
            found = marks[used : used + size]
            used += size
            values = np.require(source.values, np.int64, ["C", "A"])
            if isinstance(source, IdPart):
                width, places, _ = block.columns.widths
                count = want_ids(values, source.columns, fields, width, places, where, found)
                keys, at, linear_at, found = keys[:count], at[:count], linear_at[:count], found[:count]
                rows, linear = block.embeddings.reshape(-1), block.linear.reshape(-1)
            else:
                want_bag(values, fields[SALT, source.column], group.width, keys, at, linear_at, found)
                end = drawn + size * group.width
                rows, linear = scratch[drawn:end], scratch[end : end + size * self._linear]
                drawn = end + len(linear)
            wanted = Wanted(group.index, group.width, keys, at, rows, linear_at, linear, found)
            parts.append(_Part(wanted, group, block, fields, source))
        return parts

    def _names(self, group: _Group) -> list[str]:
        return self._tables[group.counted]


def _tables_of(part: _Part) -> I64:
    """Rows of the counts, by id of a part."""
    fields, source, size = part.fields, part.source, len(part.wanted.keys)
    if isinstance(source, Bag):
        return np.full(size, part.group.first + fields[TABLE, source.column])
    columns = source.columns[fields[OFFSET, source.columns] >= 0]
    return np.tile(part.group.first + fields[TABLE, columns], len(source.values))
