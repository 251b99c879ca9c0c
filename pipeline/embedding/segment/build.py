"""Builder of segments: from bundles, in bounded memory, partition by partition, each written once and in order.

    ids of all tables (mapped) -> a batch of partitions (hash, origin) -> pilots -> cells with their rows -> disk

Anonymous memory holds one batch of ids and one partition of cells, whatever the number of rows. Files are written and
not mapped, so that a full disk is an error and not a signal. It knows nothing of folders and versions; next stop:
`pipeline.embedding.segment.generations`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash

from pipeline.arrays import I64, U8, U32, U64
from pipeline.bundle.bundle import Bundle, StoredTable
from pipeline.bundle.row_format import RowFormat, decode_rows
from pipeline.bundle.verified import NOTES
from pipeline.compiled import njit
from pipeline.embedding.memory import copy_bytes, prefetch
from pipeline.embedding.segment.file import (
    BUCKET_KEYS,
    CELLS,
    FILTER,
    LOAD_FACTOR,
    PARTITION_KEYS,
    PILOTS,
    SegmentLayout,
    checksum,
    meta_of,
    write_meta,
)
from pipeline.embedding.segment.key_filter import add_to_filter, empty_filter
from pipeline.embedding.segment.perfect_hash import count_partitions, place_partition, route
from pipeline.embedding.tier import salt_of
from pipeline.errors import BundleError

__all__ = ["build_segment"]


BATCH_IDS = 1 << 21
"""Ids in memory at once, 12 bytes each."""
AHEAD_ROWS = 16
"""Rows whose cache lines are prefetched before they are copied."""


@dataclass(frozen=True, slots=True)
class _Source:
    """One table of one version; its rows have the origins `first` to `last`, numbered over all sources."""

    table: int
    salt: int
    stored: StoredTable
    first: int
    last: int


def _layout(bundles: Sequence[Bundle], width: int) -> SegmentLayout:
    """Layout of the cells for the tables of one width: their dtype, or float32 where they differ."""
    dtypes = {i.dtype for bundle in bundles for i in bundle.manifest.tables.values() if i.width == width}
    dtype: RowFormat = dtypes.pop() if len(dtypes) == 1 else "float32"
    return SegmentLayout(width, dtype, bundles[-1].manifest.linear)


def build_segment(path: Path, bundles: Sequence[Bundle], source: str, width: int) -> None:
    """Write the segment of all tables of one width, later bundles over earlier ones.

    Args:
        path: directory to create; the caller moves it into place, or removes it after an error.
        bundles: one base, or deltas in order; verified here, unless this machine has verified them.
        source: digest of the bundles, for `Segment.open`.

    Raises:
        BundleError: a bundle is damaged, a table breaks its format, or ids of different tables collide.
        OSError: the disk is full or fails.
    """
    layout = _layout(bundles, width)
    notes = path.parent / NOTES  # loading a version has just verified it
    opened = [Bundle.open(b.path, verify=True, notes=notes if notes.is_dir() else None) for b in bundles]
    sources = list(_sources(opened, width))
    rows = sources[-1].last if sources else 0
    if rows >= 1 << 32:
        raise BundleError(f"{path}: {rows} rows are more than one segment holds; split the table over widths")
    path.mkdir()
    filtered = bundles[0].manifest.base is not None
    sizes = _fill(path, sources, layout, _distinct(sources) if len(bundles) > 1 else rows, filtered)
    write_meta(path, meta_of(layout, source, **sizes))


def _sources(bundles: Sequence[Bundle], width: int) -> Iterator[_Source]:
    """Tables, newest version first, so that the first row of a key counts."""
    names = sorted(t for t, info in bundles[-1].manifest.tables.items() if info.width == width)
    first = 0
    for bundle in reversed(bundles):
        for number, name in enumerate(names):
            stored = bundle.stored_table(name)
            yield _Source(number, salt_of(name), stored, first, first + len(stored.ids))
            first += len(stored.ids)


def _distinct(sources: Sequence[_Source]) -> int:
    tables: dict[int, list[I64]] = {}
    for source in sources:
        tables.setdefault(source.table, []).append(source.stored.ids)
    return sum(len(np.unique(np.concatenate(ids))) for ids in tables.values())


def _fill(
    staging: Path, sources: Sequence[_Source], layout: SegmentLayout, keys: int, filtered: bool
) -> dict[str, Any]:
    """Write pilots, cells and filter. Returns their sizes and checksums by the names of `Meta`."""
    partitions = -(-keys // int(LOAD_FACTOR * PARTITION_KEYS))
    # The numbers of keys in partitions differ by a few thousandths, less than there are free cells.
    cells = int(keys / partitions / LOAD_FACTOR) + 1 if keys else 0
    buckets = -(-keys // partitions // BUCKET_KEYS) if keys else 0
    bloom = empty_filter(keys if filtered else 0)
    counts = np.zeros(partitions, np.int64)
    if keys:
        for source in sources:
            count_partitions(source.stored.ids, source.salt, counts)
    pilots_hash = xxhash.xxh3_64()
    blocks: list[str] = []
    placed = 0
    ends = np.array([source.last for source in sources], np.int64)
    tables = np.array([source.table for source in sources], np.int64)
    with open(staging / PILOTS, "wb") as pilots_file, open(staging / CELLS, "wb") as cells_file:
        block = np.zeros((cells, layout.stride), np.uint8)
        taken = np.zeros(cells, np.uint8)
        spare = _any_key(sources)
        for mixed, origins in _routed(sources, counts):
            pilots = np.zeros(buckets, np.uint16)
            places = np.empty(len(mixed), np.int64)
            found = place_partition(mixed, origins, ends, tables, pilots, taken, places)
            if found == -1:
                raise BundleError("ids of different tables collide; ids must be 64-bit hashes of values")
            if found < 0:
                raise BundleError(f"{found} keys do not fit a partition of {cells}; ids must be 64-bit hashes")
            placed += found
            block[:] = 0
            _write_rows(block, sources, origins, places, layout)
            # A free cell gets a key that belongs to another cell, so that no lookup takes it for its own.
            held = places[places >= 0]
            block[taken == 0, :8] = block[held[0], :8] if len(held) else spare
            if len(bloom):
                add_to_filter(bloom, mixed)
            pilots_hash.update(pilots.data)
            pilots_file.write(pilots.data)
            blocks.append(checksum(block))
            cells_file.write(block.data)
        for file in (pilots_file, cells_file):
            _sync_file(file)
    if placed != keys:
        raise BundleError("tables changed while a segment was built from them")
    with open(staging / FILTER, "wb") as file:
        file.write(bloom.data)
        _sync_file(file)
    return {
        "rows": keys,
        "partitions": partitions,
        "buckets": buckets,
        "cells": cells,
        "filter_words": len(bloom),
        "pilots_xxh3": str(pilots_hash.hexdigest()),
        "filter_xxh3": checksum(bloom),
        "blocks_xxh3": tuple(blocks),
    }


def _any_key(sources: Sequence[_Source]) -> U8:
    key = next(
        (source.stored.ids[:1] ^ source.salt for source in sources if len(source.stored.ids)), np.zeros(1, np.int64)
    )
    return key.view(np.uint8)


def _routed(sources: Sequence[_Source], counts: I64) -> Iterator[tuple[U64, U32]]:
    """Hashes and origins of each partition's entries, in the order of their sources."""
    for first, last in _batches(counts):
        bounds = np.concatenate([[0], np.cumsum(counts[first:last])])
        mixed = np.empty(bounds[-1], np.uint64)
        origins = np.empty(bounds[-1], np.uint32)
        starts = bounds[:-1].copy()
        for source in sources:
            route(source.stored.ids, source.salt, len(counts), first, starts, source.first, mixed, origins)
        for part in range(last - first):
            mine = slice(bounds[part], bounds[part + 1])
            yield mixed[mine], origins[mine]


