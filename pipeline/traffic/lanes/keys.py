"""Predictions of a routing hash, or of a request key, in one lane: sorted runs beside its index, made after the rows were
written.

A B-tree of hashes would cost a lane twice what all else of a row does, since each hash lies on another page. A run is a
file of the hashes of `RUN_ROWS` consecutive seqs or a multiple, sorted, then their seqs in the same order; eight runs of one
length become one. Both kinds of hashes lie in the same runs, so that predictions without a request id cost nothing there. A
search is a binary search in each of a few dozen files, and a look at the rows that came after them. A run may name rows that
are deleted since, or have the hash as one of the other kind: whoever searches checks each seq against the index.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.arrays import I64
from pipeline.disk import replacing
from pipeline.errors import NotReady
from pipeline.traffic.lanes.index import Index

__all__ = ["RUN_ROWS", "Runs"]

RUN_ROWS = 8192
_MERGED_RUNS = 8
_LONGEST_ROWS = RUN_ROWS * _MERGED_RUNS**2  # 8 MB for each kind of hash; merging takes about four times that in memory
_TRIES_COUNT = 10
_NAME = re.compile(r"(\d{16})-(\d{16})\.keys")


class _Run(NamedTuple):
    """Seqs `first` to `last`, whether their rows still exist or not."""

    first: int
    last: int
    path: Path

    @property
    def span(self) -> int:
        return self.last - self.first + 1


class Runs:
    """Sorted runs of a lane's folder. Only the lane itself extends them. One thread at a time asks for the newest.

    Args:
        run_rows: seqs of the shortest run.
    """

    def __init__(self, folder: Path, run_rows: int = RUN_ROWS) -> None:
        self._folder = folder
        self._run_rows = run_rows
        self._mapped: dict[Path, I64] = {}

    def seqs(self, index: Index, routing_hash: int) -> list[int]:
        """Seqs of the predictions that had this routing hash (signed) when they were written, in order.

        Raises:
            NotReady, OSError: a file cannot be read.
        """
        for _ in range(_TRIES_COUNT):
            chain = self._chain()
            with suppress(FileNotFoundError):  # it became part of a longer one meanwhile
                found = [seq for run in chain for seq in _search(run.path, routing_hash)]
                break
        else:
            raise self._unsteady()
        first, last = (chain[0].first, chain[-1].last) if chain else (1, 0)
        query = "SELECT seq FROM predictions WHERE (seq < ? OR seq > ?) AND routing_hash = ?"
        return sorted({*found, *(seq for (seq,) in index.rows(query, (first, last, routing_hash)))})

    def newest(self, index: Index, request_keys: Sequence[int], count: int) -> tuple[list[int], bool]:
        """Seqs of predictions with one of these request keys (signed), and some that have another; and whether that is all of
        them: of each key the runs give the newest `count` at most. Files stay mapped for the next time.

        Raises:
            NotReady, OSError: a file cannot be read.
        """
        for _ in range(_TRIES_COUNT):
            chain = self._chain()
            self._mapped = {run.path: self._mapped[run.path] for run in chain if run.path in self._mapped}
            with suppress(FileNotFoundError):  # it became part of a longer one meanwhile
                for run in chain:
                    if run.path not in self._mapped:
                        self._mapped[run.path] = _map(run.path)
                break
        else:
            raise self._unsteady()
        first, last = (chain[0].first, chain[-1].last) if chain else (1, 0)
        query = f"SELECT seq FROM predictions WHERE (seq < {first} OR seq > {last}) AND request_key IN ({{}})"
        seqs = [seq for (seq,) in index.rows_in(query, request_keys)]
        keys = np.array(request_keys, np.int64)
        left = np.full(len(keys), count)
        for run in reversed(chain):
            pairs = self._mapped[run.path]
            stops = np.searchsorted(pairs[0], keys, "right")
            starts = np.maximum(np.searchsorted(pairs[0], keys, "left"), stops - left)
            for at in np.flatnonzero(stops > starts).tolist():
                seqs += pairs[1, starts[at] : stops[at]].tolist()
            left -= stops - starts
            if not left.any():
                break
        return seqs, bool(left.all())

    def extend(self, index: Index) -> None:
        """Make runs of the rows that have come since, and remove those of rows that are gone.

        Raises:
            NotReady, OSError: a file cannot be written; the runs that are there are whole.
        """
        chain = self._chain()
        ((oldest, newest),) = index.rows(
            "SELECT (SELECT min(seq) FROM predictions), (SELECT seq FROM sqlite_sequence WHERE name = 'predictions')"
        )
        newest = newest or 0
        while True:
            first = chain[-1].last + 1 if chain else 1
            last = first + self._run_rows - 1
            if last > newest:
                break
            rows = [
                row
                for column in ("routing_hash", "request_key")
                if column == "routing_hash" or index.has_request_keys
                for row in index.rows(
                    f"SELECT {column}, seq FROM predictions WHERE seq BETWEEN ? AND ? AND {column} <> 0", (first, last)
                )
            ]
            chain.append(self._write(first, last, np.array(rows, np.int64).reshape(-1, 2)))
            chain = self._merged(chain)
        gone = newest + 1 if oldest is None else oldest
        kept = [run for run in chain if run.last >= gone] or chain[-1:]  # the last one says where the next begins
        for run in self._all():
            if run not in kept:
                run.path.unlink(missing_ok=True)

    def bytes(self) -> int:
        """Size of the runs."""
        size = 0
        for run in self._chain():
            with suppress(FileNotFoundError):
                size += run.path.stat().st_size
        return size

    def _unsteady(self) -> NotReady:
        return NotReady(f"traffic log {self._folder}: its runs of hashes change all the time; try it again")

    def _all(self) -> list[_Run]:
        found = [_NAME.fullmatch(path.name) for path in self._folder.glob("*.keys")]
        return sorted(_Run(int(m[1]), int(m[2]), self._folder / m[0]) for m in found if m)

    def _chain(self) -> list[_Run]:
        """The longest runs that follow each other; others are parts of them, or follow a gap and are made again."""
        chain: list[_Run] = []
        for run in sorted(self._all(), key=lambda run: (run.first, -run.last)):
            if not chain or run.first == chain[-1].last + 1:
                chain.append(run)
            elif run.first > chain[-1].last:
                break
        return chain

    def _merged(self, chain: list[_Run]) -> list[_Run]:
        while len(chain) >= _MERGED_RUNS:
            last = chain[-_MERGED_RUNS:]
            if len({run.span for run in last}) > 1 or last[0].span * _MERGED_RUNS > _LONGEST_ROWS:
                break
            pairs = np.concatenate([_load(run.path) for run in last])
            chain = [*chain[:-_MERGED_RUNS], self._write(last[0].first, last[-1].last, pairs)]
            for run in last:
                run.path.unlink()
        return chain

    def _write(self, first: int, last: int, pairs: I64) -> _Run:
        """Write a run of (hash, seq) `[n, 2]`."""
        order = np.lexsort((pairs[:, 1], pairs[:, 0]))
        path = self._folder / f"{first:016d}-{last:016d}.keys"
        with replacing(path, durable=True) as staging:
            staging.touch(0o600)
            np.ascontiguousarray(pairs[order].T).tofile(staging)
        return _Run(first, last, path)


def _load(path: Path) -> I64:
    """Pairs (hash, seq) `[n, 2]` of a run."""
    return np.fromfile(path, np.int64).reshape(2, -1).T


def _map(path: Path) -> I64:
    """Hashes and seqs `[2, n]` of a run: mapped, since a search looks at a few pages of it; a run never changes once it has
    its name."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            return np.zeros((2, 0), np.int64)
        return np.frombuffer(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ), np.int64).reshape(2, -1)


def _search(path: Path, routing_hash: int) -> list[int]:
    pairs = _map(path)
    key = np.int64(routing_hash)
    start, stop = np.searchsorted(pairs[0], key, "left"), np.searchsorted(pairs[0], key, "right")
    found: list[int] = pairs[1, start:stop].tolist()
    return found
