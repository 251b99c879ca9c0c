"""A segment: all rows of one width of a bundle, mapped from disk, immutable, shared by every process of a machine.

    segment.json    what it was built from, sizes and checksums; written last
    cells.bin       linear-probe cells, 16 bytes each: key, slot, linear weight
    rows.bin        float32 [V, d]

Built of verified bundles beside its place and renamed into it, once per source, under a file lock. A directory that is
torn, cut or of another source is refused by `Segment.open` and built anew by `ensure_segment`. Memory: 4 d bytes a row
and 16 bytes a cell at 0.4 to 0.85 cells in use, so that rows and index stay below 1.7 times the raw bytes of rows,
weights and ids.

An id may stand in several tables, so its key is the id xor-ed with a salt of its table's name. It knows nothing of
requests; `pipeline.embedding.store` reads it, `pipeline.embedding.gather` holds the loops.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from pipeline.bundle import MANIFEST, Bundle
from pipeline.embedding.gather import place
from pipeline.embedding.keys import salt_of
from pipeline.errors import BundleError

__all__ = ["Segment", "empty_segment", "ensure_segment", "salt_of", "sweep"]

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
U32 = npt.NDArray[np.uint32]

MAGIC = "baton-segment"
FORMAT = 1
META, CELLS, ROWS = "segment.json", "cells.bin", "rows.bin"
CELL_BYTES = 16


@dataclass(frozen=True, slots=True)
class Meta:
    """segment.json."""

    magic: str
    format: int
    source: str
    width: int
    rows: int
    cells: int
    cells_xxh3: str
    rows_xxh3: str


@dataclass(frozen=True, slots=True)
class Segment:
    """A mapped segment. `cells` int64 `[C, 2]`, `words` and `weights` the same memory as 32-bit words `[C, 4]`, `rows`
    float32 `[V, d]`; all read-only."""

    path: Path | None
    cells: I64
    words: U32
    weights: F32
    rows: F32

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def bytes(self) -> int:
        """Bytes mapped: cells and rows."""
        return self.cells.nbytes + self.rows.nbytes

    @classmethod
    def open(cls, path: Path, source: str, width: int) -> Segment:
        """Map a segment and hold it against its checksums (reads it once, which also warms the page cache).

        Raises:
            BundleError: it is torn, damaged or built from something else.
        """
        try:
            meta = Meta(**json.loads((path / META).read_bytes()))
        except (OSError, ValueError, TypeError) as error:
            raise BundleError(f"{path} is not a segment: {META}: {error}", META) from None
        if (meta.magic, meta.format, meta.source, meta.width) != (MAGIC, FORMAT, source, width):
            raise BundleError(f"{path} is a segment of another source, width or format", META)
        cells = _mapped(path / CELLS, np.dtype(np.int64), (meta.cells, 2), meta.cells_xxh3)
        rows = _mapped(path / ROWS, np.dtype(np.float32), (meta.rows, width), meta.rows_xxh3)
        return cls(path, cells, cells.view(np.uint32), cells.view(np.float32), rows)


def empty_segment(width: int) -> Segment:
    """A segment without rows, for a version without deltas."""
    cells = np.zeros((0, 2), np.int64)
    rows = np.zeros((0, width), np.float32)
    for array in (cells, rows):
        array.flags.writeable = False
    words = np.zeros((0, 4), np.uint32)
    return Segment(None, cells, words, words.view(np.float32), rows)


def ensure_segment(folder: Path, bundles: Sequence[Bundle], width: int) -> Segment:
    """The segment of all tables of one width, later bundles over earlier ones; built where it is not there yet.

    Several processes may call it at once: one builds, the others wait for it and map the same pages.

    Args:
        folder: where segments of this bundle's name live.
        bundles: one base, or the deltas of a version, oldest first.
        width: d.

    Raises:
        BundleError: a bundle that it must be built from is damaged, or a table breaks its format.
    """
    source = _source(bundles)
    tip = bundles[-1].manifest
    kind = "base" if tip.base is None else "overlay"
    path = folder / f"{tip.version}.{kind}.{width}.{source[:16]}"
    try:
        return Segment.open(path, source, width)
    except BundleError:
        pass
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / f".{path.name}.lock"):
        try:
            return Segment.open(path, source, width)  # another process was first
        except BundleError:
            _build(path, bundles, source, width)
    return Segment.open(path, source, width)


def sweep(folder: Path, keep: Sequence[Path]) -> int:
    """Remove the segments of a folder that are not in `keep`; the number removed. Processes that map one keep it."""
    removed = 0
    for path in folder.iterdir() if folder.is_dir() else ():
        if not path.name.startswith(".") and path.is_dir() and path not in keep:
            shutil.rmtree(path, ignore_errors=True)
            removed += 1
    return removed


def _build(path: Path, bundles: Sequence[Bundle], source: str, width: int) -> None:
    bundles = [Bundle.open(bundle.path, verify=True) for bundle in bundles]
    names = [t for t, info in bundles[-1].manifest.tables.items() if info.width == width]
    count = _distinct(bundles, names)
    weighted = bundles[-1].manifest.linear
    # The index may take what the budget of 1.7 x raw leaves, and never needs to be emptier than 0.4.
    raw = 8 + 4 * width + 4 * weighted
    load = min(0.85, max(0.4, CELL_BYTES / max(1.0, 1.65 * raw - 4 * width)))
    cells = max(16, int(count / load) + 1)
    if cells >= 1 << 32:
        raise BundleError(f"{path}: {count} rows are more than one segment holds; split the table over widths")
    staging = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    staging.mkdir()
    try:
        _fill(staging, bundles, names, width, count, cells)
        meta = Meta(MAGIC, FORMAT, source, width, count, cells, _checksum(staging / CELLS), _checksum(staging / ROWS))
        with open(staging / META, "w") as file:
            json.dump(asdict(meta), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            os.rename(path, path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.damaged"))
        os.rename(staging, path)
        _sync_folder(path.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        for damaged in path.parent.glob(f".{path.name}.*.damaged"):
            shutil.rmtree(damaged, ignore_errors=True)


def _fill(staging: Path, bundles: Sequence[Bundle], names: list[str], width: int, count: int, size: int) -> None:
    """Write cells and rows, one table in memory at a time."""
    cells = np.memmap(staging / CELLS, np.int64, "w+", shape=(size, 2))
    plain = np.asarray(cells)
    words, weights = plain.view(np.uint32), plain.view(np.float32)
    rows: npt.NDArray[np.float32] = np.zeros((0, width), np.float32)
    if count:
        rows = np.memmap(staging / ROWS, np.float32, "w+", shape=(count, width))
    else:
        (staging / ROWS).touch()
    used = 0
    for name in names:
        for bundle in bundles:
            table = bundle.table(name)
            slots = np.empty(len(table.ids), np.int64)
            linear = np.zeros(0, np.float32) if table.linear is None else np.ascontiguousarray(table.linear)
            used = int(
                place(np.ascontiguousarray(table.ids), salt_of(name), linear, plain, words, weights, used, slots)
            )
            rows[slots] = table.rows
    if used != count:
        raise BundleError(f"{bundles[-1].path}: ids of different tables collide; ids must be 64-bit hashes of values")
    for array in (cells, rows):
        if isinstance(array, np.memmap):
            array.flush()


def _distinct(bundles: Sequence[Bundle], names: list[str]) -> int:
    if len(bundles) == 1:
        return sum(len(bundles[0].table(name).ids) for name in names)
    return sum(len(np.unique(np.concatenate([b.table(name).ids for b in bundles]))) for name in names)


def _source(bundles: Sequence[Bundle]) -> str:
    digest = hashlib.sha256()
    for bundle in bundles:
        digest.update(hashlib.sha256((bundle.path / MANIFEST).read_bytes()).digest())
    return digest.hexdigest()


def _mapped(path: Path, dtype: np.dtype[Any], shape: tuple[int, int], checksum: str) -> npt.NDArray[Any]:
    wanted = shape[0] * shape[1] * dtype.itemsize
    try:
        size = path.stat().st_size
    except OSError as error:
        raise BundleError(f"{path}: {error}", path.name) from None
    if size != wanted:
        raise BundleError(f"{path} has {size} bytes instead of {wanted}: it was cut short", path.name)
    if not wanted:
        array = np.zeros(shape, dtype)
        array.flags.writeable = False
        return array
    mapped = np.asarray(np.memmap(path, dtype, "r", shape=shape))
    if xxhash.xxh3_64_hexdigest(mapped.data) != checksum:
        raise BundleError(f"{path} does not match its checksum: it was damaged", path.name)
    return mapped


def _checksum(path: Path) -> str:
    hasher = xxhash.xxh3_64()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            hasher.update(chunk)
    return str(hasher.hexdigest())


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