def _batches(counts: I64) -> Iterator[tuple[int, int]]:
    """Ranges of partitions of at most `BATCH_IDS` ids, at least one partition each."""
    first, held = 0, 0
    for part in range(len(counts)):
        if part > first and held + counts[part] > BATCH_IDS:
            yield first, part
            first, held = part, 0
        held += counts[part]
    if first < len(counts):
        yield first, len(counts)


def _write_rows(block: U8, sources: Sequence[_Source], origins: U32, places: I64, layout: SegmentLayout) -> None:
    for source in sources:
        # Entries of a partition are in the order of their sources.
        a, z = np.searchsorted(origins, [source.first, source.last])
        if a == z:
            continue
        picks = origins[a:z].astype(np.int64) - source.first
        stored, mine = source.stored, places[a:z]
        scales = np.zeros(0, np.float32)
        if stored.rows.dtype == layout.dtype:
            rows = stored.rows
            if stored.scales is not None:
                scales = stored.scales
            at = picks
        else:
            some = None if stored.scales is None else stored.scales[picks]
            rows = np.ascontiguousarray(decode_rows(stored.rows[picks], some))
            at = np.arange(len(picks))
        linear = np.zeros(0, np.float32) if stored.linear is None else stored.linear
        raw = rows.view(np.uint8).reshape(len(rows), -1)
        table = (stored.ids, linear, scales, raw)
        copy_rows(block, mine, source.salt, table, picks, at, (layout.weight, layout.scale, layout.row))


@njit(nogil=True, cache=True)
def copy_rows(block: Any, places: Any, salt: Any, table: Any, picks: Any, at: Any, offsets: Any) -> None:
    """Write keys, weights, scales and rows into the cells `places` of a partition.

    Args:
        table: ids, weights, scales and the bytes of rows; the first three by `picks`, the last by `at`.
        offsets: of weight, scale and row in a cell; -1: not there.
    """
    ids, linear, scales, rows = table
    weight, scale, row = offsets
    count, size = len(places), rows.shape[1]
    stride = block.shape[1]
    target, source = block.ctypes.data, rows.ctypes.data
    key = np.empty(1, np.int64)
    for i in range(count):
        if i + AHEAD_ROWS < count:
            prefetch(np.uint64(source + at[i + AHEAD_ROWS] * size))
            prefetch(np.uint64(target + max(0, places[i + AHEAD_ROWS]) * stride))
        if places[i] < 0:
            continue
        cell = target + places[i] * stride
        key[0] = ids[picks[i]] ^ salt
        copy_bytes(cell, key.ctypes.data, 8)
        if weight >= 0 and len(linear):
            copy_bytes(cell + weight, linear.ctypes.data + 4 * picks[i], 4)
        if scale >= 0:
            copy_bytes(cell + scale, scales.ctypes.data + 4 * picks[i], 4)
        copy_bytes(cell + row, source + at[i] * size, size)


def _sync_file(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
