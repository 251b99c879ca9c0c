"""Segment: file of all rows of one width of one or several versions; mapped, immutable, shared by all processes.

    segment.json    digest of its source, sizes and checksums; written last
    pilots.bin      uint16 [P, B], from which the cell of a key follows (`pipeline.embedding.segment.perfect_hash`)
    cells.bin       P partitions of C cells: key int64, weight float32, scale float32, row
    filter.bin      uint64 [2^k], Bloom filter of the keys; only of deltas, which few lookups need

A cell holds its key beside its row, so an id costs one miss (two lines of 64 bytes for 16 float32 numbers). Weight and
scale exist where the model or the dtype has them, and rows have the bundle's format. A free cell holds a copy of a key
that belongs to another cell, so that any 64-bit key is legal. Memory: at most 1.7 times the raw bytes of rows, scales,
weights and ids, for any width and dtype.

`Segment.open` refuses a torn or damaged segment. Checksums are verified once after each start of the machine
(`pipeline.bundle.verified`). It knows nothing of versions; `build` writes segments, `generations` chooses those that a
version needs, `tier` looks ids up.
"""

from __future__ import annotations

import json
import mmap
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from pipeline.arrays import U8, U16, U64, Array
from pipeline.bundle.row_format import RowFormat
from pipeline.bundle.verified import verify_once
from pipeline.errors import BundleError

__all__ = ["Meta", "Segment", "SegmentLayout"]


MAGIC, FORMAT_VERSION = "baton-segment", 2
META, PILOTS, CELLS, FILTER = "segment.json", "pilots.bin", "cells.bin", "filter.bin"
CHECKED = ".checked"
LOAD_FACTOR = 0.94
PARTITION_KEYS = 1 << 17
BUCKET_KEYS = 3
LINE_BYTES = 64


@dataclass(frozen=True, slots=True)
class SegmentLayout:
    """Byte offsets in a cell; -1: not there. `stride` is the size of a cell."""

    width: int
    dtype: RowFormat
    linear: bool

    @property
    def weight(self) -> int:
        return 8 if self.linear else -1

    @property
    def scale(self) -> int:
        return 8 + 4 * self.linear if self.dtype == "int8" else -1

    @property
    def row(self) -> int:
        return 8 + 4 * self.linear + 4 * (self.dtype == "int8")

    @property
    def row_bytes(self) -> int:
        return self.width * np.dtype(self.dtype).itemsize

    @property
    def stride(self) -> int:
        size = -(-(self.row + self.row_bytes) // 4) * 4
        if size > LINE_BYTES:
            return -(-size // 8) * 8  # touches no more lines than necessary
        whole = next(part for part in (16, 32, 64) if part >= size)
        return whole if whole <= 1.15 * size else size


@dataclass(frozen=True, slots=True)
class Meta:
    """Content of segment.json. `blocks_xxh3` are checksums of each partition's cells, the others of their files."""

    magic: str
    format: int
    source: str
    width: int
    dtype: RowFormat
    linear: bool
    rows: int
    partitions: int
    buckets: int
    cells: int
    filter_words: int
    pilots_xxh3: str
    filter_xxh3: str
    blocks_xxh3: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """Mapped segment, read-only: `pilots` uint16 `[P, B]`, `cells` uint8 `[P C, stride]`, `filter` uint64 `[2^k]` or
    `[0]`."""

    path: Path
    meta: Meta
    layout: SegmentLayout
    pilots: U16
    cells: U8
    filter: U64

    def __len__(self) -> int:
        return self.meta.rows

    @property
    def bytes(self) -> int:
        """Bytes mapped."""
        return self.pilots.nbytes + self.cells.nbytes + self.filter.nbytes

    @classmethod
    def open(cls, path: Path, source: str) -> Segment:
        """Map a segment, and verify its checksums unless this was done since the machine started.

        Raises:
            BundleError: it is torn, damaged or built from another source.
        """
        try:
            meta = Meta(**json.loads((path / META).read_bytes()))
            layout = SegmentLayout(meta.width, meta.dtype, meta.linear)
            shapes: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {
                PILOTS: (np.dtype(np.uint16), (meta.partitions, meta.buckets)),
                CELLS: (np.dtype(np.uint8), (meta.partitions * meta.cells, layout.stride)),
                FILTER: (np.dtype(np.uint64), (meta.filter_words,)),
            }
        except (OSError, ValueError, TypeError) as error:
            raise BundleError(f"{path} is not a segment: {META}: {error}", META) from None
        if (meta.magic, meta.format, meta.source) != (MAGIC, FORMAT_VERSION, source):
            raise BundleError(f"{path} is a segment of another source or format", META)
        arrays = {name: _mapped(path / name, *shape) for name, shape in shapes.items()}
        segment = cls(path, meta, layout, arrays[PILOTS], arrays[CELLS], arrays[FILTER])
        try:
            verify_once(path / CHECKED, (path / name for name in (META, *shapes)), segment.check)
        except OSError as error:
            raise BundleError(f"{path}: {error}", META) from None
        return segment

    def check(self) -> None:
        """Read all files and compare them with the checksums.

        Raises:
            BundleError: naming the damaged file.
        """
        wanted = {PILOTS: self.meta.pilots_xxh3, FILTER: self.meta.filter_xxh3}
        for name, array in ((PILOTS, self.pilots), (FILTER, self.filter)):
            if checksum(array) != wanted[name]:
                raise BundleError(f"{self.path / name} does not match its checksum: it was damaged", name)
        for part, expected in enumerate(self.meta.blocks_xxh3):
            if checksum(self.cells[part * self.meta.cells : (part + 1) * self.meta.cells]) != expected:
                raise BundleError(f"{self.path / CELLS} does not match its checksum: it was damaged", CELLS)


def checksum(array: Array) -> str:
    """xxh3 of an array's bytes."""
    return str(xxhash.xxh3_64_hexdigest(array.reshape(-1).view(np.uint8).data))


def _mapped(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    wanted = int(np.prod(shape)) * dtype.itemsize
    try:
        size = path.stat().st_size
        if size != wanted:
            raise BundleError(f"{path} has {size} bytes instead of {wanted}: it was cut short", path.name)
        if not wanted:
            array = np.zeros(shape, dtype)
            array.flags.writeable = False
            return array
        mapped = np.memmap(path, dtype, "r", shape=shape)
    except OSError as error:
        raise BundleError(f"{path}: {error}", path.name) from None
    with suppress(OSError, ValueError):
        # Pages that left memory are read back in order, and not one by one by the first requests.
        mapped._mmap.madvise(mmap.MADV_WILLNEED)  # type: ignore[attr-defined]
    return np.asarray(mapped)


def meta_of(layout: SegmentLayout, source: str, **sizes: Any) -> Meta:
    """Content of segment.json in this format."""
    return Meta(MAGIC, FORMAT_VERSION, source, layout.width, layout.dtype, layout.linear, **sizes)


def write_meta(path: Path, meta: Meta) -> None:
    """Write segment.json and sync it."""
    with open(path / META, "w") as file:
        json.dump(asdict(meta), file)
        file.flush()
        os.fsync(file.fileno())
