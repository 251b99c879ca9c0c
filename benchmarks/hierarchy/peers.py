"""Lookups in other stores on the same rows, where these are installed (`pip install 'baton[bench]'`).

fbgemm-gpu-cpu's hash map with `torch.index_select` behind it, as its inference tables do it; LMDB and RocksDB as
key-value stores on disk.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import torch

from benchmarks.hierarchy.stacks import Lookup, Request
from benchmarks.hierarchy.tables import Tables, chunks_of
from pipeline.arrays import F32, Array

__all__ = ["PEERS", "installed"]


LOAD = 0.5
"""Of fbgemm's hash map."""
CHUNK = 50_000


@contextmanager
def _fbgemm(tables: Tables, rows: F32) -> Iterator[Lookup]:
    import fbgemm_gpu  # noqa: F401 - registers the operators

    ops = torch.ops.fbgemm
    cells = int(tables.count / LOAD)
    held, bounds = torch.full((cells, 2), -1, dtype=torch.int64), torch.tensor([0, cells])
    keys = Request.of(tables, np.arange(tables.count)).keys
    offsets = torch.tensor([0, tables.count])
    ops.pruned_hashmap_insert(torch.from_numpy(keys), torch.arange(tables.count), offsets, held, bounds)
    source = torch.from_numpy(rows)

    def lookup(request: Request, out: F32) -> None:
        asked = torch.from_numpy(request.keys)
        index = ops.pruned_hashmap_lookup(asked, torch.tensor([0, len(asked)]), held, bounds)
        torch.index_select(source, 0, index, out=torch.from_numpy(out))

    yield lookup


@contextmanager
def _lmdb(tables: Tables, rows: F32) -> Iterator[Lookup]:
    import lmdb

    folder = tables.folder / "lmdb"
    store = lmdb.open(str(folder), map_size=8 * tables.raw_bytes + (1 << 26), sync=False, lock=False, readahead=False)
    keys = Request.of(tables, np.arange(tables.count)).keys
    order = np.argsort(keys.byteswap().view(np.uint64))  # as bytes compare
    for part in chunks_of(len(order), CHUNK):
        with store.begin(write=True) as transaction, transaction.cursor() as cursor:
            some = order[part]
            cursor.putmulti(list(zip(_bytes(keys[some]), _bytes(rows[some]), strict=True)), append=True)
    try:
        # Pages that are read once do not change, so a transaction for all lookups is fair to it.
        with store.begin() as transaction:

            def lookup(request: Request, out: F32) -> None:
                # One get each is faster than `Cursor.getmulti`, which makes pairs.
                out.reshape(-1)[:] = np.frombuffer(b"".join(map(transaction.get, _bytes(request.keys))), np.float32)

            yield lookup
    finally:
        store.close()


@contextmanager
def _rocksdict(tables: Tables, rows: F32) -> Iterator[Lookup]:
    import rocksdict

    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    store = rocksdict.Rdict(str(tables.folder / "rocksdb"), options)
    keys = Request.of(tables, np.arange(tables.count)).keys
    for part in chunks_of(tables.count, CHUNK):
        batch = rocksdict.WriteBatch(raw_mode=True)
        for key, row in zip(_bytes(keys[part]), _bytes(rows[part]), strict=True):
            batch.put(key, row)
        store.write(batch)
    store.flush()
    store.compact_range(None, None)

    def lookup(request: Request, out: F32) -> None:
        out.reshape(-1)[:] = np.frombuffer(b"".join(store.get(_bytes(request.keys))), np.float32)

    try:
        yield lookup
    finally:
        store.close()


PEERS: dict[str, Callable[[Tables, F32], AbstractContextManager[Lookup]]] = {
    "fbgemm_gpu": _fbgemm,
    "lmdb": _lmdb,
    "rocksdict": _rocksdict,
}
"""Module to what opens it over a table's rows, given those rows in memory as well."""


def installed() -> list[str]:
    """Modules of the installed peers."""
    return [name for name in PEERS if importlib.util.find_spec(name) is not None]


def _bytes(array: Array) -> list[bytes]:
    """Each entry, or each row, as bytes."""
    flat = array.reshape(len(array), -1)
    stored: list[bytes] = flat.view(f"V{flat.itemsize * flat.shape[1]}")[:, 0].tolist()
    return stored
